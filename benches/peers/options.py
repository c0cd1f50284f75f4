"""What the scripts are told on the command line, and where they write."""

import argparse
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TARGET = ROOT / "target" / "peers"
RELEASE = ROOT / "target" / "release" / "lxpod"


def names_from(known):
    """A parser of comma-separated names."""

    def parse(text):
        names = text.split(",")
        unknown = [name for name in names if name not in known]
        if unknown:
            raise argparse.ArgumentTypeError(f"no {unknown[0]!r}; there are {', '.join(known)}")
        return names

    return parse


def positive(text):
    """A parser of counts."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return value


def common(about, cases, rounds):
    """A parser of what every script is told."""
    parser = argparse.ArgumentParser(description=about)
    add = parser.add_argument
    add("--model", type=Path, metavar="DIR", help="checkpoint folder [default: a full-size random one]")
    add("--lxpod", type=Path, metavar="FILE", default=RELEASE, help="the binary [default: target/release/lxpod]")
    add("--venv", type=Path, metavar="DIR", help="an environment that has the peers [default: make target/peers/venv]")
    add("--cases", type=names_from(cases), default=list(cases), metavar="A,B", help=", ".join(cases))
    add("--rounds", type=positive, default=rounds, metavar="N", help=f"timed runs of each engine [default: {rounds}]")
    add("--threads", type=positive, default=2, metavar="N", help="threads of each engine [default: 2]")
    return parser
