from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from ortkit import Decoder, InputError, Sampling
from ortkit.runtime.decoder.generation_options import CheckedOptions, GenerationOptions, checked_options
from tests.decoders import with_facts

FOX = "The quick brown fox"


def test_every_field_of_sampling_is_a_keyword() -> None:
    names = {field.name for field in dataclasses.fields(Sampling)}
    assert names <= GenerationOptions.__annotations__.keys()
    defaults = {field.name for field in dataclasses.fields(CheckedOptions)}
    assert GenerationOptions.__annotations__.keys() - names == defaults


def test_options_override_the_publishers_defaults() -> None:
    published = Sampling(temperature=0.7, top_k=40)

    assert checked_options({"top_p": 0.9, "temperature": None}, published).sampling == dataclasses.replace(
        published, top_p=0.9
    )
    own = Sampling(min_p=0.1)
    assert checked_options({"sampling": own, "seed": 3}, published).sampling == dataclasses.replace(own, seed=3)
    assert checked_options({}, published) == CheckedOptions(published)


@pytest.mark.parametrize(
    ("name", "suggested"),
    [
        ("temprature", "did you mean `temperature`?"),
        ("max_new_tokens", "did you mean `max_tokens`?"),
        ("repeat_penalty", "did you mean `repetition_penalty`?"),
        ("logits_bias", "did you mean `logit_bias`?"),
        ("zzz", "supported: `cache`, `max_tokens`, `stop`, "),
    ],
)
def test_unknown_keywords_are_type_errors_that_name_the_closest(decoder: Decoder, name: str, suggested: str) -> None:
    for run in (decoder.generate, decoder.stream, decoder.steps):
        with pytest.raises(TypeError) as caught:
            run(FOX, **{name: 1})
        assert f"() got an unexpected keyword argument `{name}`; {suggested}" in str(caught.value)
    with pytest.raises(TypeError):
        decoder.chat([{"role": "user", "content": "Hello"}], **{name: 1})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": "hot"}, "`temperature` must be a number, not str"),
        ({"top_p": True}, "`top_p` must be a number, not bool"),
        ({"top_k": 1.5}, "`top_k` must be an integer, not float"),
        ({"seed": "a"}, "`seed` must be an integer, not str"),
        ({"logit_bias": [1]}, "`logit_bias` must map token ids to numbers, not be list"),
        ({"logit_bias": {"5": 1}}, "`logit_bias` must have integers as token ids, not str"),
        ({"logit_bias": {5: "1"}}, "`logit_bias` for token 5 must be a number, not str"),
        ({"sampling": 0.7}, "`sampling` must be a Sampling, not float"),
        ({"stop": 5}, "`stop` must be a string or a list of strings, not int"),
        ({"stop": [5]}, "stop string 0 must be a string, not int"),
        ({"stop": ""}, "stop string 0 is empty, so every answer would be empty"),
        ({"top_logprobs": "all"}, "`top_logprobs` must be an integer, not str"),
        ({"top_logprobs": True}, "`top_logprobs` must be an integer, not bool"),
        ({"max_tokens": 2.0}, "`max_tokens` must be an integer, not float"),
        ({"lookup": "no"}, "`lookup` must be True or False, not str"),
        ({"lookup": 0}, "`lookup` must be True or False, not int"),
        ({"sampler": 5}, "`sampler` must be a function from logits to a token id, not int"),
        ({"sampler": int, "seed": 1}, "`seed` has no effect with a custom `sampler`"),
    ],
)
def test_options_that_cannot_be_used(decoder: Decoder, options: dict, message: str) -> None:
    with pytest.raises(InputError) as caught:
        decoder.stream(FOX, **options)

    assert caught.value.message == message
    assert caught.value.exit_code == 2


def test_keywords_are_the_fields_of_sampling(decoder: Decoder) -> None:
    options = {"temperature": np.float32(2), "top_k": np.int64(20), "seed": 5, "presence_penalty": 0.5}

    found = decoder.generate(FOX, max_tokens=30, **options)

    sampling = Sampling(temperature=2.0, top_k=20, seed=5, presence_penalty=0.5)
    assert found.text == decoder.generate(FOX, max_tokens=30, sampling=sampling).text
    assert found.text != decoder.generate(FOX, max_tokens=30).text


def test_a_single_stop_string(decoder: Decoder) -> None:
    whole = decoder.generate(FOX, max_tokens=30).text

    assert decoder.generate(FOX, max_tokens=30, stop=whole[5:7]).text == whole[: whole.index(whole[5:7])]
    with pytest.raises(InputError, match="`stop` needs the text of the answer"):
        decoder.steps(FOX, stop=["a"])


def test_a_sampler_of_the_callers_own(decoder: Decoder) -> None:
    """It may change its logits: greedy by clearing all but the best gives greedy tokens and log-probabilities."""

    def greedy(logits: np.ndarray) -> np.int64:
        best = logits.argmax()
        logits[:] = -np.inf
        return best

    found, expected = (decoder.generate(FOX, max_tokens=20, **options) for options in ({"sampler": greedy}, {}))

    assert [(token.id, token.logprob) for token in found.tokens] == [
        (token.id, token.logprob) for token in expected.tokens
    ]
    assert [token.id for token in decoder.stream(FOX, max_tokens=3, sampler=lambda _: 7)] == [7, 7, 7]


def test_a_sampler_sees_logits_after_bias(decoder: Decoder) -> None:
    best = []

    def noted(logits: np.ndarray) -> int:
        best.append(int(logits.argmax()))
        return 7

    list(decoder.steps(FOX, max_tokens=2, sampler=noted, logit_bias={9: 1000.0}))

    assert best == [9, 9]


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (320, "`sampler` returned token 320, and the vocabulary has 320 tokens"),
        (-1, "`sampler` returned token -1, and the vocabulary has 320 tokens"),
        (None, "`sampler` must return the id of a token, not NoneType"),
    ],
)
def test_a_sampler_that_returns_no_token_id(decoder: Decoder, returned: object, message: str) -> None:
    with pytest.raises(InputError) as caught:
        decoder.generate(FOX, sampler=lambda _: returned)

    assert caught.value.message == message


def test_usage_counts_as_openais_api_does(decoder: Decoder) -> None:
    cache = decoder.prefill(FOX)
    answer = decoder.generate(FOX + " jumps", max_tokens=5, cache=cache)

    usage = answer.usage
    assert usage.prompt_tokens == decoder.count_tokens(FOX + " jumps")
    assert usage.completion_tokens == len(answer.tokens) == 5
    assert usage.cached_tokens == answer.rates.cached_tokens > 0
    assert usage.total_tokens == usage.prompt_tokens + 5
    assert answer.finish_reason == "length"
    ended = decoder.generate(FOX, logit_bias={2: 1000.0})
    assert (ended.finish_reason, ended.usage.completion_tokens, ended.text) == ("stop", 1, "")


def test_messages_are_answered_through_the_chat_template(decoder: Decoder) -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
    prompt = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
    expected = decoder.generate(decoder.encode_exactly(prompt), max_tokens=9)

    assert decoder.apply_chat_template(messages) == prompt
    assert decoder.chat(messages, max_tokens=9).tokens[-1].id == expected.tokens[-1].id
    assert decoder.chat(iter(messages), max_tokens=9).text == expected.text
    with decoder.stream_chat(messages, max_tokens=9) as stream:
        assert "".join(token.text for token in stream) == expected.text
    with pytest.raises(InputError, match="`messages` must not be empty"):
        decoder.chat([])
    with pytest.raises(InputError, match="has no chat template, so it cannot answer messages"):
        with_facts(decoder, chat=None).stream_chat(messages)
