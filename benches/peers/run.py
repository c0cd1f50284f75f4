#!/usr/bin/env python3
"""Measures lxpod beside ONNX Runtime, OpenVINO and PyTorch on the same LXMERT weights; see README.md."""

import signal
import sys

import environment
from catalogue import CASES, ENGINES, engines_of
from errors import PeerError
from options import TARGET, common, names_from


def arguments():
    """The command line."""
    parser = common(__doc__, CASES, rounds=15)
    add = parser.add_argument
    add("--engines", type=names_from(ENGINES), metavar="A,B",
        help=f"{', '.join(ENGINES)} [default: all, less the slow and the hopeless of a case]")  # fmt: skip
    return parser.parse_args()


def prepare_exports(model, fingerprint, names):
    """The folder of the ONNX forms that the named engines need, all written."""
    import export
    from engines import onnx_forms
    from measure import log
    from worker import Worker, write_exports

    folder = export.folder_for(TARGET, fingerprint)
    forms = [form for name in sorted(names) for form in onnx_forms(name)]
    if not all(export.path_of(folder, form).is_file() for form in forms):
        log(f"exporting to {folder} (once; minutes)")
        Worker("export", write_exports, model, folder, forms).close()
    return folder


def compare(options):
    """Measures, writes the results after each case, and returns the document."""
    import checkpoint
    import lxpod
    import measure
    import report

    binary = options.lxpod.absolute()
    model = (options.model or TARGET / "lxmert-random").absolute()
    version = lxpod.check(binary)
    if not options.model:
        checkpoint.make_random(model)
    checkpoint.check(model)
    host = report.machine(version)
    fingerprint = checkpoint.fingerprint(model)
    cases = [CASES[name] for name in options.cases]
    names = {name for case in cases for name in engines_of(case, options.engines)}
    exports = prepare_exports(model, fingerprint, names)
    bench = measure.Bench(model, binary, exports, TARGET, options.threads, options.rounds)
    document = {
        "machine": host,
        "model": {"name": model.name, "sha256": fingerprint},
        "rounds": options.rounds,
        "warmup": measure.WARMUP,
        "cases": [],
    }
    for case in cases:
        series = bench.run(case, options.engines)
        document["cases"].append(report.entry(case, bench.threads_of(case), series))
        report.write(document, TARGET)
    return document


def main():
    """Exit code 0: measured, and all engines agree."""
    # An end by signal is an end by exception: the engines are closed on the way out.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _frame: sys.exit(128 + number))
    options = arguments()
    try:
        environment.enter(options.venv, TARGET / "venv")
        TARGET.mkdir(parents=True, exist_ok=True)
        document = compare(options)
    except PeerError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    import report

    print(report.markdown(document))
    wrong = report.disagreements(document)
    for line in wrong:
        print(f"error: {line}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
