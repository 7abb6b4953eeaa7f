from __future__ import annotations

import math

import pytest

from ortkit.toolkit.server.api.request_fields import Fields, parse_body
from ortkit.toolkit.server.errors import InvalidJsonError, MissingFieldError, RequestError, UnknownFieldError


def refused(call: object, message: str, param: str | None) -> None:
    with pytest.raises(RequestError) as caught:
        call()
    assert (caught.value.message, caught.value.param) == (message, param)


def test_null_counts_as_missing() -> None:
    fields = Fields({"a": None, "b": None})
    assert (fields.text("a"), fields.flag("b"), fields.integer("c", least=0, most=1)) == (None, False, None)
    fields.finish()


def test_paths_lead_to_the_field_at_fault() -> None:
    fields = Fields({"list": [{"inner": {"number": "x"}}]})
    [item] = fields.objects("list")
    inner = item.required_fields("inner")
    refused(
        lambda: inner.number("number", least=0, most=1),
        "`list[0].inner.number` must be a number, not a string",
        "list[0].inner.number",
    )
    refused(lambda: inner.required_text("text"), "the field `list[0].inner.text` is missing", "list[0].inner.text")
    with pytest.raises(MissingFieldError):
        inner.value("text", required=True)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (True, "`n` must be an integer, not a boolean"),
        (1.5, "`n` must be an integer, not a number"),
        (math.inf, "`n` must be an integer, not a number"),
        ([], "`n` must be an integer, not an array"),
        (10**40, "`n` must be from 0 to 5, not 100000000000000000000000000000..."),
        (-1, "`n` must be from 0 to 5, not -1"),
    ],
)
def test_integers(value: object, message: str) -> None:
    refused(lambda: Fields({"n": value}).integer("n", least=0, most=5), message, "n")


def test_an_integral_number_is_an_integer_as_in_json_schema() -> None:
    found = Fields({"n": 3.0}).integer("n", least=0, most=5)
    assert (found, type(found)) == (3, int)


@pytest.mark.parametrize("value", [10**400, -(10**400), math.nan, math.inf])
def test_numbers_are_finite_and_in_their_range(value: float) -> None:
    with pytest.raises(RequestError, match="`x` must be from 0 to 2, not"):
        Fields({"x": value}).number("x", least=0, most=2)


def test_unknown_fields_are_named_without_control_characters() -> None:
    fields = Fields({"a": 1, "b\x1b[31m": 2, "c" * 500: 3})
    fields.ignore("a")
    with pytest.raises(UnknownFieldError) as caught:
        fields.finish()
    assert caught.value.message == f"unknown field `b\ufffd[31m`, `{'c' * 80}`"
    assert (caught.value.param, caught.value.hint) == ("b\ufffd[31m", "supported: `a`")


def test_a_refused_field_may_have_the_value_that_changes_nothing() -> None:
    Fields({"a": "text"}).refuse("a", "why", allowed=("text",))
    Fields({"a": None}).refuse("a", "why")
    refused(lambda: Fields({"a": 1}).refuse("a", "why", allowed=(True,)), "`a` is not supported: why", "a")


def test_a_body_is_an_object_of_json() -> None:
    assert parse_body(b'{"a": "\xc3\xbc"}').text("a") == "ü"
    with pytest.raises(InvalidJsonError, match="the body is not valid UTF-8"):
        parse_body(b'{"a": "\xfc"}')


def test_ignored_and_read_fields_are_let_go() -> None:
    """A body is larger as Python's objects, and a request may last for minutes."""
    values = {"metadata": [[]], "model": "m", "prompt": ["a"]}
    fields = Fields(values)
    fields.ignore("metadata", "user")
    assert "metadata" not in values
    assert fields.value("prompt") == ["a"]
    fields.required_text("model")
    fields.finish()
    assert not fields.given("prompt")


@pytest.mark.parametrize("part", [b"[],", b'{"a":1},'])
def test_too_many_arrays_and_objects_are_refused(part: bytes) -> None:
    most = 1 << 19
    assert parse_body(b'{"a": [' + b"[]," * (most - 3) + b"1]}").given("a")
    with pytest.raises(InvalidJsonError, match=f"^the body has more than {most} "):
        parse_body(b'{"a": [' + part * most + b"1]}")
