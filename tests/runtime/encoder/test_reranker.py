from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sentence_transformers import CrossEncoder

from benchmarks.ranking_accuracy import agreement_of, scores_of_pytorch
from benchmarks.texts import pairs_of_any_length
from ortkit import (
    Bundle,
    BundleError,
    Embedder,
    InputError,
    Manifest,
    Precision,
    Reranker,
    TextTooLongError,
    TruncationWarning,
)
from ortkit.exporters import export
from ortkit.exporters.certification.rank_correlation import kendall_tau
from tests.encoder_checkpoints import write_reranker, write_reranker_on_minilm
from tests.tampered import changed_bundle

AS_WIDE_AS_MS_MARCOS = {
    "hidden_size": 384,
    "num_hidden_layers": 2,
    "num_attention_heads": 12,
    "intermediate_size": 1536,
    "max_position_embeddings": 512,
    "vocab_size": 30522,
    "initializer_range": 0.02,
}
"""The shape of ms-marco-MiniLM-L-12-v2, with a sixth of its layers: the benchmark has all."""


@pytest.fixture(scope="module", params=["the real MiniLM under a seeded head", "seeded layers"])
def cross_encoder(request: pytest.FixtureRequest, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cross-encoder") / ("real" if "real" in request.param else "seeded")
    if "real" in request.param:
        write_reranker_on_minilm(folder, checkpoint)
    else:
        write_reranker(folder, checkpoint, **AS_WIDE_AS_MS_MARCOS)
    return folder


# tests/exporters/test_reranking.py does it for small models of every architecture.
@pytest.mark.slow
@pytest.mark.usefixtures("whole_probe")
def test_scores_are_those_of_sentence_transformers(
    cross_encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Minutes of certificates, which are not what is tested here.
    monkeypatch.setattr("ortkit.exporters.certification.probe.CANDIDATES", 2)
    # `python -m benchmarks.ranking_accuracy` does the same with a thousand.
    pairs = pairs_of_any_length(100 if "real" in cross_encoder.name else 60)
    expected = scores_of_pytorch(cross_encoder, pairs)
    found = {}
    for precision in (Precision.FP32, Precision.INT8):
        reranker = Reranker(export(str(cross_encoder), precision=precision, out=tmp_path / precision.value).bundle)
        found[precision] = agreement_of(reranker, pairs, expected)

    assert found[Precision.FP32].tokens[0] <= 8
    assert found[Precision.FP32].tokens[1] == 512
    assert found[Precision.FP32].cut > 2
    assert found[Precision.FP32].difference < 1e-4
    # Random weights tell two pairs apart by little: the recipe's tau is 0.95 or more on the probe set, and these pairs
    # are others. What a trained model gives is in its own certificate.
    assert found[Precision.INT8].tau >= 0.9


@pytest.fixture(scope="module")
def reranker(reranker_bundle: Bundle) -> Reranker:
    return Reranker(reranker_bundle, workers=2)


DOCUMENTS = ["Boil the water for a minute.", "A bowline does not slip.", "", "Boil the water for a minute.", "North"]


def test_documents_come_back_best_first(reranker: Reranker) -> None:
    ranked = reranker.rank("how to make water safe", DOCUMENTS)
    pairs = [("how to make water safe", document) for document in DOCUMENTS]
    scores = reranker.score(pairs)

    assert [one.index for one in ranked] == sorted(range(5), key=lambda index: (-scores[index], index))
    assert [one.score for one in ranked] == [scores[one.index] for one in ranked]
    assert [one.text for one in ranked] == [DOCUMENTS[one.index] for one in ranked]
    assert scores[0] == scores[3]
    assert [one.index for one in reranker.rank("how to make water safe", DOCUMENTS, top_n=2)] == [
        one.index for one in ranked[:2]
    ]
    assert len(reranker.rank("q", DOCUMENTS, top_n=100)) == 5


def test_the_activation_changes_the_scores_and_not_the_order(reranker: Reranker) -> None:
    raw = reranker.rank("q", DOCUMENTS, scores="raw")
    sigmoid = reranker.rank("q", DOCUMENTS, scores="sigmoid")

    assert raw == reranker.rank("q", DOCUMENTS)
    assert [one.index for one in raw] == [one.index for one in sigmoid]
    assert [one.score for one in sigmoid] == pytest.approx([1 / (1 + np.exp(-one.score)) for one in raw])


def test_the_same_pair_gives_the_same_bits_in_any_batch(reranker: Reranker, reranker_bundle: Bundle) -> None:
    pairs = pairs_of_any_length(60)
    together = reranker.score_with_report(pairs).logits
    alone = np.concatenate([reranker.score_with_report([pair]).logits for pair in pairs])
    backwards = Reranker(reranker_bundle, workers=1).score_with_report(pairs[::-1], batch_tokens=4096).logits[::-1]
    # Of one length, so that they share batches.
    same = [("a b", f"{first} {second}") for first in ("c", "d", "e") for second in ("f", "g", "h")]

    assert np.array_equal(together, alone)
    assert np.array_equal(together, backwards)
    assert np.array_equal(
        reranker.score_with_report(same).logits,
        np.concatenate([reranker.score_with_report([one]).logits for one in same]),
    )


def test_many_queries_share_batches_and_keep_apart(reranker: Reranker) -> None:
    searches = [("q one", DOCUMENTS), ("q two", []), ("q three", DOCUMENTS[:2])]

    found = reranker.rank_many(searches, top_n=3)

    assert found == [reranker.rank(query, documents, top_n=3) for query, documents in searches]
    assert found[1] == []


def test_records_can_be_ranked_by_their_text(reranker: Reranker) -> None:
    records = [{"id": number, "body": text} for number, text in enumerate(DOCUMENTS)]

    ranked = reranker.rank("q", records, text=lambda record: record["body"])

    assert [one.document["id"] for one in ranked] == [one.index for one in reranker.rank("q", DOCUMENTS)]


def test_documents_are_read_as_they_are_needed(reranker: Reranker) -> None:
    """Ten thousand documents, of which the best three are kept."""
    given = 0

    def documents() -> Iterator[str]:
        nonlocal given
        for number in range(10_000):
            given += 1
            yield f"n {number}"

    [ranking] = reranker.rank_many_with_report([("q", documents())], top_n=3)
    assert (given, ranking.documents, len(ranking.ranked)) == (10_000, 10_000, 3)
    stream = reranker.stream((("q", document) for document in documents()), chunk=10)
    given = 0
    assert next(stream).logits.shape == (10, 1)
    assert given == 10


def test_no_documents_give_an_empty_ranking(reranker: Reranker) -> None:
    assert reranker.rank("q", []) == []
    assert reranker.score([]).shape == (0,)
    assert reranker.rank_many([]) == []


def test_the_longer_of_the_two_is_cut(reranker: Reranker) -> None:
    long = " ".join(["water"] * 300)
    report = reranker.score_with_report([("a b c", long), (long, "x"), ("a", "b")])

    assert report.tokens.tolist() == [128, 128, 5]
    assert report.dropped.tolist() == [300 - 122, 0, 0]
    assert report.query_dropped.tolist() == [0, 300 - 124, 0]
    assert report.truncated == [0, 1]
    with pytest.warns(TruncationWarning, match="1 of 2 documents was longer than 128 tokens with the query"):
        reranker.rank("a", [long, "b"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        reranker.rank("a", ["b"])


def test_a_truncated_query_is_reported(reranker: Reranker) -> None:
    long = " ".join(["water"] * 300)

    with pytest.warns(TruncationWarning) as told:
        reranker.rank(long, ["a", "b"])
    with pytest.warns(TruncationWarning) as told_of_many:
        reranker.rank_many([(long, ["a"]), ("q", ["a", long]), (f"{long} x", ["a"])])

    assert [str(one.message) for one in told] == ["the query was cut: with a document it is longer than 128 tokens"]
    assert [str(one.message) for one in told_of_many] == [
        "1 of 4 documents was longer than 128 tokens with the query and cut there",
        "2 queries were cut: with a document they are longer than 128 tokens",
    ]
    assert {one.filename for one in (*told, *told_of_many)} == {__file__}


def test_long_pairs_can_be_an_error(reranker: Reranker) -> None:
    with pytest.raises(TextTooLongError, match="pair 1 has 304 tokens, and the model's limit is 128") as caught:
        reranker.rank("a", ["b", "water " * 300], long="error")
    assert caught.value.texts == (1,)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("last", "message"),
    [
        (None, "document 600 must be a string, not NoneType"),
        ("water " * 300, "pair 600 has 304 tokens, and the model's limit is 128"),
    ],
)
def test_pairs_are_counted_from_the_first(
    reranker: Reranker, last: object, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reranker.session, "run", lambda feeds, _: np.zeros((len(feeds["input_ids"]), 1), np.float32))

    with pytest.raises(InputError) as caught:
        reranker.rank("q", ["a"] * 600 + [last], long="error")

    assert caught.value.message == message
    with pytest.raises(InputError, match="the query of pair 4 is empty"):
        list(reranker.stream([("q", "a")] * 4 + [("", "a")], chunk=3))
    with pytest.raises(InputError, match="the query of pair 4 must be a string, not int"):
        list(reranker.stream([("q", "a")] * 4 + [(5, "a")], chunk=3))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda it: it.rank("  ", ["a"]), "the query is empty"),
        (lambda it: it.score([("a", "b"), ("", "c")]), "the query of pair 1 is empty"),
        (lambda it: it.rank(5, ["a"]), "the query must be a string, not int"),
        (lambda it: it.rank("a", ["b", None]), "document 1 must be a string, not NoneType"),
        (lambda it: it.rank("a", [{"body": "b"}]), "document 0 must be a string, not dict"),
        (lambda it: it.rank("a", ["b"], text=len), "`text` must return a string, not int, as for document 0"),
        (lambda it: it.rank("a", ["b"], text="body"), "`text` must be a function from a document to its text, not str"),
        (lambda it: it.rank("a", ["\ud800"]), "the document of pair 0 is not valid Unicode"),
        (lambda it: it.rank("a", "documents"), "`documents` must be several texts, not one"),
        (lambda it: it.rank("a", None), "`documents` must be an iterable of texts, not NoneType"),
        (lambda it: it.rank("a", {"b": 1}), "`documents` must be an iterable of texts, not dict"),
        (lambda it: it.rank_many([("a",)]), "search 0 must be a query and its documents"),
        (lambda it: it.rank("a", ["b"], top_n="1"), "`top_n` must be an integer, not str"),
        (lambda it: it.rank_many(None), "`searches` must be a list of queries with their documents"),
        (lambda it: it.score(None), "`pairs` must be an iterable of pairs, not NoneType"),
        (lambda it: it.score(["a"]), "pair 0 must be a query and a document"),
        (lambda it: it.rank("a", ["b"], top_n=0), "`top_n` must be at least 1, not 0"),
        (lambda it: it.rank("a", ["b"], scores="cosine"), "`scores` must be one of raw, sigmoid, softmax"),
        (lambda it: it.rank("a", ["b"], scores="softmax"), "`softmax` needs several labels, and the model has one"),
        (lambda it: it.rank("a", ["b"], label="x"), "the model has no label `x`"),
        (lambda it: it.rank("a", ["b"], long="mean"), "`mean` is not supported for rerankers"),
        (lambda it: it.rank("a", ["b"], batch_tokens=0), "`batch_tokens` must be at least 1"),
        (lambda it: it.stream([], chunk=0), "`chunk` must be at least 1"),
        (lambda it: it.stream([], chunk=1.5), "`chunk` must be an integer, not float"),
        (lambda it: it.rank("a", ["b"], top_n=True), "`top_n` must be an integer, not bool"),
        (lambda it: it.rank("a", ["b"], label=5), "`label` must be a string, not int"),
    ],
)
def test_invalid_arguments_are_errors(reranker: Reranker, call: Callable, message: str) -> None:
    with pytest.raises(InputError) as caught:
        call(reranker)
    assert caught.value.message.startswith(message)
    assert caught.value.exit_code == 2


def test_the_scores_before_an_error_come_first(reranker: Reranker) -> None:
    def pairs() -> Iterator[tuple[str, str]]:
        yield ("q", "a")
        raise OSError("the disk is gone")

    stream = reranker.stream(pairs())
    assert next(stream).logits.shape == (1, 1)
    with pytest.raises(OSError, match="the disk is gone"):
        next(stream)


def test_a_bundle_of_another_kind(reranker_bundle: Bundle, int8_bundle: Bundle) -> None:
    with pytest.raises(BundleError) as caught:
        Reranker(int8_bundle)
    assert caught.value.message == f"`{int8_bundle.path}` is an embedder, not a reranker"
    assert caught.value.hint == (
        f"open it with `Embedder('{int8_bundle.path}')`, or with `load`, which selects the class"
    )
    with pytest.raises(BundleError, match="is a reranker, not an embedder"):
        Embedder(reranker_bundle)


@pytest.fixture(scope="module")
def three_labels(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("nli") / "nli"
    write_reranker(folder, checkpoint, id2label={0: "no", 1: "maybe", 2: "yes"}, num_labels=3)
    return export(str(folder), precision=Precision.FP32, out=folder.with_name("bundle")).bundle


def test_a_model_with_several_labels(three_labels: Bundle) -> None:
    reranker = Reranker(three_labels)
    scores = reranker.score([("a", "b"), ("c d", "e")], scores="softmax")

    assert scores.shape == (2, 3)
    assert np.allclose(scores.sum(axis=1), 1)
    ranked = reranker.rank("a", ["b", "e f"], label="yes", scores="raw")
    by_hand: NDArray[np.float64] = reranker.score([("a", "b"), ("a", "e f")], scores="raw")[:, 2]
    assert [one.score for one in ranked] == sorted(by_hand.tolist(), reverse=True)
    with pytest.raises(InputError, match="the model has 3 labels, and `label` is missing") as caught:
        reranker.rank("a", ["b"])
    assert caught.value.hint == "supported: `no`, `maybe`, `yes`"


def test_a_manifest_without_the_facts_of_a_reranker(reranker_bundle: Bundle, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(reranker_bundle.path, folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"reranker": None}))
    with pytest.raises(BundleError, match="has no labels in its section `reranker`"):
        Reranker(folder)
    tight = manifest["tokenizer"] | {"max_length": 4}
    (folder / "manifest.json").write_text(json.dumps(manifest | {"tokenizer": tight}))
    with pytest.raises(BundleError, match="leaves no room for a query and a document"):
        Reranker(folder)


def test_int8_ranks_much_as_pytorch_does(reranker_checkpoint: Path, reranker_bundle: Bundle) -> None:
    """int8 of the small model, beside PyTorch, with the activation that its config states."""
    pairs = [pair for pair in pairs_of_any_length(200) if len(pair[1].split()) < 60]
    model = CrossEncoder(str(reranker_checkpoint), device="cpu", local_files_only=True, max_length=128)
    assert isinstance(model.activation_fn, torch.nn.Identity)
    expected = model.predict(pairs, show_progress_bar=False)

    assert kendall_tau(Reranker(reranker_bundle).score(pairs).tolist(), expected.tolist()) > 0.9


def test_a_pair_without_tokens_does_not_crash(reranker_bundle: Bundle, tmp_path: Path) -> None:
    """As CrossEncoder, which fails on it; with tokens in the query or the document there is a score."""

    def without_special_tokens(manifest: Manifest) -> Manifest:
        pair = dataclasses.replace(manifest.reranker.pair, before=(), between=(), after=())
        return dataclasses.replace(manifest, reranker=dataclasses.replace(manifest.reranker, pair=pair))

    bare = changed_bundle(reranker_bundle, tmp_path / "bare", manifest=without_special_tokens)
    code = """
import sys
from ortkit import Reranker, TextError
reranker = Reranker(sys.argv[1])
try:
    reranker.score([("\\u200b", "wine"), ("\\u200b", ""), ("water", ""), ("\\u200b", " ")])
except TextError as error:
    print(error.texts, error.message)
try:
    reranker.rank("\\u200b", ["wine", "\\u200b"])
except TextError as error:
    print(error.texts, error.message)
print(reranker.score([("\\u200b", "wine"), ("water", "")]).shape)
"""
    finished = subprocess.run([sys.executable, "-c", code, str(bare.path)], capture_output=True, text=True, check=True)

    assert finished.stdout.splitlines() == ["(1, 3) pair 1 has no tokens", "(1,) pair 1 has no tokens", "(2,)"]
