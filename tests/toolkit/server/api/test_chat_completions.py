from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from typing import Any

import httpx
import jsonschema
import openai
import pytest

from ortkit import Decoder, MissingPartError
from tests.toolkit.server.conftest import LocalServer

MESSAGES = [{"role": "system", "content": "Answer briefly."}, {"role": "user", "content": "The quick brown fox"}]


@pytest.fixture(scope="session")
def decoder(server: LocalServer) -> Decoder:
    return server.models.find("tiny-decoder").decoder


def test_an_answer_is_that_of_the_library(client: openai.OpenAI, decoder: Decoder) -> None:
    expected = decoder.chat(MESSAGES, max_tokens=12)
    answer = client.chat.completions.create(model="tiny-decoder", messages=MESSAGES, max_completion_tokens=12)
    [choice] = answer.choices
    assert (choice.message.content, choice.finish_reason) == (expected.text, expected.finish_reason.value)
    assert answer.usage.prompt_tokens == expected.usage.prompt_tokens
    assert answer.usage.completion_tokens == expected.usage.completion_tokens
    assert answer.usage.total_tokens == expected.usage.total_tokens
    assert answer.system_fingerprint.startswith("fp_")
    assert answer.id.startswith("chatcmpl-")
    assert abs(answer.created - time.time()) < 60


def test_a_stream_has_the_same_text_and_ends_with_usage(client: openai.OpenAI, decoder: Decoder) -> None:
    expected = decoder.chat(MESSAGES, max_tokens=12)
    chunks = list(
        client.chat.completions.create(
            model="tiny-decoder",
            messages=MESSAGES,
            max_tokens=12,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    *body, last = chunks
    assert body[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in body) == expected.text
    assert [chunk.choices[0].finish_reason for chunk in body][-2:] == [None, expected.finish_reason.value]
    assert all(chunk.usage is None for chunk in body)
    assert last.choices == []
    assert last.usage.completion_tokens == expected.usage.completion_tokens
    assert len({chunk.id for chunk in chunks}) == 1


def test_lines_of_a_stream_are_those_of_the_api(server: LocalServer) -> None:
    body = {"model": "tiny-decoder", "messages": MESSAGES, "max_tokens": 3, "stream": True}
    answer = server.post("/v1/chat/completions", body)
    assert answer.headers["content-type"].startswith("text/event-stream")
    *events, done, rest = answer.text.split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    chunks = [json.loads(one.removeprefix("data: ")) for one in events]
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    # Without `include_usage` there is no such field.
    assert all("usage" not in chunk for chunk in chunks)


def test_parts_and_developer_are_a_text_and_system(client: openai.OpenAI, decoder: Decoder) -> None:
    messages = [
        {"role": "developer", "content": [{"type": "text", "text": "Answer"}, {"type": "text", "text": "briefly."}]},
        {"role": "user", "content": "fox", "name": "ada"},
    ]
    plain = [{"role": "system", "content": "Answer\nbriefly."}, {"role": "user", "content": "fox"}]
    answer = client.chat.completions.create(model="tiny-decoder", messages=messages, max_tokens=8)
    assert answer.choices[0].message.content == decoder.chat(plain, max_tokens=8).text


def test_sampling_options_reach_the_decoder(client: openai.OpenAI, decoder: Decoder) -> None:
    options = {"temperature": 1.5, "top_p": 0.9, "presence_penalty": 0.5, "frequency_penalty": 0.25, "seed": 7}
    expected = decoder.chat(MESSAGES, max_tokens=20, top_k=40, logit_bias={5: 3.0, 6: -float("inf")}, **options)
    answer = client.chat.completions.create(
        model="tiny-decoder",
        messages=MESSAGES,
        max_tokens=20,
        logit_bias={"5": 3, "6": -100},
        extra_body={"top_k": 40},
        **options,
    )
    assert answer.choices[0].message.content == expected.text


def test_several_answers_have_seeds_of_their_own(client: openai.OpenAI, decoder: Decoder) -> None:
    answer = client.chat.completions.create(
        model="tiny-decoder", messages=MESSAGES, max_tokens=10, n=3, temperature=1, seed=-1
    )
    seeds = [(1 << 64) - 1, 0, 1]
    expected = [decoder.chat(MESSAGES, max_tokens=10, temperature=1, seed=seed) for seed in seeds]
    assert [choice.message.content for choice in answer.choices] == [one.text for one in expected]
    assert answer.usage.prompt_tokens == expected[0].usage.prompt_tokens
    assert answer.usage.completion_tokens == sum(one.usage.completion_tokens for one in expected)
    texts = ["", "", ""]
    for chunk in client.chat.completions.create(
        model="tiny-decoder", messages=MESSAGES, max_tokens=10, n=3, temperature=1, seed=-1, stream=True
    ):
        texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert texts == [one.text for one in expected]


def test_stop_strings_end_an_answer(client: openai.OpenAI, decoder: Decoder) -> None:
    whole = decoder.chat(MESSAGES, max_tokens=20).text
    stop = whole[len(whole) // 2 :][:2]
    for given in (stop, [stop, "never"]):
        answer = client.chat.completions.create(model="tiny-decoder", messages=MESSAGES, max_tokens=20, stop=given)
        assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == (
            whole[: whole.index(stop)],
            "stop",
        )


def test_logprobs_are_those_of_the_library(client: openai.OpenAI, decoder: Decoder) -> None:
    expected = decoder.chat(MESSAGES, max_tokens=6, top_logprobs=3)
    options = {"model": "tiny-decoder", "messages": MESSAGES, "max_tokens": 6, "logprobs": True, "top_logprobs": 3}
    content = client.chat.completions.create(**options).choices[0].logprobs.content
    assert [one.logprob for one in content] == [token.logprob for token in expected.tokens]
    assert [[top.logprob for top in one.top_logprobs] for one in content] == [
        [top.logprob for top in token.top_logprobs] for token in expected.tokens
    ]
    assert bytes(byte for one in content for byte in one.bytes).decode("utf-8", "replace") == expected.text
    chunks = client.chat.completions.create(stream=True, **options)
    streamed = [one for chunk in chunks if chunk.choices[0].logprobs for one in chunk.choices[0].logprobs.content]
    assert streamed == content


def test_max_tokens_is_an_upper_bound(client: openai.OpenAI) -> None:
    prompt = [{"role": "user", "content": "fox " * 300}]
    answer = client.chat.completions.create(
        model="tiny-decoder", messages=prompt, max_tokens=1_000_000, logit_bias={"2": -100}
    )
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.total_tokens == 1024


def image(messages: list[Any]) -> None:
    messages[1]["content"] = [{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {"url": "data:"}}]


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({"messages": []}, "messages", "`messages` must not be empty"),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "the field `messages[0].content` is missing"),
        ({"messages": [{"role": "bot", "content": "a"}]}, "messages[0].role", "`messages[0].role` must be `system` or"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
            "messages[0].content[0].type",
            "`messages[0].content[0].type` is `image_url`: images are not supported, the model reads text only",
        ),
        ({"messages": [{"role": "user", "content": "fox " * 2000}]}, "messages", "the prompt has 2020 tokens"),
        ({"n": 0}, "n", "`n` must be from 1 to 16, not 0"),
        ({"n": 17}, "n", "`n` must be from 1 to 16, not 17"),
        ({"temperature": 3}, "temperature", "`temperature` must be from 0 to 2, not 3"),
        ({"temperature": 10**400}, "temperature", "`temperature` must be from 0 to 2, not 1000"),
        ({"top_logprobs": 3}, "top_logprobs", "`top_logprobs` needs `logprobs`: true"),
        ({"logit_bias": {"x": 1}}, "logit_bias", "`logit_bias` must have token ids as names, not `x`"),
        ({"logit_bias": {"99999": 1}}, "logit_bias", "`logit_bias` names the token 99999, and the vocabulary has "),
        ({"stop": ""}, "stop", "`stop` must not be empty"),
        ({"stop": ["a", ""]}, "stop[1]", "`stop[1]` must not be empty"),
        ({"max_tokens": 0}, "max_tokens", "`max_tokens` must be from 1 to"),
        ({"max_tokens": 5, "max_completion_tokens": 6}, "max_tokens", "`max_tokens` and `max_completion_"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "`stream_options` needs `stream`: true"),
        ({"tools": [{"type": "function", "function": {}}]}, "tools[0].function.name", "the field `tools[0].fun"),
        ({"tool_choice": "required"}, "tool_choice", "`tool_choice` needs `tools`"),
        ({"functions": []}, "functions", "`functions` is not supported: use `tools`"),
        ({"modalities": ["audio"]}, "modalities", "`modalities` is not supported: the model writes text only"),
        ({"response_format": {"type": "xml"}}, "response_format.type", "`response_format.type` must be `text` or"),
        ({"temprature": 1}, "temprature", "unknown field `temprature`"),
    ],
)  # fmt: skip
def test_invalid_fields_are_named(server: LocalServer, fields: dict[str, object], param: str, message: str) -> None:
    answer = server.post("/v1/chat/completions", {"model": "tiny-decoder", "messages": MESSAGES} | fields)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"], error["type"]) == (400, param, "invalid_request_error")
    assert error["message"].startswith(message)


def test_a_prompt_beyond_the_context_says_how_many_tokens(client: openai.OpenAI, decoder: Decoder) -> None:
    messages = [{"role": "user", "content": "fox " * 1100}]
    tokens = len(decoder.encode_exactly(decoder.apply_chat_template(messages)))
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="tiny-decoder", messages=messages)
    assert (caught.value.code, caught.value.param) == ("context_length_exceeded", "messages")
    assert f"the prompt has {tokens} tokens, {tokens - 1023} more than the context of 1024" in caught.value.message


def test_fields_that_change_no_answer_are_ignored(client: openai.OpenAI, decoder: Decoder) -> None:
    answer = client.chat.completions.create(
        model="tiny-decoder",
        messages=MESSAGES,
        max_tokens=4,
        user="ada",
        metadata={"a": "b"},
        store=False,
        service_tier="auto",
        parallel_tool_calls=True,
        modalities=["text"],
        prompt_cache_key="k",
    )
    assert answer.choices[0].message.content == decoder.chat(MESSAGES, max_tokens=4).text


def test_answers_do_not_depend_on_their_neighbours(server: LocalServer, decoder: Decoder) -> None:
    prompts = [f"The quick brown fox {n}" for n in range(12)]
    expected = [decoder.chat([{"role": "user", "content": prompt}], max_tokens=16).text for prompt in prompts]

    async def ask() -> list[str | None]:
        async with openai.AsyncOpenAI(
            base_url=f"{server.url}/v1", api_key="none", timeout=60, _strict_response_validation=True
        ) as client:
            answers = await asyncio.gather(
                *(
                    client.chat.completions.create(
                        model="tiny-decoder", messages=[{"role": "user", "content": prompt}], max_tokens=16
                    )
                    for prompt in prompts
                )
            )
            return [answer.choices[0].message.content for answer in answers]

    assert asyncio.run(ask()) == expected


def wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_away_frees_its_slot(server: LocalServer, *, stream: bool) -> None:
    batch = server.models.find("tiny-decoder").batch
    before = batch.stats.completion_tokens
    body = {"model": "tiny-decoder", "messages": MESSAGES, "stream": stream, "logit_bias": {"2": -100}, "n": 4}
    with httpx.Client(timeout=None) as connection:
        request = connection.build_request("POST", f"{server.url}/v1/chat/completions", json=body)
        if stream:
            answer = connection.send(request, stream=True)
            next(answer.iter_raw())
            answer.close()
        else:
            with pytest.raises(httpx.ReadTimeout):
                connection.post(request.url, json=body, timeout=0.05)
    wait_until(lambda: batch.stats.running == 0 and batch.stats.waiting == 0)
    # Complete answers would have filled the context.
    assert batch.stats.completion_tokens - before < 4 * 900


SCHEMA = {
    "type": "object",
    "properties": {"fox": {"enum": ["red", "brown"]}, "legs": {"type": "integer", "minimum": 2, "maximum": 9}},
    "required": ["fox", "legs"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("stream", [True, False])
def test_an_answer_follows_a_json_schema(client: openai.OpenAI, *, stream: bool) -> None:
    options = {
        "model": "tiny-decoder",
        "messages": MESSAGES,
        "response_format": {"type": "json_schema", "json_schema": {"name": "animal", "schema": SCHEMA, "strict": True}},
    }
    if stream:
        chunks = list(client.chat.completions.create(stream=True, **options))
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
        assert chunks[-1].choices[0].finish_reason == "stop"
    else:
        [choice] = client.chat.completions.create(**options).choices
        text = choice.message.content
        assert choice.finish_reason == "stop"
    jsonschema.validate(json.loads(text), SCHEMA)


def test_an_answer_is_any_json_object(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="tiny-decoder", messages=MESSAGES, response_format={"type": "json_object"}, max_tokens=200
    )
    [choice] = answer.choices
    assert choice.finish_reason == "length" or isinstance(json.loads(choice.message.content), dict)
    assert choice.message.content.startswith("{")


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"type": "text"}, "the JSON schema cannot be compiled: "),
        ({"type": "object", "unevaluatedProperties": False}, "the JSON schema cannot be compiled: "),
        ({"$ref": "https://json-schema.org/draft/2020-12/schema"}, "the JSON schema cannot be compiled: "),
    ],
)
def test_a_schema_that_cannot_be_compiled_is_refused(server: LocalServer, schema: object, message: str) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
    body = {"model": "tiny-decoder", "messages": MESSAGES, "response_format": form, "stream": True}
    answer = server.post("/v1/chat/completions", body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "response_format")
    assert answer.json()["error"]["message"].startswith(message)


def test_without_llguidance_a_schema_is_refused(server: LocalServer, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise MissingPartError("answers cannot follow a grammar", hint="install the extra `grammar`")

    monkeypatch.setattr("ortkit.runtime.decoder.grammar._import_llguidance", missing)
    decoder = server.models.find("tiny-decoder").decoder
    monkeypatch.setattr(decoder, "_made_grammar_compiler", None)
    body = {"model": "tiny-decoder", "messages": MESSAGES, "response_format": {"type": "json_object"}}
    answer = server.post("/v1/chat/completions", body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "unsupported_parameter")
    assert answer.json()["error"]["message"].endswith("(install the extra `grammar`)")
