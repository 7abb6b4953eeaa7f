"""The tool `file_search` of chat completions: answers from an index, with citations, as `ortkit ask` makes them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import openai
import pytest
from openai.types.responses.response_output_text import AnnotationFileCitation

from ortkit import Decoder, FinishReason, Token
from ortkit.toolkit.search.answers import Answerer, Grounding, Source
from ortkit.toolkit.search.documents.document import Place
from ortkit.toolkit.search.hits import Hit, HitScores
from ortkit.toolkit.search.index import Index
from ortkit.toolkit.server.api.file_search import GroundedDeltas
from tests.toolkit.server.conftest import LONG, LocalServer

QUESTION = "the pump does not start"
MESSAGES: list[Any] = [{"role": "user", "content": QUESTION}]
TOOL: dict[str, Any] = {"type": "file_search", "vector_store_ids": ["manuals"]}
NESTED: dict[str, Any] = {"type": "file_search", "file_search": {"vector_store_ids": ["manuals"], "max_num_results": 2}}
BODY: dict[str, Any] = {"model": "tiny-decoder", "messages": MESSAGES, "tools": [TOOL], "max_tokens": 12}


@pytest.fixture
def decoder(server: LocalServer) -> Decoder:
    return server.models.find("tiny-decoder").decoder


def grounded(manuals: Path, decoder: Decoder, **options: Any) -> Grounding:
    with Index.open(manuals) as index:
        return Answerer(index, decoder, answer_tokens=12).prepare(QUESTION, **options)


@pytest.mark.parametrize(("tool", "top_n"), [(TOOL, 5), (NESTED, 2)])
def test_an_answer_is_that_of_the_library(
    lenient_client: openai.OpenAI, manuals: Path, decoder: Decoder, tool: Any, top_n: int
) -> None:
    grounding = grounded(manuals, decoder, top_n=top_n)
    expected = decoder.chat(grounding.messages, max_tokens=12)
    answer = lenient_client.chat.completions.create(
        model="tiny-decoder", messages=MESSAGES, tools=[tool], max_completion_tokens=12
    )
    [choice] = answer.choices
    assert (choice.message.content, choice.finish_reason) == (expected.text, expected.finish_reason.value)
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == expected.usage.prompt_tokens
    assert choice.message.annotations == []
    results = choice.message.model_extra["file_search_results"]
    assert [one["filename"] for one in results] == [
        source.hit.file.encode("utf-8", "surrogateescape").decode("utf-8", "replace") for source in grounding.sources
    ]
    assert [one["attributes"]["source"] for one in results] == list(range(1, len(grounding.sources) + 1))
    assert len(results) == min(top_n, 5)


def test_a_stream_has_the_same_answer_and_its_sources_in_the_last_delta(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(model="tiny-decoder", messages=MESSAGES, tools=[TOOL], max_tokens=12)
    options: Any = {"tools": [TOOL], "max_tokens": 12, "stream": True}
    chunks = list(client.chat.completions.create(model="tiny-decoder", messages=MESSAGES, **options))
    deltas = [chunk.choices[0].delta for chunk in chunks]
    assert "".join(delta.content or "" for delta in deltas) == whole.choices[0].message.content
    assert chunks[-1].choices[0].finish_reason == whole.choices[0].finish_reason
    assert deltas[-1].model_extra["file_search_results"] == whole.choices[0].message.model_extra["file_search_results"]
    assert deltas[-1].model_extra["annotations"] == []


def test_citations_are_annotations(server: LocalServer, decoder: Decoder) -> None:
    """The model is made to write brackets and numbers; each citation of a source that there is has its place."""
    bias = {str(decoder.encode_exactly(text)[0]): 100 for text in ("[", "1", "9", "]")}
    body = BODY | {"logit_bias": bias, "temperature": 2, "max_tokens": 200, "tools": [NESTED]}
    for seed in range(50):
        body["seed"] = seed
        message = server.post("/v1/chat/completions", body).json()["choices"][0]["message"]
        text = message["content"]
        expected = [(found.start(), found.end(), int(found[1])) for found in re.finditer(r"\[(1)\]", text)]
        if expected and "[?]" in text:
            break
    assert expected
    assert "[?]" in text, "a citation of source 9, which there is not"
    assert "[9]" not in text
    assert [(one["start_index"], one["end_index"], one["source"]) for one in message["annotations"]] == expected
    files = {one["attributes"]["source"]: one["file_id"] for one in message["file_search_results"]}
    for one in message["annotations"]:
        AnnotationFileCitation.model_validate(one, strict=True)
        assert one["file_id"] == files[one["source"]]
        assert one["index"] == one["start_index"]
    streamed = server.post("/v1/chat/completions", body | {"stream": True}).text
    assert streamed.count('"annotations":') == 1


def test_a_citation_comes_when_it_is_complete() -> None:
    hits = [
        Hit(
            rank,
            "Open it.",
            "Pumps",
            f"{rank}.md",
            Path("/m"),
            Place((rank, rank)),
            0.5,
            HitScores(0.5, 1, None, None, 0.5, None),
        )
        for rank in (1, 2)
    ]
    sources = tuple(Source(hit.rank, hit, hit.text) for hit in hits)
    deltas = GroundedDeltas(Grounding("?", sources, 0, (), 0.5, None, 12), "manuals")
    pieces = ["Open", " it [", "1", ", 2", "] or `[1]` [7", "]."]
    said = []
    for place, piece in enumerate(pieces):
        end = FinishReason.STOP if place == len(pieces) - 1 else None
        said.append("".join(one["content"] for one in deltas.push(Token(0, piece, 0.0, (), end, None))))
    assert said[:3] == ["Open", " it ", ""]
    text = "".join(said)
    assert text == "Open it [1, 2] or `[1]` [?]."
    annotations = deltas.last()["annotations"]
    assert [(text[one["start_index"] : one["end_index"]], one["source"], one["filename"]) for one in annotations] == [
        ("[1, 2]", 1, "1.md"),
        ("[1, 2]", 2, "2.md"),
    ]


def test_the_conversation_before_the_question_stays(server: LocalServer, decoder: Decoder) -> None:
    before = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hello."},
    ]
    alone = server.post("/v1/chat/completions", BODY).json()
    answer = server.post("/v1/chat/completions", BODY | {"messages": [*before, *MESSAGES]}).json()
    with_system = decoder.apply_chat_template([*before, *MESSAGES])
    assert answer["usage"]["prompt_tokens"] > alone["usage"]["prompt_tokens"]
    assert (
        answer["choices"][0]["message"]["file_search_results"] == alone["choices"][0]["message"]["file_search_results"]
    )
    assert "Be kind." in with_system


def test_nothing_found_is_said_and_the_model_does_not_run(server: LocalServer, lenient_client: openai.OpenAI) -> None:
    tool = TOOL | {"ranking_options": {"score_threshold": 1.0}}
    before = server.get("/metrics").text
    for options in ({}, {"n": 2, "logprobs": True}):
        answer = lenient_client.chat.completions.create(
            model="tiny-decoder", messages=MESSAGES, tools=[tool], **options
        )
        assert len(answer.choices) == options.get("n", 1)
        for choice in answer.choices:
            assert choice.finish_reason == "stop"
            assert choice.message.content.startswith("Nothing was found in `manuals` about this.")
            assert choice.message.model_extra["file_search_results"] == choice.message.annotations == []
        assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (0, 0)
    streamed = lenient_client.chat.completions.create(
        model="tiny-decoder", messages=MESSAGES, tools=[tool], stream=True, stream_options={"include_usage": True}
    )
    *chunks, last = list(streamed)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == answer.choices[0].message.content
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert last.usage.completion_tokens == 0
    series = 'ortkit_generation_tokens_total{model_name="tiny-decoder"}'
    assert re.findall(f"{re.escape(series)}.*", before) == re.findall(
        f"{re.escape(series)}.*", server.get("/metrics").text
    )


def test_tool_choice_decides(server: LocalServer, decoder: Decoder) -> None:
    plain = decoder.chat(MESSAGES, max_tokens=12).text
    for choice, is_grounded in (("none", False), ("auto", True), ("required", True), ({"type": "file_search"}, True)):
        answer = server.post("/v1/chat/completions", BODY | {"tool_choice": choice})
        message = answer.json()["choices"][0]["message"]
        assert ("file_search_results" in message) is is_grounded
        assert is_grounded or message["content"] == plain


@pytest.mark.parametrize(
    ("tool", "param"),
    [
        (TOOL | {"vector_store_ids": ["x"]}, "tools[0].vector_store_ids"),
        (TOOL | {"ranking_options": {"ranker": "x"}}, "tools[0].ranking_options.ranker"),
    ],
)
def test_a_tool_that_is_not_used_is_checked_too(server: LocalServer, tool: object, param: str) -> None:
    answer = server.post("/v1/chat/completions", BODY | {"tools": [tool], "tool_choice": "none"})

    assert (answer.status_code, answer.json()["error"]["param"]) == (404, param)


FUNCTION = {"type": "function", "function": {"name": "f"}}


@pytest.mark.parametrize(
    ("fields", "status", "param", "message"),
    [
        ({"tools": [TOOL, FUNCTION]}, 400, "tools[1].type", "`file_search` and functions cannot be combined: "),
        ({"tools": [FUNCTION, TOOL]}, 400, "tools[1].type", "`file_search` and functions cannot be combined: "),
        ({"tools": [TOOL, TOOL]}, 400, "tools[1].type", "`tools` has more than one `file_search`"),
        ({"response_format": {"type": "json_object"}}, 400, "response_format", "`response_format` and `tools` contra"),
        (
            {"tools": [{"type": "file_search", "vector_store_ids": ["x"]}]},
            404,
            "tools[0].vector_store_ids",
            "there is no index `x` (served: `manuals`)",
        ),
        (
            {"tools": [{"type": "file_search", "file_search": {"vector_store_ids": ["a", "b"]}}]},
            400,
            "tools[0].file_search.vector_store_ids",
            "`tools[0].file_search.vector_store_ids` has 2",
        ),
        ({"tools": [TOOL | {"x": 1}]}, 400, "tools[0].x", "unknown field `x`"),
        (
            {"tools": [TOOL | {"ranking_options": {"ranker": "x"}}]},
            404,
            "tools[0].ranking_options.ranker",
            "there is no model `x`",
        ),
        (
            {"messages": [*MESSAGES, {"role": "assistant", "content": "a"}]},
            400,
            "messages[1].role",
            "`file_search` answers the last message, which must be of the role `user`",
        ),
        (
            {"messages": [{"role": "user", "content": " "}]},
            400,
            "messages[0].content",
            "`messages[0].content` must not be empty with `file_search`",
        ),
        (
            {"messages": [{"role": "user", "content": LONG}]},
            400,
            "messages[0].content",
            "`messages[0].content` has more tokens than the 4096 that the embedder of the index reads",
        ),
        (
            {"messages": [{"role": "user", "content": "the fox " * 300}, *MESSAGES]},
            400,
            "messages[1].content",
            "the LLM's context of 1024 tokens has no room for one passage: ",
        ),
    ],
)  # fmt: skip
def test_what_is_refused(server: LocalServer, fields: dict[str, object], status: int, param: str, message: str) -> None:
    answer = server.post("/v1/chat/completions", BODY | fields)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (status, param), error
    assert error["message"].startswith(message), error
