from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer

from benchmarks.texts import held_out_texts
from ortkit import (
    Bundle,
    BundleError,
    Embedder,
    InputError,
    LongTexts,
    Pooling,
    Precision,
    TextError,
    TextTooLongError,
    TruncationWarning,
    VectorType,
    embedding_ranges,
    quantize_embeddings,
)
from ortkit.exporters import export
from ortkit.runtime.encoder.embedding_types import unit_ranges
from ortkit.runtime.encoder.pooling import cosines, normalize, pool
from ortkit.runtime.session.cpu import BATCH_TOKENS
from ortkit.runtime.session.session import Session
from tests.encoder_checkpoints import write_tiny_checkpoint
from tests.tampered import changed_bundle, without_special_tokens

EditManifest = Callable[[Callable[[dict], None]], Path]


@pytest.fixture(scope="module")
def reference(checkpoint: Path, held_out: list[str]) -> NDArray[np.float32]:
    """What sentence-transformers (torch, float32) gives for the first 60 held-out texts."""
    model = SentenceTransformer(str(checkpoint), device="cpu", local_files_only=True)
    assert model.max_seq_length == 256
    return np.asarray(model.encode(held_out[:60], batch_size=16, show_progress_bar=False))


@pytest.fixture(scope="module")
def embedder(int8_bundle: Bundle) -> Embedder:
    return Embedder(int8_bundle, workers=2)


@pytest.mark.parametrize(
    ("precision", "mean", "lowest"),
    [
        pytest.param(Precision.FP32, 0.99999, 0.99999, marks=pytest.mark.slow),
        (Precision.INT8, 0.997, 0.99),
    ],
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

    count = len(reference)
    embeddings = Embedder(bundle).embed_with_report(held_out[:count])

    cosines = np.einsum("ij,ij->i", embeddings.vectors.astype(np.float64), reference.astype(np.float64))
    print(f"{precision.value}: cosine mean {cosines.mean():.6f}, min {cosines.min():.6f} on {count} texts")
    assert cosines.mean() >= mean
    assert cosines.min() >= lowest
    assert embeddings.vectors.dtype == np.float32
    assert embeddings.vectors.shape == (count, 384)


TEXTS = held_out_texts(60)


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    chosen=st.lists(st.integers(0, len(TEXTS) - 1), min_size=1, max_size=40),
    batch_tokens=st.integers(1, 3000),
    workers=st.integers(1, 3),
)
@pytest.mark.parametrize("precision", [Precision.INT8, pytest.param(Precision.FP32, marks=pytest.mark.slow)])
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


def test_one_string_has_one_vector(embedder: Embedder) -> None:
    vector = embedder.embed("hello")

    assert vector.shape == (384,)
    assert np.array_equal(vector, embedder.embed(["hello"])[0])
    assert embedder.embed("").shape == (384,)
    assert embedder.embed("hello", dtype="ubinary").shape == (48,)


def test_texts_are_any_iterable(embedder: Embedder) -> None:
    texts = ["hello", "world", "water"]
    expected = embedder.embed(texts)

    for some in (iter(texts), (text for text in texts), tuple(texts), np.array(texts), dict.fromkeys(texts).keys()):
        assert np.array_equal(embedder.embed(some), expected)
    assert np.array_equal(embedder.embed_passages(iter(texts)), embedder.embed_passages(texts))
    assert embedder.embed_with_report(iter(texts)).vectors.shape == (3, 384)
    assert embedder.count_tokens(iter(texts)).tolist() == embedder.count_tokens(texts).tolist()


def test_values_that_are_not_texts(embedder: Embedder) -> None:
    for some in (5, None, b"hello", {"hello": 1}):
        for run in (embedder.embed, embedder.embed_with_report, embedder.stream, embedder.count_tokens):
            with pytest.raises(InputError) as caught:
                run(some)
            assert caught.value.message == f"`texts` must be an iterable of strings, not {type(some).__name__}"
    with pytest.raises(InputError, match="`passages` must be an iterable of strings, not int"):
        embedder.embed_passages(5)


def test_one_string_where_several_are_needed(embedder: Embedder) -> None:
    for run in (embedder.embed_with_report, embedder.stream, embedder.count_tokens):
        with pytest.raises(InputError) as caught:
            run("hello")
        assert caught.value.message == "`texts` must be several strings, not one"
        assert caught.value.hint == "for one text, pass a list: `[text]`"


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
        embedder.embed(["short", "word " * 300, "short", "word " * 400], long="error")
    assert caught.value.message == "text 1 has 302 tokens, and the model's limit is 256"
    assert caught.value.hint == 'split it, truncate it (`long="truncate"`), or average its chunks (`long="mean"`)'
    assert caught.value.texts == (1, 3)
    assert caught.value.exit_code == 2


def test_nothing_is_computed_for_a_call_with_a_forbidden_long_text(
    int8_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    embedder = Embedder(int8_bundle)
    monkeypatch.setattr(embedder, "session", None)

    with pytest.raises(TextTooLongError):
        embedder.embed([*TEXTS, "word " * 300], long=LongTexts.ERROR)


@pytest.mark.parametrize("dim", [384, 64])
def test_a_long_text_is_the_mean_of_its_chunks(int8_bundle: Bundle, dim: int) -> None:
    """Against PyTorch's definition, written out: tokens of all chunks pooled, then normalized once."""
    embedder = Embedder(int8_bundle)
    # Of 8 tokens: 31 of them are as many as fit into the 254 beside the special tokens.
    sentences = [f"The old pump number {number} stopped again." for number in range(10, 70)]
    chunks = [" ".join(sentences[start : start + 31]) for start in range(0, 60, 31)]
    tokenized = embedder.tokenizer.tokenize(chunks)
    tokens = [embedder.session.run({"input_ids": text.ids[np.newaxis]})[:, 0] for text in tokenized]
    expected = normalize(np.concatenate(tokens).mean(axis=0, dtype=np.float64)[np.newaxis, :dim].astype(np.float32))

    found = embedder.embed_with_report(["short", " ".join(sentences), "short"], dim=dim, long="mean")

    assert [len(text.ids) for text in tokenized] == [250, 234]
    assert np.abs(found.vectors[1] - expected[0]).max() < 1e-6
    assert np.array_equal(found.vectors[[0, 2]], embedder.embed(["short", "short"], dim=dim))
    assert found.chunks.tolist() == [1, 2, 1]
    assert found.split == [1]
    assert found.tokens.tolist() == [3, 250 + 234, 3]
    assert found.dropped.tolist() == [0, 0, 0]
    assert found.truncated == []


def test_a_long_text_has_the_same_bits_in_any_company(embedder: Embedder) -> None:
    long = "The pump stopped. " * 100
    filler = ["word " * 254, "pump " * 300, *TEXTS[:10]]

    (alone,) = embedder.embed([long], long="mean", batch_tokens=1)
    together = embedder.embed([*filler, long, *filler], long="mean", batch_tokens=2000)

    assert np.array_equal(together[len(filler)], alone)


def test_an_unknown_treatment_of_long_texts(embedder: Embedder) -> None:
    with pytest.raises(InputError) as caught:
        embedder.embed(["x"], long="split")
    assert caught.value.message == "`long` must be one of truncate, error, mean, not `split`"
    assert caught.value.exit_code == 2


def test_progress_counts_every_text(embedder: Embedder) -> None:
    seen: list[int] = []
    embedder.embed_with_report(TEXTS, progress=seen.append)

    assert sum(seen) == len(TEXTS)


def test_an_unknown_prompt(embedder: Embedder) -> None:
    with pytest.raises(InputError, match="the model has no prompt `query`") as caught:
        embedder.embed(["x"], prompt="query")
    assert caught.value.hint == "supported: none"


@pytest.fixture(scope="module")
def prompted(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[Path, Embedder]]:
    """A small checkpoint with these prompts, and its embedder."""

    def make(**settings: object) -> tuple[Path, Embedder]:
        folder = tmp_path_factory.mktemp("prompted") / "tiny-bert"
        write_tiny_checkpoint(folder, checkpoint, "bert")
        (folder / "config_sentence_transformers.json").write_text(json.dumps(settings))
        return folder, Embedder(export(str(folder), precision=Precision.FP32, out=folder.with_name("bundle")).bundle)

    return make


@pytest.mark.parametrize(
    "settings",
    [
        {"prompts": {"query": "Find this: ", "document": "title: none | text: "}, "default_prompt_name": "query"},
        {"prompts": {"classify": "Sort: "}, "default_prompt_name": "classify"},
        {"prompts": {"query": "", "document": ""}},
    ],
)
def test_queries_and_passages_are_prompted_as_by_sentence_transformers(
    prompted: Callable[..., tuple[Path, Embedder]], settings: dict
) -> None:
    folder, embedder = prompted(**settings)
    model = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    texts = ["the pump runs dry", "a knot for wet rope"]

    for found, expected in [
        (embedder.embed_query(texts[0]), model.encode_query(texts[0])),
        (embedder.embed_passages(texts), model.encode_document(texts)),
        (embedder.embed(texts), model.encode(texts)),
    ]:
        assert found.shape == expected.shape
        assert cosines(np.atleast_2d(found), np.atleast_2d(expected)).min() > 0.99999
    if settings["prompts"].get("query"):
        assert cosines(embedder.embed_query(texts[0])[np.newaxis], embedder.embed_passages(texts[:1])).max() < 0.999


def test_a_prompt_for_passages_may_have_the_older_names(prompted: Callable[..., tuple[Path, Embedder]]) -> None:
    """Where sentence-transformers, which puts an empty `document` into every model, must be given the name."""
    folder, embedder = prompted(prompts={"query": "query: ", "passage": "passage: ", "document": ""})
    model = SentenceTransformer(str(folder), device="cpu", local_files_only=True)

    found = embedder.embed_passages(["a knot for wet rope"])

    assert cosines(found, model.encode(["a knot for wet rope"], prompt_name="passage")).min() > 0.99999


def test_several_queries_at_once_are_refused(embedder: Embedder) -> None:
    with pytest.raises(InputError) as caught:
        embedder.embed_query(["one", "two"])
    assert caught.value.message == "`query` must be one string, not list"
    assert caught.value.hint == "embed several with `embed(queries, prompt=...)`"


def test_a_query_that_is_cut_is_warned_about(embedder: Embedder) -> None:
    with pytest.warns(TruncationWarning, match="1 of 1 texts was longer than 256 tokens and cut there") as caught:
        vector = embedder.embed_query("word " * 300)
    assert vector.shape == (384,)
    assert caught[0].filename == __file__


def test_tokens_are_counted_before_any_cut(embedder: Embedder) -> None:
    counted = embedder.count_tokens(["", "water", "word " * 300])

    assert counted.dtype == np.int64
    assert counted.tolist() == [2, 3, 302]
    with pytest.raises(InputError, match="`texts` must be several strings, not one"):
        embedder.count_tokens("water")


def test_the_prompt_is_counted_too(edit_manifest: EditManifest) -> None:
    path = edit_manifest(lambda manifest: manifest["embedder"].update(prompts={"query": "find it "}))

    assert Embedder(path).count_tokens(["water"], prompt="query").tolist() == [5]


def test_a_stream_equals_a_call(embedder: Embedder) -> None:
    asked = 0

    def texts() -> Iterator[str]:
        nonlocal asked
        for text in TEXTS:
            asked += 1
            yield text

    stream = embedder.stream(texts(), chunk=16, dtype="float16")
    assert asked == 0
    first = next(stream)
    assert asked == 16, "nothing is read ahead of need"
    rest = list(stream)

    assert [len(some.vectors) for some in [first, *rest]] == [16, 16, 16, 12]
    found = np.concatenate([some.vectors for some in [first, *rest]])
    assert np.array_equal(found, embedder.embed(TEXTS, dtype="float16"))


def test_a_failing_stream_yields_earlier_results_first(embedder: Embedder) -> None:
    def texts() -> Iterator[str]:
        yield from TEXTS[:5]
        raise OSError("the line is dead")

    stream = embedder.stream(texts(), chunk=3)

    assert np.array_equal(next(stream).vectors, embedder.embed(TEXTS[:3]))
    assert np.array_equal(next(stream).vectors, embedder.embed(TEXTS[3:5]))
    with pytest.raises(OSError, match="the line is dead"):
        next(stream)


def test_a_stream_ends_a_chunk_of_long_texts_early(embedder: Embedder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedder, "chunk_characters", 1000)

    found = embedder.stream(["word " * 150, "word " * 150, "word " * 150])

    assert [len(some.vectors) for some in found] == [2, 1]


def test_a_stream_checks_its_options_at_once(embedder: Embedder) -> None:
    for texts, options, message in [
        ("water", {}, "`texts` must be several strings, not one"),
        (["water"], {"chunk": 0}, "`chunk` must be at least 1, not 0"),
        (["water"], {"chunk": "9"}, "`chunk` must be an integer, not str"),
        (["water"], {"dim": "3"}, "`dim` must be an integer, not str"),
        (["water"], {"prompt": ["query"]}, "`prompt` must be a string, not list"),
        (["water"], {"batch_tokens": 1.5}, "`batch_tokens` must be an integer, not float"),
        (["water"], {"prompt": "query"}, "the model has no prompt `query`"),
    ]:
        with pytest.raises(InputError) as caught:
            embedder.stream(texts, **options)
        assert caught.value.message == message


@pytest.mark.parametrize("other", [3, None, b"bytes", ["nested"]])
def test_a_text_that_is_not_a_string_is_named_by_index_and_type(embedder: Embedder, other: object) -> None:
    for run in (embedder.embed, embedder.embed_passages, lambda texts: list(embedder.stream(texts))):
        with pytest.raises(InputError) as caught:
            run(["water", other])
        assert caught.value.message == f"text 1 must be a string, not {type(other).__name__}"


@pytest.mark.parametrize(("dim", "shape"), [pytest.param(None, (60, 384), marks=pytest.mark.slow), (20, (60, 20))])
def test_vectors_are_stored_as_asked(embedder: Embedder, dim: int | None, shape: tuple[int, int]) -> None:
    exact = embedder.embed(TEXTS, dim=dim)
    ranges = embedding_ranges(exact[:30])
    for dtype, asked in [("float16", None), ("int8", ranges), ("int8", None), ("binary", None), ("ubinary", None)]:
        found = embedder.embed_with_report(TEXTS, dim=dim, dtype=dtype, ranges=asked)
        used = asked if asked is not None or dtype != "int8" else unit_ranges(shape[1])
        assert np.array_equal(found.vectors, quantize_embeddings(exact, VectorType(dtype), ranges=used))
        assert np.array_equal(found.ranges, used) if used is not None else found.ranges is None
        assert found.vectors.shape == ((60, (shape[1] + 7) // 8) if dtype.endswith("binary") else shape)


def test_int8_without_ranges_needs_a_model_that_normalizes(edit_manifest: EditManifest) -> None:
    path = edit_manifest(lambda manifest: manifest["embedder"].update(normalize=False))

    with pytest.raises(InputError, match="int8 needs the ranges of the components"):
        Embedder(path).embed(["x"], dtype="int8")


def test_types_and_ranges_that_do_not_fit(embedder: Embedder) -> None:
    for options, message in [
        ({"dtype": "int4"}, "`dtype` must be one of float32, float16, int8, binary, ubinary, not `int4`"),
        ({"ranges": unit_ranges(384)}, '`ranges` need `dtype="int8"`, and `dtype` is float32'),
        ({"dtype": "int8", "ranges": unit_ranges(5)}, "`ranges` must have the shape (2, 384), not (2, 5)"),
    ]:
        with pytest.raises(InputError) as caught:
            embedder.embed(["x"], **options)
        assert (caught.value.message, caught.value.exit_code) == (message, 2)


def test_a_text_over_the_budget_runs_alone_and_is_reported(embedder: Embedder) -> None:
    texts = ["water", "word " * 20, "word " * 20, "rope"]

    found = embedder.embed_with_report(texts, batch_tokens=10)

    assert found.over_budget == 2
    assert embedder.embed_with_report(texts).over_budget == 0
    assert np.array_equal(found.vectors, embedder.embed(texts))


def test_position_weighted_pooling_in_a_bundle(edit_manifest: EditManifest) -> None:
    embedder = Embedder(edit_manifest(lambda manifest: manifest["embedder"].update(pooling="weighted_mean")))
    ids = embedder.tokenizer.tokenize(["the pump runs dry"])[0].ids[np.newaxis]
    tokens = embedder.session.run({"input_ids": ids})

    assert np.array_equal(embedder.embed(["the pump runs dry"]), normalize(pool(tokens, [Pooling.WEIGHTED_MEAN])))


def test_the_plan_says_what_runs(int8_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime

    cores = SimpleNamespace(usable=3, reason="because")
    monkeypatch.setattr("ortkit.runtime.encoder.base.find_cores", lambda: cores)

    plan = Embedder(int8_bundle).plan

    assert (plan.workers, plan.cores, plan.batch_tokens) == (3, cores, BATCH_TOKENS)
    assert (plan.provider.value, plan.onnxruntime) == ("cpu", onnxruntime.__version__)
    assert plan.disabled_optimizers == ("SkipLayerNormFusion",)
    assert Embedder(int8_bundle, workers=1).plan.workers == 1


def test_prompts_are_put_before_the_text(edit_manifest: EditManifest) -> None:
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


@pytest.mark.parametrize(
    ("workers", "problem"),
    [
        (0, "at least 1, not 0"),
        ("2", "an integer, not str"),
        (1.5, "an integer, not float"),
        (True, "an integer, not bool"),
    ],
)
def test_no_number_of_workers(int8_bundle: Bundle, workers: object, problem: str) -> None:
    with pytest.raises(InputError, match=f"`workers` must be {problem}"):
        Embedder(int8_bundle, workers=workers)  # type: ignore[arg-type]


def test_no_budget(embedder: Embedder) -> None:
    with pytest.raises(InputError, match="`batch_tokens` must be at least 1, not 0"):
        embedder.embed(["x"], batch_tokens=0)


def test_another_kind_of_bundle(edit_manifest: EditManifest) -> None:
    path = edit_manifest(lambda manifest: manifest.update(kind="reranker"))

    with pytest.raises(BundleError, match="is a reranker, not an embedder"):
        Embedder(path)


@pytest.mark.parametrize("dim", [1, 20, 48])
def test_shortened_vectors_are_those_of_sentence_transformers(
    tiny_checkpoint_base: Path, tiny_bundle: Bundle, held_out: list[str], dim: int
) -> None:
    check_shortened(tiny_checkpoint_base, tiny_bundle, held_out[::25], dim)


@pytest.mark.slow
@pytest.mark.parametrize("dim", [1, 64, 383, 384])
def test_shortened_vectors_of_the_real_model(
    checkpoint: Path, fp32_bundle: Bundle, held_out: list[str], dim: int
) -> None:
    check_shortened(checkpoint, fp32_bundle, held_out[::25], dim)


def check_shortened(checkpoint: Path, bundle: Bundle, texts: list[str], dim: int) -> None:
    model = SentenceTransformer(str(checkpoint), device="cpu", local_files_only=True, truncate_dim=dim)
    expected = model.encode(texts, normalize_embeddings=True, show_progress_bar=False)

    found = Embedder(bundle).embed_with_report(texts, dim=dim).vectors

    assert found.shape == (len(texts), dim)
    assert np.abs(found - expected).max() < 1e-5


@pytest.mark.parametrize("dim", [0, -1, 385])
def test_more_components_than_there_are(embedder: Embedder, dim: int) -> None:
    with pytest.raises(InputError) as caught:
        embedder.embed(["x"], dim=dim)
    assert caught.value.message == f"`dim` must be from 1 to 384, the model's dimension, not {dim}"


@pytest.mark.parametrize("dimension", [128, 400])
def test_a_dimension_that_the_graph_does_not_give(
    edit_manifest: EditManifest, dimension: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = edit_manifest(lambda manifest: manifest["embedder"].update(dimension=dimension))
    message = f"the graph `{path / 'model.onnx'}` gives embeddings of 384 components, and the manifest says {dimension}"

    with pytest.raises(BundleError) as caught:
        Embedder(path)

    assert caught.value.message == message
    assert caught.value.exit_code == 7
    monkeypatch.setattr(Session, "width", None)
    unknown = Embedder(path)
    with pytest.raises(BundleError) as caught:
        unknown.embed(["water"])
    assert caught.value.message == message


@pytest.mark.parametrize(
    ("last", "message"),
    [
        (5, "text 7 must be a string, not int"),
        ("\ud800", "text 7 is not valid Unicode: surrogates not allowed at character 0"),
        ("water " * 300, "text 7 has 302 tokens, and the model's limit is 256"),
    ],
)
def test_a_stream_counts_texts_from_its_first(embedder: Embedder, last: object, message: str) -> None:
    stream = embedder.stream(["a"] * 7 + [last], chunk=3, long="error")
    assert [len(next(stream).vectors) for _ in range(2)] == [3, 3]

    with pytest.raises(InputError) as caught:
        next(stream)

    assert caught.value.message == message
    if isinstance(caught.value, TextTooLongError):
        assert caught.value.texts == (1,), "within the chunk"


def test_a_default_prompt_that_the_manifest_does_not_have(edit_manifest: EditManifest) -> None:
    path = edit_manifest(lambda manifest: manifest["embedder"].update(default_prompt="query"))
    embedder = Embedder(path)

    with pytest.raises(BundleError) as caught:
        embedder.embed(["x"])

    assert caught.value.message == f"the manifest of `{path}` has no prompt `query`, its `default_prompt`"
    assert caught.value.exit_code == 7
    with pytest.raises(InputError, match="the model has no prompt `query`"):
        embedder.embed(["x"], prompt="query")


def test_a_length_that_special_tokens_fill(edit_manifest: EditManifest) -> None:
    embedder = Embedder(edit_manifest(lambda manifest: manifest["tokenizer"].update(max_length=2)))

    with pytest.raises(BundleError) as caught:
        embedder.embed(["some words"], long="mean")

    assert caught.value.message == "the model's limit of 2 tokens leaves no room for a text"
    assert embedder.embed_with_report(["some words"]).tokens.tolist() == [2]


@pytest.fixture(scope="module")
def bare_bundle(tiny_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle whose tokenizer adds no special tokens."""
    return changed_bundle(tiny_bundle, tmp_path_factory.mktemp("bare") / "bare", tokenizer=without_special_tokens)


NO_TOKENS_HINT = "hint: leave it out: this model's tokenizer adds no special tokens, so an empty text has none"


def test_texts_without_tokens_leave_the_process_alive(bare_bundle: Bundle) -> None:
    """onnxruntime divides by the number of tokens: SIGFPE. In a process of its own, which it would end."""
    code = """
import sys
from ortkit import Embedder, TextError
embedder = Embedder(sys.argv[1])
for texts in ([""], ["water", " ", "wine", ""], ["\\u200b\\n"]):
    for long in ("truncate", "error", "mean"):
        try:
            embedder.embed(texts, long=long)
        except TextError as error:
            print(error.texts, error)
print(embedder.count_tokens(["", "water"]), embedder.embed(["water"]).shape, embedder.embed([]).shape)
"""
    finished = subprocess.run(
        [sys.executable, "-c", code, str(bare_bundle.path)], capture_output=True, text=True, check=True
    )

    def expected(texts: str, first: int) -> str:
        return f"{texts} text {first} has no tokens\n\n{NO_TOKENS_HINT}\n"

    several = [expected("(0,)", 0), expected("(1, 3)", 1), expected("(0,)", 0)]
    assert finished.stdout == "".join(text * 3 for text in several) + "[0 1] (1, 48) (0, 48)\n"


def test_a_text_without_tokens_has_no_vector_in_sentence_transformers(
    tiny_checkpoint: Path, bare_bundle: Bundle
) -> None:
    """Where the publisher's library has no result, there is none here, and the empty text is as any where it has."""
    reference = SentenceTransformer(str(tiny_checkpoint), device="cpu", local_files_only=True)
    with_special_tokens = export(str(tiny_checkpoint), precision=Precision.FP32, out=tiny_checkpoint / "out").bundle
    found = Embedder(with_special_tokens).embed(["", " "])
    assert np.allclose(found, reference.encode(["", " "]), atol=1e-5)

    shutil.copyfile(bare_bundle.file("tokenizer.json"), tiny_checkpoint / "tokenizer.json")
    bare = SentenceTransformer(str(tiny_checkpoint), device="cpu", local_files_only=True)
    with pytest.raises(IndexError):
        bare.encode([""])
    with pytest.raises(TextError, match="text 0 has no tokens"):
        Embedder(bare_bundle).embed([""])


def test_in_a_stream_a_text_without_tokens_is_named_by_its_place(bare_bundle: Bundle) -> None:
    parts = Embedder(bare_bundle).stream(["a", "b", "c", ""], chunk=2)
    assert len(next(parts).vectors) == 2

    with pytest.raises(TextError, match="text 3 has no tokens") as caught:
        next(parts)
    assert caught.value.texts == (1,)


def test_tokenized_passages_have_the_embeddings_of_their_texts(prompted: Callable[..., tuple[Path, Embedder]]) -> None:
    """Those of sentence-transformers, and the bits of `embed_passages`."""
    folder, embedder = prompted(prompts={"query": "Find this: ", "document": "title: none | text: "})
    model = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    texts = ["the pump runs dry", "", "a knot for wet rope", "the fox " * 20]
    tokenized = embedder.tokenizer.tokenize(texts, prefix=embedder.passage_prefix)
    counts: list[int] = []

    found = embedder.embed_tokenized(tokenized, progress=counts.append, batch_tokens=64)

    np.testing.assert_array_equal(found, embedder.embed_passages(texts))
    assert cosines(found, model.encode_document(texts)).min() > 0.99999
    assert sum(counts) == len(texts)


@pytest.mark.parametrize("given_objects", [["a text"], "a text", iter([]), [None]])
def test_other_objects_than_tokenized_texts_are_refused(given_objects: Any, embedder: Embedder) -> None:
    with pytest.raises(InputError) as caught:
        embedder.embed_tokenized(given_objects)
    assert caught.value.message == "`passages` must be a list of TokenizedText"
    assert caught.value.hint == "texts are embedded by `embed_passages(texts)`"
