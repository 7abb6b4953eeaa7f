"""Models that a process opens once, and bundles that a machine verifies once, however many processes open them."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

from ...runtime.bundle.bundle import Bundle
from ...runtime.bundle.verified_files import NAME
from ...runtime.cache_folder import cache_folder, usable_folder
from ...runtime.encoder.embedder import Embedder
from ...runtime.encoder.reranker import Reranker
from ...runtime.output_path import try_lock

Model = TypeVar("Model", Embedder, Reranker)

_models: dict[tuple[Any, ...], Any] = {}
_opening = threading.Lock()


def opened(kind: type[Model], path: str, *, workers: int | None, max_memory: int | None) -> Model:
    """The model of a bundle, which stays open until the process ends."""
    # Threads do not survive a fork: a child opens its own.
    key = (os.getpid(), kind, path, workers, max_memory)
    with _opening:
        if key not in _models:
            with _one_at_a_time():
                bundle = Bundle.open(path)
            _models[key] = kind(bundle, workers=workers, max_memory=max_memory)
        found: Model = _models[key]
        return found


@contextmanager
def _one_at_a_time() -> Iterator[None]:
    """Let one process of this user and machine verify bundles; the next ones find the hashes of unchanged files.

    Without a cache folder or locks, each process verifies for itself.
    """
    folder = cache_folder()
    usable = None if folder is None else usable_folder(folder)
    number = None
    if usable is not None:
        # Cannot be made on a full disk.
        with suppress(OSError):
            number = os.open(usable / f"{NAME}.lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    if number is None:
        yield
        return
    try:
        try_lock(number, wait=True)
        yield
    finally:
        os.close(number)


def _forget_lock() -> None:
    """A thread of the parent may have held the lock at the fork."""
    global _opening  # noqa: PLW0603
    _opening = threading.Lock()


os.register_at_fork(after_in_child=_forget_lock)
