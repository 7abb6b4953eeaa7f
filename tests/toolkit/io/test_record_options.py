from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from ortkit import Bundle, Decoder, InputError, Sampling
from ortkit.toolkit.io.answer_options import AnswerOptions
from ortkit.toolkit.io.record_options import KINDS, refuse_search_options, with_fields
from tests.commands import Finished

Ortkit = Callable[..., Finished]


def test_every_option_of_an_answer_can_stand_in_a_record() -> None:
    assert list(KINDS) == list(vars(AnswerOptions()))
    fields = {
        "max_tokens": 3,
        "temperature": "0.5",
        "top_k": 4.0,
        "top_p": 1,
        "min_p": 0.1,
        "repetition_penalty": 1.5,
        "presence_penalty": -1,
        "frequency_penalty": 2,
        "seed": 7,
        "stop": ["a", "b"],
        "lookup": False,
    }
    found = with_fields(AnswerOptions(), {"prompt": "x", "id": 1} | fields, ("prompt",))

    assert found == AnswerOptions(3, 0.5, 4, 1.0, 0.1, 1.5, -1.0, 2.0, 7, ("a", "b"), lookup=False)
    given = AnswerOptions(max_tokens=9, seed=1)
    assert with_fields(given, {"seed": None, "max_tokens": ""}, ()) == given
    assert with_fields(given, {"stop": "end"}, ()).stop == ("end",)
    assert with_fields(given, {"seed": "what is asked"}, ("seed",)) == given


@pytest.mark.parametrize(
    ("name", "value", "message", "hint"),
    [
        ("temperature", "hot", "`temperature` must be a number, not 'hot'", None),
        ("temperature", True, "`temperature` must be a number, not True", None),
        ("top_k", 2.5, "`top_k` must be an integer, not 2.5", None),
        ("max_tokens", 0, "`max_tokens` must be at least 1, not 0", None),
        ("seed", [1], "`seed` must be an integer, not [1]", None),
        ("stop", ["a", 5], "`stop` must be a string or a list of strings, not ['a', 5]", None),
        ("lookup", "yes", "`lookup` must be true or false, not 'yes'", None),
        ("max_new_tokens", 5, "`max_new_tokens` is not an option of ortkit", "write it `max_tokens`"),
        ("maxTokens", 5, "`maxTokens` is not an option of ortkit", "write it `max_tokens`"),
        ("top-p", 0.5, "`top-p` is not an option of ortkit", "write it `top_p`"),
        ("Temperature", 0.5, "`Temperature` is not an option of ortkit", "write it `temperature`"),
        ("stopSequences", ["a"], "`stopSequences` is not an option of ortkit", "write it `stop`"),
        ("logit_bias", {}, "`logit_bias` is an option that records cannot have", "remove or rename the field; a rec"),
        ("responseFormat", {}, "`responseFormat` is not an option of ortkit", "write it `response_format`"),
        ("num_ctx", 4096, "`num_ctx` is an option that records cannot have", "remove or rename the field"),
        ("system", "Be brief", "`system` is an option that records cannot have", "put it in `messages`: "),
        ("options", {"seed": 1}, "`options` is an option that records cannot have", "remove or rename the field"),
    ],
)
def test_options_of_other_programs_are_refused_by_name(
    name: str, value: object, message: str, hint: str | None
) -> None:
    with pytest.raises(InputError) as caught:
        with_fields(AnswerOptions(), {"prompt": "x", name: value}, ("prompt",))

    assert caught.value.message == message
    assert (caught.value.hint or "").startswith(hint or "")


def test_other_fields_are_data() -> None:
    """Also fields of question sets whose values cannot be an option's."""
    fields = {
        "id": 1,
        "context": "A text",
        "options": ["a", "b"],
        "n": "3",
        "format": "short",
        "model": "x",
        "meta": {},
    }

    assert with_fields(AnswerOptions(), fields, ()) == AnswerOptions()
    refuse_search_options(fields, ())


def test_options_of_a_search_are_refused() -> None:
    for name, hint in [
        ("top_n", "give `--top-n` on the command line, for all searches"),
        ("topN", "give `--top-n` on the command line, for all searches"),
        ("scores", "give `--scores` on the command line, for all searches"),
        ("return_documents", "remove or rename the field"),
    ]:
        with pytest.raises(InputError) as caught:
            refuse_search_options({"query": "q", "documents": [], name: 1}, ("query", "documents"))
        assert caught.value.message == f"`{name}` is an option that records cannot have"
        assert caught.value.hint == hint


def test_options_of_a_record_decide_its_answer(ortkit: Ortkit, decoder_bundle: Bundle, decoder: Decoder) -> None:
    lines = [
        {"prompt": "Hello", "max_tokens": 3},
        {"prompt": "Hello", "temperature": 5, "seed": 3, "id": "x"},
        {"prompt": "Hello"},
    ]
    finished = ortkit(
        "generate",
        decoder_bundle.path,
        "--max-tokens",
        12,
        "--raw",
        stdin="\n".join(map(json.dumps, lines)).encode(),
    )
    found = [json.loads(line) for line in finished.out.decode().splitlines()]

    assert (finished.code, finished.err) == (0, "")
    assert [row["text"] for row in found] == [
        decoder.generate("Hello", max_tokens=3).text,
        decoder.generate("Hello", max_tokens=12, sampling=Sampling(temperature=5, seed=3)).text,
        decoder.generate("Hello", max_tokens=12).text,
    ]
    assert (found[1]["temperature"], found[1]["id"]) == (5, "x")


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (
            {"prompt": "a", "max_new_tokens": 5},
            "line 1: `max_new_tokens` is not an option of ortkit\n\nhint: write it `max_t",
        ),
        ({"prompt": "a", "temperature": -1}, "line 1: `temperature` must be 0 or more, not -1.0\n"),
        (
            {"question": "a", "id": "7"},
            "line 1 has neither a `prompt` nor `messages`; its fields are `question`, `id`\n",
        ),
        ({"messages": "a"}, "the field `messages` of line 1 must be a non-empty list of messages\n"),
    ],
)
def test_invalid_records_are_reported_with_their_place(
    ortkit: Ortkit, decoder_bundle: Bundle, record: dict, message: str
) -> None:
    finished = ortkit("generate", decoder_bundle.path, stdin=json.dumps(record).encode())

    assert (finished.code, finished.out) == (2, b"")
    assert finished.err.startswith(f"error: {message}")


@pytest.mark.parametrize(
    "content",
    [
        b'{"question": "Hello", "id": "7"}\n',
        b'[\n  {"question": "Hello", "id": "7"}\n]\n',
        b"id,question\n7,Hello\n",
        b'{"question": [{"role": "user", "content": "Hello"}], "id": "7"}\n',
    ],
)
def test_prompts_in_a_field_of_another_name(ortkit: Ortkit, decoder_bundle: Bundle, content: bytes) -> None:
    command = ("generate", decoder_bundle.path, "--max-tokens", 6, "--field", "question")
    (row,) = [json.loads(line) for line in ortkit(*command, stdin=content).out.decode().splitlines()]

    assert row["id"] == "7"
    assert row["text"] == ortkit("generate", decoder_bundle.path, "Hello", "--max-tokens", 6).out.decode().rstrip("\n")


def test_a_prompt_in_the_field_of_the_answer_is_kept(ortkit: Ortkit, decoder_bundle: Bundle) -> None:
    command = ("generate", decoder_bundle.path, "--max-tokens", 6, "--field", "text")
    (row,) = [json.loads(line) for line in ortkit(*command, stdin=b'{"text": "Hello"}').out.decode().splitlines()]

    assert row["prompt"] == "Hello"
    assert row["text"] != "Hello"
