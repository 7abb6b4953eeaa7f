"""The KV cache of a decoder, in buffers that its graph updates in place."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ...bundle.manifest import CacheType, DecoderFacts
from ...errors import InputError, OutOfMemoryError
from ...session.memory import SPARE, mebibytes
from .cache_memory import CacheMemory, HostMemory

FIRST_CAPACITY = 256
"""Capacity of the first buffers, in tokens."""
_DTYPES: Mapping[CacheType, type[np.generic]] = {
    CacheType.FLOAT32: np.float32,
    CacheType.FLOAT16: np.float16,
    CacheType.INT8: np.int8,
}
"""Of the buffers."""


class Written(Protocol):
    """An input of the graph that is written before each run."""

    @property
    def value(self) -> Any:
        """The OrtValue that is bound."""

    def write(self, content: object) -> None:
        """Write numbers, converted to the input's type and shape."""


@dataclass(frozen=True)
class Bound:
    """The graph's inputs and outputs for one number of new tokens, bound to buffers (onnxruntime's I/O binding)."""

    session: Any
    """The session that made the binding; only it can run it."""
    binding: Any
    """onnxruntime's IOBinding."""
    input_ids: Written
    """int64 (1, tokens)"""
    last_positions: Written
    """int32 (1,): the position of the last new token in the sequence."""
    total_length: Written
    """int32 (): number of cached and new tokens."""
    logits: NDArray[np.float32]
    """(1, positions, vocabulary)"""


class KVCache:
    """The KV cache of one sequence of tokens, from `decoder.new_cache()`; one answer at a time may use it.

        >>> cache = decoder.prefill("The quick brown fox")
        >>> decoder.generate("The quick brown fox jumps", cache=cache, max_tokens=2).usage.cached_tokens > 0
        True

    `ids` are the cached tokens. Contents of the buffers past `len(ids)` are undefined, so rewinding is O(1).
    """

    def __init__(
        self,
        facts: DecoderFacts,
        *,
        identity: str = "",
        limit: int | None = None,
        memory: CacheMemory | None = None,
        available: Callable[[], int | None] | None = None,
        remedy: Callable[[int], str] | None = None,
        growing: AbstractContextManager[object] | None = None,
    ) -> None:
        """Make an empty cache for at most `limit` tokens, by default the model's context.

        `identity` is `identity_of` the bundle, since a cache is valid for one model only. `memory` has the buffers, by
        default the process's own. `available` returns the free memory in bytes, by default that of `memory`. `remedy`
        says how to get so many bytes more, by default to free memory. `growing` is held while the cache grows: the
        lock of caches that share a room.
        """
        self.facts = facts
        self.identity = identity
        self.limit = facts.context_length if limit is None else limit
        self.memory = memory or HostMemory()
        self.available = available or self.memory.available
        self.remedy = remedy or _free_memory
        self._growing = growing or nullcontext()
        self.ids: list[int] = []
        self.turn = 0
        """Counts the answers that used the cache: the last one may go on."""
        self.capacity = 0
        self.dtype = cache_dtype(facts)
        self.buffers: list[Any] = []
        """Key and value of each layer in turn, as `memory` has them: `dtype` (1, kv_heads, capacity, head_size)."""
        self.bindings: dict[tuple[int, int], Bound] = {}
        """Bindings to these buffers, by the numbers of new tokens and of logits."""

    def __repr__(self) -> str:
        return f"<KVCache of {self.length} tokens, {mebibytes(self.size)}>"

    @property
    def length(self) -> int:
        """Number of cached tokens."""
        return len(self.ids)

    @property
    def size(self) -> int:
        """Bytes of the buffers."""
        return self.capacity * token_size(self.facts)

    def rewind(self, length: int) -> None:
        """Drop all tokens after the first `length`; raises InputError where there are fewer."""
        if not 0 <= length <= self.length:
            raise InputError(f"the cache holds {self.length} tokens and cannot be rewound to {length}")
        del self.ids[length:]

    def common_prefix(self, ids: Sequence[int]) -> int:
        """Length of the prefix of `ids` that is cached."""
        shortest = min(self.length, len(ids))
        if self.ids[:shortest] == list(ids[:shortest]):
            return shortest
        return next(place for place in range(shortest) if self.ids[place] != ids[place])

    def largest_that_fits(self) -> int:
        """Number of tokens that there is memory for now, up to the limit, including the current capacity."""
        free = self.available()
        if free is None:
            return self.limit
        # The current buffers are allocated, however little is free now.
        return max(self.capacity, min(self.limit, (free - SPARE + self.size) // token_size(self.facts)))

    def check(self, tokens: int, *, prompt: int = 0) -> None:
        """Raise InputError for more tokens than the limit, OutOfMemoryError for more than the memory has room for.

        `prompt` is the number of tokens of the prompt, for the hint.
        """
        if tokens > self.limit:
            raise InputError(f"the cache has a limit of {self.limit} tokens, and {tokens} were requested")
        if tokens > self.capacity and (largest := self.largest_that_fits()) < tokens:
            needed = tokens * token_size(self.facts)
            raise OutOfMemoryError(
                f"the KV cache of {tokens} tokens takes {mebibytes(needed)}, and there is memory for {largest} tokens",
                hint=_hint_for(largest, prompt, self.remedy((tokens - largest) * token_size(self.facts))),
            )

    def reserve(self, tokens: int) -> None:
        """Grow the buffers to this many tokens; raises as `check` does, before anything is allocated.

        Where an allocation fails, OutOfMemoryError is raised too and the cache stays valid. The capacity doubles, so
        that a long answer copies each token a few times at most.
        """
        if tokens <= self.capacity:
            return
        with self._growing:
            self._grow(tokens)

    def _grow(self, tokens: int) -> None:
        self.check(tokens)
        capacity = max(self.capacity, FIRST_CAPACITY)
        while capacity < tokens:
            capacity *= 2
        # Where memory is short, no more than fits: `check` has shown that it is enough.
        capacity = max(tokens, min(capacity, self.limit, self.largest_that_fits()))
        shape = (1, self.facts.kv_heads, capacity, self.facts.head_size)
        self.bindings.clear()
        if not self.buffers:
            self.buffers = [self.memory.zeros(shape, self.dtype) for _ in range(2 * self.facts.layers)]
        else:
            # One at a time, so that at most one is in memory twice.
            try:
                for place, buffer in enumerate(self.buffers):
                    self.buffers[place] = self.memory.grown(buffer, capacity, self.length)
            # Ctrl-C too. Buffers must all have the same capacity, and an answer can go on after an OutOfMemoryError.
            except BaseException:
                self._shrink()
                raise
        self.capacity = capacity

    def _shrink(self) -> None:
        """Give all buffers the cache's capacity again; the cache is empty where even that fails."""
        try:
            self.memory.shrink(self.buffers, self.capacity, self.length)
        except OutOfMemoryError:
            self._drop()

    def _drop(self) -> None:
        """Forget all tokens and free the buffers."""
        self.ids, self.buffers, self.capacity = [], [], 0
        self.bindings.clear()

    def contents(self) -> Iterator[NDArray[Any]]:
        """Yield what each buffer holds, in the process's memory."""
        return map(self.memory.array, self.buffers)

    def filled(self) -> Iterator[NDArray[Any]]:
        """Yield an array for each buffer, and store what was written to it when the next one is taken."""
        for buffer in self.buffers:
            content = self.memory.writable(buffer)
            yield content
            self.memory.store(buffer, content)

    def move_to(self, memory: CacheMemory) -> None:
        """Move the buffers to another memory, where another session uses the cache."""
        if memory == self.memory:
            return
        ids, held = self.ids, [content[:, :, : self.length].copy() for content in self.contents()]
        self._drop()
        self.memory, self.available, self.remedy = memory, memory.available, _free_memory
        if ids:
            self.reserve(len(ids))
            for content, kept in zip(self.filled(), held, strict=True):
                content[:, :, : len(ids)] = kept
            self.ids = ids


def _free_memory(_missing: int) -> str:
    return "free memory"


def _hint_for(largest: int, prompt: int, remedy: str) -> str:
    """The hint where there is memory for so many tokens: a shorter answer or, if that is not enough, prompt."""
    if largest < 2:
        return f"{remedy} or raise the limit on it, or run on a machine that has more"
    if largest > prompt:
        return f"{remedy}, or ask for at most {largest - prompt} tokens (`max_tokens`)"
    return f"{remedy}, or shorten the prompt to fewer than {largest} tokens"


def cache_dtype(facts: DecoderFacts) -> np.dtype[Any]:
    """The type of the numbers in the KV cache."""
    return np.dtype(_DTYPES[facts.cache_type])


def token_size(facts: DecoderFacts) -> int:
    """Bytes of the KV cache for one token."""
    return 2 * facts.layers * facts.kv_heads * facts.head_size * cache_dtype(facts).itemsize
