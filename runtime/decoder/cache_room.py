"""What a limit on the memory leaves for the KV caches of a decoder on the CPU."""

from __future__ import annotations

import threading
from typing import Protocol
from weakref import WeakSet

from ..bundle.folder import BundleFolder
from ..bundle.manifest import DecoderFacts
from ..errors import OutOfMemoryError
from ..session.memory import SPARE, available_memory, mebibytes
from ..session.memory_limit import MemoryLimit, trim
from ..session.opening import smaller
from ..text.safe_tokenizer import SafeTokenizer
from .cache.kv_cache import FIRST_CAPACITY, KVCache, token_size
from .memory_estimate import SMALLEST_RUN, run_size


class Sized(Protocol):
    """A KV cache, or several."""

    @property
    def size(self) -> int:
        """Its bytes."""


_RUN_SHARE = 4
"""The activations of a prompt's runs take at most this part of what a limit leaves, and the KV cache the rest."""


class CacheRoom:
    """Divides what a limit leaves between the activations of a run, the tokenizer and KV caches."""

    def __init__(
        self, limit: MemoryLimit, bundle: BundleFolder, facts: DecoderFacts, tokenizer: SafeTokenizer, run_tokens: int
    ) -> None:
        """Measure what is left once everything is open; `run_tokens` are those of a run without a limit.

        Raises OutOfMemoryError where there is no room for a short prompt.
        """
        self.limit = limit
        self.facts = facts
        trim()
        left = limit.left()
        manifest = bundle.manifest
        while run_tokens > SMALLEST_RUN and run_size(manifest, facts, run_tokens) > left // _RUN_SHARE:
            run_tokens //= 2
        self.run_tokens = run_tokens
        """Largest number of tokens in one run of the prefill."""
        # A prompt is tokenized before it is run.
        beside = max(run_size(manifest, facts, run_tokens), tokenizer.limit_memory(left // _RUN_SHARE))
        # While it grows, a buffer is in memory twice.
        each = token_size(facts) * (1 + 1 / (2 * facts.layers))
        limit.check(
            beside + round(each * FIRST_CAPACITY),
            f"an answer of `{bundle.path}` with a context of {FIRST_CAPACITY} tokens",
            instead=smaller(bundle),
        )
        self.size = round((left - beside) / each * token_size(facts))
        """Bytes that KV caches may take together."""
        self._caches: WeakSet[Sized] = WeakSet()
        self.growing = threading.Lock()
        """Held while a cache grows or is added."""

    def new_cache(self, identity: str, context: int) -> KVCache:
        """An empty KV cache that takes its memory from this room."""
        cache = KVCache(
            self.facts,
            identity=identity,
            limit=context,
            available=self.available,
            remedy=self.remedy,
            growing=self.growing,
        )
        self.add(cache)
        return cache

    def add(self, cache: Sized) -> None:
        """Count this as well, as long as it is there."""
        self._caches.add(cache)

    def available(self) -> int:
        """Bytes that are left, and what a KVCache leaves free: here the run's memory is counted already."""
        own = max(0, self.size - sum(cache.size for cache in self._caches))
        free = available_memory()
        return own + SPARE if free is None else min(own + SPARE, free)

    def remedy(self, missing: int) -> str:
        """How to get so many bytes more."""
        return self.limit.raised(self.limit.size + missing)

    def check_context(self, context: int) -> None:
        """Raise OutOfMemoryError where a context that was asked for does not fit."""
        each = token_size(self.facts)
        fits = self.size // each
        if context > fits:
            raise OutOfMemoryError(
                f"the KV cache of a context of {context} tokens takes {mebibytes(context * each)}, and within "
                f"`max_memory`, {mebibytes(self.limit.size)}, there is room for {fits} tokens",
                hint=f"{self.remedy(context * each - self.size)}, or take a shorter context: `--context {fits}`",
            )
