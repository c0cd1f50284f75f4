#!/usr/bin/env python3
"""Solves published planning problems, one thread, and checks each answer.

    cargo build --release
    python3 benches/published.py DIR [--lxpod target/release/lxpod] [--time-limit 60]

DIR holds, at any depth, partition problems (`*.json` with `nodes` and `edges`, as in msr-fiddle/dnn-partitioning) and
memory problems (`NAME.CAPACITY.csv`, as in google/minimalloc). A partition's certificate is written and checked; a
memory assignment is tested for overlaps here, pair by pair. Prints one row per problem.
"""

import argparse
import csv
import json
import pathlib
import subprocess
import sys
import tempfile


def lxpod(program, *arguments):
    command = [program, *map(str, arguments), "--threads", "1", "--json", "-q"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        return None, done.stderr.strip().splitlines()[0] if done.stderr else f"exit {done.returncode}"
    return json.loads(done.stdout), None


def partition(program, path, limit):
    with tempfile.TemporaryDirectory() as folder:
        certificate = pathlib.Path(folder) / "certificate.json"
        found, error = lxpod(program, "solve", "partition", path, "--certificate", certificate, *limit)
        if error:
            return [path.stem, error]
        checked, error = lxpod(program, "solve", "check", path, certificate)
        verdict = error or f"accepted, {checked['ideals']} ideals in {checked['seconds']:.2f} s"
    name = f"{path.parent.parent.name}/{path.parent.name}/{path.stem}"
    return [name, f"{found['objective']:.9f}", f"{found['lower_bound']:.9f}", found["optimal"], f"{found['seconds']:.3f}", verdict]


def memory(program, path, limit):
    capacity = int(path.stem.rsplit(".", 1)[1])
    found, error = lxpod(program, "solve", "memory", path, "--capacity", capacity, *limit)
    if error:
        return [path.stem, error]
    with open(path, newline="", encoding="utf-8") as file:
        rows = [{name: int(cell) for name, cell in row.items() if name != "id"} for row in csv.DictReader(file)]
    placed = list(zip(rows, found["offsets"], strict=True))
    overlaps = sum(
        a["lower"] < b["upper"] and b["lower"] < a["upper"] and p < q + b["size"] and q < p + a["size"]
        for i, (a, p) in enumerate(placed)
        for b, q in placed[:i]
    )
    verdict = f"{overlaps} overlaps" if overlaps else "no overlap"
    return [path.stem, found["objective"], found["lower_bound"], found["optimal"], f"{found['seconds']:.3f}", verdict]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--lxpod", default="target/release/lxpod")
    parser.add_argument("--time-limit", type=float)
    options = parser.parse_args()
    limit = [] if options.time_limit is None else ["--time-limit", options.time_limit]
    print("| problem | objective | lower bound | optimal | seconds | checked |\n|---|---|---|---|---|---|")
    failed = False
    for path in sorted(options.folder.rglob("*")):
        row = None
        if path.suffix == ".csv" and path.stem.rsplit(".", 1)[-1].isdigit():
            row = memory(options.lxpod, path, limit)
            failed |= row[-1] != "no overlap"
        elif path.suffix == ".json" and '"sourceId"' in path.read_text(encoding="utf-8"):
            row = partition(options.lxpod, path, limit)
            failed |= not row[-1].startswith("accepted")
        if row:
            print("| " + " | ".join(map(str, row)) + " |", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
