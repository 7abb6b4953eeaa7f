"""`ortkit embed`."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ...runtime.arguments import without_none
from ...runtime.errors import InputError
from ...runtime.output_path import is_special, regular_target_of, target_of
from ..console.help import ExampleCommand
from ..console.progress import bar, bar_of
from ..io.input_format import InputFormat, Source
from ..io.pipes import check_inputs
from ..io.streams import open_input, open_output, refuse_input
from ..io.texts import InputOptions, from_arguments, from_stream
from ..io.writers import OutputFormat, write_ranges
from .bundle_names import bundle_argument
from .options import Text, field_option, input_format_option, literal_option, max_memory_option, once

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ..bulk.embed_table import NewColumns
    from ..io.embed_run import RunOptions


@click.command(
    cls=ExampleCommand,
    sections={
        "Input": "--input --input-format --field --literal",
        "Output": "--output --format --embedding-column --error-column --restart",
        "Embeddings": "--prompt --dim --dtype --ranges --long --no-truncate",
    },
    examples=[
        'ortkit embed all-MiniLM-L6-v2-int8 "the pump does not start"',
        "ortkit embed all-MiniLM-L6-v2-int8 --input corpus.jsonl --output corpus.npy",
        "ortkit embed all-MiniLM-L6-v2-int8 --dtype int8 < notes.txt > embeddings.jsonl",
        "ortkit embed all-MiniLM-L6-v2-int8 --input pages.parquet --column body --output embedded.parquet",
    ],
)
@bundle_argument()
@click.argument("texts", nargs=-1, type=Text())
@once(
    "--input",
    "source",
    metavar="FILE",
    help="Read texts from FILE, `-` for stdin; for a table also Parquet, Arrow, or a folder of Parquet files.",
)
@input_format_option("One text per line, or one per record in --field; other fields are copied to the output.")
@field_option
@literal_option
@click.option(
    "--format",
    "output_format",
    type=click.Choice([choice.value for choice in OutputFormat]),
    help="Output format.  [default: by the end of FILE: .npy, .parquet, .arrow, .feather; else jsonl]",
)
@once(
    "--output",
    metavar="FILE",
    help="Write to FILE atomically. An interrupted run resumes when repeated.",
)
@once(
    "--embedding-column",
    type=Text(),
    metavar="NAME",
    help="New column of a table for the embeddings.  [default: embedding]",
)
@once(
    "--error-column",
    type=Text(),
    metavar="NAME",
    help="New column of a table for why a row has no embedding.  [default: error]",
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
@max_memory_option
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
    embedding_column: str | None,
    error_column: str | None,
    restart: bool,
    prompt: str | None,
    dim: int | None,
    dtype: str,
    ranges_file: str | None,
    long_texts: str | None,
    no_truncate: bool,
    max_memory: int | None,
) -> None:
    """Compute embeddings of texts: arguments, a file or a pipe.

    jsonl writes one object per line, json an array of objects, npy an array (texts, dimension). In plain text every
    line is a text, empty lines too: line n of the output belongs to line n of the input. JSON, JSONL, CSV and TSV are
    detected, with the text in the field `text` or in --field.

    A table, Parquet or Arrow, keeps the columns of the input, and gets the embeddings as one more; it is written to
    --output and read from an --input file: Parquet, Arrow, CSV or plain text.

    With --output, an invalid record does not end the run: its embedding is NaN (zeros for integer types, null in
    JSON), FILE.failed.jsonl says why, and the exit code is 1.
    """
    if not texts and source is None and sys.stdin.isatty():
        raise InputError("no texts to embed", hint=f'ortkit embed {bundle} "some text", or `--input FILE`, or a pipe')
    check_inputs(texts, source, noun="text", field=field, literal=literal)
    written = OutputFormat(output_format) if output_format is not None else OutputFormat.of_name(output)
    if written.is_table:
        _check_table(texts, source=source, output=output)
    elif embedding_column is not None or error_column is not None:
        raise InputError(
            "`--embedding-column` and `--error-column` are for tables, and the output is not one",
            hint="write `--output FILE.parquet` or `FILE.arrow`",
        )
    if output is None and written is OutputFormat.NPY and sys.stdout.isatty():
        raise InputError("npy is binary, and stdout is a terminal", hint="add `--output embeddings.npy`")
    if restart and output is None:
        raise InputError("`--restart` needs `--output`", hint="without a file, every run starts from the beginning")
    if no_truncate and long_texts not in (None, "error"):
        raise InputError(f"`--no-truncate` and `--long {long_texts}` contradict each other", hint="give one of the two")

    from ..io.embed_run import RunOptions, read_ranges

    # Raises OutputError for an output that cannot be written, or not resumed, before anything is read.
    if texts or output is None:
        target = target_of(output) if output is not None else None
    else:
        target = regular_target_of(output, hint=f"leave out `--output` and send stdout there: `> {output}`")
    ranges = read_ranges(Path(ranges_file)) if ranges_file is not None else None
    options = RunOptions(
        output_format=written,
        input_format=InputFormat(input_format),
        field=field,
        prompt=prompt,
        dim=dim,
        dtype=dtype,
        ranges_sha256=hashlib.sha256(ranges.tobytes()).hexdigest() if ranges is not None else None,
        long="error" if no_truncate else long_texts or "truncate",
    )
    if written.is_table and source is not None and target is not None:
        from ..bulk.embed_table import NewColumns

        columns = NewColumns(**without_none({"embedding": embedding_column, "error": error_column}))
        _embed_table(
            bundle,
            options,
            source=source,
            target=target,
            columns=columns,
            ranges=ranges,
            restart=restart,
            max_memory=max_memory,
        )
    elif texts or target is None:
        _embed_in_order(bundle, texts, options, source=source, output=output, ranges=ranges, max_memory=max_memory)
    else:
        _embed_resumable(
            bundle,
            options,
            source=source,
            target=target,
            ranges=ranges,
            restart=restart,
            max_memory=max_memory,
        )


def _embed_in_order(
    bundle: str,
    texts: Sequence[str],
    options: RunOptions,
    *,
    source: str | None,
    output: str | None,
    ranges: NDArray[np.float32] | None,
    max_memory: int | None,
) -> None:
    """Embed arguments, or the input to stdout; the first invalid text ends the run."""
    from ...runtime.encoder.embedder import Embedder
    from ..io.embed_run import EmbedRun, embed_to_stream
    from ..io.resumable import OutputFiles

    with open_input(source) as stream, bar(stream, enabled=not texts, output=output) as progress:
        run = EmbedRun(Embedder(bundle, max_memory=max_memory), options, ranges)
        input_options = InputOptions(options.input_format, options.field, source)
        records = from_arguments(texts) if texts else from_stream(Source(stream), input_options)
        with open_output(output) as file:
            warnings, total = embed_to_stream(run, records, file, progress=progress)
    warnings.print(total, run.embedder.max_length)
    covered = run.empty.ranges
    if covered is None:
        return
    if output is not None and not is_special(target := target_of(output)):
        write_ranges(OutputFiles(target).ranges, covered)
    elif ranges is None:
        reach = f"{covered[1, 0]:.4f}"
        click.echo(f"note: int8 covers -{reach} to {reach}, the fixed range for normalized embeddings", err=True)


def _embed_resumable(
    bundle: str,
    options: RunOptions,
    *,
    source: str | None,
    target: Path,
    ranges: NDArray[np.float32] | None,
    restart: bool,
    max_memory: int | None,
) -> None:
    """Embed the input to a file; invalid records are listed, and an interrupted run resumes."""
    from ...runtime.encoder.embedder import Embedder
    from ..io.embed_file import embed_to_file, put_in_place, report
    from ..io.embed_run import EmbedRun
    from ..io.resumable import OutputFiles, StreamRecords

    with open_input(source) as stream, bar(stream, enabled=True, output=str(target)) as progress:
        refuse_input(stream, str(target))
        run = EmbedRun(Embedder(bundle, max_memory=max_memory), options, ranges)
        input_options = InputOptions(options.input_format, options.field, source)
        records = StreamRecords(stream, input_options)
        done = embed_to_file(run, records, target=target, restart=restart, progress=progress, finish=put_in_place)
    report(run, done, where=f"`{OutputFiles(target).failed}`")


def _check_table(texts: Sequence[str], *, source: str | None, output: str | None) -> None:
    """Raises InputError for a table that would be written to stdout, or made of anything but a file."""
    if output is None:
        raise InputError("a table is written to a file", hint="add `--output FILE.parquet` or `FILE.arrow`")
    if texts or source is None or source == "-":
        raise InputError(
            "a table is made of a file",
            hint="give `--input FILE`: Parquet, Arrow, CSV or plain text; or write `--output FILE.jsonl` or `.npy`",
        )


def _embed_table(
    bundle: str,
    options: RunOptions,
    *,
    source: str,
    target: Path,
    columns: NewColumns,
    ranges: NDArray[np.float32] | None,
    restart: bool,
    max_memory: int | None,
) -> None:
    """Embed a column of a table; failed rows are in a column, and an interrupted run resumes."""
    from ...runtime.encoder.embedder import Embedder
    from ..bulk.embed_table import embed_table
    from ..bulk.table_input import open_table, refuse_output
    from ..io.embed_file import report
    from ..io.embed_run import EmbedRun

    refuse_output(source, target)
    with closing(open_table(source, input_format=options.input_format, field=options.field)) as table:
        columns.check(table.schema)
        with bar_of(table.rows, output=str(target)) as progress:
            run = EmbedRun(Embedder(bundle, max_memory=max_memory), options, ranges)
            done = embed_table(run, table, columns=columns, target=target, restart=restart, progress=progress)
    report(run, done, where=f"the column `{columns.error}`")
