"""`edgekit chat`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from runtime.errors import EdgekitError, InputError, TextTooLongError
from toolkit.answers import Totals, write_text
from toolkit.notes import tell_error
from toolkit.options import (
    AnswerOptions,
    answer_options,
    context_option,
    literal_option,
    rates_option,
    system_option,
    threads_option,
)
from toolkit.terminal import say
from toolkit.texts import refuse_file_path
from toolkit.turns import from_pipe, from_terminal, turns_of

if TYPE_CHECKING:
    from runtime.chat import Chat
    from runtime.sampler import Sampling
    from runtime.stream import Stream

HELP = '''\
/regenerate   another answer to the last message
/reset        begin anew
/save FILE    write the conversation to a file
/load FILE    go on with one that was saved
/help         this
/exit         leave, as Ctrl-D does

A line that ends with \\ goes on in the next one. """ opens a message of several lines, and """ at the end of a line
closes it. Ctrl-C ends an answer. A message that begins with / needs a space before it.'''


@click.command()
@click.argument("bundle", type=click.Path())
@system_option
@literal_option
@answer_options
@threads_option
@context_option
@rates_option
def chat(
    *, bundle: str, system: str | None, literal: bool, threads: int | None, context: int | None, rates: bool
) -> None:
    """Talk with a model: each line is a message, and /help lists what else there is.

    From a pipe, each line is a message too, and the first that is refused ends it.
    """
    from runtime.chat import Chat
    from runtime.decoder import Decoder

    refuse_file_path(system, "--system", literal=literal)
    options = AnswerOptions.given()
    decoder = Decoder(bundle, threads=threads, context=context)
    conversation = Conversation(
        Chat(decoder, system=system), options=options, sampling=options.sampling(decoder.sampling)
    )
    typed = sys.stdin.isatty()
    if typed:
        say(f"{decoder.bundle.manifest.name}; /help lists commands, Ctrl-D leaves", err=True)
    try:
        for turn in turns_of(from_terminal() if typed else from_pipe(sys.stdin.buffer)):
            try:
                conversation.take(turn)
            except EdgekitError as error:
                if not typed:
                    raise
                tell_error(error.message, error.hint)
            except click.Abort:
                if not typed:
                    raise
            if conversation.left:
                return
        if typed:
            click.echo(err=True)
    finally:
        conversation.totals.tell(asked=rates)


class Conversation:
    """A chat, and what is done with each turn of a person; `left` when they have left."""

    def __init__(self, chat: Chat, *, options: AnswerOptions, sampling: Sampling) -> None:
        self.chat = chat
        self.options = options
        self.sampling = sampling
        self.totals = Totals()
        self.left = False

    def take(self, turn: str) -> None:
        """Answer a message or do what a command says; raises click.Abort for an answer that was interrupted."""
        if not turn.startswith("/"):
            self.answer(turn)
            return
        name, _, argument = turn.partition(" ")
        match name, argument.strip():
            case "/regenerate", "":
                self.regenerate()
            case "/reset", "":
                self.chat.reset()
            case "/save", path if path:
                self.chat.save(file_of(path))
                click.echo(f"note: {described(self.chat)} in `{path}`", err=True)
            case "/load", path if path:
                self.chat = type(self.chat).load(file_of(path), self.chat.decoder)
                click.echo(f"note: {described(self.chat)} from `{path}`", err=True)
            case "/help", "":
                click.echo(HELP, err=True)
            case "/exit", "":
                self.left = True
            case (("/save" | "/load"), _):
                raise InputError(f"`{name}` needs the name of a file", hint=f"{name} talk.edgekit")
            case _:
                raise InputError(
                    f"there is no command `{turn}`",
                    hint="`/help` lists them; a message that begins with / needs a space before it",
                )

    def answer(self, text: str) -> None:
        """Send a message, and write the answer as it comes."""
        try:
            stream = self.chat.send(text, **vars(self.options))
        except TextTooLongError as error:
            raise InputError(error.message, hint="`/reset` begins anew") from error
        self.write(stream)

    def regenerate(self) -> None:
        from runtime.messages import ASSISTANT

        if all(message.role != ASSISTANT for message in self.chat.messages):
            raise InputError("there is no answer yet to give again", hint="say something first")
        if self.sampling.temperature == 0 or self.sampling.seed is not None:
            why = "the most probable tokens are taken" if self.sampling.temperature == 0 else "a seed was given"
            click.echo(f"note: {why}, so this will be the same answer; `--temperature 0.7` gives others", err=True)
        self.write(self.chat.regenerate(**vars(self.options)))

    def write(self, stream: Stream) -> None:
        from runtime.steps import FinishReason

        write_text(stream, sys.stdout.buffer)
        self.totals = self.totals.with_answer(stream.rates)
        if stream.finish_reason is FinishReason.CANCELLED:
            raise click.Abort
        if stream.finish_reason is FinishReason.LENGTH and self.options.max_tokens is None:
            click.echo("note: the answer ends here because no more tokens fit; `/reset` begins anew", err=True)


def file_of(name: str) -> Path:
    """The file that a person names, `~` for their home."""
    try:
        return Path(name).expanduser()
    except RuntimeError as error:
        raise InputError(f"there is no home folder for `{name}`", hint="give the whole path") from error


def described(chat: Chat) -> str:
    count = len(chat.messages)
    return f"{count} message" if count == 1 else f"{count} messages"
