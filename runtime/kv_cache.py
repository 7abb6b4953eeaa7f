"""The keys and values of the tokens that a decoder has read, in buffers that its graph writes in place."""

from __future__ import annotations

import math
import mmap
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.errors import InputError, OutOfMemoryError
from runtime.manifest import CacheType, DecoderFacts
from runtime.memory import SPARE, available_memory, mebibytes

FIRST_CAPACITY = 256
"""Tokens that the first buffers have room for."""
LARGE = 4 << 20
"""Bytes of a buffer from which on it is to lie on large pages."""
DTYPES: Mapping[CacheType, type[np.generic]] = {CacheType.FLOAT32: np.float32, CacheType.FLOAT16: np.float16}
"""Of the buffers."""


@dataclass(frozen=True)
class Bound:
    """A graph's inputs and outputs for one number of new tokens, bound to buffers that are written before each run."""

    session: Any
    """The one that made the binding; no other runs it."""
    binding: Any
    """onnxruntime's IOBinding."""
    input_ids: NDArray[np.int64]
    """(1, tokens)"""
    last_positions: NDArray[np.int32]
    """(1,): the position of the last new token in the sequence."""
    total_length: NDArray[np.int32]
    """(): tokens before and new ones."""
    logits: NDArray[np.float32]
    """(1, positions, vocabulary)"""


class KVCache:
    """The keys and values of a sequence of tokens; one answer at a time may use it.

    `ids` are the tokens whose keys and values are in the buffers. What stands behind them in the buffers has no
    meaning, so that forgetting tokens costs nothing.
    """

    def __init__(
        self,
        facts: DecoderFacts,
        *,
        identity: str = "",
        limit: int | None = None,
        available: Callable[[], int | None] = available_memory,
    ) -> None:
        """An empty cache for at most `limit` tokens, by default the model's context; `available` tells free bytes.

        `identity` is what `identity_of` gives for the bundle: keys and values mean nothing to another.
        """
        self.facts = facts
        self.identity = identity
        self.limit = facts.context_length if limit is None else limit
        self.available = available
        self.ids: list[int] = []
        self.capacity = 0
        self.dtype = np.dtype(DTYPES[facts.cache_type])
        self.buffers: list[NDArray[Any]] = []
        """Key and value of each layer in turn: `dtype` (1, kv_heads, capacity, head_size)."""
        self.bindings: dict[tuple[int, int], Bound] = {}
        """Bindings of the graph to these buffers, by the numbers of new tokens and of logits."""

    @property
    def length(self) -> int:
        """How many tokens it holds."""
        return len(self.ids)

    @property
    def size(self) -> int:
        """Bytes of its buffers."""
        return self.capacity * token_size(self.facts)

    def rewind(self, length: int) -> None:
        """Forget all tokens after the first `length`; raises InputError when there are not so many."""
        if not 0 <= length <= self.length:
            raise InputError(f"the cache holds {self.length} tokens and cannot be rewound to {length}")
        del self.ids[length:]

    def common_prefix(self, ids: Sequence[int]) -> int:
        """How many tokens at the beginning of `ids` it holds already."""
        shortest = min(self.length, len(ids))
        if self.ids[:shortest] == list(ids[:shortest]):
            return shortest
        return next(place for place in range(shortest) if self.ids[place] != ids[place])

    def largest_that_fits(self) -> int:
        """For how many tokens there is memory now, those that it has room for included, up to its limit."""
        free = self.available()
        if free is None:
            return self.limit
        # What the buffers have room for is there, however little is free now.
        return max(self.capacity, min(self.limit, (free - SPARE + self.size) // token_size(self.facts)))

    def check(self, tokens: int, *, prompt: int = 0) -> None:
        """Refuse what will not fit: InputError beyond the limit, OutOfMemoryError beyond the memory.

        `prompt` is how many of the tokens are those of a prompt, for a hint that can be followed.
        """
        if tokens > self.limit:
            raise InputError(f"the cache has a limit of {self.limit} tokens, and {tokens} were asked for")
        if tokens > self.capacity and (largest := self.largest_that_fits()) < tokens:
            needed = tokens * token_size(self.facts)
            raise OutOfMemoryError(
                f"the keys and values of {tokens} tokens take {mebibytes(needed)}, and there is memory for {largest} "
                f"tokens",
                hint=hint_for(largest, prompt),
            )

    def reserve(self, tokens: int) -> None:
        """Make room for this many tokens; raises as `check` does, before anything is taken.

        Where the system gives less than it said, OutOfMemoryError is raised too, and the buffers stay as they were.
        Buffers double until they are large enough, so that a long answer copies each token a few times at most.
        """
        if tokens <= self.capacity:
            return
        self.check(tokens)
        capacity = max(self.capacity, FIRST_CAPACITY)
        while capacity < tokens:
            capacity *= 2
        # Where the memory is short, no more than can be had: the check has shown that it is enough.
        capacity = max(tokens, min(capacity, self.limit, self.largest_that_fits()))
        shape = (1, self.facts.kv_heads, capacity, self.facts.head_size)
        self.bindings.clear()
        if not self.buffers:
            self.buffers = [zeros(shape, self.dtype) for _ in range(2 * self.facts.layers)]
        else:
            # One at a time, so that no more than one is there twice.
            try:
                for place in range(len(self.buffers)):
                    larger = zeros(shape, self.dtype)
                    larger[:, :, : self.length] = self.buffers[place][:, :, : self.length]
                    self.buffers[place] = larger
            # Ctrl-C too: the graph takes no keys with other room than their values.
            except BaseException:
                self.buffers = [cut(buffer, self.capacity, self.length) for buffer in self.buffers]
                raise
        self.capacity = capacity


def hint_for(largest: int, prompt: int) -> str:
    """What helps where there is memory for so many tokens: a shorter answer, and where that is not enough a prompt."""
    if largest < 2:
        return "free memory or raise the limit on it, or run on a machine that has more"
    if largest > prompt:
        return f"free memory, or ask for at most {largest - prompt} tokens (`max_tokens`)"
    return f"free memory, or shorten the prompt to fewer than {largest} tokens"


def zeros(shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Zeros on pages of their own.

    They go back to the system with the array, where the allocator would keep those of the buffers that were outgrown.
    Raises OutOfMemoryError where the system gives none.
    """
    size = dtype.itemsize * math.prod(shape)
    try:
        # Private: by default a forked process would share the pages.
        pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        raise OutOfMemoryError(
            f"the system does not give {mebibytes(size)} for keys and values: {error.strerror}",
            hint="free memory, or ask for fewer tokens",
        ) from error
    # As numpy asks for its own arrays, from the same size on; a kernel without large pages refuses it.
    if size >= LARGE and hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):
            pages.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(pages, dtype).reshape(shape)


def cut(buffer: NDArray[Any], capacity: int, length: int) -> NDArray[Any]:
    """The first tokens of a buffer in its own memory, as a buffer with room for so many."""
    _, heads, larger, size = buffer.shape
    if larger == capacity:
        return buffer
    smaller = buffer.reshape(-1)[: heads * capacity * size].reshape(1, heads, capacity, size)
    # In this order none is written over before it was moved.
    for head in range(heads):
        smaller[0, head, :length] = buffer[0, head, :length]
    return smaller


def token_size(facts: DecoderFacts) -> int:
    """Bytes that the keys and values of one token take."""
    return 2 * facts.layers * facts.kv_heads * facts.head_size * np.dtype(DTYPES[facts.cache_type]).itemsize
