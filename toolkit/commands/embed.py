"""`ortkit embed`."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import click

from ...runtime.errors import InputError, TextError
from ...runtime.output_path import is_special, regular_target_of, target_of
from .bundle_names import bundle_argument
from ..console.help import ExampleCommand
from ..io.inputs import InputFormat, Source
from .options import Text, field_option, input_format_option, literal_option, once
from ..io.pipes import check_inputs
from ..console.progress import Progress, bar
from ..io.streams import open_input, open_output, refuse_input
from ..io.texts import Reading, TextRecord, from_arguments, from_stream
from ..io.warnings_report import TextWarnings
from ..io.writers import NpyPipeWriter, OutputFormat, write_ranges, writer_for

if TYPE_CHECKING:
    from ..io.embed_run import EmbedRun


@click.command(
    cls=ExampleCommand,
    sections={
        "Input": "--input --input-format --field --literal",
        "Output": "--output --format --restart",
        "Embeddings": "--prompt --dim --dtype --ranges --long --no-truncate",
    },
    examples=[
        'ortkit embed all-MiniLM-L6-v2-int8 "the pump does not start"',
        "ortkit embed all-MiniLM-L6-v2-int8 --input corpus.jsonl --output corpus.npy",
        "ortkit embed all-MiniLM-L6-v2-int8 --dtype int8 < notes.txt > embeddings.jsonl",
    ],
)
@bundle_argument()
@click.argument("texts", nargs=-1, type=Text())
@once("--input", "source", metavar="FILE", help="Read texts from FILE, `-` for stdin.")
@input_format_option("One text per line, or one per record in --field; other fields are copied to the output.")
@field_option
@literal_option
@click.option(
    "--format",
    "output_format",
    type=click.Choice([choice.value for choice in OutputFormat]),
    help="Output format.  [default: npy if FILE ends with .npy, else jsonl]",
)
@once(
    "--output",
    metavar="FILE",
    help="Write to FILE atomically. An interrupted run resumes when repeated.",
)
@click.option("--restart", is_flag=True, help="Start from the beginning instead of resuming.")
@once("--prompt", type=Text(), metavar="NAME", help="Prepend the model's prompt of this name to every text.")
@click.option(
    "--dim",
    type=click.IntRange(min=1),
    metavar="N",
    help="Truncate embeddings to N dimensions (Matryoshka) and normalize again.",
)
@click.option(
    "--dtype",
    type=click.Choice(["float32", "float16", "int8", "binary", "ubinary"]),
    default="float32",
    show_default=True,
    help="Type of the embeddings; binary and ubinary pack one bit per dimension in int8 and uint8.",
)
@once("--ranges", "ranges_file", metavar="FILE", help="Ranges for `--dtype int8`: npy, float32 (2, dimension).")
@click.option(
    "--long",
    "long_texts",
    type=click.Choice(["truncate", "error", "mean"]),
    help="Texts over the model's limit: truncate, error, or mean (average the embeddings of chunks).  "
    "[default: truncate]",
)
@click.option("--no-truncate", is_flag=True, help="Same as `--long error`.")
def embed(
    *,
    bundle: str,
    texts: tuple[str, ...],
    source: str | None,
    input_format: str,
    field: str | None,
    literal: bool,
    output_format: str | None,
    output: str | None,
    restart: bool,
    prompt: str | None,
    dim: int | None,
    dtype: str,
    ranges_file: str | None,
    long_texts: str | None,
    no_truncate: bool,
) -> None:
    """Compute embeddings of texts: arguments, a file or a pipe.

    jsonl writes one object per line, json an array of objects, npy an array (texts, dimension). In plain text every
    line is a text, empty lines too: line n of the output belongs to line n of the input. JSON, JSONL, CSV and TSV are
    detected, with the text in the field `text` or in --field.

    With --output, an invalid record does not end the run: its embedding is NaN (zeros for integer types, null in
    JSON), FILE.failed.jsonl says why, and the exit code is 1.
    """
    if not texts and source is None and sys.stdin.isatty():
        raise InputError("no texts to embed", hint=f'ortkit embed {bundle} "some text", or `--input FILE`, or a pipe')
    check_inputs(texts, source, noun="text", field=field, literal=literal)
    if output_format is None:
        output_format = "npy" if output is not None and output.endswith(".npy") else "jsonl"
    if output is None and output_format == "npy" and sys.stdout.isatty():
        raise InputError("npy is binary, and stdout is a terminal", hint="add `--output embeddings.npy`")
    if no_truncate and long_texts not in (None, "error"):
        raise InputError(f"`--no-truncate` and `--long {long_texts}` contradict each other", hint="give one of the two")

    from ...runtime.encoder.embedder import Embedder
    from ..io.embed_run import EmbedOptions, EmbedRun, read_ranges

    # Raises for an invalid output before anything is read.
    target_named(output, resumed=not texts)
    ranges = read_ranges(Path(ranges_file)) if ranges_file is not None else None
    options = EmbedOptions(
        output_format=OutputFormat(output_format),
        input_format=InputFormat(input_format),
        field=field,
        prompt=prompt,
        dim=dim,
        dtype=dtype,
        ranges_sha256=hashlib.sha256(ranges.tobytes()).hexdigest() if ranges is not None else None,
        long="error" if no_truncate else long_texts or "truncate",
    )
    run(
        lambda: EmbedRun(Embedder(bundle), options=options, ranges=ranges),
        texts,
        Reading(options.input_format, field, source),
        output=output,
        restart=restart,
    )


def run(
    open_run: Callable[[], EmbedRun], texts: Sequence[str], reading: Reading, *, output: str | None, restart: bool
) -> None:
    """Embed texts, or the input if there are none, and print the warnings."""
    from ..io.embed_file import embed_to_file, report
    from ..io.resumable import OutputFiles

    target = target_named(output, resumed=not texts)
    with open_input(reading.name) as stream, bar(stream, enabled=not texts, output=output) as shown:
        if not texts:
            refuse_input(stream, output)
        job = open_run()
        if target is not None and not texts:
            done = embed_to_file(job, stream, reading=reading, target=target, restart=restart, progress=shown)
        else:
            records = from_arguments(texts) if texts else from_stream(Source(stream), reading)
            with open_output(output) as file:
                notes, total = embed_in_order(job, records, file=file, progress=shown)
    if target is not None and not texts:
        report(job, done, target=target)
        return
    notes.print(total, job.embedder.max_length)
    covered = job.embed([]).ranges
    if covered is not None and target is not None and not is_special(target):
        write_ranges(OutputFiles(target).ranges, covered)
    elif covered is not None and job.ranges is None:
        reach = f"{covered[1, 0]:.4f}"
        click.echo(f"note: int8 covers -{reach} to {reach}, the fixed range for normalized embeddings", err=True)


def target_named(output: str | None, *, resumed: bool) -> Path | None:
    """The path of `--output`, None for stdout; raises OutputError if it cannot be written, or resumed."""
    if output is None:
        return None
    if not resumed:
        return target_of(output)
    return regular_target_of(output, hint=f"leave out `--output` and send stdout there: `> {output}`")


def embed_in_order(
    job: EmbedRun, records: Iterable[TextRecord], *, file: BinaryIO, progress: Progress
) -> tuple[TextWarnings, int]:
    """Write embeddings chunk by chunk; returns the warnings and the number of texts.

    The first invalid record raises InputError.
    """
    from ..io.embed_run import chunks_of

    empty = job.embed([]).vectors
    writer = (
        NpyPipeWriter(file, empty)
        if job.options.output_format is OutputFormat.NPY
        else writer_for(job.options.output_format, file, empty=empty)
    )
    notes, total = TextWarnings(), 0
    for chunk in chunks_of(records):
        try:
            embeddings = job.embed([record.text for record in chunk], progress=progress.within)
        except TextError as error:
            if not error.texts:
                raise
            raise job.placed(error, chunk[error.texts[0]].where) from error
        notes = notes.with_texts(chunk, embeddings)
        total += len(chunk)
        writer.write(chunk, embeddings.vectors)
        progress.advance(sum(record.size for record in chunk), len(chunk))
    writer.close()
    return notes, total
