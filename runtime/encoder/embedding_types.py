"""Types of embeddings (float16, int8, packed bits), and similarity."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..bundle.records import choice
from ..errors import InputError
from .pooling import normalize

_UNIT_RANGE = 6.0
"""Default range of int8, in units of 1 / sqrt(dimension), the RMS of a unit vector's components."""


class VectorType(StrEnum):
    """The type of embeddings: `float32`, `float16`, `int8`, `binary` or `ubinary`."""

    FLOAT32 = "float32"
    FLOAT16 = "float16"
    INT8 = "int8"
    BINARY = "binary"
    """The signs of the components as bits, packed in int8 that are shifted by -128."""
    UBINARY = "ubinary"
    """The signs of the components as bits, packed in uint8."""


STORED: dict[VectorType, type[np.generic]] = {
    VectorType.FLOAT32: np.float32,
    VectorType.FLOAT16: np.float16,
    VectorType.INT8: np.int8,
    VectorType.BINARY: np.int8,
    VectorType.UBINARY: np.uint8,
}
_PACKED = frozenset({VectorType.BINARY, VectorType.UBINARY})


class Metric(StrEnum):
    """A measure of similarity: `cosine`, `dot` or `hamming`."""

    COSINE = "cosine"
    DOT = "dot"
    HAMMING = "hamming"
    """For packed bits: 1 where all are equal, -1 where none is; the cosine of vectors of +1 and -1."""


def stored_width(dimension: int, vector_type: VectorType) -> int:
    """Number of columns of embeddings of this dimension."""
    return (dimension + 7) // 8 if vector_type in _PACKED else dimension


def quantize_embeddings(
    vectors: NDArray[np.float32], dtype: VectorType | str, *, ranges: NDArray[np.float32] | None = None
) -> NDArray[Any]:
    """Quantize float32 embeddings (texts, dimension): the same shape, or (texts, dimension / 8) for packed bits.

    A single embedding, (dimension,), gives a single one.

    int8 needs `ranges`, float32 (2, dimension): the lowest and the highest value of each component, which become -128
    and 127. Same definitions as sentence-transformers' `quantize_embeddings` (5.7). Raises InputError for an unknown
    type, for vectors that are not of floats, and for invalid ranges.

        >>> quantize_embeddings(np.array([[0.6, -0.8, 0.1, 0.2]], np.float32), "ubinary")
        array([[176]], dtype=uint8)
    """
    vector_type = choice(VectorType, dtype, "dtype")
    vectors = _floats(vectors)
    if vector_type is VectorType.FLOAT32:
        return np.asarray(vectors, np.float32)
    if vector_type is VectorType.FLOAT16:
        return vectors.astype(np.float16)
    if vector_type is VectorType.INT8:
        ranges = checked_ranges(ranges, vectors.shape[-1])
        steps = (ranges[1] - ranges[0]) / np.float32(255)
        # A constant component carries no information; avoid the division by zero.
        steps[steps == 0] = 1
        scaled: NDArray[np.float32] = np.floor((vectors - ranges[0]) / steps)
        return (scaled.clip(0, 255) - np.float32(128)).astype(np.int8)
    bits = np.packbits(vectors > 0, axis=-1)
    return bits if vector_type is VectorType.UBINARY else np.asarray((bits ^ np.uint8(128)).view(np.int8))


def embedding_ranges(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """The range of each component in sample embeddings (texts, dimension), for int8: float32 (2, dimension).

    The first row holds the lowest values, the second the highest. A few hundred typical texts are enough; values
    outside are clipped. Raises InputError for an empty sample, and for vectors that are not of floats.

        >>> embedding_ranges(np.array([[0.6, -0.8], [0.8, 0.6]], np.float32))
        array([[ 0.6, -0.8],
               [ 0.8,  0.6]], dtype=float32)
    """
    vectors = _floats(vectors)
    if vectors.ndim != 2 or len(vectors) == 0:
        raise InputError(f"`vectors` must be sample embeddings (texts, dimension), not {vectors.shape}")
    return np.stack([vectors.min(axis=0), vectors.max(axis=0)]).astype(np.float32)


def unit_ranges(dimension: int) -> NDArray[np.float32]:
    """Default ranges for unit vectors, float32 (2, dimension): symmetric, and the same for every component."""
    reach = min(1.0, _UNIT_RANGE / dimension**0.5)
    return np.repeat(np.array([[-reach], [reach]], np.float32), dimension, axis=1)


def checked_ranges(ranges: NDArray[np.float32] | None, dimension: int) -> NDArray[np.float32]:
    """Ranges as float32 (2, dimension); raises InputError where they are missing or not valid."""
    if ranges is None:
        raise InputError(
            "int8 needs the ranges of the components",
            hint="compute them from sample vectors with `embedding_ranges(vectors)`",
        )
    try:
        ranges = np.asarray(ranges, np.float32)
    except (ValueError, TypeError):
        message = f"`ranges` must be numbers of the shape (2, {dimension}), not {type(ranges).__name__}"
        raise InputError(message) from None
    if ranges.shape != (2, dimension):
        raise InputError(f"`ranges` must have the shape (2, {dimension}), not {ranges.shape}")
    if not np.isfinite(ranges).all() or (ranges[0] > ranges[1]).any():
        raise InputError("`ranges` must be finite numbers, the lowest values in the first row")
    return ranges


def similarity(a: NDArray[Any], b: NDArray[Any], *, metric: Metric | str = Metric.COSINE) -> NDArray[np.float32]:
    """Similarity of each vector of `a` (n, dimension) to each of `b` (m, dimension): float32 (n, m).

    A single vector (dimension,) counts as n = 1. `cosine` and `dot` are sentence-transformers' `cos_sim` and
    `dot_score`, for floats and int8; `hamming` is for packed bits. Raises InputError for different dimensions, unknown
    metrics, and `cosine` or `dot` of packed bits in uint8.

        >>> similarity(np.array([1.0, 0.0]), np.array([[0.0, 2.0], [3.0, 0.0]]))
        array([[0., 1.]], dtype=float32)
    """
    metric = choice(Metric, metric, "metric")
    first, second = _vectors(a, "a"), _vectors(b, "b")
    if first.shape[1] != second.shape[1]:
        raise InputError(f"vectors of different dimensions, {first.shape[1]} and {second.shape[1]}, cannot be compared")
    if metric is Metric.HAMMING:
        first, second = _signs(first), _signs(second)
        return np.asarray(first @ second.T / np.float32(first.shape[1]))
    if np.uint8 in (first.dtype, second.dtype):
        raise InputError(
            f"`{metric.value}` cannot compare packed bits, and only these have the type uint8",
            hint='pass `metric="hamming"`',
        )
    first, second = first.astype(np.float32), second.astype(np.float32)
    if metric is Metric.COSINE:
        first, second = normalize(first), normalize(second)
    return np.asarray(first @ second.T)


def _floats(vectors: object) -> NDArray[Any]:
    """Vectors (texts, dimension), or a single one; raises InputError for anything but floats of this shape."""
    try:
        found = np.asarray(vectors)
    except ValueError:
        raise InputError("`vectors` must be floats (texts, dimension), all of one dimension") from None
    if found.ndim not in (1, 2) or not np.issubdtype(found.dtype, np.floating):
        raise InputError(f"`vectors` must be floats (texts, dimension), not {found.dtype} of shape {found.shape}")
    return found


def _vectors(given: object, name: str) -> NDArray[Any]:
    """Vectors as (n, dimension), a single one as n = 1; raises InputError for anything but numbers of this shape."""
    try:
        vectors = np.atleast_2d(np.asarray(given))
    except ValueError:
        raise InputError(f"`{name}` must be vectors of one dimension") from None
    if vectors.ndim != 2 or not np.issubdtype(vectors.dtype, np.number):
        raise InputError(
            f"`{name}` must be numbers (n, dimension), not {vectors.dtype} of shape {np.asarray(given).shape}"
        )
    return vectors


def _signs(packed: NDArray[Any]) -> NDArray[np.float32]:
    """Packed bits as float32 +1 and -1."""
    if packed.dtype not in (np.int8, np.uint8):
        raise InputError(f"`hamming` needs packed bits (int8 or uint8), not {packed.dtype}")
    bits = packed.view(np.uint8) ^ np.uint8(128 if packed.dtype == np.int8 else 0)
    return np.unpackbits(bits, axis=1).astype(np.float32) * 2 - 1
