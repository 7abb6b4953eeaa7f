"""What is installed of the packages that ortkit needs, and whether each can be imported in a process of its own.

A library for another CPU ends the process that imports it with a signal, and a broken one raises anything.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from ...runtime.child_process import python_command
from ...runtime.session.onnxruntime_import import OLDEST_ONNXRUNTIME
from ...runtime.session.packages import PACKAGES
from ...runtime.telemetry import SWITCHES

REQUIREMENTS = {"click": "8.1", "jinja2": "3.1.6", "numpy": "1.26", "tokenizers": "0.21"}
"""The dependencies in pyproject.toml, with the oldest version of each."""
MODULES = {**REQUIREMENTS, "onnxruntime": OLDEST_ONNXRUNTIME}
"""Modules that a model needs, with the oldest version of each."""
_WATCHED = (*REQUIREMENTS, *PACKAGES, "ortkit")
_SECONDS = 60
"""For one import: on a slow SD card the first one of onnxruntime takes several seconds."""
_LONGEST = 300
"""Characters of an error's message."""


@dataclass(frozen=True)
class Imported:
    """What happened when a module was imported in a process of its own."""

    version: str | None = None
    """`__version__` of the module; None where it has none, or could not be imported."""
    missing: bool = False
    """Whether there is no such module."""
    error: str | None = None
    """The last line of the error; None where it could be imported."""
    signal: str | None = None
    """The signal that ended the process, such as SIGILL."""

    @property
    def works(self) -> bool:
        return not self.missing and self.error is None and self.signal is None


@dataclass(frozen=True)
class Package:
    """An installed package."""

    name: str
    version: str
    folder: str
    """The folder that it is installed in."""
    changed: tuple[str, ...] = ()
    """Files that are missing, or have another size than its wheel's list of files (RECORD) says."""


def find_packages(names: Iterable[str] = _WATCHED) -> tuple[Package, ...]:
    """The packages of these names, each as often as it is installed, in the order of Python's search path."""
    # Slow to import.
    from importlib import metadata

    wanted, found = set(names), []
    for distribution in metadata.distributions():
        try:
            name = _normalized(distribution.metadata["Name"])
            if name in wanted:
                folder = str(Path(str(distribution.locate_file(""))))
                found.append(Package(name, distribution.version, folder, tuple(_changed(distribution.files))))
        # A folder with a broken or unfinished list of files, which pip leaves when it is interrupted.
        except (KeyError, TypeError, AttributeError, OSError, ValueError):
            continue
    return tuple(found)


def _normalized(name: str) -> str:
    """The name as the package index compares it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _changed(files: Iterable[object] | None) -> Iterator[str]:
    """Files of a package that are missing or have another size than its list says."""
    for file in files or ():
        size = getattr(file, "size", None)
        # Compiled files are written after installation, and Python replaces them.
        if size is None or str(file).endswith(".pyc"):
            continue
        try:
            if os.stat(file.locate()).st_size != size:  # type: ignore[attr-defined]  # noqa: PTH116
                yield str(file)
        except OSError:
            yield str(file)


_CODE = """
import json, os, sys
name, sys.path[:] = sys.argv[1], json.loads(sys.argv[2])
# What a library prints goes elsewhere.
answer = os.dup(1)
os.dup2(2, 1)
def report(word, text):
    os.write(answer, f"{word} {' '.join(text.split())}".encode("utf-8", "backslashreplace"))
try:
    report("version", str(getattr(__import__(name), "__version__", "")))
except ModuleNotFoundError as error:
    report("missing" if error.name == name else "error", f"{type(error).__name__}: {error}")
except BaseException as error:
    report("error", f"{type(error).__name__}: {error}")
"""


def import_all(modules: Iterable[str] = tuple(MODULES), *, seconds: float = _SECONDS) -> Mapping[str, Imported]:
    """Import each module in a process of its own, one after the other: together they might not fit in the memory."""
    return {name: _imported(name, seconds) for name in modules}


def _imported(name: str, seconds: float) -> Imported:
    # Otherwise onnxruntime would send events while it is checked.
    environment = {**os.environ, **SWITCHES}
    command = python_command("-c", _CODE, name, json.dumps(sys.path))
    try:
        finished = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, env=environment, timeout=seconds, check=False
        )
    except subprocess.TimeoutExpired:
        return Imported(error=f"it did not end within {seconds:g} s")
    except OSError as error:
        return Imported(error=f"no process can be started: {error.strerror or error}")
    if finished.returncode < 0:
        ended_by = -finished.returncode
        known = ended_by in set(signal.Signals)
        return Imported(signal=signal.Signals(ended_by).name if known else f"signal {ended_by}")
    word, _, rest = finished.stdout.decode("utf-8", "replace").partition(" ")
    if word == "version":
        return Imported(version=rest or None)
    if word == "missing":
        return Imported(missing=True)
    message = rest if word == "error" else f"Python ended with exit code {finished.returncode}"
    return Imported(error=message if len(message) <= _LONGEST else f"{message[:_LONGEST]}...")
