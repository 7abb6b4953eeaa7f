"""GPTQ, and int8 weights rounded to nearest or by GPTQ."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

LEVELS = 127
SMALLEST = 1e-8
"""Lower bound of a channel's largest value, so that channels of zeros have a scale."""
_DAMPING = 0.01
"""Dampening: this share of the mean of the Hessian's diagonal is added to the diagonal, as in GPTQ."""
_ROWS_ONE_BY_ONE = 16
"""Up to this many rows, errors are propagated row by row and not by matmuls."""
_INVERTED_WHOLE = 64
"""Up to this many rows, a matrix is inverted as a whole."""


@dataclass(frozen=True)
class QuantizedWeight:
    """An int8 matrix (inputs, outputs) with a scale per output channel."""

    values: NDArray[np.int8]
    scales: NDArray[np.float32]


def quantize_weight(weight: NDArray[np.float32], moments: NDArray[np.float32] | None = None) -> QuantizedWeight:
    """Quantize a matrix (inputs, outputs) to int8, symmetric, with a scale per output channel.

    With the `moments` of its inputs on calibration texts, (inputs, inputs), it is quantized by GPTQ, which minimizes
    the error of the layer's output instead of each weight's.
    """
    scales = (np.maximum(np.abs(weight).max(axis=0), SMALLEST) / LEVELS).astype(np.float32)
    steps = weight / scales
    if moments is None:
        return QuantizedWeight(round_to_levels(steps).astype(np.int8), scales)
    rounded = gptq_quantize(steps, inverse_hessian_cholesky(moments), lambda _, rows: round_to_levels(rows[0]))
    return QuantizedWeight(rounded.astype(np.int8), scales)


def round_to_levels(steps: NDArray[np.floating]) -> NDArray[np.floating]:
    levels = np.rint(steps)
    # numpy.clip takes several times as long.
    np.maximum(levels, -LEVELS, out=levels)
    np.minimum(levels, LEVELS, out=levels)
    return np.asarray(levels)


def second_moments(rows: NDArray[np.float32], *, squares_only: bool = False) -> NDArray[np.float32]:
    """Second moments of activations (tokens, width): `rows.T @ rows`, (width, width), or only its diagonal, (width,).

    Summed in float64: float32 sums differ between the kernels of a BLAS library, and one bit decides how a weight
    halfway between two levels is rounded, so the same export would not give the same bytes.
    """
    exact = rows.astype(np.float64)
    return np.asarray(np.square(exact).sum(axis=0) if squares_only else exact.T @ exact, np.float32)


def inverse_hessian_cholesky(moments: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the upper Cholesky factor of the inverse of the damped Hessian, which is the second moments.

    Its rows say how later rows best compensate the error of a row (inputs, inputs). The inverse square of its diagonal
    is the part of a row's squared error that cannot be compensated.
    """
    damped = moments.astype(np.float64)
    damped[np.diag_indices_from(damped)] += _DAMPING * max(float(np.diag(damped).mean()), SMALLEST)
    # Factored from the last row on, the Hessian is an upper factor times its transpose, whose inverse is the factor
    # wanted: half of the work of inverting the Hessian first.
    factor = np.asarray(np.linalg.cholesky(damped[::-1, ::-1]), np.float64)
    return _inverse_of_upper_triangular(factor[::-1, ::-1])


def _inverse_of_upper_triangular(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """Invert an upper triangular matrix, block by block."""
    count = len(matrix)
    if count <= _INVERTED_WHOLE:
        return np.asarray(np.linalg.inv(matrix))
    half = count // 2
    upper, lower = (
        _inverse_of_upper_triangular(matrix[:half, :half]),
        _inverse_of_upper_triangular(matrix[half:, half:]),
    )
    inverse = np.zeros((count, count))
    inverse[:half, :half], inverse[half:, half:] = upper, lower
    inverse[:half, half:] = -(upper @ matrix[:half, half:] @ lower)
    return inverse


def gptq_quantize(
    matrix: NDArray[np.float32],
    factors: NDArray[np.float64],
    round_first: Callable[[int, NDArray[np.float64]], NDArray[np.floating]],
) -> NDArray[np.float32]:
    """Quantize the rows of a matrix one after another, propagating each row's error to the rows not quantized yet.

    GPTQ (Frantar et al. 2022, arXiv:2210.17323). `factors` is `inverse_hessian_cholesky` of the second moments.
    `round_first(number, rows)` gets the row `number` and the rows after it, and returns the quantized row. Updates are
    lazy: up to the next multiple of the largest power of two that divides `number`, rows are up to date.
    """
    # Rows not quantized yet, after the errors of those that were.
    rest = matrix.astype(np.float64)
    rounded = np.empty_like(matrix)

    def round_rows(start: int, end: int) -> None:
        if end - start <= _ROWS_ONE_BY_ONE:
            for row in range(start, end):
                rounded[row] = round_first(row, rest[row:])
                rest[row] -= rounded[row]
                rest[row] /= factors[row, row]
                rest[row + 1 : end] -= np.outer(factors[row, row + 1 : end], rest[row])
            return
        # Split at a power of two, so that no quantization block is split.
        middle = start + (1 << (end - start - 1).bit_length() - 1)
        round_rows(start, middle)
        rest[middle:end] -= factors[start:middle, middle:end].T @ rest[start:middle]
        round_rows(middle, end)

    round_rows(0, len(rest))
    return rounded
