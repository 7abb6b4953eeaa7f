"""Opening a bundle as what it is, closing it, and what models say of themselves."""

from __future__ import annotations

import gc
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from ortkit import Bundle, Decoder, Embedder, InputError, NotFoundError, Reranker, WrongKindError, load
from ortkit.runtime.session.open_sessions import _OPEN
from tests.decoders import write_decoder
from tests.tiny_bundles import write_embedder, write_reranker

Model = Embedder | Reranker | Decoder
Write = Callable[[Path], Bundle]
KINDS: list[tuple[type[Model], Write]] = [
    (Embedder, write_embedder),
    (Reranker, write_reranker),
    (Decoder, lambda target: write_decoder(target)[0]),
]


@pytest.fixture(params=KINDS, ids=lambda param: param[0].__name__)
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[type[Model], Bundle]:
    kind, write = request.param
    return kind, write(tmp_path / "bundle")


def test_a_bundle_is_opened_with_the_class_for_its_kind(opened: tuple[type[Model], Bundle]) -> None:
    kind, bundle = opened

    assert type(load(bundle)) is type(load(bundle.path)) is type(load(str(bundle.path))) is kind


def test_a_missing_bundle(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="there is no bundle at"):
        load(tmp_path / "none")


@pytest.mark.parametrize("name", ["a" * 300, "a" * 5000, "a\0b"])
def test_a_name_that_no_folder_can_have(name: str) -> None:
    with pytest.raises(NotFoundError, match="there is no bundle at"):
        load(name)


@pytest.mark.parametrize(
    ("bundle", "problem"),
    [
        (b"bundles/x", "`bundle` must be a path, not bytes"),
        (5, "`bundle` must be a path, not int"),
        ("", "is an empty path"),
    ],
)
def test_what_is_not_a_path(bundle: object, problem: str) -> None:
    for opens in (load, Embedder, Reranker, Decoder, Bundle.open):
        with pytest.raises(InputError, match=problem):
            opens(bundle)  # type: ignore[arg-type]


def test_the_wrong_class_names_the_right_one(opened: tuple[type[Model], Bundle]) -> None:
    kind, bundle = opened
    article = {Embedder: "an embedder", Reranker: "a reranker", Decoder: "a decoder"}
    for other in article.keys() - {kind}:
        with pytest.raises(WrongKindError) as caught:
            other(bundle)
        assert caught.value.message == f"`{bundle.path}` is {article[kind]}, not {article[other]}"
        assert caught.value.hint == (
            f"open it with `{kind.__name__}('{bundle.path}')`, or with `load`, which selects the class"
        )
        assert caught.value.exit_code == 7


USES: dict[type[Model], list[Callable]] = {
    Embedder: [
        lambda model: model.embed("a"),
        lambda model: model.embed([]),
        lambda model: model.embed_query("a"),
        lambda model: model.embed_passages(["a"]),
        lambda model: model.embed_with_report(["a"]),
        lambda model: model.stream(["a"]),
        lambda model: model.count_tokens(["a"]),
        lambda model: model.plan,
        lambda model: model.__enter__(),
    ],
    Reranker: [
        lambda model: model.rank("a", ["b"]),
        lambda model: model.rank("a", []),
        lambda model: model.rank_many([]),
        lambda model: model.score([("a", "b")]),
        lambda model: model.score_with_report([]),
        lambda model: model.stream([("a", "b")]),
        lambda model: model.plan,
    ],
    Decoder: [
        lambda model: model.generate("a"),
        lambda model: model.stream("a"),
        lambda model: model.steps([5]),
        lambda model: model.chat([{"role": "user", "content": "a"}]),
        lambda model: model.prefill("a"),
        lambda model: model.plan,
    ],
}


def test_a_closed_model_raises(opened: tuple[type[Model], Bundle]) -> None:
    kind, bundle = opened
    name = kind.__name__
    with load(bundle) as model:
        assert ", closed" not in repr(model)

    for use in USES[kind]:
        with pytest.raises(InputError) as caught:
            use(model)
        assert caught.value.message == f"the {name} of `{bundle.path}` is closed"
        assert caught.value.hint == f"open it again: `{name}('{bundle.path}')`"
    assert repr(model).startswith(f"<{name} '{bundle.path}': fp32, ")
    assert repr(model).endswith(", closed>")
    model.close()


def test_a_model_cannot_be_pickled(opened: tuple[type[Model], Bundle]) -> None:
    """As multiprocessing would, to hand a model to another process."""
    kind, bundle = opened
    name = kind.__name__

    with load(bundle) as model, pytest.raises(TypeError) as caught:
        pickle.dumps(model)

    assert str(caught.value) == (
        f"{name} cannot be pickled: open the bundle in each process, `{name}('{bundle.path}')`"
    )


def test_a_name_of_a_bundle_in_its_folder(tiny_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command line finds bundles by name, Python by path."""
    shutil.copytree(tiny_bundle.path, tmp_path / "bundles" / "tiny")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ORTKIT_BUNDLES", raising=False)

    with pytest.raises(NotFoundError) as caught:
        load("tiny")

    assert caught.value.message == "there is no bundle at `tiny`"
    assert caught.value.hint == "a bundle of this name is at `bundles/tiny`: in Python give its path"
    load("bundles/tiny").close()


def test_closing_frees_the_weights_and_leaves_those_of_others(opened: tuple[type[Model], Bundle]) -> None:
    _, bundle = opened
    first, second = load(bundle), load(bundle)
    # What earlier tests left in reference cycles goes first.
    gc.collect()
    before = len(_OPEN)
    first.close()
    assert len(_OPEN) == before
    assert second.plan.provider == "cpu"

    second.close()

    assert len(_OPEN) == before - 1


def test_a_running_stream_continues_after_its_decoder_is_closed(tmp_path: Path) -> None:
    with Decoder(write_decoder(tmp_path / "tiny")[0]) as decoder:
        expected = decoder.generate("The fox", max_tokens=9).text
        stream = decoder.stream("The fox", max_tokens=9)
        next(stream)

    assert stream.answer().text == expected


def test_reports_are_short(tmp_path: Path) -> None:
    embeddings = Embedder(write_embedder(tmp_path / "a")).embed_with_report(["fox", "fox " * 100])
    scores = Reranker(write_reranker(tmp_path / "b")).score_with_report([("fox", "dog")])
    answer = Decoder(write_decoder(tmp_path / "c")[0]).generate("fox", logit_bias={2: 1000.0})

    assert repr(embeddings) == "<Embeddings of 2 texts: float32 (2, 8), 1 truncated>"
    assert repr(scores) == "<PairScores of 1 pairs: (1, 1), 0 truncated>"
    assert repr(Bundle.open(tmp_path / "a")) == f"<Bundle '{tmp_path / 'a'}': embedder, fp32>"
    assert repr(Decoder(tmp_path / "c").prefill([5] * 9)) == "<KVCache of 9 tokens, 0 MiB>"
    assert repr(answer) == "Answer(text='', finish_reason=<FinishReason.STOP: 'stop'>)"


def test_the_repr_of_models(tmp_path: Path) -> None:
    for model, shown in [
        (Embedder(write_embedder(tmp_path / "a"), workers=1), "<Embedder '{}': fp32, dimension 8, 1 workers>"),
        (Reranker(write_reranker(tmp_path / "b"), workers=1), "<Reranker '{}': fp32, 1 label, 1 workers>"),
        (Decoder(write_decoder(tmp_path / "c")[0], threads=1), "<Decoder '{}': fp32, context 1024, 1 threads>"),
    ]:
        assert repr(model) == shown.format(model.bundle.path)
