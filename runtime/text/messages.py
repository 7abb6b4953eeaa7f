"""Messages of a conversation, as objects or in the shape of OpenAI's chat completions API."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from ..errors import InputError
from .tokenizer import checked_text
from .tools import ToolCall, calls_of, parsed_arguments

ASSISTANT, SYSTEM, USER, TOOL = "assistant", "system", "user", "tool"
_FIELDS = {ASSISTANT: ("role", "content", "tool_calls"), TOOL: ("role", "content", "tool_call_id", "name")}
"""Fields of a message by its role; of others: `role` and `content`."""
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
    tool_calls: tuple[ToolCall, ...] = ()
    """Calls in a message of the assistant, whose content may be empty."""
    tool_call_id: str | None = None
    """The call that a message of role `tool` answers."""
    name: str | None = None
    """The function that was called, in a message of role `tool`."""

    def __repr__(self) -> str:
        fields = {name: value for name, value in vars(self).items() if value or name in ("role", "content")}
        return f"Message({', '.join(f'{name}={value!r}' for name, value in fields.items())})"

    def as_record(self) -> dict[str, object]:
        """The message as chat templates expect it: the arguments of calls are objects, and no content is empty."""
        record: dict[str, object] = {"role": self.role, "content": self.content}
        if self.tool_calls:
            record["tool_calls"] = [
                {
                    **({"id": call.id} if call.id else {}),
                    "type": "function",
                    "function": {"name": call.name, "arguments": parsed_arguments(call.arguments)},
                }
                for call in self.tool_calls
            ]
        if self.tool_call_id is not None:
            record["tool_call_id"] = self.tool_call_id
        if self.name is not None:
            record["name"] = self.name
        return record

    @property
    def size(self) -> int:
        """Characters of all its texts."""
        calls = sum(len(call.id) + len(call.name) + len(call.arguments) for call in self.tool_calls)
        return len(self.content) + len(self.tool_call_id or "") + len(self.name or "") + calls


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
        # The same checks as for mappings.
        message = vars(message) | {"tool_calls": message.tool_calls or None}
    if not isinstance(message, Mapping):
        raise InputError(f"message {index} must have `role` and `content`, not be {type(message).__name__}")
    # The content of an assistant's message with calls may be null.
    needed = ("role",) if message.get("role") == ASSISTANT and message.get("tool_calls") else ("role", "content")
    for name in needed:
        if message.get(name) is None:
            raise InputError(f"message {index} has no `{name}`", hint=f"messages look like {EXAMPLE}")
    role = checked_text(message["role"], f"the role of message {index}")
    fields = _FIELDS.get(role, ("role", "content"))
    # Clients write fields that they do not use as null.
    others = [name for name, value in message.items() if name not in fields and value is not None]
    if others:
        supported = ", ".join(f"`{name}`" for name in fields)
        raise InputError(f"message {index} has the field `{others[0]}`; supported: {supported}")
    content, calls, call_id, called = (message.get(key) for key in ("content", "tool_calls", "tool_call_id", "name"))
    return Message(
        role,
        "" if content is None else _content_of(content, index),
        () if calls is None else calls_of(calls, index),
        None if call_id is None else checked_text(call_id, f"`tool_call_id` of message {index}"),
        None if called is None else checked_text(called, f"the name of message {index}"),
    )


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
