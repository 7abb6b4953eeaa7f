"""From the vectors of a text's tokens to the vector of the text: pure numpy, one text never touching another."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from runtime.manifest import Pooling

EPSILON = np.float32(1e-12)
"""What PyTorch's `normalize` puts in place of a norm of zero."""


def pool(tokens: NDArray[np.float32], pooling: Pooling) -> NDArray[np.float32]:
    """Pool token vectors (tokens, texts, width) to (texts, width), all tokens being the text's own (no padding)."""
    if pooling is Pooling.CLS:
        return np.asarray(tokens[0])
    if pooling is Pooling.LAST_TOKEN:
        return np.asarray(tokens[-1])
    if pooling is Pooling.MAX:
        return np.asarray(tokens.max(axis=0))
    if pooling is Pooling.WEIGHTED_MEAN:
        # SGPT (Muennighoff 2022, arXiv:2202.08904), as sentence-transformers computes it.
        weights = np.arange(1, len(tokens) + 1, dtype=np.float32)
        return np.asarray((tokens * weights[:, np.newaxis, np.newaxis]).sum(axis=0) / weights.sum())
    return np.asarray(tokens.mean(axis=0, dtype=np.float32))


def pool_chunks(vectors: NDArray[np.float32], tokens: NDArray[np.int64]) -> NDArray[np.float32]:
    """One vector (width,) for a text read in chunks: the mean of theirs (chunks, width), weighted by their tokens.

    The chunks' vectors are not normalized, so where the tokens of a chunk are pooled by their mean, this is the mean of
    all tokens of the text.
    """
    return np.asarray(np.average(vectors, axis=0, weights=tokens.astype(np.float32)))


def shorten(vectors: NDArray[np.float32], dimension: int) -> NDArray[np.float32]:
    """Keep the first `dimension` components of each row of (texts, width).

    Models trained for it lose little (Matryoshka representation learning, Kusupati et al. 2022, arXiv:2205.13147).
    """
    return np.ascontiguousarray(vectors[:, :dimension])


def normalize(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Scale each row of (texts, width) to length 1."""
    norms = np.sqrt(np.einsum("ij,ij->i", vectors, vectors))[:, np.newaxis]
    return np.asarray(vectors / np.maximum(norms, EPSILON))


def cosines(these: NDArray[np.float32], those: NDArray[np.float32]) -> NDArray[np.float64]:
    """The cosine of each row of `these` with the same row of `those`, both (texts, width): (texts,)."""
    first, second = normalize(these).astype(np.float64), normalize(those).astype(np.float64)
    return np.asarray(np.einsum("ij,ij->i", first, second))
