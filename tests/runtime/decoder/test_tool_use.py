"""`decoder.chat(tools=...)`: calls that are valid by construction, and conversations with their results."""

from __future__ import annotations

import builtins
import json
from collections.abc import Mapping
from pathlib import Path

import jsonschema
import numpy as np
import pytest
import tokenizers
from tokenizers import AddedToken

from ortkit import Decoder, FinishReason, InputError, MissingPartError, Sampling
from ortkit.runtime.bundle.manifest import ChatFacts
from ortkit.runtime.decoder.grammar import GrammarCompiler
from ortkit.runtime.decoder.token_choice import TokenChoice
from ortkit.runtime.decoder.tool_use import tool_grammar
from ortkit.runtime.text.detokenizer import Detokenizer, Vocabulary
from ortkit.runtime.text.tool_calls import ToolCallParser, ToolForm, markers_of
from ortkit.runtime.text.tools import Calls, tools_of
from tests.decoders import write_decoder, write_tokenizer
from tests.runtime.text.test_tools import HERMES, PYTHONIC

PARAMETERS = {
    "type": "object",
    "$defs": {"city": {"enum": ["Paris", "東京"]}},
    "properties": {"city": {"$ref": "#/$defs/city"}, "days": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["city"],
    "additionalProperties": False,
}
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": PARAMETERS}}
STOP = {"type": "function", "function": {"name": "stop"}}
ODD = {"type": "function", "function": {"name": "odd", "parameters": {"type": "object", "not": {}}}}
ASKED = [{"role": "user", "content": "How warm is it?"}]
MARKERS = ["<tool_call>", "</tool_call>", "[TOOL_CALLS]", "<|python_tag|>", "<|tool_call|>"]


@pytest.fixture(scope="module")
def calling(tmp_path_factory: pytest.TempPathFactory) -> Decoder:
    bundle, _ = write_decoder(tmp_path_factory.mktemp("decoders") / "calling", chat=ChatFacts(HERMES, {}))
    return Decoder(bundle, threads=1)


def marked(path: Path, *, special: bool) -> tokenizers.Tokenizer:
    tokenizer = write_tokenizer(path / "tokenizer.json")
    tokenizer.add_tokens([AddedToken(text, special=special, normalized=False) for text in MARKERS])
    return tokenizer


@pytest.mark.parametrize("form", [form for form in ToolForm if form is not ToolForm.PYTHONIC])
@pytest.mark.parametrize("kind", ["text", "added tokens", "special tokens"])
@pytest.mark.parametrize("calls", Calls)
def test_random_answers_have_valid_calls(form: ToolForm, kind: str, calls: Calls, tmp_path: Path) -> None:
    tokenizer = (
        write_tokenizer(tmp_path / "tokenizer.json") if kind == "text" else marked(tmp_path, special=kind[0] == "s")
    )
    vocabulary, words = tokenizer.get_vocab_size(), Vocabulary(tokenizer)
    compiler = GrammarCompiler(tokenizer, vocabulary=vocabulary, eos_ids=[2])
    ids = {text: tokenizer.token_to_id(text) for text in markers_of(form)}
    tokens = {text: id_ for text, id_ in ids.items() if id_ is not None}
    grammar = tool_grammar(compiler, form, tools_of([WEATHER, STOP]), tokens, calls)
    favoured = [tokenizer.token_to_id(text) for text in '{"}'] + list(tokens.values()) + [2]
    finished = called = 0
    for seed in range(12):
        random = np.random.default_rng(seed)
        choice = TokenChoice(
            vocabulary,
            max_tokens=150,
            eos_ids=[2],
            sampling=Sampling(temperature=1.0, seed=seed),
            constraint=grammar.start(),
        )
        parser = ToolCallParser(form, {id_: text for text, id_ in tokens.items() if id_ in words.special})
        detokenizer = Detokenizer(words, [])
        while choice.finish_reason is None:
            logits = random.normal(0, 2, vocabulary).astype(np.float32)
            logits[favoured] += 3
            step = choice.choose(logits)
            parser.push(detokenizer.push(step.id), step.id)
        parser.push(detokenizer.end())
        parser.end()
        if choice.finish_reason is not FinishReason.STOP:
            continue
        finished += 1
        called += len(parser.calls)
        for call in parser.calls:
            assert call.name in ("weather", "stop")
            jsonschema.validate(
                json.loads(call.arguments), PARAMETERS if call.name == "weather" else {"maxProperties": 99}
            )
        if calls is not Calls.ANY:
            assert len(parser.calls) == 1 if calls is Calls.ONE else parser.calls
            assert parser.text == ""
        assert not any(marker in parser.text for marker in tokens)
    assert finished >= 5
    assert called >= (finished if calls is not Calls.ANY else 1 if tokens else 0)


def test_an_answer_with_calls_and_the_next_with_their_results(calling: Decoder) -> None:
    choice = {"type": "function", "function": {"name": "weather"}}
    answer = calling.chat(ASKED, tools=[WEATHER, STOP], tool_choice=choice, max_tokens=200, temperature=1.0, seed=2)
    assert answer.finish_reason is FinishReason.STOP
    assert answer.text == ""
    assert [call.name for call in answer.tool_calls] == ["weather"]
    for call in answer.tool_calls:
        jsonschema.validate(json.loads(call.arguments), PARAMETERS)

    messages: list[Mapping[str, object]] = [
        *ASKED,
        {"role": "assistant", "content": None, "tool_calls": [call.as_message() for call in answer.tool_calls]},
        *[{"role": "tool", "tool_call_id": call.id, "content": "21"} for call in answer.tool_calls],
    ]
    prompt = calling.apply_chat_template(messages, tools=[WEATHER])
    assert "<tool_response>\n21\n</tool_response>" in prompt
    assert json.dumps(WEATHER, ensure_ascii=False) in prompt
    assert calling.chat(messages, tools=[WEATHER], max_tokens=3).usage.completion_tokens <= 3

    with calling.stream_chat(ASKED, tools=[WEATHER], tool_choice="required", max_tokens=200, seed=2) as stream:
        use = calling.tool_use([WEATHER], tool_choice="required")
        assert use is not None
        parser = use.parser()
        deltas = [delta for token in stream for delta in parser.push(token.text, token.id)]
    assert next(delta for delta in deltas if delta.name).name == "weather"


def test_without_a_choice_of_tools_there_is_nothing_of_them(calling: Decoder) -> None:
    plain = calling.chat(ASKED, max_tokens=5, seed=1)
    for tools, choice in (([WEATHER], "none"), ([], None), (None, "auto")):
        answer = calling.chat(ASKED, tools=tools, tool_choice=choice, max_tokens=5, seed=1)
        assert (answer.text, answer.tool_calls) == (plain.text, ())


def test_tools_that_cannot_be_used(decoder: Decoder, calling: Decoder, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="the model's chat template does not use tools"):
        decoder.chat(ASKED, tools=[WEATHER])
    with pytest.raises(InputError, match="the model's chat template does not use tools"):
        decoder.apply_chat_template(ASKED, tools=[WEATHER])
    other = Decoder(write_decoder(tmp_path / "other", chat=ChatFacts("{{ tools }}{{ messages }}", {}))[0], threads=1)
    with pytest.raises(InputError, match="describes calls of tools in a form that is not supported"):
        other.chat(ASKED, tools=[WEATHER])
    pythonic = Decoder(write_decoder(tmp_path / "pythonic", chat=ChatFacts(PYTHONIC, {}))[0], threads=1)
    assert pythonic.chat(ASKED, tools=[WEATHER], max_tokens=3).tool_calls == ()
    with pytest.raises(InputError, match="`tool_choice` must be `auto` or `none` where the calls are in Python"):
        pythonic.chat(ASKED, tools=[WEATHER], tool_choice="required")
    with pytest.raises(InputError, match="`tools` cannot be used with `grammar` or `response_format`"):
        calling.chat(ASKED, tools=[WEATHER], response_format={"type": "json_object"})


def test_a_schema_that_cannot_be_enforced_is_an_error_for_a_strict_tool_alone(calling: Decoder) -> None:
    answer = calling.chat(ASKED, tools=[ODD], tool_choice="required", max_tokens=4)
    assert answer.finish_reason is FinishReason.LENGTH
    strict = {"type": "function", "function": {**ODD["function"], "strict": True}}
    with pytest.raises(InputError) as caught:
        calling.chat(ASKED, tools=[strict])
    assert caught.value.message == (
        "the arguments of the tool `odd`: the JSON schema cannot be compiled: it is not valid, too large, or has "
        'something that is not supported (llguidance: Unimplemented keys: ["not"])'
    )


def test_without_the_extra_calls_are_parsed_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calling = Decoder(write_decoder(tmp_path / "calling", chat=ChatFacts(HERMES, {}))[0], threads=1)
    imported = builtins.__import__

    def without(name: str, *rest: object) -> object:
        if name.split(".", maxsplit=1)[0] == "llguidance":
            raise ImportError("No module named 'llguidance'")
        return imported(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    use = calling.tool_use([WEATHER])
    assert use is not None
    assert use.grammar is None
    assert calling.chat(ASKED, tools=[WEATHER], max_tokens=3).usage.completion_tokens <= 3
    with pytest.raises(MissingPartError, match="the Python package `llguidance` cannot be imported"):
        calling.chat(ASKED, tools=[WEATHER], tool_choice="required")
