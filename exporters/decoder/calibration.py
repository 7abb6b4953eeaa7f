"""Second moments of the inputs of a decoder's linear layers on calibration texts, computed by PyTorch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...runtime.bundle.manifest import DecoderFacts
from ..certification.probe import calibration_texts
from ..checkpoint.safetensors_reader import StoredTensor
from ..graph.nodes import Linear
from ..graph.streamed_tensor import StreamedTensor
from ..quantization.gptq import second_moments
from .layerwise import LayerwiseForward, Observer
from .lazy_model import LazyDecoder

_LENGTH = 256
"""Tokens per calibration text: enough context for the attention."""
_TOKENS = 2048
"""Calibration tokens in all: more change the KL divergence less than the choice of texts does."""


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


def calibration_windows(tokenizer: Any, facts: DecoderFacts) -> list[list[int]]:
    """Tokenize the calibration texts with transformers' tokenizer, cut in windows."""
    ids: list[int] = tokenizer("\n".join(calibration_texts().texts))["input_ids"][:_TOKENS]
    length = min(_LENGTH, facts.context_length)
    return [ids[start : start + length] for start in range(0, len(ids), length)]


def moments_by_layer(
    layers: Sequence[Linear], by_weight: Mapping[str, NDArray[np.float32]]
) -> dict[str, NDArray[np.float32]]:
    """Return the moments of linear layers by their names; `by_weight` has them by a weight's name in the checkpoint."""
    return {layer.name: by_weight[_weight_of(layer)] for layer in layers}


def compute_moments(
    decoder: LazyDecoder, windows: Sequence[Sequence[int]], layers: Sequence[Linear]
) -> dict[str, NDArray[np.float32]]:
    """Run the windows through PyTorch for the second moments (inputs, inputs) of the inputs of some linear layers."""
    observer = MomentsObserver(0, squares_only=False, wanted=frozenset(map(_weight_of, layers)))
    LayerwiseForward(decoder, windows, observer).run()
    return moments_by_layer(layers, observer.found)


def _weight_of(layer: Linear) -> str:
    """Return the checkpoint's name of a weight with the same input as a linear layer."""
    matrix = layer.matrix
    if not isinstance(matrix, StreamedTensor):
        raise TypeError(f"`{layer.name}` is not streamed from the checkpoint")
    return matrix.parts[0].name
