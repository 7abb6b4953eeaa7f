"""Keyword options of the public API: what signatures show, and what misspelled ones raise."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable

import pytest

from ortkit import Chat, Decoder, Embedder, EmbedOptions, GenerationOptions, PairOptions, RankOptions, Reranker


@pytest.mark.parametrize(
    ("kind", "options", "methods"),
    [
        (Embedder, EmbedOptions, ["embed", "embed_query", "embed_passages", "embed_with_report", "stream"]),
        (Reranker, RankOptions, ["rank", "rank_many", "rank_many_with_report"]),
        (Reranker, PairOptions, ["score", "score_with_report", "stream"]),
        (Decoder, GenerationOptions, ["generate", "stream", "chat", "stream_chat", "steps"]),
        (Chat, GenerationOptions, ["send", "regenerate", "edit"]),
    ],
)
def test_signatures_show_the_keywords_that_type_checkers_read(kind: type, options: type, methods: list[str]) -> None:
    for method in methods:
        function = getattr(kind, method)
        shown = inspect.signature(function).parameters
        hints = typing.get_type_hints(function, include_extras=True)

        assert hints["options"] == typing.Unpack[options]
        assert "options" not in shown
        for name in options.__annotations__:
            assert (shown[name].kind, shown[name].default) == (inspect.Parameter.KEYWORD_ONLY, None)


def test_the_types_in_signatures() -> None:
    assert inspect.signature(Embedder.embed).parameters["dtype"].annotation == "VectorType | str | None"


SUPPORTED = "`prompt`, `dim`, `dtype`, `ranges`, `long`, `batch_tokens`"


@pytest.mark.parametrize(
    ("method", "name", "ending"),
    [
        (Embedder.embed, "dims", "did you mean `dim`?"),
        (Embedder.embed, "promt", "did you mean `prompt`?"),
        (Embedder.embed, "normalize_embeddings", f"supported: {SUPPORTED}"),
        (Embedder.stream, "chunks", "did you mean `chunk`?"),
        (Reranker.rank, "top_k", "did you mean `top_n`?"),
        (Reranker.score, "label", "supported: `scores`, `long`, `batch_tokens`"),
        (Decoder.generate, "cahce", "did you mean `cache`?"),
        (Decoder.stream_chat, "temprature", "did you mean `temperature`?"),
        (Chat.regenerate, "max_token", "did you mean `max_tokens`?"),
    ],
)
def test_unknown_keywords_name_the_method_and_the_closest(
    method: Callable[..., object], name: str, ending: str
) -> None:
    with pytest.raises(TypeError) as caught:
        method(None, None, **{name: 1})

    assert str(caught.value) == f"{method.__qualname__}() got an unexpected keyword argument `{name}`; {ending}"


@pytest.mark.parametrize(
    ("method", "name"),
    [
        (Embedder.embed_query, "prompt"),
        (Reranker.rank, "progress"),
        (Reranker.rank_many, "progress"),
        (Reranker.score, "progress"),
        (Decoder.chat, "prompt"),
        (Chat.send, "cache"),
        (Chat.send, "prompt"),
        (Chat.edit, "cache"),
    ],
)
def test_keywords_of_the_method_behind_are_not_taken(method: Callable[..., object], name: str) -> None:
    """Methods pass their options on to others, which have more of their own."""
    with pytest.raises(TypeError, match=rf"^{method.__qualname__}\(\) got an unexpected keyword argument `{name}`;"):
        method(None, None, **{name: None})
