from __future__ import annotations

import openai
import pytest

from ortkit import Decoder
from tests.toolkit.server.conftest import LocalServer

PROMPT = "The quick brown fox"


@pytest.fixture(scope="session")
def decoder(server: LocalServer) -> Decoder:
    return server.models.find("tiny-decoder").decoder


def test_a_text_continues_as_in_the_library(client: openai.OpenAI, decoder: Decoder) -> None:
    expected = decoder.generate(PROMPT, max_tokens=12)
    answer = client.completions.create(model="tiny-decoder", prompt=PROMPT, max_tokens=12)
    [choice] = answer.choices
    assert (choice.text, choice.finish_reason) == (expected.text, expected.finish_reason.value)
    assert answer.usage.total_tokens == expected.usage.total_tokens
    # OpenAI's default.
    short = client.completions.create(model="tiny-decoder", prompt=PROMPT)
    assert short.choices[0].text == decoder.generate(PROMPT, max_tokens=16).text


def test_several_prompts_and_answers(client: openai.OpenAI, lenient_client: openai.OpenAI, decoder: Decoder) -> None:
    prompts = [PROMPT, "and the dog"]
    answer = client.completions.create(
        model="tiny-decoder", prompt=prompts, max_tokens=8, n=2, temperature=1.0, seed=5, echo=True
    )
    expected = [
        prompt + decoder.generate(prompt, max_tokens=8, temperature=1.0, seed=seed).text
        for prompt in prompts
        for seed in (5, 6)
    ]
    assert [choice.text for choice in answer.choices] == expected
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert answer.usage.prompt_tokens == sum(decoder.count_tokens(prompt) for prompt in prompts)
    texts = [""] * 4
    # The finish reason of a chunk is null in their API too, which the client's strict validation refuses.
    for chunk in lenient_client.completions.create(
        model="tiny-decoder", prompt=prompts, max_tokens=8, n=2, temperature=1.0, seed=5, echo=True, stream=True
    ):
        texts[chunk.choices[0].index] += chunk.choices[0].text
    assert texts == expected


def test_token_ids_are_a_prompt(client: openai.OpenAI, decoder: Decoder) -> None:
    ids = decoder.encode(PROMPT)
    expected = decoder.generate(PROMPT, max_tokens=8).text
    for prompt in (ids, [ids]):
        answer = client.completions.create(model="tiny-decoder", prompt=prompt, max_tokens=8)
        assert answer.choices[0].text == expected
    echoed = client.completions.create(model="tiny-decoder", prompt=ids, max_tokens=8, echo=True)
    assert echoed.choices[0].text == PROMPT + expected


def test_logprobs_have_the_old_shape(client: openai.OpenAI, lenient_client: openai.OpenAI, decoder: Decoder) -> None:
    expected = decoder.generate(PROMPT, max_tokens=6, top_logprobs=2)
    options = {"model": "tiny-decoder", "prompt": PROMPT, "max_tokens": 6, "logprobs": 2}
    found = client.completions.create(**options).choices[0].logprobs
    assert found.token_logprobs == [token.logprob for token in expected.tokens]
    assert [list(top.values()) for top in found.top_logprobs] == [
        [top.logprob for top in token.top_logprobs] for token in expected.tokens
    ]
    starts = [len("".join(token.text for token in expected.tokens[:place])) for place in range(len(expected.tokens))]
    assert found.text_offset == starts
    streamed = [chunk.choices[0].logprobs for chunk in lenient_client.completions.create(stream=True, **options)]
    assert [one for logprobs in streamed for one in logprobs.text_offset] == starts
    assert [one for logprobs in streamed for one in logprobs.tokens] == found.tokens
    bare = client.completions.create(**options | {"logprobs": 0}).choices[0].logprobs
    assert (bare.token_logprobs, bare.top_logprobs) == (found.token_logprobs, None)


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({"prompt": ""}, "prompt", "`prompt` must not be empty"),
        ({"prompt": []}, "prompt", "`prompt` must not be empty"),
        ({"prompt": ["a", []]}, "prompt[1]", "`prompt[1]` must not be empty"),
        ({"prompt": ["a", 5]}, "prompt[1]", "`prompt[1]` must be a string, not an integer"),
        ({"prompt": [99999]}, "prompt[0]", "`prompt[0]` must be from 0 to "),
        ({"prompt": [1, "a"]}, "prompt[1]", "`prompt[1]` must be an integer, not a string"),
        ({"prompt": ["a", "fox " * 2000]}, "prompt", "the prompt has "),
        ({"suffix": "end"}, "suffix", "`suffix` is not supported: the model only continues texts"),
        ({"best_of": 2}, "best_of", "`best_of` is not supported: use `n`"),
        ({"echo": True, "logprobs": 1}, "echo", "`echo` with `logprobs` is not supported"),
        ({"logprobs": 6}, "logprobs", "`logprobs` must be from 0 to 5, not 6"),
        ({"logprobs": True}, "logprobs", "`logprobs` must be an integer, not a boolean"),
        ({"model": "tiny-reranker"}, "model", "`tiny-reranker` is a reranker, not a decoder; it answers at /v1/rerank"),
    ],
)
def test_invalid_fields_are_named(server: LocalServer, fields: dict[str, object], param: str, message: str) -> None:
    answer = server.post("/v1/completions", {"model": "tiny-decoder", "prompt": PROMPT} | fields)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, param)
    assert error["message"].startswith(message)
