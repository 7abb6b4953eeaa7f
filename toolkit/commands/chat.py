"""`ortkit chat`."""

from __future__ import annotations

import sys
from collections.abc import Iterable

import click

from ...runtime.errors import OrtkitError
from ..console.help import ExampleCommand
from ..console.terminal import say
from ..io.answer_options import AnswerOptions
from ..io.chat_input import from_pipe, from_terminal, turns_of
from ..io.texts import refuse_file_path
from ..io.warnings_report import print_error
from .bundle_names import bundle_argument
from .chat_session import ChatSession, OnFull
from .memory_note import print_what_fits
from .options import (
    LENGTH_OPTIONS,
    PERFORMANCE_OPTIONS,
    SAMPLING_OPTIONS,
    answer_options,
    decoder_options,
    literal_option,
    system_option,
)


@click.command(
    cls=ExampleCommand,
    sections={
        "Conversation": "--system --literal --on-full",
        "Length": LENGTH_OPTIONS,
        "Sampling": SAMPLING_OPTIONS,
        "Performance": PERFORMANCE_OPTIONS,
    },
    examples=[
        "ortkit chat SmolLM2-135M-Instruct-int4",
        'ortkit chat SmolLM2-135M-Instruct-int4 --system "Answer in one sentence." --temperature 0.7',
        "ortkit chat SmolLM2-135M-Instruct-int4 < messages.txt",
    ],
)
@bundle_argument()
@system_option
@literal_option
@click.option(
    "--on-full",
    type=click.Choice([choice.value for choice in OnFull]),
    default="ask",
    show_default=True,
    help="When the context is full: drop the oldest turns, ask first, or stop with an error. A pipe cannot be asked.",
)
@answer_options()
@decoder_options
def chat(
    *,
    bundle: str,
    system: str | None,
    literal: bool,
    on_full: str,
    threads: int | None,
    context: int | None,
    max_memory: int | None,
    prefill: str,
    rates: bool,
) -> None:
    """Chat with a model in the terminal.

    Each line is a message; /help lists the commands. From a pipe, each line is a message too, and the first error ends
    the conversation.
    """
    from ...runtime.decoder.chat import Chat
    from ...runtime.decoder.decoder import Decoder

    refuse_file_path(system, "--system", literal=literal)
    options = AnswerOptions.from_command_line()
    decoder = Decoder(bundle, threads=threads, context=context, max_memory=max_memory, prefill=prefill)
    print_what_fits(decoder)
    typed = sys.stdin.isatty()
    session = ChatSession(
        Chat(decoder, system=system),
        options=options,
        sampling=options.sampling(decoder.sampling),
        on_full=OnFull(on_full),
        interactive=typed,
    )
    if typed:
        say(f"{decoder.bundle.manifest.name}; /help lists commands, Ctrl-D leaves", err=True)
    try:
        _converse(session, turns_of(from_terminal() if typed else from_pipe(sys.stdin.buffer)))
    finally:
        session.stats.print(requested=rates)


def _converse(session: ChatSession, turns: Iterable[str]) -> None:
    """Handle each turn; on a terminal, errors and Ctrl-C do not end the conversation."""
    for turn in turns:
        try:
            session.handle(turn)
        except OrtkitError as error:
            if not session.interactive:
                raise
            print_error(error.message, error.hint)
        except click.Abort:
            if not session.interactive:
                raise
        if session.left:
            return
    if session.interactive:
        click.echo(err=True)
