from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer

from benchmarks.texts import held_out_texts
from runtime import (
    Bundle,
    BundleError,
    Embedder,
    InputError,
    Precision,
    TextTooLongError,
    TruncationWarning,
)


@pytest.fixture(scope="module")
def reference(checkpoint: Path, held_out: list[str]) -> NDArray[np.float32]:
    """What sentence-transformers (torch, float32) gives for the held-out texts."""
    model = SentenceTransformer(str(checkpoint), device="cpu", local_files_only=True)
    assert model.max_seq_length == 256
    return np.asarray(model.encode(held_out, batch_size=16, show_progress_bar=False))


@pytest.fixture(scope="module")
def embedder(int8_bundle: Bundle) -> Embedder:
    return Embedder(int8_bundle, workers=2)


@pytest.mark.parametrize(
    ("precision", "mean", "lowest"), [(Precision.FP32, 0.99999, 0.99999), (Precision.INT8, 0.997, 0.99)]
)
def test_vectors_are_those_of_sentence_transformers(
    request: pytest.FixtureRequest,
    held_out: list[str],
    reference: NDArray[np.float32],
    precision: Precision,
    mean: float,
    lowest: float,
) -> None:
    bundle = request.getfixturevalue(f"{precision.value}_bundle")

    embeddings = Embedder(bundle).embed_with_report(held_out)

    cosines = np.einsum("ij,ij->i", embeddings.vectors.astype(np.float64), reference.astype(np.float64))
    print(f"{precision.value}: cosine mean {cosines.mean():.6f}, min {cosines.min():.6f} on {len(held_out)} texts")
    assert cosines.mean() >= mean
    assert cosines.min() >= lowest
    assert embeddings.vectors.dtype == np.float32
    assert embeddings.vectors.shape == (500, 384)


TEXTS = held_out_texts(60)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    chosen=st.lists(st.integers(0, len(TEXTS) - 1), min_size=1, max_size=40),
    batch_tokens=st.integers(1, 3000),
    workers=st.integers(1, 3),
)
@pytest.mark.parametrize("precision", [Precision.INT8, Precision.FP32])
def test_a_text_gives_the_same_bits_alone_and_in_any_company(
    request: pytest.FixtureRequest, precision: Precision, chosen: list[int], batch_tokens: int, workers: int
) -> None:
    embedder, alone = alone_vectors(request.getfixturevalue(f"{precision.value}_bundle"))
    embedder.workers = workers

    together = embedder.embed_with_report([TEXTS[index] for index in chosen], batch_tokens=batch_tokens).vectors

    assert np.array_equal(together, alone[chosen])


ALONE: dict[Path, tuple[Embedder, NDArray[np.float32]]] = {}


def alone_vectors(bundle: Bundle) -> tuple[Embedder, NDArray[np.float32]]:
    """Each of TEXTS embedded in a call of its own."""
    if bundle.path not in ALONE:
        embedder = Embedder(bundle, workers=1)
        ALONE[bundle.path] = embedder, np.concatenate([embedder.embed_with_report([text]).vectors for text in TEXTS])
    return ALONE[bundle.path]


def test_threads_may_share_an_embedder(embedder: Embedder) -> None:
    expected = embedder.embed_with_report(TEXTS).vectors
    found: dict[int, NDArray[np.float32]] = {}

    def work(number: int) -> None:
        found[number] = embedder.embed_with_report(TEXTS[number::3]).vectors

    threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    for number in range(3):
        assert np.array_equal(found[number], expected[number::3])


def test_no_texts_give_no_vectors(embedder: Embedder) -> None:
    assert embedder.embed([]).shape == (0, 384)


@pytest.mark.parametrize("text", ["", " ", "\n\t  \n", "\0", "\u200b"])
def test_a_text_of_nothing_has_a_vector_of_length_one(embedder: Embedder, text: str) -> None:
    (vector,) = embedder.embed([text])

    assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-6)


def test_one_string_instead_of_a_list(embedder: Embedder) -> None:
    with pytest.raises(InputError, match="`texts` must be a list of strings") as caught:
        embedder.embed("hello")
    assert caught.value.hint == "for one text, pass a list of one: `embed([text])`"


def test_cut_texts_are_counted_and_warned_about(embedder: Embedder) -> None:
    texts = ["short", "word " * 300, "word " * 254]

    with pytest.warns(TruncationWarning, match="1 of 3 texts was longer than 256 tokens and cut there"):
        embedder.embed(texts)
    embeddings = embedder.embed_with_report(texts)
    assert embeddings.truncated == [1]
    assert embeddings.tokens.tolist() == [3, 256, 256]
    assert embeddings.dropped.tolist() == [0, 46, 0]


def test_cutting_can_be_forbidden(embedder: Embedder) -> None:
    with pytest.raises(TextTooLongError) as caught:
        embedder.embed(["short", "word " * 300], truncate=False)
    assert caught.value.message == "text 1 has 302 tokens, and the model reads 256"


def test_progress_counts_every_text(embedder: Embedder) -> None:
    seen: list[int] = []
    embedder.embed_with_report(TEXTS, progress=seen.append)

    assert sum(seen) == len(TEXTS)


def test_an_unknown_prompt(embedder: Embedder) -> None:
    with pytest.raises(InputError, match="the model has no prompt `query`") as caught:
        embedder.embed(["x"], prompt="query")
    assert caught.value.hint == "it has: none"


def test_prompts_are_put_before_the_text(edit_manifest: Callable[[Callable[[dict], None]], Path]) -> None:
    def add_prompts(manifest: dict) -> None:
        manifest["embedder"].update(prompts={"query": "query: ", "passage": "passage: "}, default_prompt="passage")

    prompted = Embedder(edit_manifest(add_prompts))
    plain, default, query = (
        prompted.embed(["query: x", "x", "x"]),
        prompted.embed(["x"]),
        prompted.embed(["x"], prompt="query"),
    )

    assert not np.array_equal(plain[0], query[0]), "the default prompt stands before it"
    assert np.array_equal(plain[1], default[0])
    assert not np.array_equal(default, query)


@pytest.mark.parametrize("arguments", [{"workers": 0}])
def test_no_workers(int8_bundle: Bundle, arguments: dict) -> None:
    with pytest.raises(InputError, match="`workers` must be at least 1, not 0"):
        Embedder(int8_bundle, **arguments)


def test_no_budget(embedder: Embedder) -> None:
    with pytest.raises(InputError, match="`batch_tokens` must be at least 1, not 0"):
        embedder.embed(["x"], batch_tokens=0)


def test_another_kind_of_bundle(edit_manifest: Callable[[Callable[[dict], None]], Path]) -> None:
    path = edit_manifest(lambda manifest: manifest.update(kind="reranker"))

    with pytest.raises(BundleError, match="is a reranker, not an embedder"):
        Embedder(path)


@pytest.mark.parametrize("dim", [1, 64, 383, 384])
def test_shortened_vectors_are_those_of_sentence_transformers(
    checkpoint: Path, fp32_bundle: Bundle, held_out: list[str], dim: int
) -> None:
    texts = held_out[::25]
    model = SentenceTransformer(str(checkpoint), device="cpu", local_files_only=True, truncate_dim=dim)
    expected = model.encode(texts, normalize_embeddings=True, show_progress_bar=False)

    found = Embedder(fp32_bundle).embed_with_report(texts, dim=dim).vectors

    assert found.shape == (len(texts), dim)
    assert np.abs(found - expected).max() < 1e-5


@pytest.mark.parametrize("dim", [0, -1, 385])
def test_more_components_than_there_are(embedder: Embedder, dim: int) -> None:
    with pytest.raises(InputError) as caught:
        embedder.embed(["x"], dim=dim)
    assert caught.value.message == f"`dim` must be from 1 to 384, which the model's vectors have, not {dim}"
