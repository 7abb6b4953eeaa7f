"""The folder of an index while it is written: it is made, and other writers are excluded."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ...runtime.errors import OutputError
from ...runtime.output_path import cannot_write, lock_holder, try_lock
from .index_file import LOCK_FILE, is_own


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Hold the writer's lock of an index, which a killed process releases.

    Raises OutputError for a folder that is not an index's, where it cannot be written, and while another process writes
    it.
    """
    try:
        folder.mkdir(exist_ok=True, parents=True)
        _check_own(folder)
        descriptor = os.open(folder / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    except FileExistsError as error:
        raise OutputError(f"`{folder}` cannot be written: it is a file", hint="name a folder for the index") from error
    except OSError as error:
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


def _check_own(folder: Path) -> None:
    """Refuse a folder with other files, which a mistyped name may lead to."""
    others = sorted(path.name for path in folder.iterdir() if not is_own(path.name))
    if others:
        raise OutputError(
            f"`{folder}` is not an index: it holds `{others[0]}`",
            hint=f"name a new folder, or remove it if it is yours: `rm {shlex.quote(str(folder / others[0]))}`",
        )
