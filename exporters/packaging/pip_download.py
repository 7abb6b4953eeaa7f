"""Download the wheels of another platform with pip, so that the user's index, proxy, mirror and certificates apply.

pip does not resolve anything here: it evaluates environment markers for the Python it runs in (pip issue 10050), so the
lock says what the target needs, and pip fetches exactly these files.
"""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from ...runtime.child_process import python_command
from ...runtime.errors import BundleError, MissingPartError, NetworkError
from ...runtime.file_hash import sha256_of
from ...runtime.folder_size import bytes_in
from ..progress import BYTES, Progress
from .wheel_lock import Pin
from .wheel_target import Target

_POLL = 0.3
"""Seconds between two updates of the progress."""
_OTHER_FILE = "the index that pip is set to serves another file under this name: `pip config list`"
_CREDENTIALS = re.compile(r"(://)[^/\s]*@")


class Pip:
    """Runs this environment's pip, with its messages kept: they are shown only where it fails."""

    def __init__(self, scratch: Path, progress: Progress | None = None) -> None:
        """Temporary files of pip are in `scratch`, on the file system of the wheels: /tmp may be too small."""
        if importlib.util.find_spec("pip") is None:
            raise MissingPartError(
                "pip is not installed in this environment, and ortkit fetches wheels with it",
                hint=f"run `{sys.executable} -m ensurepip`, or `uv pip install pip`",
            )
        self.scratch = scratch
        self.progress = progress

    def run(self, command: str, *arguments: str, total: int = 0) -> str | None:
        """Run a command of pip; None where it succeeds, else what it says is wrong (maybe nothing).

        With `total`, the bytes in `scratch` are reported as progress towards it.
        """
        whole = python_command("-m", "pip", command, "--disable-pip-version-check", "--no-input", *arguments)
        log = self.scratch / "pip.log"
        temporary = self.scratch / "temporary"
        temporary.mkdir(exist_ok=True)
        # Versions are the lock's, so a constraint in the user's configuration could only contradict them.
        changed = {"PIP_CONSTRAINT": os.devnull, "PIP_REQUIRE_VIRTUALENV": "0", "TMPDIR": str(temporary)}
        with (
            log.open("wb") as output,
            subprocess.Popen(
                whole,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **changed},
            ) as process,
        ):
            try:
                code = self._wait(process, total)
            except BaseException:
                process.terminate()
                raise
        return None if code == 0 else _complaint(log.read_text(encoding="utf-8", errors="replace"))

    def _wait(self, process: subprocess.Popen[bytes], total: int) -> int:
        while True:
            try:
                return process.wait(_POLL)
            except subprocess.TimeoutExpired:
                if self.progress is not None and total:
                    self.progress.update(min(bytes_in(self.scratch), total), total, BYTES)


def _complaint(log: str) -> str:
    """What pip reports as its last error, on one line and without credentials; may be empty."""
    errors = [line.removeprefix("ERROR: ").strip() for line in log.splitlines() if line.startswith("ERROR: ")]
    # A bug of pip, which prints a traceback.
    said = [error for error in errors if error != "Exception:"]
    return without_credentials(said[-1]) if said else ""


def without_credentials(text: str) -> str:
    """Replace the user and password of every URL in a text."""
    return _CREDENTIALS.sub(r"\1****@", text)


def download(pins: Sequence[Pin], target: Target, folder: Path, pip: Pip) -> None:
    """Download exactly these wheels to a folder; nothing else is in it afterwards than what was before.

    Raises NetworkError where pip cannot fetch one, and BundleError where the index has another file under its name.
    """
    requirements = pip.scratch / "requirements.txt"
    requirements.write_text("".join(f"{requirement(pin)}\n" for pin in pins), encoding="utf-8")
    total = sum(pin.wheel.size for pin in pins)
    options = _options(target, folder)
    if pip.run("download", *options, "--require-hashes", "-r", str(requirements), total=total) is not None:
        _download_each(pins, options, folder, pip)
    for pin in pins:
        check_wheel(pin, folder)


def _download_each(pins: Sequence[Pin], options: Sequence[str], folder: Path, pip: Pip) -> None:
    """Download one wheel after the other, to say which is at fault: pip's exit code does not say why it failed.

    Their hashes are checked here instead of by pip.
    """
    for pin in pins:
        complaint = pip.run("download", *options, "--retries", "1", f"{pin.name}=={pin.version}", total=pin.wheel.size)
        if complaint is not None:
            raise NetworkError(
                f"pip could not fetch `{pin.wheel.file}`{f' ({complaint})' if complaint else ''}",
                hint="check the network, or the index that pip is set to: `pip config list`; without either, copy the "
                "wheels that `--dry-run` lists into a folder, and name it in PIP_FIND_LINKS",
            )
        check_wheel(pin, folder)


def _options(target: Target, folder: Path) -> list[str]:
    """The options of `pip download` for a target; no `--abi`, which would leave out `abi3` and `none`."""
    options = ["--no-deps", "--only-binary=:all:", "--implementation", "cp", "--python-version", target.python_version]
    for platform in target.platforms():
        options += ["--platform", platform]
    return [*options, "--dest", str(folder)]


def requirement(pin: Pin) -> str:
    """A line of a requirements file."""
    return f"{pin.name}=={pin.version} --hash=sha256:{pin.wheel.sha256}"


def check_wheel(pin: Pin, folder: Path) -> None:
    """Raise BundleError where the wheel in a folder is not that of the lock."""
    path = folder / pin.wheel.file
    if not path.is_file():
        wheels = [other.name for other in folder.glob("*.whl") if _normalized(other.name) == _normalized(path.name)]
        instead = f"`{wheels[0]}`" if wheels else "nothing"
        raise BundleError(f"pip fetched {instead} in place of `{path.name}`", hint=_OTHER_FILE)
    found = sha256_of(path)
    if found != pin.wheel.sha256:
        raise BundleError(
            f"`{path.name}` is not the wheel that was pinned: its sha256 is {found[:16]}... instead of "
            f"{pin.wheel.sha256[:16]}...",
            hint=_OTHER_FILE,
        )


def _normalized(file: str) -> str:
    """The package that a wheel's file name begins with."""
    return file.partition("-")[0].lower().replace(".", "_")
