"""Prefix cache: KV caches of prompts that have left their slots, for later prompts that begin alike.

A prefix is found by comparing token ids one by one, never by a hash: a cache that is taken for another prompt's would
answer one user with another's conversation.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]


def common_prefix(first: Ids, second: Ids) -> int:
    """Length of the common prefix of two sequences of token ids."""
    shortest = min(len(first), len(second))
    if not shortest or first[0] != second[0]:
        return 0
    differs = first[:shortest] != second[:shortest]
    place = int(differs.argmax())
    return place if differs[place] else shortest


class SavedPrefix:
    """The KV cache of the first tokens of a prompt, apart from any slot."""

    def __init__(self, ids: Ids, contents: Iterable[NDArray[Any]]) -> None:
        """Copy the contents of the buffers, each (kv_heads, tokens, head_size)."""
        self.ids = ids.copy()
        self.contents = np.stack(list(contents))
        """(2 * layers, kv_heads, tokens, head_size)"""

    @property
    def size(self) -> int:
        """Its bytes."""
        return self.ids.nbytes + self.contents.nbytes


class PrefixStore:
    """Entries of at most `limit` bytes together; the one that was not used for longest is dropped first."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.size = 0
        """Bytes of all entries."""
        self._saved: list[SavedPrefix] = []
        """The one that was used last is the last."""

    def __len__(self) -> int:
        return len(self._saved)

    def makes_room(self, size: int) -> bool:
        """Drop prefixes until there is room for so many bytes; False where there cannot be."""
        if size > self.limit:
            return False
        while self.size + size > self.limit:
            self._drop(self._saved[0])
        return True

    def holds(self, ids: Ids) -> bool:
        """Whether an entry begins with all of these tokens."""
        return any(common_prefix(saved.ids, ids) == len(ids) for saved in self._saved)

    def add(self, prefix: SavedPrefix) -> None:
        """Add a prefix, for which there is room, in place of those that it begins with."""
        for saved in [one for one in self._saved if common_prefix(one.ids, prefix.ids) == len(one.ids)]:
            self._drop(saved)
        self._saved.append(prefix)
        self.size += prefix.size

    def longest(self, ids: Ids) -> tuple[int, SavedPrefix | None]:
        """The entry with the most tokens in common with a prompt, and their number."""
        best, found = 0, None
        for saved in self._saved:
            length = common_prefix(saved.ids, ids)
            if length > best:
                best, found = length, saved
        return best, found

    def touch(self, prefix: SavedPrefix) -> None:
        """Count a prefix as used now."""
        self._saved.remove(prefix)
        self._saved.append(prefix)

    def clear(self) -> None:
        """Drop all prefixes."""
        self._saved.clear()
        self.size = 0

    def _drop(self, saved: SavedPrefix) -> None:
        self._saved.remove(saved)
        self.size -= saved.size
