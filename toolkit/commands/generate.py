"""`edgekit generate`."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, BinaryIO

import click

from runtime.errors import InputError
from runtime.targets import regular_target_of
from toolkit.answers import Answering, Totals, answer_fields, whole, write_pieces, write_text
from toolkit.inputs import InputFormat, Source
from toolkit.options import (
    AnswerOptions,
    Text,
    answer_options,
    context_option,
    field_option,
    input_format_option,
    literal_option,
    once,
    rates_option,
    system_option,
    threads_option,
)
from toolkit.pipes import carries_input, refuse_pipe_beside
from toolkit.progress import Progress, bar
from toolkit.prompts import PromptRecord, placed, read_prompts, uses_template
from toolkit.record_options import with_fields
from toolkit.streams import open_input, open_output, refuse_input
from toolkit.texts import Reading, check_argument, refuse_file_name, refuse_file_path
from toolkit.writers import object_to_json

if TYPE_CHECKING:
    from runtime.stream import Stream


@click.command()
@click.argument("bundle", type=click.Path())
@click.argument("prompt", required=False, type=Text())
@once("--input", "source", metavar="FILE", help="Read the prompt, or what follows it, from a file, `-` for stdin.")
@input_format_option("One prompt, or records with `prompt` or `messages`, whose other fields are passed through.")
@field_option
@literal_option
@click.option(
    "--chat/--no-chat",
    default=None,
    help="Ask as in a conversation, or have the text continued as it is.  [default: chat, where the model can]",
)
@system_option
@answer_options
@click.option("--json", "as_json", is_flag=True, help="An object with text, tokens, finish reason and rates.")
@click.option("--stream", "in_pieces", is_flag=True, help="With --json: an object a line for each token as it comes.")
@click.option("--logprobs", type=click.IntRange(min=0), metavar="N", help="Name the N most probable tokens each time.")
@once("--output", metavar="FILE", help="Write to a file, which appears when all is done.")
@once("--save-prefix", metavar="FILE", help="Keep what was read of the prompt in a file.")
@once("--load-prefix", metavar="FILE", help="Read only that of the prompt which such a file does not hold.")
@threads_option
@context_option
@rates_option
def generate(
    *,
    bundle: str,
    prompt: str | None,
    source: str | None,
    input_format: str,
    field: str | None,
    literal: bool,
    chat: bool | None,
    system: str | None,
    as_json: bool,
    in_pieces: bool,
    logprobs: int | None,
    output: str | None,
    save_prefix: str | None,
    load_prefix: str | None,
    threads: int | None,
    context: int | None,
    rates: bool,
) -> None:
    """Answer a question, or continue a text: an argument, a file, or what comes through a pipe.

    The answer is written as it comes; Ctrl-C ends it. The text of a file or a pipe beside PROMPT follows PROMPT.
    Records of JSON or CSV are prompts of their own, and each gets a line with its `text`.
    """
    check_usage(bundle, prompt, source, literal=literal)
    refuse_file_path(system, "--system", literal=literal)
    if in_pieces and not as_json:
        raise InputError("`--stream` is for JSON, since text comes as a stream already", hint="add `--json`")

    # Looked at before minutes are spent on an answer.
    prefix = regular_target_of(save_prefix) if save_prefix is not None else None

    from runtime.decoder import Decoder

    options = AnswerOptions.given()
    reading = Reading(InputFormat(input_format), field, source)
    with open_input(source) as stream:
        # A pipe that nobody names is read where it carries something; that is seen before the model is opened.
        follows = prompt is not None and (source is not None or carries_input(stream))
        decoder = Decoder(bundle, threads=threads, context=context)
        templated = uses_template(decoder, chat=chat, system=system)
        cache = decoder.load_cache(load_prefix) if load_prefix is not None else decoder.new_cache()
        answering = Answering(decoder, templated, system, options, logprobs or 0, cache)
        if prompt is not None and not follows:
            found: str | Iterator[PromptRecord] = prompt
        else:
            refuse_input(stream, output)
            refuse_input(stream, save_prefix, option="--save-prefix")
            found = read_prompts(Source(stream), reading, follows=follows)
        if not isinstance(found, str):
            refuse_for_lines(prompt=prompt, in_pieces=in_pieces, save_prefix=save_prefix)
            with (
                open_output(output, keeps=True) as file,
                bar(stream, enabled=True, output=output, verb="answering") as shown,
            ):
                totals = answer_lines(answering, found, file, tokens=as_json or logprobs is not None, shown=shown)
            totals.tell(asked=rates)
            return
    if logprobs is not None and not as_json:
        raise InputError("`--logprobs` are told in JSON", hint="add `--json`")
    answer = answering.begin(f"{prompt}\n\n{found}" if follows else found)
    with open_output(output, keeps=True) as file:
        if in_pieces:
            write_pieces(answer, file, decoder=decoder)
        elif as_json:
            file.write(object_to_json(answer_fields(whole(answer), answer, decoder, tokens=True)) + b"\n")
        else:
            write_text(answer, file)
        file.flush()
        Totals().with_answer(answer.rates).tell(asked=rates)
        end_if_cancelled(answer)
    if prefix is not None:
        cache.rewind(min(cache.length, len(answer.steps.prompt)))
        decoder.save_cache(prefix, cache)


def check_usage(bundle: str, prompt: str | None, source: str | None, *, literal: bool) -> None:
    """Raises InputError where nothing is asked, where a file and a pipe come together, and for the name of a file."""
    if prompt is None and source is None and sys.stdin.isatty():
        raise InputError(
            "no prompt",
            hint=f'edgekit generate {bundle} "some question", or `--input FILE`, or a pipe; '
            f"`edgekit chat {bundle}` for a conversation",
        )
    if prompt is not None:
        check_argument(prompt, "the prompt")
        if not literal:
            refuse_file_name(prompt, "prompt")
    if source is not None:
        refuse_pipe_beside(f"the input is `{source}`", source)


def refuse_for_lines(*, prompt: str | None, in_pieces: bool, save_prefix: str | None) -> None:
    """Refuse what makes no sense for prompts that are lines of JSON."""
    if prompt is not None:
        raise InputError(
            "a prompt came as an argument, and the input has prompts of its own, a line of JSON each",
            hint="leave one of them out, or add `--input-format text` to have the input follow the prompt",
        )
    if in_pieces:
        raise InputError("`--stream` is for one prompt, and these are lines of them", hint="leave out `--stream`")
    if save_prefix is not None:
        raise InputError(
            "`--save-prefix` is for one prompt, and these are lines of them", hint="save it from one first"
        )


def answer_lines(
    answering: Answering,
    records: Iterable[PromptRecord],
    file: BinaryIO,
    *,
    tokens: bool,
    shown: Progress,
) -> Totals:
    """Write a line for each prompt as soon as it is answered; an answer that was interrupted is not written."""
    totals = Totals()
    for record in records:
        with placed(record.where):
            stream = answering.begin(record.asked, with_fields(answering.options, record.fields, record.taken))
        answer = whole(stream)
        end_if_cancelled(stream)
        fields = record.fields | answer_fields(answer, stream, answering.decoder, tokens=tokens)
        file.write(object_to_json(fields) + b"\n")
        file.flush()
        shown.advance(record.size, 1)
        totals = totals.with_answer(answer.rates)
    return totals


def end_if_cancelled(stream: Stream) -> None:
    """End the command as an interrupted one, where Ctrl-C ended its answer."""
    from runtime.steps import FinishReason

    if stream.finish_reason is FinishReason.CANCELLED:
        raise click.Abort
