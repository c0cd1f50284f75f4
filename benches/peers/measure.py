"""Runs the engines of a case in turns."""

import sys
from dataclasses import dataclass, field

import numpy as np

import checkpoint
import inputs
import lxpod
from catalogue import ENGINES, REFERENCE, engines_of
from engines import Job
from worker import Worker, serve

WARMUP = 2


@dataclass
class Series:
    """What one engine did on one case: seconds of each round, the largest error of a logit, and its settings."""

    engine: str
    note: str
    seconds: list[float] = field(default_factory=list)
    error: float = 0.0

    @property
    def agrees(self):
        """Whether the logits are those of the reference, within the engine's tolerance."""
        tolerance = ENGINES[self.engine].tolerance
        return tolerance is None or self.error <= tolerance


def log(message):
    """Progress, for a person."""
    print(message, file=sys.stderr, flush=True)


def rotated(names, by):
    """The names in the same circle, started `by` places later."""
    by %= len(names)
    return names[by:] + names[:by]


def error(logits, reference):
    """The largest absolute difference; infinite where a logit is not finite or the shapes differ."""
    if logits.shape != reference.shape or not np.isfinite(logits).all():
        return float("inf")
    return float(np.abs(logits - reference).max())


class Bench:
    """One checkpoint, one binary and one folder for files, for any number of cases."""

    def __init__(self, model, binary, exports, folder, threads, rounds):
        self.model, self.binary, self.exports, self.folder = model, binary, exports, folder
        self.threads, self.rounds = threads, rounds
        self.config = checkpoint.config(model)

    def threads_of(self, case):
        """Threads every engine gets on a case."""
        return case.threads or self.threads

    def start(self, name, case, compact):
        """Starts an engine on a case; it stands still until it is measured."""
        threads = self.threads_of(case)
        if ENGINES[name].kind == "lxpod":
            samples = self.folder / f"{case.name}.safetensors"
            inputs.save(compact, samples)
            return lxpod.Lxpod(name, self.binary, self.model, threads, samples)
        job = Job(name, self.model, self.exports, self.folder / "inductor", threads, inputs.expanded(compact))
        return Worker(name, serve, job)

    def run(self, case, asked):
        """The series of every engine on a case, in the order of the catalogue or of `asked`."""
        names = engines_of(case, asked)
        compact = inputs.build(case, self.config)
        running = {}
        try:
            # The reference comes first, and runs even if it is not among those to measure.
            for name in dict.fromkeys([REFERENCE, *names]):
                log(f"{case.name}: starting {name}")
                running[name] = self.start(name, case, compact)
            _, reference = running[REFERENCE].measure(0)
            series = {name: Series(name, running[name].note) for name in names}
            for turn in range(self.rounds):
                self.round(rotated(names, turn), running, series, reference)
                log(f"{case.name}: round {turn + 1} of {self.rounds}")
        finally:
            for engine in running.values():
                engine.close()
        return list(series.values())

    def round(self, names, running, series, reference):
        """One timed run of each engine, in the given order."""
        for name in names:
            seconds, logits = running[name].measure(WARMUP)
            series[name].seconds.append(seconds)
            series[name].error = max(series[name].error, error(logits, reference))
