"""What is checked before an installation writes, and of a new release before it becomes the current one."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from ..errors import BundleError, OrtkitError, OutputError
from ..trust.policy import Policy
from .environment import Environment
from .trial_policy import trial_policy

_SLACK = 64 << 20
"""Bytes for folders, byte code and what else is not counted."""
_USAGE = 2
"""Exit code of a command that does not exist."""
_LONGEST = 20
"""Lines of a check's output that an error quotes."""
_FOLDER = "FOLDER"
"""Stands for the folder of bundles of a release that was not added."""
_UNPACK = (
    f"show these lines to who made the kit; `ortkit unpack KIT -o {_FOLDER}` writes its bundles to a folder, for the "
    "commands in them"
)
_FINE = "ok  "
"""How the lines of `ortkit doctor` begin that an error does not quote."""


def nearest_folder(path: Path) -> Path:
    """The folder itself, or the nearest one above that exists."""
    while not path.is_dir():
        path = path.parent
    return path


def check_target(prefix: Path, needed: int) -> None:
    """Raise OutputError where an installation of so many bytes cannot be written or run."""
    folder = nearest_folder(prefix)
    state = os.statvfs(folder)
    if state.f_flag & os.ST_RDONLY:
        raise OutputError(
            f"`{folder}` is on a file system that is mounted read-only",
            hint="choose a folder on a data partition with `--prefix`, or remount it for the update: "
            "`mount -o remount,rw ...`",
        )
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OutputError(
            f"`{prefix}` cannot be written by this user: no permission in `{folder}`",
            hint="run the installer as root, or choose a folder of yours: `--prefix ~/ortkit`",
        )
    if state.f_flag & os.ST_NOEXEC:
        raise OutputError(
            f"`{folder}` is on a file system that is mounted noexec, so no library in it can be loaded",
            hint="choose a folder on another file system with `--prefix`",
        )
    free = state.f_bavail * state.f_frsize
    if free < needed + _SLACK:
        raise OutputError(
            f"the release needs {megabytes(needed + _SLACK)} in `{folder}`, and {megabytes(free)} are free",
            hint="make room, or choose a folder on another disk with `--prefix`; a kit that was made with `--since` or "
            "`--have` needs less where an earlier release is installed",
        )


def megabytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB"


def check_release(
    environment: Environment, bundles: Path, say: Callable[[str], None], *, allow_downgrade: bool = False
) -> None:
    """Run `ortkit doctor`, and `ortkit verify` for each bundle, with a release that is not in use yet.

    Raises CheckError with what they report and their exit code. Where the machine's policy requires signatures, the
    highest release of a bundle is not recorded yet: the bundles in use must not be refused because of the new ones.
    """
    names = sorted(path.name for path in bundles.iterdir())
    # Of the edition of ortkit that the kit has.
    has_doctor = environment.run("doctor", "--help", bundles=bundles).returncode != _USAGE
    with trial_policy(allow_downgrade=allow_downgrade) as policy:
        for name in names:
            if has_doctor:
                say(f"checking this machine for {name}")
                _run(environment, bundles, "doctor", str(bundles / name), policy=policy)
            say(f"verifying {name} on this machine")
            _run(environment, bundles, "verify", str(bundles / name), policy=policy)


def check_starts(environment: Environment, bundles: Path) -> None:
    """Raise an error where a release does not start at all, as when its Python is not there any more."""
    _run(environment, bundles, "--version")


def _run(environment: Environment, bundles: Path, *arguments: str, policy: Path | None = None) -> None:
    try:
        finished = environment.run(*arguments, bundles=bundles, policy=policy)
    except OSError as error:
        raise CheckError(f"`{environment.python}` cannot be started: {error.strerror or error}", code=1) from error
    if finished.returncode:
        shown = " ".join(Path(argument).name for argument in arguments)
        text = finished.stdout + finished.stderr
        if policy is not None:
            # The temporary one has the requirements of this one.
            text = text.replace(str(policy), str(Policy.current().path))
        if not bundles.parent.name.isdecimal():
            # The folder of a release that is put together, and gone when this is read.
            text = text.replace(f"{bundles}/", f"{_FOLDER}/")
        output = [line for line in text.strip().splitlines() if not line.startswith(_FINE)][-_LONGEST:]
        quoted = "".join(f"\n  | {line}" for line in output)
        code = finished.returncode if finished.returncode > 0 else BundleError.exit_code
        message = f"`ortkit {shown}` of the new release ended with exit code {code}:{quoted}"
        raise CheckError(message, code=code, hint=_UNPACK if f"{_FOLDER}/" in quoted else None)


class CheckError(OrtkitError):
    """A release does not pass on this machine; the exit code is that of the check."""

    def __init__(self, message: str, *, code: int, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.exit_code = code  # type: ignore[misc]  # of this check, not of the class
