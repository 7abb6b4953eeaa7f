"""Embed and write records chunk by chunk, for stdout and files; read range files."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from ...runtime.errors import InputError, NotFoundError, TextError, TextTooLongError
from .input_format import InputFormat
from .texts import TextRecord
from .warnings_report import TextWarnings
from .writers import NpyPipeWriter, OutputFormat, Record, Writer, writer_for

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ...runtime.encoder.embedder import Embedder
    from ...runtime.encoder.embeddings import Embeddings
    from ..console.progress import Progress

_FIRST_CHUNK = 8
_CHUNK_SECONDS = 1.0
_GROWTH = 4.0
"""Largest growth of the chunk size from one chunk to the next."""


@dataclass(frozen=True)
class RunOptions:
    """Options that determine the output, with the bundle and the texts; a resumed run must have the same."""

    output_format: OutputFormat
    input_format: InputFormat
    field: str | None
    prompt: str | None
    dim: int | None
    dtype: str
    ranges_sha256: str | None
    long: str


@dataclass(frozen=True)
class EmbedRun:
    """An embedder with the options of a run."""

    embedder: Embedder
    options: RunOptions
    ranges: NDArray[np.float32] | None

    @cached_property
    def empty(self) -> Embeddings:
        """The embeddings of no texts: shape, type and ranges of the output. Raises InputError for invalid options."""
        return self.embed([])

    def embed(self, texts: Sequence[str], *, progress: Callable[[int], None] | None = None) -> Embeddings:
        options = self.options
        return self.embedder.embed_with_report(
            texts,
            prompt=options.prompt,
            dim=options.dim,
            dtype=options.dtype,
            ranges=self.ranges,
            long=options.long,
            progress=progress,
        )

    def located(self, error: TextError, where: str) -> InputError:
        """The error with the text's place in the input."""
        if isinstance(error, TextTooLongError):
            return TextTooLongError(
                f"{where} is longer than the model's limit of {self.embedder.max_length} tokens",
                hint="split it, or use `--long truncate`, or `--long mean` to average the embeddings of its chunks",
            )
        return InputError(f"{where} {error.fault}", hint=error.hint)


@dataclass(frozen=True)
class EmbeddedChunk:
    """Records that are embedded and written, and the errors of failed ones by index."""

    records: list[Record]
    failed: dict[int, InputError]
    warnings: TextWarnings
    """About these records."""


def embed_records(
    run: EmbedRun, records: Iterable[Record], writer: Writer, *, progress: Progress, strict: bool
) -> Iterator[EmbeddedChunk]:
    """Embed and write records chunk by chunk; closes the writer after the last one.

    With `strict`, the first text that cannot be embedded raises InputError; otherwise it is listed as failed.
    """
    for chunk in _chunks_of(records, characters=run.embedder.chunk_characters):
        vectors, failed, warnings = embed_chunk(run, chunk, progress=progress.within, strict=strict)
        writer.write(chunk, vectors, failed=failed)
        yield EmbeddedChunk(chunk, failed, warnings)
    writer.close()


def embed_to_stream(
    run: EmbedRun, records: Iterable[Record], file: BinaryIO, *, progress: Progress
) -> tuple[TextWarnings, int]:
    """Embed texts to stdout, a pipe or a new file; returns the warnings and the number of texts.

    The first invalid record raises InputError, when those before it are written.
    """
    output_format, empty = run.options.output_format, run.empty.vectors
    writer = (
        NpyPipeWriter(file, empty)
        if output_format is OutputFormat.NPY
        else writer_for(output_format, file, empty=empty)
    )
    warnings, total = TextWarnings(), 0
    for chunk in embed_records(run, records, writer, progress=progress, strict=True):
        warnings += chunk.warnings
        total += len(chunk.records)
        progress.advance(sum(record.size for record in chunk.records), len(chunk.records))
    return warnings, total


def embed_chunk(
    run: EmbedRun, chunk: Sequence[Record], *, progress: Callable[[int], None] | None = None, strict: bool = False
) -> tuple[NDArray[Any], dict[int, InputError], TextWarnings]:
    """Embed a chunk: a row for each record, the errors of failed ones by index, and the warnings."""
    import numpy as np

    failed = {index: found.error for index, found in enumerate(chunk) if not isinstance(found, TextRecord)}
    texts = {index: found for index, found in enumerate(chunk) if isinstance(found, TextRecord)}
    embeddings = _embed_valid(run, texts, failed, progress=progress, strict=strict)
    warnings = TextWarnings.of(list(texts.values()), embeddings)
    if not failed:
        return embeddings.vectors, failed, warnings
    vectors = np.empty((len(chunk), embeddings.vectors.shape[1]), embeddings.vectors.dtype)
    vectors[list(texts)] = embeddings.vectors
    return vectors, dict(sorted(failed.items())), warnings


def _embed_valid(
    run: EmbedRun,
    texts: dict[int, TextRecord],
    failed: dict[int, InputError],
    *,
    progress: Callable[[int], None] | None,
    strict: bool,
) -> Embeddings:
    """Embed the valid texts; move the others from `texts` to `failed`, all with the same error at once."""
    while True:
        try:
            return run.embed([found.text for found in texts.values()], progress=progress)
        except TextError as error:
            if not error.texts:
                raise
            places = [list(texts)[place] for place in error.texts]
            if strict:
                raise run.located(error, texts[places[0]].where) from error
            for place in places:
                found = texts.pop(place)
                failed[place] = run.located(error, found.subject or found.where)


def _chunks_of(records: Iterable[Record], *, characters: int) -> Iterator[list[Record]]:
    """Yield chunks of records to embed together: 8 at first, then as many as take about a second, up to 1,024.

    A chunk ends early after so many `characters`.

    Small chunks show and save progress early, large ones are faster, since a batch holds texts of equal length. When
    `records` raises, the records before are yielded first.
    """
    from ...runtime.encoder.base import CHUNK

    count = min(_FIRST_CHUNK, CHUNK)
    chunk: list[Record] = []
    size = 0
    try:
        for record in records:
            chunk.append(record)
            size += record.size
            if len(chunk) < count and size < characters:
                continue
            began = time.monotonic()
            yield chunk
            faster = _CHUNK_SECONDS / max(time.monotonic() - began, 1e-9)
            count = max(1, min(CHUNK, int(len(chunk) * min(faster, _GROWTH))))
            chunk, size = [], 0
    except Exception:
        if chunk:
            yield chunk
        raise
    if chunk:
        yield chunk


def read_ranges(path: Path) -> NDArray[np.float32]:
    """Read the ranges of int8 from an npy file; the embedder checks their shape."""
    import numpy as np

    try:
        with path.open("rb") as file:
            ranges = np.lib.format.read_array(file, allow_pickle=False)
    except FileNotFoundError as error:
        raise NotFoundError(f"there is no file `{path}`") from error
    except ValueError as error:
        raise InputError(
            f"`{path}` is not an npy file", hint="`--ranges` takes the .ranges.npy file of a run with `--dtype int8`"
        ) from error
    if not np.issubdtype(ranges.dtype, np.number):
        raise InputError(f"`{path}` must hold numbers, not {ranges.dtype}")
    return np.asarray(ranges, np.float32)
