"""Second moments of the inputs of a decoder's linear layers, taken from PyTorch layer by layer."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from exporters.layerwise import Observer
from exporters.rounding import second_moments
from exporters.stored_tensors import StoredTensor


class MomentsReading(Observer):
    """Adds up the second moments of what goes into products."""

    def __init__(self, first: int, *, squares_only: bool, wanted: frozenset[str] | None = None) -> None:
        """Of the texts from number `first` on, for the matrices `wanted`, by their names in the checkpoint, or all."""
        self.first = first
        self.squares_only = squares_only
        self.wanted = wanted
        self.found: dict[str, NDArray[np.float32]] = {}
        self.last: tuple[NDArray[np.float32], NDArray[np.float32]] | None = None
        """The rows before and what came of them: several products read the same."""

    def product(self, text: int, matrix: StoredTensor, rows: NDArray[np.float32]) -> None:
        if text < self.first or (self.wanted is not None and matrix.name not in self.wanted):
            return
        # Held here, they cannot have given their place in memory to others.
        if self.last is None or self.last[0].ctypes.data != rows.ctypes.data or self.last[0].shape != rows.shape:
            self.last = rows, second_moments(rows, squares_only=self.squares_only)
        found = self.last[1]
        self.found[matrix.name] = found + self.found[matrix.name] if matrix.name in self.found else found
