"""A dense layer after pooling, as some embedders have: pure numpy, one text never touching another."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from runtime.errors import BundleError
from runtime.manifest import Activation, DenseFacts


class Dense:
    """`activation(vector @ weight + bias)`, with the arrays of an .npz file of the bundle."""

    def __init__(self, path: Path, facts: DenseFacts) -> None:
        """Read `weight`, float32 (inputs, outputs), and `bias`, float32 (outputs,); raises BundleError without them."""
        self.path = path
        try:
            with np.load(path, allow_pickle=False) as arrays:
                self.weight, self.bias = arrays["weight"], arrays["bias"]
        # A file of one array is no context manager, which Python 3.10 says with another error than later ones.
        except (OSError, EOFError, ValueError, KeyError, TypeError, AttributeError, zipfile.BadZipFile) as error:
            raise BundleError(f"`{path}` does not hold the arrays `weight` and `bias`: {error}") from error
        if self.weight.ndim != 2 or self.bias.shape != self.weight.shape[1:]:
            raise BundleError(
                f"`{path}` holds arrays that do not fit each other: {self.weight.shape}, {self.bias.shape}"
            )
        if not self.weight.dtype == self.bias.dtype == np.float32:
            raise BundleError(f"`{path}` holds arrays of {self.weight.dtype} and {self.bias.dtype}, not of float32")
        self.activation = facts.activation

    def apply(self, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        """Transform (texts, inputs) into (texts, outputs)."""
        # Row by row: a product of two matrices may add up in another order when it has more rows.
        products = np.empty((len(vectors), len(self.bias)), np.float32)
        for vector, product in zip(vectors, products, strict=True):
            np.matmul(vector, self.weight, out=product)
        products += self.bias
        return np.tanh(products) if self.activation is Activation.TANH else products


def width_before(layers: Sequence[Dense], dimension: int) -> int:
    """How many components vectors must have that these layers turn into vectors of `dimension`.

    Raises BundleError for a layer that does not give what comes after it reads.
    """
    width = dimension
    for layer in reversed(layers):
        inputs, outputs = layer.weight.shape
        if outputs != width:
            raise BundleError(
                f"`{layer.path}` gives vectors of {outputs} components, and what comes after it needs {width}"
            )
        width = inputs
    return width
