#!/usr/bin/env python3
"""Measures training steps of lxpod beside PyTorch's, in turns; see README.md."""

import json
import math
import signal
import statistics
import sys

import environment
from errors import PeerError
from options import TARGET, common

CASES = ("b8", "seed")
WARMUP = 1
TOLERANCE = 1e-3


def measure(step, model, options):
    """Seconds of the timed steps by engine, and the largest relative difference of the first steps' losses."""
    import checkpoint
    import training
    from measure import log, rotated
    from worker import Worker

    stacked = training.batches(step, WARMUP + 1, checkpoint.config(model))
    given = (options.threads, stacked, step.accumulation)
    torch = Worker("torch", training.serve, model, *given)
    ours = training.Lxpod(options.lxpod.absolute(), model, *given, TARGET)
    turns = {"torch": lambda: torch.measure(WARMUP + 1), "lxpod": ours.measure}
    seconds, losses = {name: [] for name in turns}, {}
    try:
        for turn in range(options.rounds):
            for name in rotated(list(turns), turn):
                steps = turns[name]()
                seconds[name].append(steps[-1][0])
                # torch's next round goes on from its last; only its first begins where lxpod does.
                losses.setdefault(name, [loss for _, loss in steps])
                log(f"{step.name}: round {turn + 1} of {options.rounds}: {name} {steps[-1][0]:.2f} s")
    finally:
        torch.close()
    pairs = zip(losses["torch"], losses["lxpod"], strict=True)
    return seconds, max(abs(own - its) / abs(its) if own is not None else math.inf for its, own in pairs)


def entry(step, seconds, difference):
    """Everything about one case."""
    ratio = {of.__name__: of(seconds["lxpod"]) / of(seconds["torch"]) for of in (statistics.median, min)}
    return {
        "case": step.name,
        "accumulation": step.accumulation,
        "lengths": list(step.case.lengths),
        "padded_to": step.case.padded_to,
        "seconds": seconds,
        "lxpod_takes": ratio,
        "bound": step.bound,
        "loss_difference": difference,
    }


def row(one):
    """One row of the table."""
    figures = [f"{of(one['seconds'][name]):.2f}" for name in ("torch", "lxpod") for of in (statistics.median, min)]
    median, least = (f"{one['lxpod_takes'][of]:.3f}" for of in ("median", "min"))
    verdict = "" if one["loss_difference"] <= TOLERANCE else " **disagrees**"
    cells = [one["case"], *figures, median, least, f"{one['bound']}", f"{one['loss_difference']:.1e}{verdict}"]
    return f"| {' | '.join(cells)} |"


def markdown(document):
    """The document as text."""
    from report import table

    headings = [
        "case", "torch median s", "torch min s", "lxpod median s", "lxpod min s",
        "ratio of medians", "ratio of minima", "bound", "largest relative difference of a loss",
    ]  # fmt: skip
    host = document["machine"]
    about = f"{host['cpu']}, {host['cores']} usable cores; load {host['load_before']:.2f} before; {host['date']}."
    rounds = f"{document['rounds']} round(s), {WARMUP} warm-up step(s) before each timed one."
    return "\n".join([about, rounds, "", *table(headings, map(row, document["cases"]))])


def compare(options):
    """Measures, writes the results after each case, and returns the document."""
    import checkpoint
    import lxpod
    import report
    import training

    version = lxpod.check(options.lxpod.absolute())
    model = (options.model or TARGET / "lxmert-random").absolute()
    if not options.model:
        checkpoint.make_random(model)
    checkpoint.check(model)
    model = training.without_dropout(model, TARGET / "no-dropout")
    document = {"machine": report.machine(version), "rounds": options.rounds, "cases": []}
    for name in options.cases:
        step = training.STEPS[name]
        document["cases"].append(entry(step, *measure(step, model, options)))
        (TARGET / "training.json").write_text(json.dumps(document, indent=2) + "\n")
        (TARGET / "training.md").write_text(markdown(document))
    return document


def main():
    """Exit code 0: measured, and the losses agree."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _frame: sys.exit(128 + number))
    options = common(__doc__, CASES, rounds=5).parse_args()
    try:
        environment.enter(options.venv, TARGET / "venv")
        TARGET.mkdir(parents=True, exist_ok=True)
        document = compare(options)
    except PeerError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(markdown(document))
    return 0 if all(one["loss_difference"] <= TOLERANCE for one in document["cases"]) else 1


if __name__ == "__main__":
    sys.exit(main())
