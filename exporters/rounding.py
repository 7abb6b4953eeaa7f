"""Rounding a matrix: each number to the nearest, or so that the errors of a row make up for one another."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

LEVELS = 127
SMALLEST = 1e-8
"""Stands in for the largest value of a channel of zeros, which has no scale."""
DAMPING = 0.01
"""Of the mean second moment, added to each: inputs that calibration hardly saw must not be trusted."""
FEW = 16
"""Rows whose errors are passed on to one another one by one, and not by products of matrices."""
SMALL = 64
"""Rows of a matrix that is inverted as a whole."""


@dataclass(frozen=True)
class QuantizedWeight:
    """A matrix (inputs, outputs) in 8 bits with a scale for each output."""

    values: NDArray[np.int8]
    scales: NDArray[np.float32]


def quantize_weight(weight: NDArray[np.float32], moments: NDArray[np.float32] | None = None) -> QuantizedWeight:
    """Round a matrix (inputs, outputs) to int8, symmetric, each output channel by its own largest value.

    `moments`, (inputs, inputs), are the sums of the products of each two inputs over calibration texts. With them the
    product's error on such inputs is made small instead of each weight's own.
    """
    scales = (np.maximum(np.abs(weight).max(axis=0), SMALLEST) / LEVELS).astype(np.float32)
    steps = weight / scales
    if moments is None:
        return QuantizedWeight(nearest(steps).astype(np.int8), scales)
    rounded = rounded_in_turn(steps, make_up_factors(moments), lambda _, rows: nearest(rows[0]))
    return QuantizedWeight(rounded.astype(np.int8), scales)


def nearest(steps: NDArray[np.floating]) -> NDArray[np.floating]:
    levels = np.rint(steps)
    # Rows by the ten thousand, for which numpy.clip takes several times as long.
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


def make_up_factors(moments: NDArray[np.float32]) -> NDArray[np.float64]:
    """How an error in each row of a matrix is best made up for by the rows after it: (inputs, inputs).

    The upper Cholesky factor of the inverse of the second moments. The square of its diagonal is, inverted, how much
    of a row's error cannot be made up for.
    """
    damped = moments.astype(np.float64)
    damped[np.diag_indices_from(damped)] += DAMPING * max(float(np.diag(damped).mean()), SMALLEST)
    # Factored from its last row on, the moments are an upper factor times its transpose; its inverse is the factor
    # that is asked for, for half of the work of inverting the moments first.
    factor = np.asarray(np.linalg.cholesky(damped[::-1, ::-1]), np.float64)
    return inverse_of_upper(factor[::-1, ::-1])


def inverse_of_upper(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """The inverse of an upper triangular matrix, by products of its quarters."""
    count = len(matrix)
    if count <= SMALL:
        return np.asarray(np.linalg.inv(matrix))
    half = count // 2
    upper, lower = inverse_of_upper(matrix[:half, :half]), inverse_of_upper(matrix[half:, half:])
    inverse = np.zeros((count, count))
    inverse[:half, :half], inverse[half:, half:] = upper, lower
    inverse[:half, half:] = -(upper @ matrix[:half, half:] @ lower)
    return inverse


def rounded_in_turn(
    matrix: NDArray[np.float32],
    factors: NDArray[np.float64],
    round_first: Callable[[int, NDArray[np.float64]], NDArray[np.floating]],
) -> NDArray[np.float32]:
    """Round the rows of a matrix one after another, and let the rows that follow make up for the error of each.

    GPTQ (Frantar et al. 2022, arXiv:2210.17323): what a row's error adds to the product is predicted by the inputs
    of the rows after it, as far as they go with its own input. `factors` are those of `make_up_factors`. `round_first`
    is given the number of a row, and it with all rows after it, of which those are as they are by then that come
    before the next multiple of a power of two that divides the number; it returns what the row is rounded to.
    """
    # The rows that are to be rounded, and before them the errors of those that were.
    rest = matrix.astype(np.float64)
    rounded = np.empty_like(matrix)

    def round_rows(start: int, end: int) -> None:
        if end - start <= FEW:
            for row in range(start, end):
                rounded[row] = round_first(row, rest[row:])
                rest[row] -= rounded[row]
                rest[row] /= factors[row, row]
                rest[row + 1 : end] -= np.outer(factors[row, row + 1 : end], rest[row])
            return
        # Cut at a power of two, so that blocks, which are powers of two, are not.
        middle = start + (1 << (end - start - 1).bit_length() - 1)
        round_rows(start, middle)
        rest[middle:end] -= factors[start:middle, middle:end].T @ rest[start:middle]
        round_rows(middle, end)

    round_rows(0, len(rest))
    return rounded
