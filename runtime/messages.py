"""What is said in a conversation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from runtime.errors import InputError
from runtime.tokenizer import checked_text

ASSISTANT, SYSTEM, USER = "assistant", "system", "user"


@dataclass(frozen=True)
class Message:
    """What one side said."""

    role: str
    content: str


def messages_of(records: Sequence[Mapping[str, object]]) -> list[Message]:
    """Messages from records such as `{"role": "user", "content": "Hello"}`; InputError names the first that is none."""
    messages = []
    for index, record in enumerate(records):
        if not isinstance(record, Mapping) or set(record) != {"role", "content"}:
            raise InputError(f"message {index} must have `role` and `content` and nothing else")
        role, content = (checked_text(record[name], f"the {name} of message {index}") for name in ("role", "content"))
        messages.append(Message(role, content))
    return messages
