"""Training steps for PyTorch and for lxpod: what both compute is the same, to the bit of the hyper-parameters."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

import inputs
import lxpod
from catalogue import OCTILES, Case

RATE, DECAY, BETAS, EPSILON = 1e-5, 0.01, (0.9, 0.999), 1e-8
RECIPE = (
    "--recipe", "hf", "--learning-rate", RATE, "--lr-schedule", "constant", "--warmup-steps", 0,
    "--weight-decay", DECAY, "--decay", "all", "--max-grad-norm", 0,
    "--adam-beta1", BETAS[0], "--adam-beta2", BETAS[1], "--adam-epsilon", EPSILON,
)  # fmt: skip
TARGET = ("--target", "cpu", "--stages", 1, "--precision", "fp32", "--loss", "cross-entropy")
DROPOUT = ("hidden_dropout_prob", "attention_probs_dropout_prob")


@dataclass(frozen=True)
class Step:
    """An optimiser step: `accumulation` micro-batches like `case`; lxpod is to take at most `bound` of torch's time."""

    case: Case
    accumulation: int
    bound: float

    @property
    def name(self):
        """Of the case."""
        return self.case.name


STEPS = {
    step.name: step
    for step in (
        Step(Case("b8", OCTILES, images=8), accumulation=1, bound=0.62),
        Step(Case("seed", (12,), padded_to=512), accumulation=8, bound=0.06),
    )
}


def without_dropout(model, folder):
    """A copy of a checkpoint's folder whose configuration drops nothing out; the weights are the same file."""
    folder.mkdir(parents=True, exist_ok=True)
    for source in model.iterdir():
        link = folder / source.name
        link.unlink(missing_ok=True)
        link.symlink_to(source.resolve())
    (folder / "config.json").unlink()
    config = json.loads((model / "config.json").read_text()) | dict.fromkeys(DROPOUT, 0.0)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def batches(step, steps, config):
    """Micro-batches for so many steps, stacked in order of use: no two of the same words, images or labels."""
    rng = np.random.default_rng(inputs.SEED)

    def one():
        """A micro-batch."""
        tokens = inputs.tokens(step.case, config["vocab_size"], rng)
        labels = rng.integers(config["num_qa_labels"], size=step.case.batch)
        return {**tokens, **inputs.images(step.case.batch, config, rng), "labels": labels}

    drawn = [one() for _ in range(steps * step.accumulation)]
    return {name: np.stack([each[name] for each in drawn]) for name in drawn[0]}


class Torch:
    """Eager f32 with the fused AdamW, started over by `reset`."""

    def __init__(self, model, threads):
        import torch
        from transformers import LxmertForQuestionAnswering

        torch.set_num_threads(threads)
        self.torch = torch
        self.model = LxmertForQuestionAnswering.from_pretrained(model, dtype=torch.float32).train()
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=RATE, betas=BETAS, eps=EPSILON, weight_decay=DECAY, fused=True
        )

    def step(self, micro_batches):
        """One step; the mean loss of its micro-batches."""
        losses = []
        for tensors in micro_batches:
            given = {name: self.torch.from_numpy(value) for name, value in tensors.items()}
            loss = self.model(**given).loss
            (loss / len(micro_batches)).backward()
            losses.append(loss.item())
        self.optimizer.step()
        self.optimizer.zero_grad()
        return float(np.mean(losses))


def build_torch(model, threads, stacked, accumulation):
    """A function from nothing to the loss of the next step; the batches come round again."""
    engine = Torch(model, threads)
    count = len(stacked["input_ids"]) // accumulation
    done = 0

    def run():
        nonlocal done
        first = done % count * accumulation
        done += 1
        rows = range(first, first + accumulation)
        return engine.step([{name: value[row] for name, value in stacked.items()} for row in rows])

    return run


def serve(pipe, model, threads, stacked, accumulation):
    """Answers each number of steps with the seconds and the losses of all of them."""
    from worker import answer_requests, timed

    def build():
        run = build_torch(model, threads, stacked, accumulation)
        return (lambda count: [timed(run, 0) for _ in range(count)]), "eager, fused AdamW"

    answer_requests(pipe, build)


class Lxpod:
    """`lxpod train`: each `measure` is a process of its own."""

    def __init__(self, binary, model, threads, stacked, accumulation, folder):
        self.output = folder / "trained"
        file = folder / "batches.safetensors"
        save_file(stacked, file)
        self.command = [
            binary, "train", model, "--batches", file, "--output", self.output, "--threads", threads,
            "--gradient-accumulation", accumulation, *TARGET, *RECIPE, "-q", "--json",
        ]  # fmt: skip

    def measure(self):
        """Seconds and losses of all steps of the file."""
        try:
            document = json.loads(lxpod.call(self.command))
            log = json.loads(Path(self.output, "log.json").read_text())
        finally:
            shutil.rmtree(self.output, ignore_errors=True)
        return list(zip(document["measured"]["step_seconds"], log["loss"], strict=True))
