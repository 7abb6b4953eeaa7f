"""Second moments of the inputs of a decoder's linear layers, taken from PyTorch layer by layer."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..checkpoint.safetensors_reader import StoredTensor
from .layerwise import Observer
from ..quantization.gptq import second_moments


class MomentsObserver(Observer):
    """Sums the second moments of the inputs of linear layers."""

    def __init__(self, first: int, *, squares_only: bool, wanted: frozenset[str] | None = None) -> None:
        """Observe texts from number `first` on; `wanted` are weights by their names in the checkpoint, None for all."""
        self.first = first
        self.squares_only = squares_only
        self.wanted = wanted
        self.found: dict[str, NDArray[np.float32]] = {}
        self.last: tuple[NDArray[np.float32], NDArray[np.float32]] | None = None
        """The last input and its moments: several linear layers share an input."""

    def linear(self, text: int, matrix: StoredTensor, rows: NDArray[np.float32]) -> None:
        if text < self.first or (self.wanted is not None and matrix.name not in self.wanted):
            return
        # Referenced here, so its memory cannot have been reused.
        if self.last is None or self.last[0].ctypes.data != rows.ctypes.data or self.last[0].shape != rows.shape:
            self.last = rows, second_moments(rows, squares_only=self.squares_only)
        found = self.last[1]
        self.found[matrix.name] = found + self.found[matrix.name] if matrix.name in self.found else found
