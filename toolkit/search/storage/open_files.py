"""The files of a generation that is open: they are mapped, and reading where one was cut ends the process (SIGBUS)."""

from __future__ import annotations

import os
import weakref
from collections.abc import Iterable
from pathlib import Path

from ....runtime.errors import BundleError
from .index_file import IndexFile, check_size


class OpenFiles:
    """Open descriptors of a generation's files, by which their sizes are checked, also once they have no name."""

    def __init__(self, folder: Path, index: IndexFile) -> None:
        """Raises FileNotFoundError where a file is missing, and BundleError where it is cut or longer."""
        self._files: list[tuple[Path, int, int]] = []
        self.close = weakref.finalize(self, _close, self._files)
        """Release the descriptors; a second call does nothing."""
        try:
            for name, size in index.sizes.items():
                self._files.append((folder / name, size, _opened(folder / name)))
            self.check()
        except BaseException:
            self.close()
            raise

    def check(self) -> None:
        """Raise BundleError where a file was cut or grew since: a copy over it that was interrupted, or still runs."""
        for path, size, descriptor in self._files:
            check_size(path, os.fstat(descriptor), size)


def _opened(path: Path) -> int:
    try:
        # Without waiting for whoever writes to a named pipe of that name.
        return os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise BundleError(f"`{path}` cannot be read: {error.strerror or error}") from error


def _close(files: Iterable[tuple[Path, int, int]]) -> None:
    for _, _, descriptor in files:
        os.close(descriptor)
