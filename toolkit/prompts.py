"""Prompts as they come to `edgekit generate`: one text, or lines of JSON with a `prompt` or `messages`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

from runtime.errors import InputError
from toolkit.texts import InputFormat, check_unicode, decode, parse_object

if TYPE_CHECKING:
    from runtime.decoder import Decoder
    from runtime.messages import Message

    Asked = str | tuple[Message, ...]


@dataclass(frozen=True)
class PromptRecord:
    """A line that holds a prompt or a conversation, with the JSON fields that came with it."""

    asked: Asked
    fields: dict[str, Any]
    where: str
    size: int
    """Bytes that it took in the input."""


def read_prompts(lines: Iterable[bytes], input_format: InputFormat) -> str | Iterator[PromptRecord]:
    """The whole of a text without its last line break, or its lines where they are JSON, each when it is asked for.

    `auto` takes it for JSONL when the first line that is not empty is a JSON object with `prompt` or `messages`.
    """
    numbered = enumerate(lines, start=1)
    first: list[tuple[int, bytes]] = []
    if input_format is InputFormat.AUTO:
        for number, raw in numbered:
            first.append((number, raw))
            line = decode(raw, number)
            if line.strip():
                input_format = InputFormat.JSONL if looks_like_jsonl(line) else InputFormat.TEXT
                break
    everything = chain(first, numbered)
    if input_format is InputFormat.JSONL:
        return records_of(everything)
    return "\n".join(decode(raw, number) for number, raw in everything)


def looks_like_jsonl(line: str) -> bool:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict) and ("prompt" in value or "messages" in value)


def records_of(lines: Iterable[tuple[int, bytes]]) -> Iterator[PromptRecord]:
    for number, raw in lines:
        line = decode(raw, number)
        if line.strip():
            fields, where = parse_object(line, number), f"line {number}"
            yield PromptRecord(asked_in(fields, where), fields, where, len(raw))


def asked_in(fields: dict[str, Any], where: str) -> Asked:
    prompt, messages = fields.get("prompt"), fields.get("messages")
    if (prompt is None) == (messages is None):
        raise InputError(
            f"{where} has {'neither a `prompt` nor' if prompt is None else 'both a `prompt` and'} `messages`",
            hint='give lines like {"prompt": "..."} or {"messages": [{"role": "user", "content": "..."}]}',
        )
    if messages is None:
        if not isinstance(prompt, str):
            raise InputError(f"{where} has no text in its field `prompt`")
        check_unicode(prompt, f"the prompt in {where}")
        return prompt
    if not isinstance(messages, list) or not messages:
        raise InputError(f"{where} has no list of messages in its field `messages`")
    from runtime.messages import messages_of

    with placed(where):
        return tuple(messages_of(messages))


@contextmanager
def placed(where: str) -> Iterator[None]:
    """Say in the message of an InputError in which line it was."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{where}: {error.message}", hint=error.hint) from error


class Wording:
    """How what was asked becomes a decoder's prompt: by its chat template, or as it is."""

    def __init__(self, decoder: Decoder, *, chat: bool | None, system: str | None) -> None:
        """Without `chat`, the template is used where there is one; raises InputError where it is needed and is not."""
        from runtime.chat_template import ChatTemplate

        facts = decoder.facts.chat
        if facts is None and chat:
            raise InputError(
                f"`{decoder.bundle.path}` has no chat template, so it cannot be asked as in a conversation",
                hint="leave out `--chat`, and give a text that the model can continue",
            )
        if system is not None and (facts is None or chat is False):
            raise InputError(
                "`--system` is a message, and without a chat template there are none",
                hint="leave out `--no-chat`" if facts is not None else "put it at the beginning of the prompt",
            )
        self.decoder = decoder
        self.template = ChatTemplate(facts) if facts is not None and chat is not False else None
        self.system = system

    def prompt(self, asked: Asked) -> str | list[int]:
        """What the decoder continues; conversations that begin with a message to the system keep that one."""
        from runtime.messages import SYSTEM, USER, Message

        if self.template is None:
            if not isinstance(asked, str):
                raise InputError(
                    "`messages` need a chat template, and none is used here", hint="give a text in `prompt` instead"
                )
            return asked
        if isinstance(asked, str):
            if not asked.strip():
                raise InputError("the prompt is empty", hint="give it at least a word to answer")
            asked = (Message(USER, asked),)
        if self.system is not None and asked[0].role != SYSTEM:
            asked = (Message(SYSTEM, self.system), *asked)
        return self.decoder.encode_exactly(self.template.render(asked))
