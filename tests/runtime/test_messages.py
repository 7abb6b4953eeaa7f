from __future__ import annotations

import pytest

from runtime import InputError
from runtime.messages import Message, messages_of


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"role": "user"}, "message 0 must have `role` and `content` and nothing else"),
        ("Hello", "message 0 must have `role` and `content` and nothing else"),
        ({"role": "user", "content": 1}, "the content of message 0 must be a string, not int"),
        (
            {"role": "user", "content": "\ud800"},
            "the content of message 0 is not valid Unicode: surrogates not allowed at character 0",
        ),
    ],
)
def test_what_is_no_message(record: object, message: str) -> None:
    with pytest.raises(InputError) as caught:
        messages_of([record])

    assert caught.value.message == message


def test_records_become_messages() -> None:
    assert messages_of([{"role": "user", "content": "Hello"}]) == [Message("user", "Hello")]
