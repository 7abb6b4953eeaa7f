"""Search quantization recipes, ordered from the fastest to the most accurate, for the first that meets a threshold."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

Recipe = TypeVar("Recipe")


@dataclass(frozen=True)
class SearchResult(Generic[Recipe]):
    """What a search found."""

    recipe: Recipe | None
    """The first recipe whose score is at least the threshold, None where no recipe reaches it."""
    best: float
    """The highest score measured."""


def find_fastest(
    recipes: Iterable[Recipe], score: Callable[[Recipe], float], *, threshold: float
) -> SearchResult[Recipe]:
    """Measure recipes in their order until one reaches the threshold.

    Higher scores are better: give a divergence its negative. A score of NaN never reaches the threshold.
    """
    best = float("-inf")
    for recipe in recipes:
        found = score(recipe)
        best = max(best, found)
        if found >= threshold:
            return SearchResult(recipe, best)
    return SearchResult(None, best)
