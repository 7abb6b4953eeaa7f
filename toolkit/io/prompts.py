"""Prompts as they come to `ortkit generate`: one text, or records with a `prompt` or `messages`."""

from __future__ import annotations

import io
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ...runtime.errors import InputError
from .inputs import FailedRecord, InputFormat, Item, ItemReader, Place, Source, decode, quoted
from .texts import Reading, check_unicode, field_of, or_as_text

if TYPE_CHECKING:
    from ...runtime.decoder.decoder import Decoder
    from ...runtime.text.messages import Message

    Asked = str | tuple[Message, ...]

_FIELDS = ("prompt", "messages")
_EXAMPLES = 'give lines like {"prompt": "..."} or {"messages": [{"role": "user", "content": "..."}]}'


@dataclass(frozen=True)
class PromptRecord:
    """A record that holds a prompt or a conversation, with the JSON fields that came with it."""

    asked: Asked
    fields: dict[str, Any]
    taken: tuple[str, ...]
    """The fields that hold what is asked."""
    where: str
    size: int
    """Bytes that it took in the input."""


def read_prompts(source: Source, reading: Reading, *, follows: bool = False) -> str | Iterator[PromptRecord]:
    """The whole of a text without its last line break, or the prompts in records, each when it is asked for.

    A text that `follows` a prompt is a text in whatever form, unless it has prompts of its own.
    """
    place = reading.begin(source, tables=False)
    if follows and not reading.certain and place.format is not InputFormat.TEXT and not _has_prompts(source):
        place = Place(InputFormat.TEXT)
    if place.format is not InputFormat.TEXT:
        return _records_of(source, place, reading)
    return "\n".join(decode(raw, number) for number, raw in enumerate(source, start=1))


def _has_prompts(source: Source) -> bool:
    """Whether the first record, of which all was looked at, is a prompt."""
    copy = Source(io.BytesIO(b"".join(source.ahead)))
    first = next(iter(ItemReader(copy, Place(InputFormat.JSONL))), None)
    return isinstance(first, Item) and isinstance(first.value, dict) and any(name in first.value for name in _FIELDS)


def _records_of(source: Source, place: Place, reading: Reading) -> Iterator[PromptRecord]:
    sure = reading.certain
    for item in ItemReader(source, place):
        if isinstance(item, FailedRecord):
            raise item.error
        try:
            yield _record_of(item, reading.field)
        except InputError as error:
            if sure:
                raise
            raise or_as_text(error) from error
        sure = True


def _record_of(item: Item, field: str | None) -> PromptRecord:
    """What is asked in a record; a string in an array is a prompt."""
    value, where = item.value, item.where
    if isinstance(value, str):
        value = {_FIELDS[0]: value}
        field = None
    if not isinstance(value, dict):
        value = {}
    name = field or _name_of_asked(value, where)
    found = value.get(name)
    if name == "messages" or (field is not None and isinstance(found, list)):
        asked: Asked = _conversation(found, name, where)
    elif field is not None:
        asked = field_of(value, field, where)
    elif isinstance(found, str):
        asked = found
    else:
        raise InputError(f"{where} has no text in its field `prompt`")
    if isinstance(asked, str):
        check_unicode(asked, f"the prompt in {where}")
    if name == "text":
        # What comes out has the answer there.
        value = {"prompt": asked} | {other: kept for other, kept in value.items() if other != "text"}
    return PromptRecord(asked, value, (name, *_FIELDS, "text"), where, item.size)


def _name_of_asked(fields: dict[str, Any], where: str) -> str:
    """`prompt` or `messages`, whichever is there; raises InputError that names the fields for none and for both."""
    there = [name for name in _FIELDS if fields.get(name) is not None]
    if len(there) == 1:
        return there[0]
    if there:
        raise InputError(f"{where} has both a `prompt` and `messages`", hint=_EXAMPLES)
    message = f"{where} has neither a `prompt` nor `messages`"
    others = [name for name, value in fields.items() if isinstance(value, (str, list)) and name.isprintable() and name]
    if not others:
        raise InputError(message, hint=_EXAMPLES)
    best = max(others, key=lambda name: len(str(fields[name])))
    raise InputError(
        f"{message}; its fields are {quoted(fields)}",
        hint=f"name the field that holds the prompt, for example `--field {shlex.quote(best)}`",
    )


def _conversation(messages: object, name: str, where: str) -> tuple[Message, ...]:
    if not isinstance(messages, list) or not messages:
        raise InputError(f"{where} has no list of messages in its field `{name}`")
    from ...runtime.text.messages import messages_of

    with placed(where):
        return tuple(messages_of(messages))


@contextmanager
def placed(where: str) -> Iterator[None]:
    """Say in the message of an InputError in which line it was."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{where}: {error.message}", hint=error.hint) from error


def uses_template(decoder: Decoder, *, chat: bool | None, system: str | None) -> bool:
    """Whether prompts go through the chat template: where the model has one, unless `chat` says otherwise.

    Raises InputError where `--chat` or `--system` needs a template that is not there, or is not to be used.
    """
    if chat:
        decoder.check_chat_template()
    used = decoder.facts.chat is not None and chat is not False
    if system is not None and not used:
        raise InputError(
            "`--system` is a message, and without a chat template there are none",
            hint="put it at the beginning of the prompt" if decoder.facts.chat is None else "leave out `--raw`",
        )
    return used


def as_messages(asked: Asked, system: str | None) -> list[Message]:
    """What is asked as messages, after a system message where they have none; raises InputError for an empty prompt."""
    from ...runtime.text.messages import USER, Message, with_system

    if isinstance(asked, str):
        if not asked.strip():
            raise InputError("the prompt is empty", hint="give it at least a word to answer")
        asked = (Message(USER, asked),)
    return with_system(asked, system)
