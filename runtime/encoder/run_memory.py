"""Memory of an encoder's runs: an estimate for each, and a bound on all that run at once."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from ..bundle.manifest import Manifest, Precision
from ..errors import OutOfMemoryError
from ..session.memory import mebibytes
from ..session.memory_limit import MemoryLimit

_PER_UNIT = 96
"""Bytes of activations for each token and each unit of the model's width."""
_PER_SCORE = 8
"""Bytes for each attention score: float32, before and after the softmax."""
_HEAD = 32
"""Smallest size of an attention head: the more heads, the more scores."""
SMALLEST = 16
"""Tokens of the shortest run that a limit must leave room for: a short text."""
_LAYERS = 2
"""Fewest layers of a published encoder."""


@dataclass(frozen=True)
class RunCost:
    """The memory of a run of a graph."""

    width: int
    """Components of a token's hidden state."""

    def of(self, texts: int, tokens: int) -> int:
        """Bytes of a run of `texts` texts of `tokens` tokens."""
        heads = -(-self.width // _HEAD)
        return texts * tokens * (self.width * _PER_UNIT + heads * tokens * _PER_SCORE)

    def largest(self, size: int) -> int:
        """The longest text, in tokens, whose run takes at most `size` bytes; 0 for none."""
        linear, quadratic = self.width * _PER_UNIT, -(-self.width // _HEAD) * _PER_SCORE
        return int((math.sqrt(linear * linear + 4 * quadratic * max(0, size)) - linear) / (2 * quadratic))


def estimated_width(manifest: Manifest, weights: int, vocabulary: int) -> int:
    """The width of a graph that does not state it, from the bytes of its weights: at most about twice too large.

    An embedding table has `vocabulary` times the width, and a layer twelve times its square.
    """
    count = weights / (1 if manifest.precision is Precision.INT8 else 2 if manifest.precision is Precision.FP16 else 4)
    layers = 12 * _LAYERS
    return max(1, int((math.sqrt(vocabulary * vocabulary + 4 * layers * count) - vocabulary) / (2 * layers)))


class RunMemory:
    """Bytes that an encoder's runs may take together, on all threads; a run waits until there is room for it."""

    def __init__(self, limit: MemoryLimit, size: int, cost: RunCost) -> None:
        self.limit = limit
        self.size = size
        self.cost = cost
        self._taken = 0
        self._freed = threading.Condition()

    @property
    def largest(self) -> int:
        """Tokens of the longest text that there is room for."""
        return self.cost.largest(self.size)

    def check(self, tokens: int, what: str) -> None:
        """Raise OutOfMemoryError where a text of so many tokens does not fit even alone; `what` names it."""
        needed = self.cost.of(1, tokens)
        if needed > self.size:
            # A higher limit is divided too.
            total = self.limit.size + (needed - self.size) * 4 // 3
            raise OutOfMemoryError(
                f"{what} has {tokens} tokens, which take about {mebibytes(needed)} to run, and within `max_memory`, "
                f"{mebibytes(self.limit.size)}, there is room for {self.largest} tokens",
                hint=f"{self.limit.raised(total)}, split the text, or take a bundle of fewer bits",
            )

    @contextmanager
    def reserved(self, texts: int, tokens: int) -> Iterator[None]:
        """Hold the memory of a run; waits for others to end where there is too little."""
        needed = min(self.size, self.cost.of(texts, tokens))
        with self._freed:
            self._freed.wait_for(lambda: self._taken + needed <= self.size)
            self._taken += needed
        try:
            yield
        finally:
            with self._freed:
                self._taken -= needed
                self._freed.notify_all()
