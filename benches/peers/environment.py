"""The virtual environment the peers live in. Standard library only."""

import json
import os
import subprocess
import sys
import venv
from pathlib import Path

from errors import PeerError

REQUIREMENTS = Path(__file__).with_name("requirements.txt")
SHOWN_LINES = 15

QUERY = """
import importlib.metadata, json, sys
def version(name):
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
print(json.dumps({name: version(name) for name in sys.argv[1:]}))
"""


def pins():
    """The required packages as {name: version}."""
    lines = REQUIREMENTS.read_text().split()
    return dict(line.split("==") for line in lines)


def python_of(folder):
    """The interpreter of the virtual environment in `folder`."""
    return folder / "bin" / "python"


def mismatches(folder):
    """What `folder` lacks, as readable strings; empty if every pinned version is there."""
    wanted = pins()
    command = [str(python_of(folder)), "-c", QUERY, *wanted]
    try:
        found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    except (OSError, subprocess.CalledProcessError):
        return [f"{python_of(folder)} does not run"]
    # A wheel may add a local part to its version, as in 2.11.0+cpu.
    return [
        f"{name} {found[name] or 'missing'}, needs {version}"
        for name, version in wanted.items()
        if (found[name] or "").split("+")[0] != version
    ]


def install(folder, log):
    """Makes the virtual environment and installs the pinned packages; the installer's output goes to `log`."""
    print(f"installing the peers into {folder} (several GB; log in {log})", file=sys.stderr)
    log.parent.mkdir(parents=True, exist_ok=True)
    venv.create(folder, with_pip=True)
    command = [str(python_of(folder)), "-m", "pip", "install", "-r", str(REQUIREMENTS)]
    with log.open("w") as out:
        code = subprocess.run(command, stdout=out, stderr=subprocess.STDOUT, check=False).returncode
    if code != 0:
        last = "\n".join(log.read_text().splitlines()[-SHOWN_LINES:])
        raise PeerError(f"pip ended with {code}; the last lines of {log}:\n{last}")


def enter(given, default):
    """Returns if this process runs in the virtual environment; otherwise prepares it and starts over inside it.

    `given` is a folder the user named, which is only checked, or None: `default` is made if needed.
    """
    folder = (given or default).absolute()
    if Path(sys.prefix).resolve() == folder.resolve():
        return
    missing = mismatches(folder)
    if missing and given:
        listed = "\n  ".join(missing)
        raise PeerError(f"{folder} lacks pinned packages; leave --venv out to have them installed:\n  {listed}")
    if missing:
        install(folder, folder.parent / "pip.log")
    python = str(python_of(folder))
    os.execv(python, [python, *sys.argv])
