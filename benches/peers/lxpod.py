"""lxpod as an engine, through its command line."""

import json
import subprocess

from safetensors.numpy import load_file

import inputs
from errors import PeerError

PRECISIONS = {"lxpod-mixed": "mixed", "lxpod-fp32": "fp32"}


def check(binary):
    """The version line of the binary; fails if it is not there."""
    if not binary.is_file():
        raise PeerError(f"no lxpod at {binary}; `cargo build --release` makes it, --lxpod names another")
    return call([binary, "--version"]).strip()


def call(command):
    """Standard output of a command that must succeed."""
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise PeerError(f"{' '.join(map(str, command))} ended with {done.returncode}:\n{done.stderr.strip()}")
    return done.stdout


class Lxpod:
    """The same interface as `worker.Worker`: each `measure` is a process of its own."""

    def __init__(self, name, binary, model, threads, samples):
        """`samples` is a file of inputs; the logits are written beside it, once."""
        self.name = name
        self.binary = binary
        self.arguments = [model, "--inputs", samples, "--threads", threads, "--precision", PRECISIONS[name], "-q"]
        self.logits = self.run(samples.with_suffix(f".{name}.safetensors"))
        self.note = json.loads(self.bench(0))["backend"]

    def run(self, outputs):
        """The logits."""
        call([self.binary, "run", *self.arguments, "--outputs", outputs])
        return load_file(outputs)[inputs.OUTPUT]

    def bench(self, warmup):
        """The JSON of one timed run."""
        return call([self.binary, "bench", "model", *self.arguments, "--repeat", 1, "--warmup", warmup, "--json"])

    def measure(self, warmup):
        """Seconds of one run after `warmup` untimed ones, in a fresh process, and the logits."""
        return json.loads(self.bench(warmup))["latency_ms"][0] / 1e3, self.logits

    def close(self):
        """Nothing runs between measurements."""
