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
BLOCK = 128
"""Rows whose errors are passed on to the rows after them at once."""


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
    return np.asarray(np.clip(np.rint(steps), -LEVELS, LEVELS))


def make_up_factors(moments: NDArray[np.float32]) -> NDArray[np.float64]:
    """How an error in each row of a matrix is best made up for by the rows after it: (inputs, inputs).

    The upper Cholesky factor of the inverse of the second moments. The square of its diagonal is, inverted, how much
    of a row's error cannot be made up for.
    """
    damped = moments.astype(np.float64)
    damped[np.diag_indices_from(damped)] += DAMPING * max(float(np.diag(damped).mean()), SMALLEST)
    return np.asarray(np.linalg.cholesky(np.linalg.inv(damped)).T)


def rounded_in_turn(
    matrix: NDArray[np.float32],
    factors: NDArray[np.float64],
    round_first: Callable[[int, NDArray[np.float64]], NDArray[np.floating]],
) -> NDArray[np.float32]:
    """Round the rows of a matrix one after another, and let the rows that follow make up for the error of each.

    GPTQ (Frantar et al. 2022, arXiv:2210.17323): what a row's error adds to the product is predicted by the inputs
    of the rows after it, as far as they go with its own input. `factors` are those of `make_up_factors`. `round_first`
    is given the number of a row, and it with the rows after it as they are by then, up to the next multiple of BLOCK;
    it returns what the row is rounded to.
    """
    rest = matrix.astype(np.float64)
    rounded = np.empty_like(matrix)
    for start in range(0, len(rest), BLOCK):
        end = min(start + BLOCK, len(rest))
        errors = np.empty((end - start, rest.shape[1]))
        for row in range(start, end):
            rounded[row] = round_first(row, rest[row:end])
            errors[row - start] = (rest[row] - rounded[row]) / factors[row, row]
            rest[row + 1 : end] -= np.outer(factors[row, row + 1 : end], errors[row - start])
        rest[end:] -= factors[start:end, end:].T @ errors
    return rounded
