"""`ortkit generate`."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, BinaryIO

import click

from ...runtime.errors import InputError, OutOfMemoryError
from ...runtime.output_path import regular_target_of
from ..console.help import ExampleCommand
from ..console.progress import Progress, bar
from ..io.answer_options import AnswerOptions
from ..io.answer_output import GenerationStats, Generator, answer_fields, complete_answer, write_text, write_token_lines
from ..io.grammar_options import compile_grammar, read_grammar
from ..io.input_format import InputFormat, Source
from ..io.pipes import carries_input, refuse_pipe_beside
from ..io.prompts import PromptRecord, located, read_prompts, uses_template
from ..io.record_options import RESPONSE_FORMAT, with_fields
from ..io.streams import open_input, open_output, refuse_input
from ..io.texts import InputOptions, check_argument, refuse_file_name, refuse_file_path
from ..io.writers import object_to_json
from .bundle_names import bundle_argument
from .memory_note import print_what_fits
from .options import (
    LENGTH_OPTIONS,
    PERFORMANCE_OPTIONS,
    SAMPLING_OPTIONS,
    Text,
    answer_options,
    decoder_options,
    input_format_option,
    literal_option,
    once,
    system_option,
)

if TYPE_CHECKING:
    from ...runtime.decoder.decoder import Decoder
    from ...runtime.decoder.stream import Stream


@click.command(
    cls=ExampleCommand,
    sections={
        "Prompt": "--input --input-format --field --literal --chat --raw --system",
        "Length": LENGTH_OPTIONS,
        "Sampling": SAMPLING_OPTIONS,
        "Structured output": "--json-schema --regex --grammar",
        "Output": "--json --stream --logprobs --output",
        "Performance": f"{PERFORMANCE_OPTIONS} --save-prefix --load-prefix",
    },
    examples=[
        'ortkit generate SmolLM2-135M-Instruct-int4 "Why is the sky blue?"',
        'ortkit generate SmolLM2-135M-Instruct-int4 "Summarize this text:" --input notes.txt --max-tokens 100',
        'ortkit generate SmolLM2-135M-Instruct-int4 --raw "Once upon a time" --temperature 0.7',
        'ortkit generate SmolLM2-135M-Instruct-int4 "Is the sky blue?" --regex "(yes|no)"',
        "ortkit generate SmolLM2-135M-Instruct-int4 < questions.jsonl > answers.jsonl",
    ],
)
@bundle_argument()
@click.argument("prompt", required=False, type=Text())
@once(
    "--input", "source", metavar="FILE", help="FILE with the prompt, or with text to append to PROMPT; `-` for stdin."
)
@input_format_option("One prompt, or records with `prompt` or `messages`; other fields are copied to the output.")
@once(
    "--field",
    type=Text(),
    metavar="NAME",
    help="JSON field or CSV column that holds the prompt.  [default: `prompt` or `messages`]",
)
@literal_option
@click.option(
    "--chat/--raw",
    default=None,
    help="Apply the chat template, or continue the raw text.  [default: --chat if the bundle has a template]",
)
@system_option
@answer_options()
@once("--json-schema", metavar="FILE", help="Answer in JSON that follows the JSON schema in FILE.")
@once("--regex", type=Text(), metavar="R", help="Answer with a text that matches the regular expression R as a whole.")
@once("--grammar", metavar="FILE", help="Answer with a text of the Lark grammar in FILE.")
@click.option(
    "--json", "as_json", is_flag=True, help="Print a JSON object with text, tokens, finish reason, usage and rates."
)
@click.option(
    "--stream", "token_lines", is_flag=True, help="With --json: print one JSON object per token as it is generated."
)
@click.option(
    "--logprobs",
    type=click.IntRange(min=0),
    metavar="N",
    help="With --json: add the N most probable tokens at each position.",
)
@once("--output", metavar="FILE", help="Write to FILE atomically.")
@once("--save-prefix", metavar="FILE", help="Save the prompt's KV cache to FILE.")
@once("--load-prefix", metavar="FILE", help="Reuse a KV cache saved with --save-prefix.")
@decoder_options
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
    json_schema: str | None,
    regex: str | None,
    grammar: str | None,
    as_json: bool,
    token_lines: bool,
    logprobs: int | None,
    output: str | None,
    save_prefix: str | None,
    load_prefix: str | None,
    threads: int | None,
    context: int | None,
    max_memory: int | None,
    prefill: str,
    rates: bool,
) -> None:
    """Generate text from a prompt: an argument, a file or a pipe.

    If the bundle has a chat template, the prompt is sent as a user message, as `decoder.chat` does in Python; with
    --raw the model continues it as it is, as `decoder.generate` does. The answer is printed as it is generated;
    Ctrl-C ends it. A file or a pipe beside PROMPT is appended to PROMPT. JSON and CSV records are prompts of their
    own, each answered with one JSON line.
    """
    _check_usage(bundle, prompt, source, literal=literal)
    refuse_file_path(system, "--system", literal=literal)
    if token_lines and not as_json:
        raise InputError("`--stream` needs `--json`: plain text is streamed already", hint="add `--json`")

    # Checked before minutes are spent on an answer.
    prefix = regular_target_of(save_prefix) if save_prefix is not None else None

    from ...runtime.decoder.decoder import Decoder

    options = AnswerOptions.from_command_line()
    follow = read_grammar(json_schema, regex, grammar)
    input_options = InputOptions(InputFormat(input_format), field, source)
    with open_input(source) as stream:
        # Without `--input`, a pipe is read if it carries input; this is decided before the model is loaded.
        follows = prompt is not None and (source is not None or carries_input(stream))
        decoder = Decoder(bundle, threads=threads, context=context, max_memory=max_memory, prefill=prefill)
        print_what_fits(decoder)
        templated = uses_template(decoder, chat=chat, system=system)
        compiled = compile_grammar(decoder, follow)
        cache = decoder.load_cache(load_prefix) if load_prefix is not None else decoder.new_cache()
        generator = Generator(decoder, templated, system, options, logprobs or 0, cache, compiled)
        if prompt is not None and not follows:
            found: str | Iterator[PromptRecord] = prompt
        else:
            refuse_input(stream, output)
            refuse_input(stream, save_prefix, option="--save-prefix")
            found = read_prompts(Source(stream), input_options, follows=follows)
        if not isinstance(found, str):
            _refuse_for_lines(prompt=prompt, token_lines=token_lines, save_prefix=save_prefix)
            with (
                open_output(output, keeps=True) as file,
                bar(stream, enabled=True, output=output, verb="answering") as shown,
            ):
                stats = _answer_lines(generator, found, file, tokens=as_json or logprobs is not None, shown=shown)
            stats.print(requested=rates)
            return
    if logprobs is not None and not as_json:
        raise InputError("`--logprobs` needs `--json`", hint="add `--json`")
    answer = generator.start(f"{prompt}\n\n{found}" if follows else found)
    with open_output(output, keeps=True) as file:
        if token_lines:
            write_token_lines(answer, file, decoder=decoder)
        elif as_json:
            _write_object(answer, decoder, file)
        else:
            write_text(answer, file)
        file.flush()
        GenerationStats().with_answer(answer.rates).print(requested=rates)
        _end_if_cancelled(answer)
    if prefix is not None:
        cache.rewind(min(cache.length, len(answer.steps.prompt)))
        decoder.save_cache(prefix, cache)


def _write_object(stream: Stream, decoder: Decoder, file: BinaryIO) -> None:
    """Write the answer as one JSON object, also the one so far where memory ran out in the middle of it."""
    fields, error = _answered(stream, decoder, tokens=True)
    file.write(object_to_json(fields) + b"\n")
    if error is not None:
        file.flush()
        raise error


def _answered(stream: Stream, decoder: Decoder, *, tokens: bool) -> tuple[dict[str, object], OutOfMemoryError | None]:
    """The JSON fields of the whole answer.

    Where memory runs out in the middle of it, those of the answer so far, with a field `error` and without a finish
    reason, and the error, for the caller to raise once they are written.
    """
    from ...runtime.decoder.stream import Answer

    try:
        return answer_fields(complete_answer(stream), stream, decoder, tokens=tokens), None
    except OutOfMemoryError as error:
        if not isinstance(error.answer, Answer):
            raise
        fields = answer_fields(error.answer, stream, decoder, tokens=tokens)
        about = {"message": error.message, "hint": error.hint, "exit_code": error.exit_code}
        return fields | {"error": about}, error


def _check_usage(bundle: str, prompt: str | None, source: str | None, *, literal: bool) -> None:
    """Raises InputError without a prompt, for a file together with a pipe, and for a prompt that names a file."""
    if prompt is None and source is None and sys.stdin.isatty():
        raise InputError(
            "no prompt",
            hint=f'ortkit generate {bundle} "some question", or `--input FILE`, or a pipe; '
            f"`ortkit chat {bundle}` for a conversation",
        )
    if prompt is not None:
        check_argument(prompt, "the prompt")
        if not literal:
            refuse_file_name(prompt, "prompt")
    if source is not None:
        refuse_pipe_beside(f"the input is `{source}`", source)


def _refuse_for_lines(*, prompt: str | None, token_lines: bool, save_prefix: str | None) -> None:
    """Raises InputError for options that need a single prompt."""
    if prompt is not None:
        raise InputError(
            "PROMPT was given, and the input has prompts of its own, one per record",
            hint="leave one of them out, or add `--input-format text` to append the input to PROMPT",
        )
    if token_lines:
        raise InputError("`--stream` needs a single prompt, and the input has many", hint="leave out `--stream`")
    if save_prefix is not None:
        raise InputError(
            "`--save-prefix` needs a single prompt, and the input has many", hint="save it with a single prompt first"
        )


def _answer_lines(
    generator: Generator,
    records: Iterable[PromptRecord],
    file: BinaryIO,
    *,
    tokens: bool,
    shown: Progress,
) -> GenerationStats:
    """Write a line per prompt as soon as it is answered, except an answer that Ctrl-C ended.

    Of one in the middle of which memory ran out, what there is of it is written, and the error is raised.
    """
    stats = GenerationStats()
    for record in records:
        with located(record.where):
            asked = None if RESPONSE_FORMAT in record.taken else record.fields.get(RESPONSE_FORMAT)
            options = with_fields(generator.options, record.fields, record.taken)
            stream = generator.start(record.prompt, options, response_format=asked)
        fields, error = _answered(stream, generator.decoder, tokens=tokens)
        _end_if_cancelled(stream)
        file.write(object_to_json(record.fields | fields) + b"\n")
        file.flush()
        if error is not None:
            raise error
        shown.advance(record.size, 1)
        stats = stats.with_answer(stream.rates)
    return stats


def _end_if_cancelled(stream: Stream) -> None:
    """Raises click.Abort if Ctrl-C ended the answer."""
    from ...runtime.decoder.token_choice import FinishReason

    if stream.finish_reason is FinishReason.CANCELLED:
        raise click.Abort
