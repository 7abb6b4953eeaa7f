"""Keyword options of the public API: what signatures show, and what misspelled ones raise."""

from __future__ import annotations

import inspect
import typing

import pytest

from ortkit import Chat, Decoder, Embedder, EmbedOptions, GenerationOptions, PairOptions, RankOptions, Reranker
from ortkit.runtime.arguments import checked_keywords


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


@pytest.mark.parametrize(
    ("options", "name", "ending"),
    [
        (EmbedOptions, "dims", "did you mean `dim`?"),
        (EmbedOptions, "normalize_embeddings", "supported: `dim`, `dtype`, `ranges`, `long`, `batch_tokens`"),
        (RankOptions, "top_k", "did you mean `top_n`?"),
        (PairOptions, "score", "supported: `long`, `batch_tokens`"),
    ],
)
def test_unknown_keywords_name_the_closest(options: type, name: str, ending: str) -> None:
    with pytest.raises(TypeError) as caught:
        checked_keywords({name: 1}, options)

    assert str(caught.value) == f"unexpected keyword argument `{name}`; {ending}"
