"""Read the prompts of `ortkit generate`: one text, or records with `prompt` or `messages`."""

from __future__ import annotations

import io
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ...runtime.errors import InputError
from .input_format import InputFormat, Position, Source, decode
from .inputs import FailedRecord, Item, ItemReader
from .json_values import quoted
from .texts import InputOptions, check_unicode, field_of, with_text_hint

if TYPE_CHECKING:
    from ...runtime.decoder.decoder import Decoder
    from ...runtime.text.messages import Message

    Prompt = str | tuple[Message, ...]

_FIELDS = ("prompt", "messages")
_EXAMPLES = 'give lines like {"prompt": "..."} or {"messages": [{"role": "user", "content": "..."}]}'


@dataclass(frozen=True)
class PromptRecord:
    """A prompt or a conversation, with the fields of its record."""

    prompt: Prompt
    fields: dict[str, Any]
    taken: tuple[str, ...]
    """Fields that hold the prompt."""
    where: str
    size: int
    """Bytes in the input."""


def read_prompts(source: Source, input_options: InputOptions, *, follows: bool = False) -> str | Iterator[PromptRecord]:
    """A whole text without its last line break, or an iterator over the prompts of records.

    An input that `follows` a prompt is plain text in any format, unless its records are prompts.
    """
    position = input_options.begin(source, tables=False)
    if follows and not input_options.certain and position.format is not InputFormat.TEXT and not _has_prompts(source):
        position = Position(InputFormat.TEXT)
    if position.format is not InputFormat.TEXT:
        return _records_of(source, position, input_options)
    return "\n".join(decode(raw, number) for number, raw in enumerate(source, start=1))


def _has_prompts(source: Source) -> bool:
    """Whether the first record, which was read ahead, is a prompt."""
    copy = Source(io.BytesIO(b"".join(source.ahead)))
    first = next(iter(ItemReader(copy, Position(InputFormat.JSONL))), None)
    return isinstance(first, Item) and isinstance(first.value, dict) and any(name in first.value for name in _FIELDS)


def _records_of(source: Source, position: Position, input_options: InputOptions) -> Iterator[PromptRecord]:
    sure = input_options.certain
    for item in ItemReader(source, position):
        if isinstance(item, FailedRecord):
            raise item.error
        try:
            yield _record_of(item, input_options.field)
        except InputError as error:
            if sure:
                raise
            raise with_text_hint(error) from error
        sure = True


def _record_of(item: Item, field: str | None) -> PromptRecord:
    """The prompt of a record; a string in an array is a prompt."""
    value, where = item.value, item.where
    if isinstance(value, str):
        value = {_FIELDS[0]: value}
        field = None
    if not isinstance(value, dict):
        value = {}
    name = field or _prompt_field(value, where)
    found = value.get(name)
    if name == "messages" or (field is not None and isinstance(found, list)):
        prompt: Prompt = _conversation(found, name, where)
    elif field is not None:
        prompt = field_of(value, field, where)
    elif isinstance(found, str):
        prompt = found
    else:
        raise InputError(f"the field `prompt` of {where} must be a string")
    if isinstance(prompt, str):
        check_unicode(prompt, f"the prompt in {where}")
    if name == "text":
        # The output has the answer in `text`.
        value = {"prompt": prompt} | {other: kept for other, kept in value.items() if other != "text"}
    return PromptRecord(prompt, value, (name, *_FIELDS, "text"), where, item.size)


def _prompt_field(fields: dict[str, Any], where: str) -> str:
    """`prompt` or `messages`; raises InputError for a record with neither or both."""
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
        hint=f"name the prompt field, for example `--field {shlex.quote(best)}`",
    )


def _conversation(messages: object, name: str, where: str) -> tuple[Message, ...]:
    if not isinstance(messages, list) or not messages:
        raise InputError(f"the field `{name}` of {where} must be a non-empty list of messages")
    from ...runtime.text.messages import messages_of

    with located(where):
        return tuple(messages_of(messages))


@contextmanager
def located(where: str) -> Iterator[None]:
    """Add the place of a record to the message of an InputError."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{where}: {error.message}", hint=error.hint) from error


def uses_template(decoder: Decoder, *, chat: bool | None, system: str | None) -> bool:
    """Whether to apply the chat template: if the model has one, unless `chat` decides.

    Raises InputError if `--chat` or `--system` needs a template that the model does not have or `--raw` turns off.
    """
    if chat:
        decoder.check_chat_template()
    used = decoder.facts.chat is not None and chat is not False
    if system is not None and not used:
        raise InputError(
            "`--system` needs the chat template, and raw text has no messages",
            hint="put it at the beginning of the prompt" if decoder.facts.chat is None else "leave out `--raw`",
        )
    return used


def as_messages(prompt: Prompt, system: str | None) -> list[Message]:
    """A prompt as messages, with the system message if they have none; raises InputError for an empty prompt."""
    from ...runtime.text.messages import USER, Message, with_system

    if isinstance(prompt, str):
        if not prompt.strip():
            raise InputError("the prompt is empty", hint="give at least a word")
        prompt = (Message(USER, prompt),)
    return with_system(prompt, system)
