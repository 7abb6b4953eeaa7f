"""One session for each graph file: models of the same bundle share its weights."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from weakref import WeakValueDictionary

from ..bundle.manifest import Buckets
from .bucket_sessions import BucketSessions
from .config import SessionConfig
from .session import Session

_OPEN: WeakValueDictionary[tuple[object, ...], Session] = WeakValueDictionary()
"""Open sessions, by what identifies the file that each was opened from."""
_OPEN_BUCKETS: WeakValueDictionary[tuple[object, ...], BucketSessions] = WeakValueDictionary()
_OPENING = threading.Lock()


def shared_session(path: Path, config: SessionConfig, *, begins: Callable[[], None] | None = None) -> Session:
    """Return the open session of this file, or open one; its weights are freed with the last reference.

    `begins` is called once onnxruntime needs no more Python lock (GIL) to open it; not where it is open already.

    A replaced file is another file: device, inode, size and modification time identify it, of the graph and of the
    weights beside it.
    """
    key = (*_files(path), config)
    with _OPENING:
        session = _OPEN.get(key)
        if session is None:
            session = _OPEN[key] = Session(path, config, begins=begins)
        return session


def is_open(path: Path, config: SessionConfig) -> bool:
    """Whether `shared_session` would return a session that is open already."""
    with _OPENING:
        return (*_files(path), config) in _OPEN


def shared_buckets(path: Path, config: SessionConfig, buckets: Buckets) -> BucketSessions:
    """As `shared_session`, for a graph that is opened once for each of its buckets."""
    key = (*_files(path), config, buckets)
    with _OPENING:
        sessions = _OPEN_BUCKETS.get(key)
        if sessions is None:
            sessions = _OPEN_BUCKETS[key] = BucketSessions(path, config, buckets)
        return sessions


def _files(path: Path) -> tuple[object, ...]:
    """What identifies a graph and its weights."""
    data = path.with_name(f"{path.name}.data")
    return (path.resolve(), *map(_state_of, [path, data] if data.exists() else [path]))


def _state_of(path: Path) -> tuple[int, ...]:
    """What differs for a file that was replaced or overwritten."""
    status = path.stat()
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
