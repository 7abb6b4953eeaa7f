"""Answers with calls, divided into text and calls wherever their tokens begin and end."""

from __future__ import annotations

import json

import pytest

from ortkit.runtime.text.tool_calls import ToolCallParser, ToolDelta, ToolForm, python_calls

NESTED = '{"city": "Köln \\"}]{ \\\\", "days": [1, {"a": null}]}'
ANSWERS = {
    ToolForm.HERMES: (
        'A moment.\n<tool_call>\n{"name": "weather", "arguments": ' + NESTED + "}\n</tool_call>\n"
        '<tool_call>{"name":"time","arguments":{}}</tool_call>',
        "A moment.",
        [("weather", NESTED), ("time", "{}")],
    ),
    ToolForm.MISTRAL: (
        '[TOOL_CALLS] [{"name": "weather", "arguments": ' + NESTED + ', "id": "a"}, {"name": "time", "arguments": {}}]',
        "",
        [("weather", NESTED), ("time", "{}")],
    ),
    ToolForm.LLAMA_3: ('{"name": "weather", "parameters": ' + NESTED + "}", "", [("weather", NESTED)]),
    ToolForm.GRANITE: (
        '<|tool_call|>[{"name": "weather", "arguments": ' + NESTED + "}]",
        "",
        [("weather", NESTED)],
    ),
    ToolForm.PYTHONIC: (
        '[weather(city="Köln \\"}]{", days=[1, {"a": None}], now=True), time()]',
        "",
        [("weather", '{"city": "Köln \\"}]{", "days": [1, {"a": null}], "now": true}'), ("time", "{}")],
    ),
}


def parsed(form: ToolForm, pieces: list[str]) -> tuple[ToolCallParser, list[ToolDelta]]:
    parser = ToolCallParser(form)
    found = [delta for piece in pieces for delta in parser.push(piece)]
    return parser, found + parser.end()


@pytest.mark.parametrize("form", ToolForm)
@pytest.mark.parametrize("length", [1, 2, 3, 7, 1000])
def test_calls_are_found_however_the_text_comes(form: ToolForm, length: int) -> None:
    text, beside, calls = ANSWERS[form]
    parser, deltas = parsed(form, [text[start : start + length] for start in range(0, len(text), length)])

    assert parser.text == beside
    assert [(call.name, call.arguments) for call in parser.calls] == calls
    assert len({call.id for call in parser.calls}) == len(calls)
    assert all(len(call.id) == 9 and call.id.isalnum() for call in parser.calls)
    for index, call in enumerate(parser.calls):
        parts = [delta for delta in deltas if delta.index == index]
        assert (parts[0].id, parts[0].name) == (call.id, call.name)
        assert all(part.name is None for part in parts[1:])
        assert "".join(part.arguments for part in parts) == call.arguments
    assert "".join(delta.text for delta in deltas).strip() == beside


def test_the_name_comes_before_the_arguments_and_these_in_pieces() -> None:
    parser = ToolCallParser(ToolForm.HERMES)
    assert parser.push("Yes <tool") == [ToolDelta("Yes ")]
    assert parser.push('_call>\n{"name": "weather", "argu') == []
    assert parser.push('ments": ') == []
    begun, first = parser.push("{")
    assert (begun.index, begun.name, begun.arguments) == (0, "weather", "")
    assert first == ToolDelta(index=0, arguments="{")
    assert parser.push('"city": "K') == [ToolDelta(index=0, arguments='"city": "K')]
    assert parser.push('öln"}}\n</tool_call>') == [ToolDelta(index=0, arguments='öln"}')]
    assert parser.calls[0].arguments == '{"city": "Köln"}'
    assert parser.end() == []


def test_a_call_that_is_cut_has_the_arguments_so_far() -> None:
    parser, deltas = parsed(ToolForm.MISTRAL, ['[TOOL_CALLS][{"name": "f", "arguments": {"a": "x'])
    assert [(call.name, call.arguments) for call in parser.calls] == [("f", '{"a": "x')]
    assert "".join(delta.arguments for delta in deltas) == '{"a": "x'
    assert parser.text == ""


def test_special_tokens_have_no_text_in_an_answer() -> None:
    parser = ToolCallParser(ToolForm.GRANITE, {7: "<|tool_call|>"})
    parser.push("Yes. ", 1)
    parser.push("", 7)
    parser.push('[{"name": "f", "arguments": {"a": 1}}]', 2)
    parser.end()
    assert parser.text == "Yes."
    assert [(call.name, call.arguments) for call in parser.calls] == [("f", '{"a": 1}')]


@pytest.mark.parametrize(
    ("form", "text"),
    [
        (ToolForm.HERMES, "No call, but < and <tool and <tool_cal"),
        (ToolForm.HERMES, " kept \n"),
        (ToolForm.MISTRAL, "[TOOL_CALL"),
        (ToolForm.LLAMA_3, "Not {} a call"),
        (ToolForm.LLAMA_3, '{"a": 1}'),
        (ToolForm.LLAMA_3, '{"name": "f", "para'),
        (ToolForm.LLAMA_3, '{"name": "f", "parameters": [1]}'),
        (ToolForm.PYTHONIC, "[1, 2]"),
        (ToolForm.PYTHONIC, "[f(1)]"),
        (ToolForm.PYTHONIC, "[f(a=open('x'))]"),
        (ToolForm.PYTHONIC, "[f(**{})]"),
        (ToolForm.PYTHONIC, "[f(a=1"),
        (ToolForm.PYTHONIC, "[" * 100_000),
    ],
)
@pytest.mark.parametrize("length", [1, 1000])
def test_what_is_not_a_call_is_text(form: ToolForm, text: str, length: int) -> None:
    length = max(length, len(text) // 100)
    parser, deltas = parsed(form, [text[start : start + length] for start in range(0, len(text), length)])
    assert parser.calls == ()
    assert parser.text == "".join(delta.text for delta in deltas) == text


def test_calls_in_another_order_or_with_arguments_as_text() -> None:
    for text in (
        '{"arguments": {"a": "ä"}, "name": "f"}',
        '{"type": "function", "name": "f", "arguments": {"a": "ä"}}',
        '{"name": "f", "arguments": "{\\"a\\": \\"ä\\"}"}',
    ):
        parser, (delta,) = parsed(ToolForm.HERMES, [f"<tool_call>{text}</tool_call>"])
        assert [(call.name, call.arguments) for call in parser.calls] == [("f", '{"a": "ä"}')]
        assert (delta.name, delta.arguments) == ("f", '{"a": "ä"}')


def test_values_of_python_and_json() -> None:
    (call,) = python_calls('[a.b(x=true, y=null, z=False, n=-1.5, t=(1, "a"), d={"k": [None]})]')
    assert call.name == "a.b"
    assert json.loads(call.arguments) == {
        "x": True, "y": None, "z": False, "n": -1.5, "t": [1, "a"], "d": {"k": [None]},
    }  # fmt: skip
