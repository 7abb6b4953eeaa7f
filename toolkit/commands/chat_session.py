"""A conversation in the terminal: messages, commands such as `/set`, and a full context."""

from __future__ import annotations

import dataclasses
import shutil
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ...runtime.errors import InputError, TextTooLongError
from ..console.help import close_names
from ..console.terminal import styled
from ..io.answer_output import GenerationStats, write_text
from ..io.record_options import KINDS, option_value

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ...runtime.decoder.chat import Chat
    from ...runtime.decoder.sampler import Sampling
    from ...runtime.decoder.stream import Stream
    from ...runtime.text.messages import Message
    from ..io.answer_options import AnswerOptions

_COMMANDS = (
    ("/regenerate", "generate another answer to the last message"),
    ("/system TEXT", "set the system message"),
    ("/set NAME VALUE", "set an option, for example `/set temperature 0.2`; `/set` shows them"),
    ("/reset", "start a new conversation"),
    ("/save FILE", "save the conversation"),
    ("/load FILE", "load a saved conversation"),
    ("/help", "show this list"),
    ("/exit, /quit", "leave, as do `exit`, `quit` and Ctrl-D"),
)
_HELP = (
    'A line that ends with \\ continues on the next one. """ opens a message of several lines, and """ at the end of a '
    "line closes it. Ctrl-C stops an answer. A message that begins with / needs a space before it."
)
_LEAVING = ("exit", "quit")
_ANSWER_TOKENS = 256
"""Tokens that are kept free for an answer when the oldest turns are dropped, at most a quarter of the context."""
_TEMPLATE_TOKENS = 64
"""Upper bound for the tokens that a chat template adds to a message."""
_SWITCH = {"on": True, "true": True, "yes": True, "off": False, "false": False, "no": False}


class OnFull(StrEnum):
    """What to do when the context is full."""

    ASK = "ask"
    DROP = "drop"
    STOP = "stop"


class ChatSession:
    """A chat with options, statistics and commands; `left` is True once the person has left."""

    def __init__(
        self, chat: Chat, *, options: AnswerOptions, sampling: Sampling, on_full: OnFull, interactive: bool
    ) -> None:
        self.chat = chat
        self.options = options
        self.sampling = sampling
        self.on_full = on_full
        self.interactive = interactive
        """Whether a person types and can be asked."""
        self.stats = GenerationStats()
        self.left = False
        self._used = 0
        """Tokens of the conversation, up to the end of the last answer."""
        self._with_argument: dict[str, Callable[[str], None]] = {
            "/system": self._set_system,
            "/set": self._set,
            "/save": self._save,
            "/load": self._load,
        }
        self._without_argument: dict[str, Callable[[], None]] = {
            "/regenerate": self._regenerate,
            "/reset": self._reset,
            "/help": _show_help,
            "/exit": self._leave,
            "/quit": self._leave,
        }

    def handle(self, turn: str) -> None:
        """Answer a message or run a command; raises click.Abort for an answer that was interrupted."""
        if self.interactive and turn.strip().lower() in _LEAVING:
            self.left = True
            return
        if not turn.startswith("/"):
            self._answer(turn)
            return
        name, _, argument = turn.partition(" ")
        argument = argument.strip()
        if name in self._with_argument:
            self._with_argument[name](argument)
        elif name in self._without_argument and not argument:
            self._without_argument[name]()
        else:
            raise self._unknown_command(turn, name)

    def _unknown_command(self, turn: str, name: str) -> InputError:
        close = [
            other for other in close_names(name, {**self._with_argument, **self._without_argument}) if other != name
        ]
        suggestion = f"did you mean `{close[0]}`? " if close else ""
        return InputError(
            f"there is no command `{turn}`",
            hint=f"{suggestion}`/help` lists them; a message that begins with / needs a space before it",
        )

    def _leave(self) -> None:
        self.left = True

    def _reset(self) -> None:
        self.chat.reset()
        self._used = 0

    def _save(self, path: str) -> None:
        self.chat.save(_file("/save", path))
        click.echo(f"note: saved {_message_count(self.chat)} to `{path}`", err=True)

    def _load(self, path: str) -> None:
        self.chat = type(self.chat).load(_file("/load", path), self.chat.decoder)
        self._used = self.chat.cache.length
        click.echo(f"note: loaded {_message_count(self.chat)} from `{path}`", err=True)

    def _answer(self, text: str) -> None:
        """Send a message, and write the answer as it is generated."""
        self._make_room(text)
        try:
            stream = self.chat.send(text, **vars(self.options))
        except TextTooLongError as error:
            raise InputError(error.message, hint="`/reset` starts a new conversation") from error
        self._write(stream)

    def _regenerate(self) -> None:
        from ...runtime.text.messages import ASSISTANT

        if all(message.role != ASSISTANT for message in self.chat.messages):
            raise InputError("there is no answer yet to regenerate", hint="send a message first")
        if self.sampling.temperature == 0 or self.sampling.seed is not None:
            why = "decoding is greedy" if self.sampling.temperature == 0 else "the seed is fixed"
            other = "temperature 0.7" if self.sampling.temperature == 0 else "seed N"
            click.echo(f"note: {why}, so the answer will be the same; `/set {other}` gives another", err=True)
        self._write(self.chat.regenerate(**vars(self.options)))

    def _write(self, stream: Stream) -> None:
        from ...runtime.decoder.token_choice import FinishReason

        write_text(stream, sys.stdout.buffer, wrap=True)
        rates = stream.rates
        self.stats = self.stats.with_answer(rates)
        self._used = rates.prompt_tokens + rates.new_tokens
        if stream.finish_reason is FinishReason.LENGTH and self.options.max_tokens is None:
            click.echo("note: the answer ends here because the context is full", err=True)
        if self.interactive:
            context = self.chat.decoder.context
            click.echo(styled(f"({context - self._used} of {context} tokens left)", dim=True), err=True)
        if stream.finish_reason is FinishReason.CANCELLED:
            raise click.Abort

    def _make_room(self, text: str) -> None:
        """Drop the oldest turns if the next message and its answer would not fit, as `on_full` says."""
        from ...runtime.text.messages import USER, Message

        if self.on_full is OnFull.STOP or (self.on_full is OnFull.ASK and not self.interactive):
            return
        context = self.chat.decoder.context
        room = self.options.max_tokens or min(_ANSWER_TOKENS, context // 4)
        # A token has at least one byte, so most messages need not be tokenized here.
        if self._used + len(text.encode()) + _TEMPLATE_TOKENS + room <= context:
            return
        before = list(self.chat.messages)
        kept = messages_that_fit([*before, Message(USER, text)], self._count_tokens, context - room)[:-1]
        dropped = len(before) - len(kept)
        if dropped == 0 or (self.on_full is OnFull.ASK and not _confirm_drop(dropped)):
            return
        self.chat = type(self.chat)(self.chat.decoder, messages=kept)
        click.echo(f"note: dropped the oldest {dropped} messages, because the context is full", err=True)

    def _count_tokens(self, messages: Sequence[Message]) -> int:
        try:
            decoder = self.chat.decoder
            return len(decoder.encode_exactly(decoder.apply_chat_template(messages)))
        except TextTooLongError:
            # Too long to be counted.
            return sys.maxsize

    def _set_system(self, text: str) -> None:
        """Set the system message of the conversation, or show it."""
        from ...runtime.text.messages import SYSTEM, USER, Message

        rest = list(self.chat.messages)
        current = rest.pop(0).content if rest and rest[0].role == SYSTEM else None
        if not text:
            click.echo(f"system: {current}" if current is not None else "no system message is set", err=True)
            return
        system = Message(SYSTEM, text)
        # Raises InputError for a template that has no system messages.
        self.chat.decoder.apply_chat_template([system, Message(USER, "Hello")])
        self.chat = type(self.chat)(self.chat.decoder, messages=[system, *rest])

    def _set(self, setting: str) -> None:
        """Set an option of the next answers, or show them all."""
        name, _, value = setting.replace("=", " ", 1).partition(" ")
        name = name.replace("-", "_")
        if name and name not in KINDS:
            close = close_names(name, KINDS)
            suggestion = f"did you mean `{close[0]}`? " if close else ""
            raise InputError(f"there is no option `{name}`", hint=f"{suggestion}supported: {', '.join(KINDS)}")
        if value.strip():
            word = value.strip()
            given = _SWITCH.get(word.lower(), word) if KINDS[name] is bool else word
            options = dataclasses.replace(self.options, **{name: option_value(name, given)})
            # Raises InputError for a value that cannot be used, before anything is changed.
            self.sampling = options.sampling(self.chat.decoder.sampling)
            self.options = options
        for shown in [name] if name else KINDS:
            click.echo(f"{shown} {self._setting(shown)}", err=True)

    def _setting(self, name: str) -> str:
        value = getattr(self.sampling, name, getattr(self.options, name, None))
        if isinstance(value, bool):
            return "on" if value else "off"
        if value is None or value == ():
            return "not set"
        return ", ".join(map(repr, value)) if isinstance(value, tuple) else f"{value:g}"


def messages_that_fit(
    messages: Sequence[Message], count_tokens: Callable[[Sequence[Message]], int], limit: int
) -> list[Message]:
    """The messages without the oldest turns, at most `limit` tokens.

    The system message and the last message stay. If these alone exceed the limit, all messages are returned.
    """
    from ...runtime.text.messages import SYSTEM, USER

    head = list(messages[:1]) if messages[0].role == SYSTEM else []
    starts = [place for place, message in enumerate(messages) if message.role == USER]
    for start in starts:
        kept = [*head, *messages[start:]]
        if count_tokens(kept) <= limit:
            return kept
    return list(messages)


def _show_help() -> None:
    formatter = click.HelpFormatter(width=shutil.get_terminal_size().columns)
    formatter.write_dl(_COMMANDS)
    formatter.write_paragraph()
    formatter.write_text(_HELP)
    click.echo(formatter.getvalue(), err=True, nl=False)


def _confirm_drop(count: int) -> bool:
    """Ask a person whether the oldest messages may be dropped."""
    return click.confirm(f"The context is full. Drop the oldest {count} messages?", default=True, err=True)


def _file(command: str, name: str) -> Path:
    """The path of an argument; `~` is the home folder."""
    if not name:
        raise InputError(f"`{command}` needs a file name", hint=f"{command} talk.ortkit")
    try:
        return Path(name).expanduser()
    except RuntimeError as error:
        raise InputError(f"there is no home folder for `{name}`", hint="give the whole path") from error


def _message_count(chat: Chat) -> str:
    count = len(chat.messages)
    return f"{count} message" if count == 1 else f"{count} messages"
