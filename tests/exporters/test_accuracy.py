from __future__ import annotations

import numpy as np
import pytest
import scipy.stats

from benchmarks.accuracy import SENTENCES, Accuracy, Embed, measure, most_similar, question_set, shared, spearman
from benchmarks.texts import held_out_sentences, judged_texts
from ortkit import Bundle, Embedder
from ortkit.exporters.certification.probe import calibration_texts, probe_texts
from ortkit.runtime.encoder.pooling import cosines
from tests.small_probe import WHOLE, probe_in


def embed_with(bundle: Bundle) -> Embed:
    embedder = Embedder(bundle)
    return lambda texts: embedder.embed_with_report(texts).vectors


@pytest.fixture(scope="module")
def scores(fp32_bundle: Bundle, int8_bundle: Bundle) -> tuple[Accuracy, Accuracy]:
    """Those of the fp32 bundle, and those of int8.

    `test_embedder` holds the fp32 bundle to PyTorch, in whose place it stands here: it takes a third of the time.
    """
    sentences = held_out_sentences(SENTENCES)
    # The probe texts are among those that are searched.
    with probe_in(WHOLE):
        fp32, int8 = (measure(embed_with(bundle), sentences) for bundle in (fp32_bundle, int8_bundle))
    return fp32, int8


@pytest.mark.slow
def test_int8_vectors_are_close_to_fp32_on_2000_held_out_sentences(scores: tuple[Accuracy, Accuracy]) -> None:
    fp32, int8 = scores

    agreement = cosines(int8.sentences, fp32.sentences)

    print(f"cosine mean {agreement.mean():.5f}, lowest {agreement.min():.5f} on {len(agreement)} sentences")
    assert len(agreement) == 2000
    assert agreement.mean() >= 0.9985
    assert agreement.min() >= 0.997


@pytest.mark.slow
def test_int8_agrees_with_people_as_fp32_does(scores: tuple[Accuracy, Accuracy]) -> None:
    fp32, int8 = scores

    print(f"Spearman with people: fp32 {fp32.judgement:.4f}, int8 {int8.judgement:.4f}")
    assert fp32.judgement > 0.5
    assert int8.judgement == pytest.approx(fp32.judgement, abs=0.005)


@pytest.mark.slow
def test_int8_finds_the_answers_that_fp32_finds(scores: tuple[Accuracy, Accuracy]) -> None:
    fp32, int8 = scores

    kept = shared(fp32.nearest, int8.nearest)
    print(f"answers found: fp32 {fp32.found:.4f}, int8 {int8.found:.4f}; of fp32's nearest {kept:.4f}")
    assert fp32.found > 0.8
    assert int8.found == pytest.approx(fp32.found, abs=0.005)
    # Three questions of 240: which of two answers about equally near comes first changes with the processor.
    assert int8.first == pytest.approx(fp32.first, abs=0.015)
    assert kept > 0.95


@pytest.mark.usefixtures("whole_probe")
def test_what_is_scored_was_not_calibrated_on() -> None:
    known = {*calibration_texts().texts, *probe_texts().texts}

    assert not known & {*held_out_sentences(SENTENCES), *judged_texts().texts}


def test_the_questions_are_distinct_and_each_passage_answers_some() -> None:
    retrieval = question_set()

    assert len(retrieval.questions) == len(set(retrieval.questions)) >= 150
    assert len(retrieval.passages) == len(set(retrieval.passages))
    assert set(retrieval.answers) == set(range(80))


def test_spearman_is_scipys() -> None:
    rng = np.random.default_rng(3)
    these, those = rng.integers(0, 9, size=(2, 200)).astype(float)

    assert spearman(these, those) == pytest.approx(scipy.stats.spearmanr(these, those).statistic, abs=1e-12)


def test_the_most_similar_come_first() -> None:
    passages = np.eye(4, dtype=np.float32)
    query = np.array([[0.1, 0.8, 0.0, 0.6]], np.float32)

    assert most_similar(query, passages, 3).tolist() == [[1, 3, 0]]


def test_what_two_searches_share_is_counted_in_any_order() -> None:
    assert shared(np.array([[1, 2], [3, 4]]), np.array([[2, 1], [4, 9]])) == 0.75
