from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from ortkit.exporters.quantization.gptq import (
    LEVELS,
    gptq_quantize,
    inverse_hessian_cholesky,
    quantize_weight,
    round_to_levels,
)

FINITE = st.floats(-1e3, 1e3, width=32)
RNG = np.random.default_rng(8)


@given(arrays(np.float32, (5, 3), elements=FINITE))
def test_a_weight_is_off_by_half_a_step_at_most(weight: np.ndarray) -> None:
    found = quantize_weight(weight)

    assert found.values.dtype == np.int8
    assert np.isfinite(found.scales).all()
    assert (np.abs(found.values * found.scales - weight) <= found.scales * 0.5001).all()


def correlated(tokens: int, width: int) -> np.ndarray:
    """Inputs that go together, as activations do: of a few directions, and a little of their own."""
    mixed = RNG.normal(size=(tokens, width // 8)) @ RNG.normal(size=(width // 8, width))
    return (mixed + 0.1 * RNG.normal(size=(tokens, width))).astype(np.float32)


@pytest.mark.parametrize("width", [100, 200, 300])
def test_errors_of_correlated_inputs_are_compensated(width: int) -> None:
    """On inputs that calibration has not seen, too."""
    inputs = correlated(4000, width)
    weight = RNG.normal(size=(width, 7)).astype(np.float32)
    seen, unseen = inputs[:3000], inputs[3000:]

    def error(moments: np.ndarray | None) -> float:
        found = quantize_weight(weight, moments)
        return float(np.square(unseen @ (found.values * found.scales - weight)).mean())

    plain, compensated = error(None), error(seen.T @ seen)

    print(f"mean squared error {plain:.2e} to nearest, {compensated:.2e} in turn")
    assert compensated < 0.5 * plain


def test_uncorrelated_inputs_are_rounded_to_nearest() -> None:
    weight = RNG.normal(size=(150, 7)).astype(np.float32)

    found = quantize_weight(weight, np.diag(RNG.uniform(1, 5, 150)).astype(np.float32))

    assert np.array_equal(found.values, quantize_weight(weight).values)


@pytest.mark.parametrize("moments", [np.zeros((20, 20), np.float32), np.ones((20, 20), np.float32)])
def test_inputs_that_calibration_hardly_saw(moments: np.ndarray) -> None:
    weight = RNG.normal(size=(20, 3)).astype(np.float32)

    found = quantize_weight(weight, moments)

    assert np.abs(found.values).max() <= LEVELS
    assert np.abs(found.values * found.scales - weight).max() < 5 * found.scales.max()


@pytest.mark.parametrize("width", [1, 16, 17, 100, 300])
def test_rows_are_quantized_as_in_the_gptq_paper(width: int) -> None:
    """GPTQ's algorithm without its blocks: the moments inverted, each row's error passed on to all rows after it."""
    inputs = correlated(1000, max(width, 8))[:, :width]
    steps = RNG.normal(scale=20, size=(width, 7)).astype(np.float32)
    moments = inputs.T @ inputs
    expected = steps.astype(np.float64)
    damped = moments + 0.01 * np.diag(moments).mean() * np.eye(width)
    factors = np.linalg.cholesky(np.linalg.inv(damped.astype(np.float64))).T
    for row in range(width):
        error = (expected[row] - np.rint(expected[row])) / factors[row, row]
        expected[row] = np.rint(expected[row])
        expected[row + 1 :] -= np.outer(factors[row, row + 1 :], error)
    seen = []

    def round_first(row: int, rows: np.ndarray) -> np.ndarray:
        assert len(rows) == width - row
        seen.append(row)
        return round_to_levels(rows[0])

    assert np.allclose(inverse_hessian_cholesky(moments), factors, rtol=1e-6, atol=1e-9)
    assert np.array_equal(gptq_quantize(steps, inverse_hessian_cholesky(moments), round_first), expected)
    assert seen == list(range(width))


def test_rows_up_to_a_power_of_two_are_as_they_are_by_then() -> None:
    """So that blocks can have their scales when their first row is reached."""
    steps, inputs = RNG.normal(size=(200, 3)).astype(np.float32), correlated(1000, 200)
    factors = inverse_hessian_cholesky(inputs.T @ inputs)
    by_then = {}

    def round_first(row: int, rows: np.ndarray) -> np.ndarray:
        if row % 32 == 0:
            by_then[row] = rows[:32].copy()
        return round_to_levels(rows[0])

    rounded = gptq_quantize(steps, factors, round_first)

    for row, rows in by_then.items():
        # As the inputs predict it: what the rounded rows add to the product is made up for at best by all others.
        damped = np.linalg.inv(factors.T @ factors)
        change = np.linalg.solve(damped[row:, row:], damped[row:, :row] @ (steps - rounded)[:row])
        assert np.allclose(rows, (steps[row:] + change)[:32], atol=1e-6)
