from __future__ import annotations

import math

import pytest

from ortkit.exporters.certification.rank_correlation import kendall_tau


@pytest.mark.parametrize(
    ("these", "those", "expected"),
    [
        ([1.0, 2.0, 3.0], [5.0, 6.0, 9.0], 1),
        ([1.0, 2.0, 3.0], [3.0, 2.0, 1.0], -1),
        # Kendall (1945): 4 pairs agree, 1 does not; of the 6, one is tied on the left.
        ([1.0, 1.0, 2.0, 3.0], [1.0, 2.0, 4.0, 3.0], 3 / math.sqrt(5 * 6)),
        ([1.0], [2.0], 1),
        ([1.0, 1.0], [2.0, 2.0], 1),
        ([1.0, 1.0], [2.0, 3.0], 0),
    ],
)
def test_kendalls_tau(these: list[float], those: list[float], expected: float) -> None:
    assert kendall_tau(these, those) == pytest.approx(expected)


def test_no_tau_of_what_is_not_a_number() -> None:
    assert math.isnan(kendall_tau([1.0, math.nan, 2.0], [1.0, 2.0, 3.0]))
