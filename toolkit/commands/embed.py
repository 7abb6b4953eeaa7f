"""`edgekit embed`."""

from __future__ import annotations

import json
import os
import sys
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Protocol

import click

from runtime.errors import InputError, NotFoundError, OutputError, TextTooLongError
from toolkit.progress import bar
from toolkit.texts import InputFormat, TextRecord, from_arguments, from_stream

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SHOWN = 4


@click.command()
@click.argument("bundle", type=click.Path())
@click.argument("texts", nargs=-1)
@click.option("--input", "source", metavar="FILE", help="Read texts from a file, `-` for stdin.")
@click.option(
    "--input-format",
    type=click.Choice([choice.value for choice in InputFormat]),
    default="auto",
    show_default=True,
    help="One text a line, or JSONL with a field `text` whose other fields are passed through.",
)
@click.option(
    "--format", "output_format", type=click.Choice(["jsonl", "json", "npy"]), default="jsonl", show_default=True
)
@click.option("--output", metavar="FILE", help="Write to a file, which appears when all is done.")
@click.option("--prompt", metavar="NAME", help="Put the model's prompt of this name before every text.")
@click.option("--dim", type=click.IntRange(min=1), metavar="N", help="Keep the first N components, normalized again.")
@click.option(
    "--long",
    "long_texts",
    type=click.Choice(["truncate", "error", "mean"]),
    help="A text longer than the model reads is cut, an error, or read in chunks whose mean it gets.  "
    "[default: truncate]",
)
@click.option("--no-truncate", is_flag=True, help="The same as `--long error`.")
def embed(
    *,
    bundle: str,
    texts: tuple[str, ...],
    source: str | None,
    input_format: str,
    output_format: str,
    output: str | None,
    prompt: str | None,
    dim: int | None,
    long_texts: str | None,
    no_truncate: bool,
) -> None:
    """Turn texts into vectors: arguments, a file, or what comes through a pipe.

    jsonl writes an object a line, json one array of them, npy a float32 array (texts, dimension). In a file or a pipe
    every line is a text, empty ones included, so that line n of the output belongs to line n of the input.
    """
    if texts and source is not None:
        raise InputError("texts came as arguments and with `--input`: give one of the two")
    if not texts and source is None and sys.stdin.isatty():
        raise InputError("no texts to embed", hint=f'edgekit embed {bundle} "some text", or `--input FILE`, or a pipe')
    if output is None and output_format == "npy" and sys.stdout.isatty():
        raise InputError("npy is binary and stdout is a terminal", hint="add `--output vectors.npy`")

    if no_truncate and long_texts not in (None, "error"):
        raise InputError(f"`--no-truncate` and `--long {long_texts}` contradict each other", hint="give one of the two")
    long = "error" if no_truncate else long_texts or "truncate"

    from runtime.embedder import Embedder

    with open_input(source) as stream, open_output(output) as file:
        embedder = Embedder(bundle)
        records = from_arguments(texts) if texts else from_stream(stream, InputFormat(input_format))
        writer = writer_for(output_format, file, dim or embedder.dimension)
        notes = Notes(embedder.max_length)
        pending: deque[TextRecord] = deque()
        stream_of_texts = embedder.stream(texts_of(records, pending), prompt=prompt, dim=dim, long=long)
        with bar(stream, enabled=not texts) as shown, long_texts_named(pending, embedder.max_length):
            for embeddings in stream_of_texts:
                chunk = [pending.popleft() for _ in embeddings.tokens]
                notes.take(chunk, [chunk[index] for index in embeddings.truncated])
                writer.write(chunk, embeddings.vectors)
                shown(sum(record.size for record in chunk))
        writer.close()
    notes.print()


def texts_of(records: Iterator[TextRecord], pending: deque[TextRecord]) -> Iterator[str]:
    """The texts of records, which wait in `pending` for their vectors."""
    for record in records:
        pending.append(record)
        yield record.text


@contextmanager
def long_texts_named(pending: deque[TextRecord], max_length: int) -> Iterator[None]:
    """Tell of a long text by where it stood in the input."""
    try:
        yield
    except TextTooLongError as error:
        raise TextTooLongError(
            f"{pending[error.texts[0]].where} is longer than the {max_length} tokens that the model reads",
            hint="split it, or choose `--long truncate` to have it cut or `--long mean` to have it read in chunks",
        ) from error


class Notes:
    """What to tell about the texts when all is done."""

    def __init__(self, max_length: int) -> None:
        self.max_length = max_length
        self.count = 0
        self.cut: list[str] = []
        self.empty: list[str] = []

    def take(self, records: list[TextRecord], cut: list[TextRecord]) -> None:
        self.count += len(records)
        self.cut += [record.where for record in cut]
        self.empty += [record.where for record in records if not record.text.strip()]

    def print(self) -> None:
        from runtime.embedder import truncation_message

        if self.cut:
            message = truncation_message(len(self.cut), self.count, self.max_length)
            click.echo(f"warning: {message} ({places(self.cut)})", err=True)
        if self.empty:
            verb = "is" if len(self.empty) == 1 else "are"
            click.echo(
                f"warning: {len(self.empty)} of {self.count} texts {verb} empty, and the vector of an empty text means "
                f"nothing ({places(self.empty)})",
                err=True,
            )


def places(where: list[str]) -> str:
    return ", ".join(where[:SHOWN]) + (", ..." if len(where) > SHOWN else "")


class Writer(Protocol):
    """Writes vectors as they come, and at the end what must come then."""

    def write(self, records: list[TextRecord], vectors: NDArray[np.float32], /) -> None: ...

    def close(self) -> None: ...


class JsonlWriter:
    """An object a line: the fields that came in, and `embedding`."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file

    def write(self, records: list[TextRecord], vectors: NDArray[np.float32]) -> None:
        for record, vector in zip(records, vectors, strict=True):
            self.file.write(to_json(record, vector) + b"\n")
        self.file.flush()

    def close(self) -> None:
        pass


class JsonWriter:
    """One array of the objects that JsonlWriter writes a line each."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.before = b"["

    def write(self, records: list[TextRecord], vectors: NDArray[np.float32]) -> None:
        for record, vector in zip(records, vectors, strict=True):
            self.file.write(self.before + b"\n  " + to_json(record, vector))
            self.before = b","

    def close(self) -> None:
        self.file.write(b"[]\n" if self.before == b"[" else b"\n]\n")


class NpyWriter:
    """A numpy file; its header says how many rows follow, so it is written when all are there."""

    def __init__(self, file: BinaryIO, dimension: int) -> None:
        self.file = file
        self.dimension = dimension
        self.vectors: list[NDArray[np.float32]] = []

    def write(self, _records: list[TextRecord], vectors: NDArray[np.float32]) -> None:
        self.vectors.append(vectors)

    def close(self) -> None:
        import numpy as np

        np.save(self.file, np.concatenate([np.empty((0, self.dimension), np.float32), *self.vectors]))


def writer_for(output_format: str, file: BinaryIO, dimension: int) -> Writer:
    if output_format == "npy":
        return NpyWriter(file, dimension)
    return JsonWriter(file) if output_format == "json" else JsonlWriter(file)


def to_json(record: TextRecord, vector: NDArray[np.float32]) -> bytes:
    # Nine significant digits give every float32 back exactly.
    numbers = ", ".join(f"{number:.9g}" for number in vector.tolist())
    fields = {name: value for name, value in record.fields.items() if name != "embedding"}
    head = json.dumps(fields, ensure_ascii=False)[:-1]
    return f'{head}, "embedding": [{numbers}]}}'.encode()


@contextmanager
def open_input(source: str | None) -> Iterator[BinaryIO]:
    if source is None or source == "-":
        yield sys.stdin.buffer
        return
    try:
        file = Path(source).open("rb")  # noqa: SIM115 - closed below, after the errors of opening are told
    except FileNotFoundError as error:
        raise NotFoundError(f"there is no file `{source}`") from error
    except OSError as error:
        raise InputError(f"`{source}` cannot be read: {error.strerror}") from error
    with file:
        yield file


@contextmanager
def open_output(output: str | None) -> Iterator[BinaryIO]:
    """Stdout, or a file beside the one that was named, which takes its place when all is written."""
    if output is None:
        yield sys.stdout.buffer
        return
    target = Path(output)
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        if target.is_dir():
            raise OutputError(f"`{output}` cannot be written: it is a folder")
        with partial.open("wb") as file:
            yield file
        partial.replace(target)
    except OSError as error:
        if isinstance(error, OutputError) or error.filename not in (None, str(partial)):
            raise
        raise OutputError(f"`{output}` cannot be written: {error.strerror}") from error
    finally:
        partial.unlink(missing_ok=True)
