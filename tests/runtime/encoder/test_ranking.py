from __future__ import annotations

import numpy as np

from ortkit.runtime.bundle.manifest import Scores
from ortkit.runtime.encoder.ranking import AHEAD, OpenRanking, score


def test_a_sigmoid_in_float64_saturates_later() -> None:
    logits = np.array([[30.0], [31.0], [-200.0], [800.0]], np.float32)

    found = score(logits, Scores.SIGMOID)[:, 0]

    assert found.dtype == np.float64
    assert found[0] < found[1] < 1
    assert 0 < found[2] < 1e-80
    assert found[3] == 1
    assert np.allclose(score(np.array([[0.3]], np.float32), Scores.SIGMOID), 1 / (1 + np.exp(-0.3)), atol=1e-8)


def test_a_softmax_weighs_the_labels_of_a_pair() -> None:
    found = score(np.array([[1000.0, 999.0], [0.0, 0.0]], np.float32), Scores.SOFTMAX)

    assert np.allclose(found, [[1 / (1 + np.exp(-1)), 1 / (1 + np.exp(1))], [0.5, 0.5]])


def ranking_of(logits: list[float], top_n: int | None, scores: Scores = Scores.RAW) -> OpenRanking[int]:
    ranking: OpenRanking[int] = OpenRanking(top_n, label=0, scores=scores)
    for number, logit in enumerate(logits):
        ranking.pending.append((f"text {number}", number))
        ranking.take(np.array([logit], np.float32), dropped=0, query_dropped=0)
    ranking.all_read = True
    return ranking


def test_saturated_scores_are_ordered_by_their_logits_and_ties_by_index() -> None:
    """Applied before sorting, a sigmoid makes the first three equal."""
    ranked = ranking_of([100.0, 300.0, 200.0, -5.0, -5.0], None, Scores.SIGMOID).ranking().ranked

    assert [one.index for one in ranked] == [1, 2, 0, 3, 4]
    assert [one.score for one in ranked[:3]] == [1.0, 1.0, 1.0]
    assert [one.text for one in ranked[:2]] == ["text 1", "text 2"]


def test_of_many_documents_only_the_best_are_kept() -> None:
    rng = np.random.default_rng(5)
    logits = rng.normal(size=5000).astype(np.float32).tolist()
    ranking = ranking_of(logits, 10)

    assert len(ranking.kept) < 10 + AHEAD
    best = np.argsort(-np.array(logits), kind="stable")[:10]
    found = ranking.ranking()
    assert [one.index for one in found.ranked] == best.tolist()
    assert found.documents == 5000
