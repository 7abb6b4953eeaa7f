"""Kendall's tau, the rank correlation that certificates and benchmarks report."""

from __future__ import annotations

from collections.abc import Sequence

from scipy.stats import kendalltau


def kendall_tau(these: Sequence[float], those: Sequence[float]) -> float:
    """Kendall's tau-b of two lists of scores for the same documents: 1 for the same order, -1 for the opposite.

    Where a list has no order (one document, or equal scores), tau is undefined: 1 if neither has one, otherwise 0.
    """
    if _has_no_order(these) or _has_no_order(those):
        return float(_has_no_order(these) and _has_no_order(those))
    return float(kendalltau(these, those).statistic)


def _has_no_order(scores: Sequence[float]) -> bool:
    return len(set(scores)) < 2
