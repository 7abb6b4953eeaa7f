from __future__ import annotations

import pytest

from ortkit import InputError
from ortkit.runtime.text.messages import Message, messages_of, with_system

HELLO = Message("user", "Hello")


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"role": "user"}, "message 0 has no `content`"),
        ({"role": "assistant", "content": None}, "message 0 has no `content`"),
        ({"content": "Hello"}, "message 0 has no `role`"),
        ("Hello", "message 0 must have `role` and `content`, not be str"),
        ({"role": "user", "content": 1}, "the content of message 0 must be a string, not int"),
        ({"role": 1, "content": "Hello"}, "the role of message 0 must be a string, not int"),
        ({"role": "user", "content": "", "name": "a"}, "message 0 has the field `name`; supported: `role`, `content`"),
        (
            {"role": "user", "content": "\ud800"},
            "the content of message 0 is not valid Unicode: surrogates not allowed at character 0",
        ),
        (
            {"role": "user", "content": [{"type": "image_url", "image_url": {}}]},
            "content part 0 of message 0 has the type `image_url`; supported: `text`",
        ),
        ({"role": "user", "content": ["Hello"]}, "content part 0 of message 0 must be an object with a `type`"),
        (
            {"role": "user", "content": [{"type": "text"}]},
            "the text of content part 0 of message 0 must be a string, not NoneType",
        ),
    ],
)
def test_values_that_are_not_messages(record: object, message: str) -> None:
    with pytest.raises(InputError) as caught:
        messages_of([record])

    assert caught.value.message == message


@pytest.mark.parametrize("messages", ["Hello", {"role": "user", "content": "Hello"}, None, b"a"])
def test_one_value_instead_of_a_list_of_messages(messages: object) -> None:
    with pytest.raises(InputError) as caught:
        messages_of(messages)

    assert caught.value.message == f"`messages` must be a list of messages, not {type(messages).__name__}"
    assert caught.value.hint == '[{"role": "user", "content": "Hello"}]'


@pytest.mark.parametrize(
    "record",
    [
        {"role": "user", "content": "Hello"},
        HELLO,
        {"role": "user", "content": [{"type": "text", "text": "Hello"}]},
        {"role": "user", "content": "Hello", "tool_calls": None, "refusal": None},
    ],
)
def test_records_become_messages(record: object) -> None:
    assert messages_of(iter([record])) == [HELLO]


def test_parts_are_joined_with_line_breaks() -> None:
    parts = [{"type": "text", "text": "Read this:"}, {"type": "text", "text": "water"}]

    assert messages_of([{"role": "user", "content": parts}]) == [Message("user", "Read this:\nwater")]


def test_a_conversation_has_one_system_message() -> None:
    own, other = Message("system", "own"), Message("system", "other")

    assert with_system([HELLO], "other") == [other, HELLO]
    assert with_system([own, HELLO], "other") == [own, HELLO]
    assert with_system([], None) == []
