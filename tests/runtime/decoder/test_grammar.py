"""Answers that follow a grammar: every complete one is valid, judged by `jsonschema`, `re` or a list of choices."""

from __future__ import annotations

import builtins
import json
import re
import time
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal, localcontext
from pathlib import Path

import jsonschema
import jsonschema_rs
import numpy as np
import pytest
import tokenizers
from tokenizers import models, pre_tokenizers

from ortkit import Bundle, Chat, Decoder, FinishReason, InputError, Message, MissingPartError, Sampling
from ortkit.runtime.decoder.grammar import ANY_OBJECT, Grammar, GrammarCompiler, _hint, schema_of
from ortkit.runtime.decoder.token_choice import TokenChoice

FOX = "The quick brown fox"
CITY = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "minLength": 1, "maxLength": 12},
        "people": {"type": "integer", "minimum": 0, "maximum": 99_999_999},
        "tags": {"type": "array", "items": {"enum": ["old", "new", "naïve", "東京"]}, "minItems": 1, "maxItems": 3},
    },
    "required": ["city", "people", "tags"],
    "additionalProperties": False,
}
NODE = {
    "$defs": {
        "node": {
            "type": "object",
            "properties": {
                "value": {"type": "integer"},
                "next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]},
            },
            "required": ["value", "next"],
            "additionalProperties": False,
        }
    },
    "$ref": "#/$defs/node",
}
SCHEMAS: dict[str, Mapping[str, object]] = {
    "an object": CITY,
    "any object": ANY_OBJECT,
    "anything": {},
    "types": {"type": ["string", "boolean", "null"], "maxLength": 5},
    "an integer": {"type": "integer", "exclusiveMinimum": -40, "maximum": 12, "multipleOf": 4},
    "a number": {"type": "number", "minimum": -0.5, "maximum": 0.25},
    "an enum": {"enum": ['a"b\\c\n', 'é"', "🙂", 1.5, None, True, {"a": [1, {}]}, []]},
    "a constant": {"const": {"größe": "1 m", "x": [0.5, None]}},
    "an array": {"type": "array", "items": {"type": "number"}, "minItems": 2, "maxItems": 4},
    "a tuple": {
        "type": "array",
        "prefixItems": [{"type": "string", "maxLength": 3}, {"type": "boolean"}],
        "items": {"type": "integer"},
        "maxItems": 4,
    },
    "one of two": {"anyOf": [{"type": "string", "pattern": "^[a-f]{2,4}$"}, {"type": "integer"}]},
    "all of two": {
        "allOf": [
            {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]},
            {"properties": {"a": {"maximum": 9}, "b": {"type": "boolean"}}, "required": ["b"]},
        ],
    },
    "a recursion": NODE,
    "a pattern": {"type": "string", "pattern": "^(AB|ä)[0-9]{2,3}(-[x-z]+)?$"},
    "part of a pattern": {"type": "string", "pattern": "fox", "maxLength": 9},
    "a date": {"type": "string", "format": "date"},
    "a time": {"type": "string", "format": "date-time"},
    "an address": {"type": "string", "format": "ipv4"},
    "a UUID": {"type": "string", "format": "uuid"},
    "other properties": {"additionalProperties": {"enum": [1, 2]}, "properties": {"é": {"type": "null"}}},
    "named by a pattern": {
        "type": "object",
        "patternProperties": {"^n[0-9]$": {"type": "integer"}},
        "additionalProperties": False,
    },
}
UNENDING = ("any object", "anything", "a recursion", "named by a pattern")
"""Small models hardly end what may go on."""
FRAGMENTS = re.compile(r"\\p\{|\\W")
"""What Python's regular expressions read in another way than those of ECMA-262, which JSON schemas have."""
REFUSED = "it is not valid, too large, or has something that is not supported (llguidance: "
ENDLESS = "it allows no answer that ends (a reference to itself, for example), or is too large (llguidance: "
MANY_ARRAYS = {
    "anyOf": [{"type": "array", "items": {"type": "object", "properties": {f"p{index}": {}}}} for index in range(1900)]
}
DOUBLED = {
    "$ref": "#/$defs/0",
    "$defs": {
        **{
            str(level): {
                "prefixItems": [{"allOf": [{"$ref": f"#/$defs/{level + 1}"}, {"maxItems": most}]} for most in (8, 9)]
            }
            for level in range(20)
        },
        "20": {"type": "array"},
    },
}
"""Each level has two copies of the next: a million in all, and gigabytes."""


@pytest.fixture(scope="module")
def compiler(decoder: Decoder) -> GrammarCompiler:
    return decoder.grammar(regex="a").compiler


def random_answer(decoder: Decoder, grammar: Grammar, seed: int, most: int = 400) -> tuple[FinishReason, str]:
    """An answer from random logits, in which what closes a value is a little more probable than the rest."""
    vocabulary = decoder.facts.vocabulary
    random = np.random.default_rng(seed)
    favoured = [decoder.tokenizer.token_to_id(text) for text in '"]}'] + list(decoder.facts.eos_ids)
    choice = TokenChoice(
        vocabulary,
        max_tokens=most,
        eos_ids=decoder.facts.eos_ids,
        sampling=Sampling(temperature=1.0, seed=seed),
        constraint=grammar.start(),
    )
    while choice.finish_reason is None:
        logits = random.normal(0, 2, vocabulary).astype(np.float32)
        logits[favoured] += 3
        choice.choose(logits)
    ids = [id_ for id_ in choice.ids if id_ not in decoder.facts.eos_ids]
    return choice.finish_reason, decoder.tokenizer.decode(ids, skip_special_tokens=False)


def check(text: str, schema: Mapping[str, object], draft: type = jsonschema.Draft202012Validator) -> None:
    """Fails for a text that is not valid JSON, or not valid under the schema."""
    value = json.loads(text)
    if "multipleOf" in json.dumps(schema):
        # `jsonschema` divides floats otherwise: 50.0956 has a remainder by 0.0001 there.
        schema, value = (json.loads(one, parse_float=Decimal) for one in (json.dumps(schema), text))
        with localcontext() as context:
            context.prec = 2000
            draft(schema).validate(value)
    elif FRAGMENTS.search(json.dumps(schema).replace("\\\\", "\\")):
        jsonschema_rs.validate(schema, value)
    else:
        draft(schema, format_checker=draft.FORMAT_CHECKER).validate(value)


@pytest.mark.parametrize("name", SCHEMAS)
def test_complete_answers_are_valid(decoder: Decoder, name: str) -> None:
    schema = SCHEMAS[name]
    grammar = decoder.grammar(json_schema=schema)

    complete = set()
    for seed in range(25):
        reason, text = random_answer(decoder, grammar, seed)
        if reason is FinishReason.STOP:
            check(text, schema)
            complete.add(text)

    assert len(complete) >= (1 if name == "a constant" else 4), "several different answers"


@pytest.mark.parametrize("name", ["an object", "a recursion", "an enum"])
@pytest.mark.parametrize("lookup", [True, False])
def test_complete_answers_of_a_model_are_valid(decoder: Decoder, name: str, *, lookup: bool) -> None:
    grammar = decoder.grammar(json_schema=SCHEMAS[name])
    reasons = Counter()
    for seed in range(6):
        answer = decoder.generate(
            FOX, grammar=grammar, max_tokens=150, temperature=1.0, seed=seed, lookup=lookup, top_k=200, top_p=0.99
        )
        reasons[answer.finish_reason] += 1
        if answer.finish_reason is FinishReason.STOP:
            check(answer.text, SCHEMAS[name])
            assert "".join(token.text for token in answer.tokens) == answer.text
    assert reasons[FinishReason.STOP] >= 3


@pytest.mark.parametrize(
    "sampling", [Sampling(), Sampling(temperature=0.8, seed=4, min_p=0.01)], ids=["greedy", "sampled"]
)
def test_drafts_do_not_change_an_answer(decoder: Decoder, sampling: Sampling) -> None:
    """Each drafted token is sampled as any other, from masked logits, so the constraint only follows what is chosen."""
    schema = {"type": "array", "items": CITY["properties"]["tags"], "minItems": 9, "maxItems": 12}
    grammar = decoder.grammar(json_schema=schema)
    prompt = FOX + json.dumps([["old", "new", "old"]] * 8)

    def found(*, lookup: bool) -> tuple[list[tuple[int, float]], int]:
        steps = decoder.steps(prompt, grammar=grammar, sampling=sampling, max_tokens=200, lookup=lookup)
        run, runs = steps.forward.run, []
        steps.forward.run = lambda *arguments, **options: runs.append(arguments) or run(*arguments, **options)
        return [(step.id, step.logprob) for step in steps], len(runs)

    drafted, fewer = found(lookup=True)
    plain, runs = found(lookup=False)
    assert [id_ for id_, _ in drafted] == [id_ for id_, _ in plain]
    assert fewer < runs


def test_an_answer_ends_with_its_grammar_or_at_its_limit(decoder: Decoder) -> None:
    ended = decoder.generate(FOX, grammar=decoder.grammar(regex="[a-c]{3}"))
    assert (ended.finish_reason, len(ended.text)) == (FinishReason.STOP, 3)

    cut = decoder.generate(FOX, grammar=decoder.grammar(regex="[a-c]{30}"), max_tokens=2)
    assert (cut.finish_reason, cut.usage.completion_tokens) == (FinishReason.LENGTH, 2)

    # Only where it may end is an end-of-sequence token possible, however probable it is.
    (eos,) = decoder.facts.eos_ids
    pushed = decoder.generate(FOX, grammar=decoder.grammar(regex="(ab)+"), logit_bias={eos: 1000.0})
    assert (pushed.finish_reason, pushed.text) == (FinishReason.STOP, "ab")
    assert pushed.tokens[-1].id == eos


def test_log_probabilities_are_those_of_the_model(decoder: Decoder) -> None:
    free = next(decoder.steps(FOX, top_logprobs=decoder.facts.vocabulary))
    held = next(decoder.steps(FOX, grammar=decoder.grammar(choice=["fox", "zoo"]), top_logprobs=3))

    assert held.id != free.id
    assert held.top_logprobs == free.top_logprobs[:3]
    assert held.logprob == {one.id: one.logprob for one in free.top_logprobs}[held.id]


def test_penalties_and_stop_strings_work_with_a_grammar(decoder: Decoder) -> None:
    grammar = decoder.grammar(regex="[a-z]{40}")
    biased = {decoder.tokenizer.token_to_id("q"): 50.0}

    repeated = decoder.generate(FOX, grammar=grammar, logit_bias=biased)
    assert repeated.text == "q" * 40
    varied = decoder.generate(FOX, grammar=grammar, logit_bias=biased, frequency_penalty=20.0)
    assert re.fullmatch("[a-z]{40}", varied.text)
    assert 0 < varied.text.count("q") < 10
    stopped = decoder.generate(FOX, grammar=grammar, logit_bias=biased, stop="qqq")
    assert (stopped.text, stopped.finish_reason) == ("", FinishReason.STOP)


def test_dates_and_times_exist(decoder: Decoder) -> None:
    """29 February in leap years alone, and no leap seconds; a property named `format` and data do not count."""
    texts = {
        "date": ["2024-02-29", "2000-02-29", "1999-12-31", "0400-02-29"],
        "time": ["23:59:59Z", "00:00:00.5+02:00"],
        "date-time": ["2023-02-28T01:02:03Z", "1996-02-29t23:59:59-11:30"],
    }
    wrong = {
        "date": ["2023-02-29", "1900-02-29", "2023-02-30", "2023-04-31", "0000-01-01"],
        "time": ["12:00:60Z", "23:59:60Z", "24:00:00Z"],
        "date-time": ["2023-02-29T01:02:03Z", "2023-01-30T00:00:60Z"],
    }

    def follows(schema: Mapping[str, object], value: object) -> bool:
        constraint = decoder.grammar(json_schema=schema).start()
        try:
            for id_ in decoder.encode(json.dumps(value)):
                constraint.accept(id_)
        except InputError:
            return False
        return constraint.may_end

    for form, values in texts.items():
        schema = {"type": "string", "format": form}
        assert all(follows(schema, value) for value in values)
        assert not any(follows(schema, value) for value in wrong[form])
        for value in [*values, *wrong[form]]:
            assert jsonschema.Draft202012Validator.FORMAT_CHECKER.conforms(value, form) == (value in values)
    assert follows({"properties": {"format": {"const": "date"}}, "required": ["format"]}, {"format": "date"})
    assert follows({"enum": [{"format": "date"}]}, {"format": "date"})


def test_choices_and_expressions_and_lark_grammars(decoder: Decoder) -> None:
    texts = ["plain", 'quote"s', "back\\slash", "new\nline", "ünï 東京 🙂", "/a{2}/", "<x>", "$%json", " space"]
    choice = decoder.grammar(choice=texts)
    regex = decoder.grammar(regex=r"(ä|[0-9]{2})+-[a-zé]x?")
    lark = decoder.grammar(lark='start: item ("," item)*\nitem: /[ab]{2}/ | %json {"type": "boolean"}')
    found = set()
    for seed in range(40):
        found.add(random_answer(decoder, choice, seed)[1])
        reason, text = random_answer(decoder, regex, seed)
        assert reason is FinishReason.LENGTH or re.fullmatch(r"(ä|[0-9]{2})+-[a-zé]x?", text)
        reason, text = random_answer(decoder, lark, seed)
        assert reason is FinishReason.LENGTH or re.fullmatch(r"([ab]{2}|true|false)(,([ab]{2}|true|false))*", text)
    assert found <= set(texts)
    assert len(found) > 5


def test_a_chat_continues_after_an_answer_that_its_grammar_ended(decoder: Decoder) -> None:
    chat = Chat(decoder)
    first = chat.send("Hello", grammar=decoder.grammar(choice=["a fox", "a dog"])).answer()
    assert first.finish_reason is FinishReason.STOP
    second = chat.send("More", max_tokens=3)
    assert decoder.tokenizer.decode(second.steps.prompt, skip_special_tokens=False) == decoder.apply_chat_template(
        [Message("user", "Hello"), Message("assistant", first.text), Message("user", "More")]
    )
    assert second.steps.forward.cache.common_prefix(second.steps.prompt) > len(decoder.encode("Hello"))


def test_a_grammar_is_compiled_once_and_starts_in_many_threads(decoder: Decoder) -> None:
    grammar = decoder.grammar(json_schema=CITY)
    assert decoder.grammar(json_schema=json.dumps(CITY)) is grammar
    expected = [random_answer(decoder, grammar, seed) for seed in range(12)]
    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(lambda seed: random_answer(decoder, grammar, seed), range(12))) == expected


def test_response_format_is_that_of_openai(decoder: Decoder) -> None:
    described = {"name": "city", "description": "A city", "schema": CITY, "strict": True}
    assert schema_of({"type": "json_schema", "json_schema": described}) == CITY
    assert schema_of({"type": "json_object", "json_schema": None}) == ANY_OBJECT
    assert schema_of({"type": "text"}) is None

    answer = decoder.chat(
        [{"role": "user", "content": "Hello"}],
        response_format={"type": "json_schema", "json_schema": described},
        temperature=1.0,
        seed=3,
    )
    assert answer.finish_reason is FinishReason.STOP
    check(answer.text, CITY)
    plain = decoder.generate(FOX, max_tokens=5)
    assert decoder.generate(FOX, max_tokens=5, response_format={"type": "text"}).text == plain.text


@pytest.mark.parametrize(
    ("response_format", "message"),
    [
        ("json", "`response_format` must be a mapping, not str"),
        ({}, "`response_format.type` must be `text`, `json_object` or `json_schema`, not None"),
        ({"type": "xml"}, "`response_format.type` must be `text`, `json_object` or `json_schema`, not 'xml'"),
        ({"type": "json_object", "schema": {}}, "`response_format` has the field `schema`; supported: `type`"),
        ({"type": "json_schema"}, "`response_format.json_schema` must be an object with `name` and `schema`"),
        (
            {"type": "json_schema", "json_schema": {"name": "a"}},
            "`response_format.json_schema.schema` must be a JSON schema, as an object",
        ),
        (
            {"type": "json_schema", "json_schema": {"schema": {}, "strict": "yes"}},
            "`response_format.json_schema.strict` must be a bool",
        ),
        (
            {"type": "json_schema", "json_schema": {"schema": {}, "q": "x"}},
            "`response_format.json_schema` has the field `q`; supported: `description`, `name`, `schema`, `strict`",
        ),
        (
            {"type": "json_schema", "json_schema": {"schema": {"not": {}}}},
            f'the JSON schema cannot be compiled: {REFUSED}Unimplemented keys: ["not"])',
        ),
    ],
)
def test_a_response_format_that_is_not_valid(decoder: Decoder, response_format: object, message: str) -> None:
    with pytest.raises(InputError) as caught:
        decoder.stream(FOX, response_format=response_format)
    assert caught.value.message == message


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "a grammar is made from one of `json_schema`, `regex`, `lark`, `choice`"),
        ({"regex": "a", "lark": "start: x"}, "a grammar is one of `regex`, `lark`"),
        ({"json_schema": [1]}, "`json_schema` must be an object, not list"),
        ({"json_schema": "{"}, "`json_schema` is not valid JSON: "),
        ({"json_schema": {"const": {1, 2}}}, "`json_schema` is not a JSON value: it has a value of type set"),
        ({"json_schema": {"const": float("nan")}}, "`json_schema` is not a JSON value: "),
        ({"json_schema": {"const": "\ud800"}}, "`json_schema` is not valid Unicode"),
        ({"json_schema": False}, "the JSON schema `false` allows no answer"),
        (
            {"json_schema": {"uniqueItems": True}},
            f'the JSON schema cannot be compiled: {REFUSED}Unimplemented keys: ["unique',
        ),
        ({"json_schema": {"type": "foo"}}, f"the JSON schema cannot be compiled: {REFUSED}Invalid type: foo)"),
        (
            {"json_schema": {"$ref": "http://x.test/y"}},
            f"the JSON schema cannot be compiled: {REFUSED}Resource 'http://x.test/y'",
        ),
        (
            {"json_schema": {"x-guidance": {"lenient": True}, "not": {}}},
            f"the JSON schema cannot be compiled: {REFUSED}Unimpl",
        ),
        ({"json_schema": {"minProperties": 2}}, "`minProperties` above 1 is not supported: a grammar cannot tell"),
        ({"regex": "(a"}, f"the regular expression cannot be compiled: {REFUSED}"),
        ({"regex": "(?=a)b"}, "the regular expression cannot be compiled: "),
        ({"regex": 5}, "`regex` must be a string, not int"),
        ({"regex": "a" * 300_000}, "`regex` has 300000 characters; the limit is 262144"),
        ({"lark": "start: x"}, f'the Lark grammar cannot be compiled: {REFUSED}at 1(8): unknown name: "x"'),
        ({"lark": ""}, f"the Lark grammar cannot be compiled: {REFUSED}"),
        ({"lark": "start: start"}, f"the Lark grammar cannot be compiled: {ENDLESS}"),
        ({"json_schema": {"$ref": "#"}}, f"the JSON schema cannot be compiled: {ENDLESS}"),
        ({"json_schema": MANY_ARRAYS}, f"the JSON schema cannot be compiled: {REFUSED}"),
        ({"choice": "yes"}, "`choice` must be a list of strings, not str"),
        ({"choice": []}, "`choice` needs at least one string, and none may be empty"),
        ({"choice": ["a", ""]}, "`choice` needs at least one string, and none may be empty"),
        ({"choice": ["a", 1]}, "choice 1 must be a string, not int"),
    ],
)
def test_a_grammar_that_is_not_valid(decoder: Decoder, given: dict[str, object], message: str) -> None:
    with pytest.raises(InputError) as caught:
        decoder.grammar(**given)
    assert caught.value.message.startswith(message)
    assert "\n" not in caught.value.message
    assert "<non-verbose/>" not in caught.value.message
    assert len(caught.value.message) < 400


def nested(levels: int) -> dict[str, object]:
    schema: dict[str, object] = {}
    for _ in range(levels):
        schema = {"properties": {"a": schema}}
    return schema


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"json_schema": nested(40)}, "the JSON schema has more than 64 nested levels"),
        ({"json_schema": "[" * 100_000}, "`json_schema` is nested too deeply"),
        ({"json_schema": {"multipleOf": 9_999_991}}, "the JSON schema has `multipleOf` with a least common multiple"),
        (
            {"json_schema": {"allOf": [{"multipleOf": 997}, {"multipleOf": 0.991}]}},
            "the JSON schema has `multipleOf` with a least common multiple",
        ),
        (
            {"lark": 'start: %json {"multiple\\u004ff": 9999991}'},
            "the JSON schema has `multipleOf` with a least common",
        ),
        ({"json_schema": {"enum": list(range(30_000))}}, "the JSON schema has more than 20000 values"),
        (
            {"json_schema": DOUBLED},
            "the JSON schema has more than 20000 values where references are beside other constraints",
        ),
        (
            {"json_schema": {"allOf": [{"$ref": "#anchor"}, {"maxLength": 3}]}},
            "the JSON schema has the reference '#anchor' beside other constraints; supported there: ref",
        ),
        (
            {"json_schema": {"patternProperties": {f"^a{number}.*b$": {} for number in range(600)}}},
            "the JSON schema has more than 50 patterns in `patternProperties`",
        ),
        (
            {"json_schema": {"properties": {f"p{number}": {} for number in range(3000)}}},
            "the JSON schema has more than 20000 values, or more than 2000 properties",
        ),
        (
            {"json_schema": {"required": [f"p{number}" for number in range(3000)]}},
            "the JSON schema has more than 20000",
        ),
        ({"json_schema": {"pattern": "^(a{1000}){1000}$"}}, ""),
        ({"regex": "((a{1,100}){1,100}){1,100}b"}, ""),
        ({"json_schema": {"minLength": 10**9}}, ""),
    ],
)
def test_hostile_grammars_are_refused_soon(decoder: Decoder, given: dict[str, object], message: str) -> None:
    """Or compiled within a limit on time: CPU time, so that a busy machine does not fail the test."""
    started = time.process_time()
    try:
        decoder.grammar(**given)
    except InputError as error:
        assert error.message.startswith(message) and message  # noqa: PT017, PT018 - it may also be compiled
    else:
        assert not message
    assert time.process_time() - started < 5


def test_a_grammar_of_another_model(decoder: Decoder, written: tuple[Bundle, object]) -> None:
    other = Decoder(written[0], threads=1)
    with pytest.raises(InputError, match="the grammar was compiled for another model"):
        decoder.generate(FOX, grammar=other.grammar(regex="a"))
    with pytest.raises(InputError, match="`grammar` must be a Grammar, not str"):
        decoder.generate(FOX, grammar="a")
    with pytest.raises(InputError, match="`grammar` and `response_format` exclude each other"):
        decoder.generate(FOX, grammar=decoder.grammar(regex="a"), response_format={"type": "text"})


def test_an_answer_that_cannot_go_on_is_an_error(decoder: Decoder) -> None:
    grammar = decoder.grammar(choice=["aa", "bb"])
    excluded = {id_: -np.inf for id_ in range(decoder.facts.vocabulary) if id_ != decoder.facts.eos_ids[0]}
    with pytest.raises(InputError, match="`logit_bias` excludes every token that the grammar allows at token 0"):
        decoder.generate(FOX, grammar=grammar, logit_bias=excluded)
    with pytest.raises(InputError, match=r"`sampler` returned token 5, which the grammar does not allow"):
        decoder.generate(FOX, grammar=grammar, sampler=lambda _: 5)
    answer = decoder.generate(FOX, grammar=grammar, sampler=lambda logits: int(logits.argmax()))
    assert answer.text in ("aa", "bb")

    constraint = decoder.grammar(regex="ab").start()
    assert not constraint.may_end
    with pytest.raises(InputError, match=r"the answer cannot follow the grammar any further \(llguidance: "):
        constraint.accept(5)


def test_a_limit_that_is_reached_in_the_middle_is_an_error(decoder: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    """The expression has more and more states, and the cost of a mask is limited: here to less than usual."""
    monkeypatch.setattr("ortkit.runtime.decoder.grammar._FUEL", 3000)
    grammar = decoder.grammar(regex="(.{0,300}a.{0,300}b){300}")
    with pytest.raises(
        InputError, match=r"the answer cannot follow the grammar any further \(llguidance: lexer error: too many"
    ):
        random_answer(decoder, grammar, 1)


@pytest.mark.parametrize(
    "given",
    [
        {"choice": ["a", "b<|im_end|>"]},
        {"json_schema": {"anyOf": [{"type": "integer"}, {"enum": [5, {"a": ["<|im_end|>"]}]}]}},
        {"json_schema": {"properties": {"<|im_end|>": {"const": 1}}}},
    ],
)
def test_texts_of_special_tokens_cannot_be_asked_for(decoder: Decoder, given: dict[str, object]) -> None:
    with pytest.raises(
        InputError, match=r"answers cannot have the text '.*<\|im_end\|>': a part of it is a special tok"
    ):
        decoder.grammar(**given)
    assert decoder.grammar(json_schema={"description": "<|im_end|>", "type": "null"})


def test_tokenizers_that_llguidance_refuses(decoder: Decoder) -> None:
    words = tokenizers.Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    with pytest.raises(InputError, match="cannot follow a grammar: its tokenizer is not supported"):
        GrammarCompiler(words, vocabulary=2, eos_ids=[0])
    with pytest.raises(InputError, match="the model has no end-of-sequence token"):
        GrammarCompiler(decoder.tokenizer, vocabulary=320, eos_ids=[])
    with pytest.raises(InputError, match="vocab size too small"):
        GrammarCompiler(decoder.tokenizer, vocabulary=100, eos_ids=[2])


def test_logits_may_be_wider_than_the_vocabulary(decoder: Decoder) -> None:
    width = decoder.facts.vocabulary + 37
    compiler = GrammarCompiler(decoder.tokenizer, vocabulary=width, eos_ids=decoder.facts.eos_ids)
    logits = np.zeros(width, np.float32)
    compiler.compile(regex="(.|\n)*").start().mask(logits)
    assert np.isneginf(logits[decoder.facts.vocabulary :]).all()
    assert (logits[3 : decoder.facts.vocabulary] == 0).sum() > 50
    assert np.isneginf(logits[[0, 1]]).all(), "no special token but the end"
    assert logits[2] == 0


def test_without_the_extra_the_error_names_it(written: tuple[Bundle, object], monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = Decoder(written[0], threads=1)
    imported = builtins.__import__

    def without(name: str, *rest: object) -> object:
        if name.split(".", maxsplit=1)[0] == "llguidance":
            raise ImportError("No module named 'llguidance'")
        return imported(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingPartError) as caught:
        decoder.grammar(regex="a")
    assert caught.value.message == (
        "answers cannot follow a grammar: the Python package `llguidance` cannot be imported: "
        "No module named 'llguidance'"
    )
    assert decoder.generate(FOX, max_tokens=1).usage.completion_tokens == 1


@pytest.mark.parametrize(
    ("libc", "hint"),
    [
        (("glibc", "2.36"), "install the extra `grammar`: `pip install 'ortkit[grammar]'`"),
        (("", ""), "install the extra `grammar`: `pip install 'ortkit[grammar]'`"),
        (("glibc", "2.28"), "the extra `grammar` needs glibc 2.31 or newer, and this machine has 2.28"),
    ],
)
def test_the_hint_follows_the_machine(libc: tuple[str, str], hint: str) -> None:
    assert _hint(libc) == hint


@pytest.mark.slow
@pytest.mark.parametrize("draft", ["draft2020-12", "draft7"])
def test_the_schemas_of_the_public_suite(decoder: Decoder, draft: str) -> None:
    """Those that are supported, and those are most that a model is asked for; the others are refused."""
    validator = jsonschema.Draft202012Validator if draft == "draft2020-12" else jsonschema.Draft7Validator
    schemas = json.loads(Path(__file__).with_name("json_schema_suite.json").read_text("utf-8"))[draft]
    outcomes = Counter()
    dialect = {"$schema": validator.META_SCHEMA["$schema"]}
    for schema in [dialect | plain if isinstance(plain, dict) else plain for plain in schemas]:
        try:
            grammar = decoder.grammar(json_schema=schema)
        except InputError:
            outcomes["refused"] += 1
            continue
        for seed in range(8):
            reason, text = random_answer(decoder, grammar, seed)
            outcomes[reason.value] += 1
            if reason is FinishReason.STOP:
                check(text, schema, validator)
    assert outcomes["stop"] > 20 * outcomes["length"]
    assert outcomes["stop"] / 8 > 0.4 * len(schemas), outcomes


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in SCHEMAS if name not in UNENDING])
def test_complete_answers_of_the_real_model_are_valid(smollm_bundle: Bundle, name: str) -> None:
    decoder = Decoder(smollm_bundle)
    grammar = decoder.grammar(json_schema=SCHEMAS[name])
    asked = [{"role": "user", "content": f"Answer in JSON, following this schema: {json.dumps(SCHEMAS[name])}"}]
    reasons = Counter()
    for seed, temperature in enumerate((0.0, 0.7, 1.0)):
        answer = decoder.chat(asked, grammar=grammar, max_tokens=120, temperature=temperature, seed=seed)
        reasons[answer.finish_reason] += 1
        if answer.finish_reason is FinishReason.STOP:
            check(answer.text, SCHEMAS[name])
    assert reasons[FinishReason.STOP]
