"""Messages of a conversation, as objects or in the shape of OpenAI's chat completions API."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from ..errors import InputError
from .tokenizer import checked_text

ASSISTANT, SYSTEM, USER = "assistant", "system", "user"
EXAMPLE = '[{"role": "user", "content": "Hello"}]'


@dataclass(frozen=True)
class Message:
    """One message of a conversation.

    >>> Message("user", "Hello")
    Message(role='user', content='Hello')
    """

    role: str
    """Usually `system`, `user` or `assistant`; the model's chat template decides."""
    content: str


Messages = Iterable[Message | Mapping[str, object]]
"""Messages as `Message` objects, or as mappings: `{"role": "user", "content": "Hello"}`."""


def messages_of(messages: Messages) -> list[Message]:
    """Check messages and convert them to `Message` objects.

    `content` is a string, or a list of parts of type `text`, which are joined with line breaks as llama.cpp's and
    vLLM's servers do. Raises InputError that names the first message that cannot be used.
    """
    if isinstance(messages, (str, bytes, Mapping)) or not isinstance(messages, Iterable):
        raise InputError(f"`messages` must be a list of messages, not {type(messages).__name__}", hint=EXAMPLE)
    return [_message_of(message, index) for index, message in enumerate(messages)]


def _message_of(message: object, index: int) -> Message:
    if isinstance(message, Message):
        message = {"role": message.role, "content": message.content}
    if not isinstance(message, Mapping):
        raise InputError(f"message {index} must have `role` and `content`, not be {type(message).__name__}")
    for name in ("role", "content"):
        if message.get(name) is None:
            raise InputError(f"message {index} has no `{name}`", hint=f"messages look like {EXAMPLE}")
    # Clients write fields that they do not use as null.
    others = [name for name, value in message.items() if name not in ("role", "content") and value is not None]
    if others:
        raise InputError(f"message {index} has the field `{others[0]}`; supported: `role`, `content`")
    role = checked_text(message["role"], f"the role of message {index}")
    return Message(role, _content_of(message["content"], index))


def _content_of(content: object, index: int) -> str:
    """The text of a message's content."""
    if not isinstance(content, Sequence) or isinstance(content, (str, bytes)):
        return checked_text(content, f"the content of message {index}")
    texts = []
    for place, part in enumerate(content):
        name = f"content part {place} of message {index}"
        if not isinstance(part, Mapping) or "type" not in part:
            raise InputError(f"{name} must be an object with a `type`", hint='{"type": "text", "text": "Hello"}')
        if part["type"] != "text":
            raise InputError(f"{name} has the type `{part['type']}`; supported: `text`")
        texts.append(checked_text(part.get("text"), f"the text of {name}"))
    return "\n".join(texts)


def with_system(messages: Sequence[Message], system: str | None) -> list[Message]:
    """The messages after a system message, unless they begin with one of their own."""
    if system is None or (messages and messages[0].role == SYSTEM):
        return list(messages)
    return [Message(SYSTEM, system), *messages]
