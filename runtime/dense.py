"""A dense layer after pooling, as some embedders have: pure numpy, one text never touching another."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from runtime.errors import BundleError
from runtime.manifest import Activation, DenseFacts


class Dense:
    """`activation(vector @ weight + bias)`, with the arrays of an .npz file of the bundle."""

    def __init__(self, path: Path, facts: DenseFacts) -> None:
        """Read `weight`, float32 (inputs, outputs), and `bias`, float32 (outputs,); raises BundleError without them."""
        try:
            with np.load(path, allow_pickle=False) as arrays:
                self.weight, self.bias = arrays["weight"], arrays["bias"]
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise BundleError(f"`{path}` does not hold the arrays `weight` and `bias`: {error}") from error
        if self.weight.ndim != 2 or self.bias.shape != self.weight.shape[1:]:
            raise BundleError(
                f"`{path}` holds arrays that do not fit each other: {self.weight.shape}, {self.bias.shape}"
            )
        self.activation = facts.activation

    def apply(self, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        """Transform (texts, inputs) into (texts, outputs)."""
        # Row by row: a product of two matrices may add up in another order when it has more rows.
        products = np.empty((len(vectors), len(self.bias)), np.float32)
        for vector, product in zip(vectors, products, strict=True):
            np.matmul(vector, self.weight, out=product)
        products += self.bias
        return np.tanh(products) if self.activation is Activation.TANH else products
