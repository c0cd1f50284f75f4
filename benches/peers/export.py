"""ONNX forms of a checkpoint, written once per checkpoint and version of the tools.

There are four, because no exporter is best for every engine:
  plain       torch.export based exporter
  script      TorchScript based exporter, whose patterns the fusions and the quantizer know
  fused       `script` after ONNX Runtime's transformer optimizer: Attention, EmbedLayerNormalization, BiasGelu, …
  script-int8, fused-int8
              dynamically quantized weights, one scale per channel
Batch, tokens and boxes are free dimensions in all of them.
"""

import hashlib
import importlib.metadata
import logging
import shutil
import warnings
from pathlib import Path

import checkpoint
import inputs
from catalogue import Case

AXES = {
    **dict.fromkeys(inputs.TOKEN_INPUTS, {0: "batch", 1: "tokens"}),
    **dict.fromkeys(inputs.IMAGE_INPUTS, {0: "batch", 1: "boxes"}),
}
# Two samples: the exporters take a dimension of one for a constant.
EXAMPLE = Case("export", (20, 12), images=2)
TOOLS = ("torch", "transformers", "onnx", "onnxscript", "onnxruntime")
OPSET = 17
MODEL = "model.onnx"


def folder_for(root, fingerprint):
    """Where the exports of a checkpoint lie: another checkpoint, tool or version of this file gets another folder."""
    key = hashlib.sha256(Path(__file__).read_bytes())
    for part in (fingerprint, *map(importlib.metadata.version, TOOLS)):
        key.update(part.encode())
    return root / "onnx" / key.hexdigest()[:16]


def path_of(folder, form):
    """The file of one form."""
    return folder / form / MODEL


def ensure(model, folder, forms):
    """Writes those of `forms`, and what they are made from, that are not in `folder` yet."""
    for form in forms:
        if path_of(folder, form).is_file():
            continue
        source, write = WRITERS[form]
        if source:
            ensure(model, folder, [source])
        # Elsewhere until it is whole: an interrupted export is not taken for a finished one.
        partial = folder / f"{form}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        with quiet():
            write(model, source and path_of(folder, source), partial / MODEL)
        partial.rename(folder / form)


def quiet():
    """Silences the tools' warnings about tracing and optional packages."""
    # Before the levels are set, because importing torch sets them too.
    import torch  # noqa: F401

    for name in ("torch.onnx", "onnxruntime.transformers", "onnxscript"):
        logging.getLogger(name).setLevel(logging.ERROR)
    logging.getLogger().setLevel(logging.ERROR)
    return warnings.catch_warnings(action="ignore")


def example(model):
    """The module to export and its arguments."""
    import torch

    tensors = inputs.expanded(inputs.build(EXAMPLE, checkpoint.config(model)))
    return checkpoint.load(model), tuple(map(torch.from_numpy, tensors.values()))


def write_plain(model, _source, path):
    """Exports with torch.export."""
    import torch

    module, arguments = example(model)
    dimensions = {name: torch.export.Dim(name) for name in ("batch", "boxes")}
    dimensions["tokens"] = torch.export.Dim("tokens", max=checkpoint.config(model)["max_position_embeddings"])
    shapes = tuple({axis: dimensions[name] for axis, name in AXES[key].items()} for key in inputs.NAMES)
    torch.onnx.export(
        module, arguments, path, dynamo=True, dynamic_shapes=shapes, optimize=True, external_data=True, verbose=False,
        input_names=list(inputs.NAMES), output_names=[inputs.OUTPUT],
    )  # fmt: skip


def write_script(model, _source, path):
    """Exports with TorchScript; constants are folded."""
    import torch

    module, arguments = example(model)
    torch.onnx.export(
        module, arguments, path, dynamo=False, opset_version=OPSET, do_constant_folding=True,
        dynamic_axes={**AXES, inputs.OUTPUT: {0: "batch"}},
        input_names=list(inputs.NAMES), output_names=[inputs.OUTPUT],
    )  # fmt: skip


def write_fused(model, script, path):
    """Applies the BERT fusions; ONNX Runtime's own ones follow when the session opens."""
    from onnxruntime.transformers import optimizer

    config = checkpoint.config(model)
    fused = optimizer.optimize_model(
        str(script), model_type="bert", num_heads=config["num_attention_heads"], hidden_size=config["hidden_size"],
        opt_level=0, use_gpu=False,
    )  # fmt: skip
    fused.save_model_to_file(str(path), use_external_data_format=False)


def write_int8(_model, source, path):
    """Quantizes the weights.

    Without VNNI, products of full-range bytes saturate when summed in 16 bits, so one bit is left free.
    """
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    vnni = "vnni" in Path("/proc/cpuinfo").read_text()
    quantize_dynamic(
        source, path, per_channel=True, reduce_range=not vnni, weight_type=QuantType.QInt8,
        # The quantizer cannot infer types behind the fused operators.
        extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT},
    )  # fmt: skip


WRITERS = {
    "plain": (None, write_plain),
    "script": (None, write_script),
    "fused": ("script", write_fused),
    "script-int8": ("script", write_int8),
    "fused-int8": ("fused", write_int8),
}
