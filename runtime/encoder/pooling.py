"""From the vectors of a text's tokens to the vector of the text: pure numpy, one text never touching another."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..bundle.manifest import Pooling

EPSILON = np.float32(1e-12)
"""What PyTorch's `normalize` puts in place of a norm of zero."""


def pool(tokens: NDArray[np.float32], poolings: Sequence[Pooling], *, skip: int = 0) -> NDArray[np.float32]:
    """Pool token vectors (tokens, texts, width) to (texts, poolings * width), all tokens being the text's own.

    The first `skip` tokens are left out, as sentence-transformers leaves out those of a prompt. Raises InputError where
    that leaves none for the maximum.
    """
    found = [pool_one(tokens, pooling, min(skip, len(tokens))) for pooling in poolings]
    return found[0] if len(found) == 1 else np.concatenate(found, axis=1)


def pool_one(tokens: NDArray[np.float32], pooling: Pooling, skip: int) -> NDArray[np.float32]:
    kept = tokens[skip:]
    if len(kept) == 0:
        return pool_nothing(tokens, pooling)
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


def pool_nothing(tokens: NDArray[np.float32], pooling: Pooling) -> NDArray[np.float32]:
    """What sentence-transformers makes of a text whose tokens are all left out, other than its maximum of -inf."""
    if pooling is Pooling.MAX:
        raise InputError(
            "a text ends within its prompt, and this model leaves prompts out of pooling, so that nothing is left",
            hint="leave out empty texts, or use another prompt",
        )
    return tokens[0] if pooling is Pooling.CLS else np.zeros(tokens.shape[1:], np.float32)


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
