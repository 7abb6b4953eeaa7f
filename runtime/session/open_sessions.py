"""One session for each graph file: models of the same bundle share its weights."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar
from weakref import WeakValueDictionary

from ..bundle.bundle import GRAPH_DATA
from ..bundle.manifest import Buckets
from .bucket_sessions import BucketSessions
from .config import SessionConfig
from .session import Session

Opened = TypeVar("Opened", Session, BucketSessions)

_OPEN: WeakValueDictionary[tuple[object, ...], Session | BucketSessions] = WeakValueDictionary()
"""Open sessions, by what identifies the file that each was opened from."""
_OPENING = threading.Lock()


def shared_session(path: Path, config: SessionConfig) -> Session:
    """Return the open session of this file, or open one; its weights are freed with the last reference.

    A replaced file is another file: device, inode, size and modification time identify it, of the graph and of the
    weights beside it.
    """
    return _shared(path, (config,), Session, lambda: Session(path, config))


def shared_buckets(path: Path, config: SessionConfig, buckets: Buckets) -> BucketSessions:
    """As `shared_session`, for a graph that is opened once for each of its buckets."""
    return _shared(path, (config, buckets), BucketSessions, lambda: BucketSessions(path, config, buckets))


def _shared(path: Path, settings: tuple[object, ...], kind: type[Opened], make: Callable[[], Opened]) -> Opened:
    data = path.with_name(GRAPH_DATA)
    files = [path, data] if data.exists() else [path]
    key = (kind, path.resolve(), *map(_state_of, files), *settings)
    with _OPENING:
        found = _OPEN.get(key)
        if isinstance(found, kind):
            return found
        made = make()
        _OPEN[key] = made
        return made


def _state_of(path: Path) -> tuple[int, ...]:
    """What differs for a file that was replaced or overwritten."""
    status = path.stat()
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
