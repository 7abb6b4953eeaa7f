"""One session for each graph file: models of the same bundle share its weights."""

from __future__ import annotations

import threading
from pathlib import Path
from weakref import WeakValueDictionary

from ..bundle.bundle import GRAPH_DATA
from .session import Session, SessionConfig

_OPEN: WeakValueDictionary[tuple[object, ...], Session] = WeakValueDictionary()
"""Open sessions, by what identifies the file that each was opened from."""
_OPENING = threading.Lock()


def shared_session(path: Path, config: SessionConfig) -> Session:
    """Return the open session of this file, or open one; its weights are freed with the last reference.

    A replaced file is another file: device, inode, size and modification time identify it, of the graph and of the
    weights beside it.
    """
    data = path.with_name(GRAPH_DATA)
    files = [path, data] if data.exists() else [path]
    key = (path.resolve(), *map(_state_of, files), config)
    with _OPENING:
        session = _OPEN.get(key)
        if session is None:
            session = _OPEN[key] = Session(path, config)
        return session


def _state_of(path: Path) -> tuple[int, ...]:
    """What differs for a file that was replaced or overwritten."""
    status = path.stat()
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
