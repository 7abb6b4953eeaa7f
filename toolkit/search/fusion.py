"""Reciprocal rank fusion (Cormack, Clarke and Buettcher 2009)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence
from typing import TypeVar

Item = TypeVar("Item", bound=Hashable)

K = 60
"""The constant of the paper."""


def fuse(rankings: Iterable[Sequence[Item]]) -> dict[Item, float]:
    """The sum over rankings of 1 / (K + rank), with ranks from 1, for each item of any ranking.

    >>> fuse([["a", "b"], ["b"]]) == {"a": 1 / 61, "b": 1 / 62 + 1 / 61}
    True
    """
    found: defaultdict[Item, float] = defaultdict(float)
    for ranking in rankings:
        for rank, item in enumerate(ranking, 1):
            found[item] += 1 / (K + rank)
    return dict(found)
