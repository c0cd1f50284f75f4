"""From series to figures, a table and a JSON document. Standard library only."""

import importlib.metadata
import json
import os
import platform
import statistics
from datetime import UTC, datetime
from pathlib import Path

from catalogue import ENGINES

SUBJECTS = ("lxpod-mixed", "lxpod-fp32")
PACKAGES = ("torch", "onnxruntime", "openvino", "transformers", "onnx", "numpy")


def field(path, name):
    """The value of the first line `name : value` of a /proc file."""
    for line in Path(path).read_text().splitlines():
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value.strip()
    return "unknown"


def machine(lxpod_version):
    """What was measured on, and with which versions."""
    kilobytes = field("/proc/meminfo", "MemTotal").split()[0]
    return {
        "cpu": field("/proc/cpuinfo", "model name"),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(int(kilobytes) / 2**20, 1),
        "system": platform.platform(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "load_before": os.getloadavg()[0],
        "versions": {
            "python": platform.python_version(),
            "lxpod": lxpod_version,
            **{name: importlib.metadata.version(name) for name in PACKAGES},
        },
    }


def figures(series):
    """Median, minimum and error of one engine."""
    return {
        "median_ms": statistics.median(series.seconds) * 1e3,
        "min_ms": min(series.seconds) * 1e3,
        "max_abs_error": series.error,
        "agrees": series.agrees,
        "note": series.note,
        "runs_ms": [seconds * 1e3 for seconds in series.seconds],
    }


def fastest(engines, kind):
    """Name of the engine of a kind with the least median, or None."""
    names = [name for name in engines if ENGINES[name].kind == kind]
    return min(names, key=lambda name: engines[name]["median_ms"], default=None)


def speedups(engines):
    """How many times faster each lxpod precision is than the best float peer, and than int8; above 1 lxpod leads."""
    result = {}
    for subject in (name for name in SUBJECTS if name in engines):
        for kind in ("float", "int8"):
            peer = fastest(engines, kind)
            if peer:
                result.setdefault(subject, {})[kind] = {
                    "peer": peer,
                    "of_medians": engines[peer]["median_ms"] / engines[subject]["median_ms"],
                    "of_minima": engines[peer]["min_ms"] / engines[subject]["min_ms"],
                }
    return result


def entry(case, threads, all_series):
    """Everything about one case."""
    engines = {series.engine: figures(series) for series in all_series}
    return {
        "case": case.name,
        "threads": threads,
        "lengths": list(case.lengths),
        "padded_to": case.padded_to,
        "images": case.images,
        "engines": engines,
        "lxpod_faster_by": speedups(engines),
    }


def engine_row(case, name, values):
    """One row of the table of times."""
    verdict = "" if values["agrees"] else " **disagrees**"
    return (
        f"| {case} | {name} | {values['median_ms']:.1f} | {values['min_ms']:.1f} "
        f"| {values['max_abs_error']:.1e}{verdict} | {values['note']} |"
    )


def speedup_rows(one):
    """The rows of the table of ratios that belong to one case."""
    return [
        f"| {one['case']} | {subject} | {ratio['peer']} | {ratio['of_medians']:.2f} | {ratio['of_minima']:.2f} |"
        for subject, kinds in one["lxpod_faster_by"].items()
        for ratio in kinds.values()
    ]


def case_row(one):
    """What a case is, in one row."""
    lengths = " ".join(map(str, one["lengths"]))
    return (
        f"| {one['case']} | {len(one['lengths'])} | {lengths} | {one['padded_to']} "
        f"| {one['images']} | {one['threads']} |"
    )


def table(headings, rows):
    """A Markdown table, followed by an empty line."""
    return [f"| {' | '.join(headings)} |", "|---" * len(headings) + "|", *rows, ""]


def markdown(document):
    """The document as text."""
    host, entries = document["machine"], document["cases"]
    versions = ", ".join(f"{name} {version}" for name, version in host["versions"].items())
    ratio_headings = ["case", "lxpod", "against", "times faster, medians", "times faster, minima"]
    return "\n".join(
        [
            f"{host['cpu']}, {host['cores']} usable cores, {host['memory_gib']} GiB; {host['date']}, "
            f"load {host['load_before']:.2f} before.  ",
            f"{versions}.  ",
            f"{document['rounds']} round(s), {document['warmup']} warm-up runs before each timed one; "
            f"model {document['model']['name']}, {document['model']['sha256'][:12]}.",
            "",
            *table(["case", "batch", "tokens", "padded to", "images", "threads"], map(case_row, entries)),
            *table(
                ["case", "engine", "median ms", "min ms", "max abs error", "settings"],
                [engine_row(one["case"], *pair) for one in entries for pair in one["engines"].items()],
            ),
            *table(ratio_headings, [row for one in entries for row in speedup_rows(one)]),
        ]
    )


def write(document, folder):
    """Writes result.json and result.md."""
    (folder / "result.json").write_text(json.dumps(document, indent=2) + "\n")
    (folder / "result.md").write_text(markdown(document))


def disagreements(document):
    """The engines whose logits are not those of the reference, as readable strings."""
    return [
        f"{one['case']}: {name} is off by {values['max_abs_error']:.1e}, allowed {ENGINES[name].tolerance:.0e}"
        for one in document["cases"]
        for name, values in one["engines"].items()
        if not values["agrees"]
    ]
