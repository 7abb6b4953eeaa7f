"""The folder of an index while it is written: it is made, and other writers are excluded."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ....runtime.errors import OutputError
from ....runtime.output_path import cannot_write, lock_holder, try_lock
from .index_file import LOCK_FILE, is_own


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Hold the writer's lock of an index, which a killed process releases.

    Raises OutputError for a folder that is not an index's, where it cannot be written, and while another process writes
    it.
    """
    try:
        folder.mkdir(exist_ok=True, parents=True)
        names = sorted(path.name for path in folder.iterdir())
        _check_own(folder, names)
        descriptor = os.open(folder / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    except FileExistsError as error:
        raise OutputError(f"`{folder}` cannot be written: it is a file", hint="name a folder for the index") from error
    except OSError as error:
        if isinstance(error, OutputError):
            raise
        raise cannot_write(error, folder) from error
    try:
        if not try_lock(descriptor):
            raise OutputError(
                f"the index `{folder}` is being written by {lock_holder(descriptor)}, or its file system has no locks",
                hint="wait until that is done; searches work meanwhile",
            )
        yield
    finally:
        os.close(descriptor)


def _check_own(folder: Path, names: Iterable[str]) -> None:
    """Refuse a folder with other files, which a mistyped name may lead to."""
    other = next((name for name in names if not is_own(name)), None)
    if other is not None:
        raise OutputError(f"`{folder}` is not an index: it holds `{other}`", hint="name a new folder for the index")
