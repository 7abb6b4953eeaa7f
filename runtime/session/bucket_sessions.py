"""Sessions of fixed shapes from one graph file, opened on demand: for providers that compile a graph for its shape."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..bundle.graph_io import INPUT_IDS
from ..bundle.manifest import Buckets
from ..errors import InputError
from .config import Bucket, SessionConfig
from .session import Session

MOST_OPEN = 4
"""Sessions that are open at once, each with a copy of the weights: one for each bucket of up to 512 tokens."""


class _Slot:
    """The session of a bucket, opened at its first use, and the lock that its users take."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.session: Session | None = None


class BucketSessions:
    """A graph whose dimensions `batch` and `tokens` are fixed, with a session for each bucket; thread-safe.

    At most MOST_OPEN are kept, those used last. A session runs one call at a time, and several sessions run at once.
    """

    def __init__(self, path: Path, config: SessionConfig, buckets: Buckets) -> None:
        """Open the smallest bucket, so that what is wrong with the graph or the provider shows here.

        Raises as `Session` does.
        """
        self.path = path
        self.config = config
        self.buckets = buckets
        self._slots: OrderedDict[Bucket, _Slot] = OrderedDict()
        self._choosing = threading.Lock()
        self._smallest = Bucket(min(buckets.texts), min(buckets.tokens))
        slot = self._slot(self._smallest)
        with slot.lock:
            first = self._opened(slot, self._smallest)
        self.provider, self.device, self.int8 = first.provider, first.device, first.int8
        self.disabled_optimizers = first.disabled_optimizers
        self.width = first.width
        """The size of the last axis of the first output; None where the graph does not state it."""

    @property
    def open_buckets(self) -> list[Bucket]:
        """Buckets with an open session, the one used last at the end."""
        with self._choosing:
            return [bucket for bucket, slot in self._slots.items() if slot.session is not None]

    def run(
        self,
        feeds: Mapping[str, NDArray[Any]],
        shape: Sequence[int | None] | None = None,
        *,
        bucket: tuple[int, int] | None = None,
    ) -> NDArray[np.float32]:
        """Run the graph for a bucket (texts, tokens), to which `feeds` are padded, and return its first output.

        The default is the bucket whose shape `input_ids` has.

        Raises as `Session.run` does, as `Session` where the bucket's session cannot be opened, and InputError for a
        bucket that is not one of the manifest's.
        """
        texts, tokens = feeds[INPUT_IDS].shape if bucket is None else bucket
        if texts not in self.buckets.texts or tokens not in self.buckets.tokens:
            raise InputError(
                f"{texts} texts of {tokens} tokens are not a bucket of `{self.path}`, which has texts "
                f"{list(self.buckets.texts)} and tokens {list(self.buckets.tokens)}"
            )
        slot = self._slot(Bucket(texts, tokens))
        with slot.lock:
            return self._opened(slot, Bucket(texts, tokens)).run(feeds, shape)

    def _slot(self, bucket: Bucket) -> _Slot:
        """The slot of a bucket, as the one used last; closes what is open beyond MOST_OPEN.

        A session that a thread is still using is freed when it has finished.
        """
        with self._choosing:
            slot = self._slots.setdefault(bucket, _Slot())
            self._slots.move_to_end(bucket)
            while len(self._slots) > MOST_OPEN:
                self._slots.popitem(last=False)
            return slot

    def _opened(self, slot: _Slot, bucket: Bucket) -> Session:
        """The session of a slot whose lock is held."""
        if slot.session is None:
            slot.session = Session(self.path, replace(self.config, bucket=bucket))
        return slot.session
