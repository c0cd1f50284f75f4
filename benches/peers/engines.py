"""The peers: from a job to a function that runs the model once. Used inside a worker process."""

import os
import time
from dataclasses import dataclass
from pathlib import Path

import checkpoint
import export

TRIALS = 7


@dataclass(frozen=True)
class Job:
    """What a worker is started for: one engine on one case."""

    engine: str
    model: Path
    exports: Path
    cache: Path
    threads: int
    tensors: dict


def onnx_forms(engine):
    """The ONNX forms an engine needs; several: it runs the one that is faster on the case."""
    return {
        "onnxruntime": ("plain", "fused"),
        "onnxruntime-int8": ("script-int8", "fused-int8"),
        "openvino": ("plain",),
    }.get(engine, ())


def build(job):
    """A function from nothing to the logits as an array, and a note on how it was configured."""
    if job.engine.startswith("onnxruntime"):
        return build_onnxruntime(job)
    if job.engine == "openvino":
        return build_openvino(job)
    return build_torch(job)


def build_onnxruntime(job):
    """The fastest of the engine's forms on this case, by the minimum over interleaved trials."""
    forms = onnx_forms(job.engine)
    sessions = {form: onnx_session(export.path_of(job.exports, form), job) for form in forms}
    best = dict.fromkeys(forms, float("inf"))
    for _ in range(TRIALS):
        for form, run in sessions.items():
            run()
            start = time.perf_counter()
            run()
            best[form] = min(best[form], time.perf_counter() - start)
    chosen = min(best, key=best.get)
    tried = ", ".join(f"{form} {seconds * 1e3:.1f} ms" for form, seconds in best.items())
    return sessions[chosen], f"{chosen} ({tried})"


def onnx_session(path, job):
    """A session with every optimisation, and its threads spinning between the operators."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = job.threads
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.add_session_config_entry("session.intra_op.allow_spinning", "1")
    options.log_severity_level = 3
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, job.tensors)[0]


def build_openvino(job):
    """A latency plan for the shapes of this case, in f32."""
    import openvino as ov

    core = ov.Core()
    model = core.read_model(export.path_of(job.exports, "plain"))
    model.reshape({name: tensor.shape for name, tensor in job.tensors.items()})
    settings = {
        "INFERENCE_NUM_THREADS": job.threads,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",
    }
    request = core.compile_model(model, "CPU", settings).create_infer_request()
    return lambda: request.infer(job.tensors, share_inputs=True)[0], "static shapes"


def build_torch(job):
    """The module itself, compiled, or with its linear layers in FBGEMM's f16."""
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(job.cache)
    import torch

    torch.set_num_threads(job.threads)
    module, note = torch_variant(checkpoint.load(job.model), job.engine)
    arguments = tuple(map(torch.from_numpy, job.tensors.values()))

    def run():
        with torch.no_grad():
            return module(*arguments).numpy()

    return run, note


def torch_variant(module, engine):
    """The module as the engine runs it, and a note."""
    import torch

    if engine == "torch-compile":
        import torch._inductor.config as inductor

        # Frozen weights are packed for the kernels; one compile thread leaves no helper process behind.
        inductor.freezing = True
        inductor.compile_threads = 1
        return torch.compile(module, dynamic=False), "inductor, frozen weights"
    if engine == "torch-fbgemm-fp16":
        layers = {torch.nn.Linear}
        return torch.ao.quantization.quantize_dynamic(module, layers, dtype=torch.float16), "f16 linear weights"
    return module, ""
