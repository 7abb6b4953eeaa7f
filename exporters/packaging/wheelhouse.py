"""Collect the wheels that another machine needs to install ortkit offline: `ortkit wheelhouse`.

A wheelhouse is a folder of wheels with `requirements.txt` (for pip, with hashes) and `wheelhouse.json` (what it is
for). The lock alone decides which wheels it has (`wheel_lock.py`), so the same command gives the same folder.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ...runtime.bundle.bundle import is_regular
from ...runtime.bundle.records import RecordError, read_record, write_record
from ...runtime.bundle.writer import FolderWriter
from ...runtime.errors import BundleError, InputError, NotFoundError, OrtkitError, OutputError
from ...runtime.file_hash import sha256_of
from ...runtime.output_path import cannot_write
from ...runtime.sizes import megabytes
from ...runtime.version import __version__
from ..progress import NoProgress, Progress, stage
from .own_wheel import copy_wheel, own_wheel, pin_of
from .pip_download import Pip, check_wheel, download
from .wheel_lock import Lock, Pin, needed_glibc, read_lock
from .wheel_target import MACOS, Target

DESCRIPTION = "wheelhouse.json"
REQUIREMENTS = "requirements.txt"
_SCHEMA = 1


@dataclass(frozen=True)
class WheelRecord:
    """A wheel of a wheelhouse."""

    name: str
    version: str
    file: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Wheelhouse:
    """What `wheelhouse.json` says: the machine that the wheels are for, and the wheels."""

    schema: int
    ortkit: str
    """Version of ortkit."""
    target: str
    python: str
    """Version of Python, such as `3.11`: the wheels do not run on others."""
    glibc: str | None
    """Oldest version of glibc that all wheels run on; None where the system is not Linux."""
    macos: str | None
    """Oldest version of macOS that all wheels run on."""
    provider: str
    extras: tuple[str, ...]
    wheels: tuple[WheelRecord, ...]
    """In order of their names."""

    @property
    def size(self) -> int:
        """Bytes of all wheels."""
        return sum(wheel.size for wheel in self.wheels)

    @classmethod
    def open(cls, folder: str | os.PathLike[str]) -> Wheelhouse:
        """Open a wheelhouse and verify its hashes; raises NotFoundError, and BundleError where it was changed."""
        found = read_wheelhouse(Path(folder))
        listed = {wheel.file for wheel in found.wheels}
        for path in sorted(Path(folder).iterdir()):
            if path.name not in {*listed, DESCRIPTION, REQUIREMENTS}:
                raise BundleError(
                    f"`{folder}` has `{path.name}`, which its `{DESCRIPTION}` does not list",
                    hint=f"remove `{path}` if it is yours",
                )
        for wheel in found.wheels:
            path = Path(folder) / wheel.file
            if not is_regular(path) or path.stat().st_size != wheel.size or sha256_of(path) != wheel.sha256:
                raise BundleError(
                    f"`{path}` is missing or was changed after it was collected",
                    hint="run the same `ortkit wheelhouse` again: it fetches what is missing",
                )
        expected = requirements(found)
        if not is_regular(Path(folder) / REQUIREMENTS) or (Path(folder) / REQUIREMENTS).read_bytes() != expected:
            raise BundleError(
                f"`{Path(folder) / REQUIREMENTS}` is missing or was changed",
                hint="run the same `ortkit wheelhouse` again",
            )
        return found


@dataclass(frozen=True)
class Plan:
    """The wheels that a target needs, without ortkit's own."""

    target: Target
    provider: str
    extras: tuple[str, ...]
    pins: tuple[Pin, ...]

    @property
    def size(self) -> int:
        """Bytes to download."""
        return sum(pin.wheel.size for pin in self.pins)


def plan_wheelhouse(
    target: Target, provider: str = "cpu", extras: Sequence[str] = (), *, lock: Lock | None = None
) -> Plan:
    """Which wheels a target needs, by the lock; nothing is fetched.

    Raises InputError where the provider does not run there or a package has no wheel for it.
    """
    chosen = tuple(sorted(set(extras)))
    found = (lock or read_lock()).select(target, provider, chosen)
    return Plan(target, provider, chosen, tuple(found))


@dataclass(frozen=True)
class Collected:
    """A wheelhouse that is complete."""

    wheelhouse: Wheelhouse
    fetched: int
    """Number of wheels that were downloaded; the others were in the folder already, or are ortkit's own."""
    changed: bool
    """Whether anything was written."""


def collect(
    plan: Plan,
    folder: str | os.PathLike[str],
    *,
    ortkit_wheel: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> Collected:
    """Collect the wheels of a plan, and ortkit's own, in a folder that is complete or not there at all.

    A wheelhouse at the folder is replaced; its wheels are used again where they are the same.
    """
    target = Path(folder)
    _check_replaceable(target)
    try:
        return _collected(plan, target, ortkit_wheel, progress if progress is not None else NoProgress())
    except OrtkitError:
        raise
    except OSError as error:
        raise cannot_write(error, target) from error


def _collected(plan: Plan, target: Path, ortkit_wheel: str | os.PathLike[str] | None, reported: Progress) -> Collected:
    with FolderWriter(target) as writer:
        pip = Pip(writer.scratch, reported)
        given = Path(ortkit_wheel) if ortkit_wheel is not None else None
        own = _own_wheel(given, writer.scratch / "own", pip, reported)
        pins = tuple(sorted((*plan.pins, pin_of(own)), key=lambda pin: pin.name))
        described = _describe(plan, pins)
        if _is_complete(target, described):
            return Collected(described, 0, changed=False)
        new = writer.staging / "wheels"
        new.mkdir()
        missing = [pin for pin in plan.pins if not _reuse(pin, target, new)]
        _check_space(writer.staging, missing, plan)
        if missing:
            size = sum(pin.wheel.size for pin in missing)
            with stage(reported, f"download {len(missing)} wheels, {megabytes(size)}"):
                download(missing, plan.target, new, pip)
        copy_wheel(own, new)
        for pin in pins:
            check_wheel(pin, new)
        (new / REQUIREMENTS).write_bytes(requirements(described))
        (new / DESCRIPTION).write_text(f"{json.dumps(write_record(described), indent=2)}\n", encoding="utf-8")
        writer.replace_target(new, sorted(path.name for path in new.iterdir()))
    return Collected(described, len(missing), changed=True)


def _own_wheel(given: Path | None, folder: Path, pip: Pip, progress: Progress) -> Path:
    if given is not None:
        return own_wheel(given, folder, pip)
    with stage(progress, "make ortkit's wheel"):
        return own_wheel(None, folder, pip)


def _check_replaceable(folder: Path) -> None:
    """Raise InputError where something else than a wheelhouse or an empty folder would be replaced."""
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise InputError(f"`{folder}` is not a folder", hint="choose another folder with `-o`")
    if folder.is_dir() and any(folder.iterdir()) and not is_regular(folder / DESCRIPTION):
        raise InputError(
            f"`{folder}` exists and is not a wheelhouse, so it is not replaced", hint="choose another folder with `-o`"
        )


def _describe(plan: Plan, pins: Sequence[Pin]) -> Wheelhouse:
    glibc = needed_glibc(plan.pins, plan.target)
    return Wheelhouse(
        schema=_SCHEMA,
        ortkit=__version__,
        target=plan.target.name,
        python=plan.target.python_version,
        glibc=f"2.{glibc}" if glibc is not None else None,
        macos=".".join(map(str, MACOS)) if plan.target.system == "macos" else None,
        provider=plan.provider,
        extras=plan.extras,
        wheels=tuple(
            WheelRecord(pin.name, pin.version, pin.wheel.file, pin.wheel.size, pin.wheel.sha256) for pin in pins
        ),
    )


def _is_complete(folder: Path, described: Wheelhouse) -> bool:
    """Whether the folder is this wheelhouse already, unchanged."""
    try:
        return folder.is_dir() and Wheelhouse.open(folder) == described
    except (BundleError, NotFoundError):
        return False


def _reuse(pin: Pin, folder: Path, new: Path) -> bool:
    """Take a wheel from an earlier wheelhouse; False where it is not there, or is not the same."""
    path = folder / pin.wheel.file
    if not is_regular(path) or path.stat().st_size != pin.wheel.size or sha256_of(path) != pin.wheel.sha256:
        return False
    try:
        os.link(path, new / path.name)
    except OSError:
        shutil.copyfile(path, new / path.name)
    return True


def _check_space(folder: Path, missing: Sequence[Pin], plan: Plan) -> None:
    """Raise OutputError where the wheels will not fit: pip keeps what it downloads twice until it ends."""
    needed, free = 2 * sum(pin.wheel.size for pin in missing), shutil.disk_usage(folder).free
    if needed > free:
        raise OutputError(
            f"the wheels for {plan.target} need {megabytes(needed)} while they are fetched, and {megabytes(free)} "
            "are free",
            hint="choose a folder on another disk with `-o`",
        )


def requirements(found: Wheelhouse) -> bytes:
    """The requirements file of a wheelhouse: it names no index, and every file by its hash."""
    system = f", glibc {found.glibc} or later" if found.glibc is not None else ""
    parts = ", ".join((found.provider, *found.extras))
    lines = [
        f"# ortkit {found.ortkit} ({parts}) for {found.target}, Python {found.python}{system}.",
        "# pip install --no-deps -r requirements.txt",
        "# With --no-deps, because tokenizers names huggingface_hub, which ortkit's runtime does not import.",
        "--no-index",
        "--find-links .",
        "--require-hashes",
        *(f"{wheel.name}=={wheel.version} --hash=sha256:{wheel.sha256}" for wheel in found.wheels),
    ]
    return "".join(f"{line}\n" for line in lines).encode("utf-8")


def read_wheelhouse(folder: Path) -> Wheelhouse:
    """Read `wheelhouse.json`, without looking at the wheels; raises NotFoundError and BundleError."""
    path = folder / DESCRIPTION
    if not is_regular(path):
        raise NotFoundError(f"there is no wheelhouse at `{folder}`", hint="make one with `ortkit wheelhouse`")
    try:
        found = read_record(Wheelhouse, json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, RecursionError) as error:
        problem = str(error) if isinstance(error, RecordError) else "it is not valid JSON"
        raise BundleError(
            f"`{path}` cannot be used: {problem}", hint="run the same `ortkit wheelhouse` again"
        ) from error
    if found.schema != _SCHEMA:
        raise BundleError(
            f"`{path}` has schema {found.schema}, and this ortkit reads {_SCHEMA}",
            hint="run `ortkit wheelhouse` again with this version",
        )
    for wheel in found.wheels:
        if Path(wheel.file).name != wheel.file or not wheel.file.endswith(".whl"):
            raise BundleError(f"`{path}` names `{wheel.file}`, which is not a wheel in the folder")
    return found
