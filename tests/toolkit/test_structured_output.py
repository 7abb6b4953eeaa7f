"""`ortkit generate` with `--json-schema`, `--regex` and `--grammar`."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import jsonschema
import pytest

from ortkit import Bundle, Decoder
from tests.commands import Finished

Ortkit = Callable[..., Finished]
SCHEMA = {
    "type": "object",
    "properties": {"blue": {"type": "boolean"}, "why": {"type": "array", "items": {"enum": ["ä", "b"]}, "maxItems": 2}},
    "required": ["blue", "why"],
    "additionalProperties": False,
}


@pytest.fixture
def asked(ortkit: Ortkit, decoder_bundle: Bundle) -> Ortkit:
    def run(*arguments: object, **settings: object) -> Finished:
        return ortkit("generate", decoder_bundle.path, "--max-tokens", 80, *arguments, **settings)

    return run


def test_answers_follow_a_schema_an_expression_or_a_grammar(asked: Ortkit, decoder: Decoder, tmp_path: Path) -> None:
    schema, lark = tmp_path / "schema.json", tmp_path / "a.lark"
    schema.write_text("\ufeff" + json.dumps(SCHEMA), "utf-8")
    lark.write_text('start: "<" /[xy]{2}/ ">"\n', "utf-8")

    finished = asked("Is the sky blue?", "--json-schema", schema)
    assert (finished.code, finished.err) == (0, "")
    jsonschema.validate(json.loads(finished.out), SCHEMA)
    answer = decoder.chat(
        [{"role": "user", "content": "Is the sky blue?"}], grammar=decoder.grammar(json_schema=SCHEMA), max_tokens=80
    )
    assert finished.out.decode() == answer.text + "\n"
    assert asked("Is the sky blue?", "--regex", "(yes|nö)").out.decode() in ("yes\n", "nö\n")
    assert re.fullmatch("<[xy]{2}>\n", asked("Hello", "--grammar", lark, "--raw").out.decode())
    found = json.loads(asked("Hello", "--regex", "[ab]{100}", "--json").out)
    assert (found["finish_reason"], found["usage"]["completion_tokens"]) == ("length", 80)


def test_records_follow_the_command_line_or_their_own_format(asked: Ortkit, tmp_path: Path) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "sky", "schema": SCHEMA, "strict": True}}
    records = [{"prompt": "a"}, {"prompt": "b", "response_format": form}, {"prompt": "c", "response_format": None}]
    source = tmp_path / "questions.jsonl"
    source.write_text("".join(json.dumps(record) + "\n" for record in records))

    finished = asked("--input", source, "--regex", "yes|no")
    assert (finished.code, finished.err) == (0, "")
    first, second, third = (json.loads(line) for line in finished.out.splitlines())
    assert {first["text"], third["text"]} <= {"yes", "no"}
    jsonschema.validate(json.loads(second["text"]), SCHEMA)
    assert second["response_format"] == form

    source.write_text('{"prompt": "a", "response_format": {"type": "xml"}}\n')
    finished = asked("--input", source)
    assert finished.code == 2
    assert finished.err.startswith(
        f"error: line 1 of `{source}`: `response_format.type` must be `text`, `json_object` or `json_schema`, not 'xml'"
    ) or finished.err.startswith("error: line 1: `response_format.type` must be")


@pytest.mark.parametrize(
    ("content", "options", "code", "message"),
    [
        ('{"not": {}}', ["--json-schema", "FILE"], 2, "the JSON schema cannot be compiled: it is not valid, "),
        ("{", ["--json-schema", "FILE"], 2, "`json_schema` is not valid JSON: "),
        ("[]", ["--json-schema", "FILE"], 2, "`json_schema` must be an object, not list"),
        ("x" * 1_048_577, ["--json-schema", "FILE"], 2, "`FILE` of `--json-schema` has more than 1048576 bytes"),
        ("start: x", ["--grammar", "FILE"], 2, "the Lark grammar cannot be compiled: "),
        (b"\xff", ["--grammar", "FILE"], 2, "`FILE` of `--grammar` is not UTF-8 text: invalid start byte at byte 0"),
        ("{}", ["--json-schema", "nowhere.json"], 5, "there is no file `nowhere.json`"),
        ("{}", ["--regex", "(a"], 2, "the regular expression cannot be compiled: "),
        ("{}", ["--regex", "a", "--json-schema", "FILE"], 2, "`--json-schema` and `--regex` exclude each other"),
        ("{}", ["--regex", "a", "--regex", "b"], 2, "`--regex` takes one value, not 2: `a`, `b`"),
    ],
)
def test_what_is_not_valid_is_refused_with_its_reason(
    asked: Ortkit, tmp_path: Path, content: str | bytes, options: list[str], code: int, message: str
) -> None:
    path = tmp_path / "file"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())

    finished = asked("Hello", *[str(path) if option == "FILE" else option for option in options])

    assert (finished.code, finished.out) == (code, b"")
    assert finished.err.startswith(f"error: {message.replace('FILE', str(path))}")
    assert "Traceback" not in finished.err
