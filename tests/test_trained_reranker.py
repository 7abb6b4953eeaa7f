"""The trained reranker of the benchmarks: the searches that it learns from, and the figures that judge it."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest
from sklearn.metrics import ndcg_score

from benchmarks.accuracy import Retrieval
from benchmarks.docstrings import KnownItem, description, item_of, prose
from benchmarks.ranking_metrics import answer_ranks, ndcg_of_answers, ndcg_to, reciprocal_rank
from benchmarks.reranker_quality import overlap_scores
from benchmarks.trained_reranker import Training, steps_of

DOCSTRING = """
Compute the :func:`~pump.flow` of a `Pump` in litres.

The flow is what leaves the pump in a second, averaged over a turn of its
wheel. It does *not* depend on the pressure. See :ref:`the manual <pumps>` for how it is measured.

Parameters
----------
pump : Pump
    What is measured.
"""
SUMMARY = "Compute the pump.flow of a Pump in litres"
DESCRIPTION = (
    "The flow is what leaves the pump in a second, averaged over a turn of its wheel. It does not depend on the "
    "pressure. See the manual for how it is measured."
)


def test_the_summary_of_a_docstring_asks_for_its_description() -> None:
    found = {item_of(DOCSTRING, Random(seed)) for seed in range(30)}

    assert KnownItem(SUMMARY, DESCRIPTION) in found
    # Or one of its sentences for the others.
    assert (
        KnownItem(
            "See the manual for how it is measured", DESCRIPTION.removesuffix(" See the manual for how it is measured.")
        )
        in found
    )
    assert all(item is None or item.query not in item.passage for item in found)


@pytest.mark.parametrize("docstring", ["Too short.", DOCSTRING.replace("\n\n", "\n"), "Compute the flow of it.\n\nNo."])
def test_a_docstring_that_makes_no_search(docstring: str) -> None:
    assert all(item_of(docstring, Random(seed)) is None for seed in range(10))


def test_a_description_ends_before_the_first_section() -> None:
    assert description("One.\n\nTwo.\n\nArgs:\n    three: four") == "One. Two."
    assert description("One.\n\n>>> two") == "One."
    assert prose(":class:`.Pump`, ``x`` and **y**\n  z") == "Pump, x and y z"


def test_each_step_has_the_answer_first_hard_negatives_and_easy_ones() -> None:
    random = np.random.default_rng(1)
    vectors = random.normal(size=(2, 40, 8))
    queries, passages = (vectors / np.linalg.norm(vectors, axis=2, keepdims=True)).astype(np.float32)
    items = [KnownItem(f"query {number}", f"passage {number}") for number in range(40)]
    training = Training(steps=12, queries=3, hard=2, easy=1, among=5, sharpness=20, bonus=4)

    steps = list(steps_of(items, queries, passages, training))

    assert len(steps) == 12
    for step in steps:
        assert step.targets.shape == (3, 4)
        for row, targets in enumerate(step.targets):
            own = step.pairs[4 * row : 4 * row + 4]
            query = int(own[0][0].removeprefix("query "))
            places = [int(passage.removeprefix("passage ")) for _, passage in own]
            cosines = passages @ queries[query]
            assert {text for text, _ in own} == {items[query].query}
            assert places[0] == query
            nearest = [place for place in np.argsort(-cosines) if place != query][:5]
            assert set(places[1:3]) <= set(nearest)
            assert targets == pytest.approx(20 * cosines[places] + [4, 0, 0, 0], rel=1e-5)
    again = list(steps_of(items, queries, passages, training))
    assert [step.pairs for step in again] == [step.pairs for step in steps]


def test_ndcg_is_that_of_scikit_learn() -> None:
    random = np.random.default_rng(2)
    exact = random.normal(size=(6, 30)).astype(np.float32)
    found = exact + random.normal(size=exact.shape).astype(np.float32)
    gains = exact.argsort(axis=1).argsort(axis=1) / 29

    assert ndcg_to(found, exact) == pytest.approx(ndcg_score(gains, found, k=10))
    assert ndcg_to(exact, exact) == pytest.approx(1)


def test_ranks_of_answers() -> None:
    scores = np.array([[0.1, 0.9, 0.5], [0.3, 0.2, 0.1], [0.3, 0.2, 0.1]], np.float32)
    places = np.array([2, 0, -1])
    ranks = answer_ranks(scores, places)

    assert ranks.tolist() == [2, 1, np.inf]
    assert reciprocal_rank(ranks) == pytest.approx((1 / 2 + 1) / 3)
    relevance = np.array([[0, 0, 1], [1, 0, 0], [0, 0, 0]])
    assert ndcg_of_answers(ranks) == pytest.approx(ndcg_score(relevance, scores, k=10))
    assert reciprocal_rank(np.array([10.0, 11.0])) == pytest.approx(0.05)


def test_shared_words_count_by_their_rarity() -> None:
    retrieval = Retrieval(["The pump!"], ["the pump", "the well", "the tank", "a PUMP"], np.array([0]))
    found = overlap_scores(retrieval, np.array([[1, 0, 3]]))

    assert found[0].tolist() == pytest.approx([np.log(4 / 3), np.log(4 / 3) + np.log(2), np.log(2)])
