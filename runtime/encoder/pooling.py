"""Pooling: token embeddings to one embedding per text, in numpy; texts do not affect each other."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..bundle.manifest import Pooling
from ..errors import InputError

_EPSILON = np.float32(1e-12)
"""The smallest norm to divide by, as in PyTorch's `normalize`."""


def pool(tokens: NDArray[np.float32], poolings: Sequence[Pooling], *, skip: int = 0) -> NDArray[np.float32]:
    """Pool token embeddings (tokens, texts, width) to (texts, poolings * width); there is no padding.

    The first `skip` tokens are excluded, as sentence-transformers excludes those of a prompt. Raises InputError where
    no token remains for max pooling.
    """
    found = [_pool_one(tokens, pooling, min(skip, len(tokens))) for pooling in poolings]
    return found[0] if len(found) == 1 else np.concatenate(found, axis=1)


def _pool_one(tokens: NDArray[np.float32], pooling: Pooling, skip: int) -> NDArray[np.float32]:
    kept = tokens[skip:]
    if len(kept) == 0:
        return _pool_nothing(tokens, pooling)
    if pooling in (Pooling.CLS, Pooling.LAST_TOKEN):
        return np.asarray(kept[0 if pooling is Pooling.CLS else -1])
    if pooling is Pooling.MAX:
        return np.asarray(kept.max(axis=0))
    if pooling is Pooling.WEIGHTED_MEAN:
        # SGPT (Muennighoff 2022, arXiv:2202.08904), as sentence-transformers computes it.
        weights = np.arange(skip + 1, len(tokens) + 1, dtype=np.float32)
        return np.asarray((kept * weights[:, np.newaxis, np.newaxis]).sum(axis=0) / weights.sum())
    if pooling is Pooling.MEAN_SQRT:
        return np.asarray(kept.sum(axis=0, dtype=np.float32) / np.sqrt(np.float32(len(kept))))
    return np.asarray(kept.mean(axis=0, dtype=np.float32))


def _pool_nothing(tokens: NDArray[np.float32], pooling: Pooling) -> NDArray[np.float32]:
    """The result where all tokens are excluded, as in sentence-transformers, except its -inf for max pooling."""
    if pooling is Pooling.MAX:
        raise InputError(
            "a text ends within its prompt, which this model excludes from pooling, so no token remains",
            hint="leave out empty texts, or use another prompt",
        )
    return tokens[0] if pooling is Pooling.CLS else np.zeros(tokens.shape[1:], np.float32)


def pool_chunks(vectors: NDArray[np.float32], tokens: NDArray[np.int64]) -> NDArray[np.float32]:
    """Average the embeddings of a text's chunks (chunks, width), weighted by their numbers of tokens: (width,).

    They are not normalized yet, so with mean pooling this is the mean over all tokens of the text.
    """
    return np.asarray(np.average(vectors, axis=0, weights=tokens.astype(np.float32)))


def shorten(vectors: NDArray[np.float32], dimension: int) -> NDArray[np.float32]:
    """Truncate each row of (texts, width) to its first `dimension` components.

    For models trained for it: Matryoshka representation learning (Kusupati et al. 2022, arXiv:2205.13147).
    """
    return np.ascontiguousarray(vectors[:, :dimension])


def normalize(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Scale each row of (texts, width) to length 1."""
    norms = np.sqrt(np.einsum("ij,ij->i", vectors, vectors))[:, np.newaxis]
    return np.asarray(vectors / np.maximum(norms, _EPSILON))


def cosines(these: NDArray[np.float32], those: NDArray[np.float32]) -> NDArray[np.float64]:
    """The cosine similarity of each row of `these` to the same row of `those`, both (texts, width): (texts,)."""
    first, second = normalize(these).astype(np.float64), normalize(those).astype(np.float64)
    return np.asarray(np.einsum("ij,ij->i", first, second))
