"""`ortkit embed --output`: embed a file of any size in bounded memory, skip invalid records, resume."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import click

from ...runtime.bundle.bundle import MANIFEST, sha256_of
from ...runtime.bundle.writer import flush
from ...runtime.errors import InputError, OrtkitError, TextError
from ..console.progress import Progress, fresh_line
from .embed_run import EmbedRun, chunks_of
from .resumable import HashedSource, OutputFiles, ResumeState, done_before, locked, open_own, record
from .texts import Reading, RecordReader, TextRecord
from .warnings_report import TextWarnings
from .writers import Record, output_errors, write_ranges, writer_for

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ...runtime.encoder.embeddings import Embeddings


def embed_to_file(
    job: EmbedRun, stream: BinaryIO, *, reading: Reading, target: Path, restart: bool, progress: Progress
) -> ResumeState:
    """Embed the texts of a stream into a file, atomically.

    For a regular file, an interrupted run resumes unless `restart`. Raises OutputError if another process writes the
    same output, InputError if the unfinished output has another bundle, input or options.
    """
    options = job.options
    # Embed no texts: raises for an invalid prompt, type or ranges before a file is touched.
    nothing = job.embed([])
    files = OutputFiles(target)
    input_size = regular_size(stream)
    source = HashedSource(stream)
    digest = sha256_of(job.embedder.bundle.path / MANIFEST)
    done = begun = ResumeState(bundle=digest, options=options, input_size=input_size or 0)
    with output_errors(target, *files.hidden), locked(files) as file:
        if input_size is not None and not restart:
            done = done_before(files, begun, source=source)
        if done is begun:
            files.state.unlink(missing_ok=True)
        else:
            click.echo(f"{fresh_line()}note: resuming after {done.rows} completed records", err=True)
            progress.advance(done.read, 0)
        try:
            with opened_at(files.failed_partial, done.failed_size) as failures:
                file.truncate(done.output_size)
                file.seek(done.output_size)
                writer = writer_for(options.output_format, file, empty=nothing.vectors, rows=done.rows)
                reader = RecordReader(source, reading, place=None if done is begun else done.place)
                for chunk in chunks_of(reader):
                    vectors, failed, notes = embed_chunk(job, chunk, notes=done.notes, progress=progress.within)
                    writer.write(chunk, vectors, failed=failed)
                    for index, error in failed.items():
                        failures.write(failure(chunk[index], error))
                    before = done
                    done = replace(
                        done,
                        place=reader.place,
                        read=source.size,
                        read_sha256=source.hash.hexdigest(),
                        rows=done.rows + len(chunk),
                        output_size=file.tell(),
                        failed=done.failed + len(failed),
                        failed_size=failures.tell(),
                        notes=notes,
                    )
                    if input_size is not None:
                        record(files, done, file, failures)
                    progress.advance(done.read - before.read, len(chunk))
                writer.close()
                file.flush()
                os.fsync(file.fileno())
        except BaseException:
            if input_size is None or done.rows == 0:
                files.discard()
            else:
                command = "the same command without `--restart`" if restart else "the same command"
                click.echo(
                    f"{fresh_line()}note: {done.rows} records are complete; {command} resumes after them", err=True
                )
            raise
        put_in_place(files, done, ranges=nothing.ranges)
    return done


def report(job: EmbedRun, done: ResumeState, *, target: Path) -> None:
    """Print the warnings; raises OrtkitError when some records failed."""
    done.notes.print(done.rows, job.embedder.max_length)
    if done.failed:
        raise OrtkitError(
            f"{done.failed} of {done.rows} records failed and have no embedding",
            hint=f"`{OutputFiles(target).failed}` has the reason for each",
        )


def embed_chunk(
    job: EmbedRun, chunk: Sequence[Record], *, notes: TextWarnings, progress: Callable[[int], None]
) -> tuple[NDArray[Any], dict[int, InputError], TextWarnings]:
    """Embed a chunk: a row for each record, the errors of failed ones by index, and the warnings so far."""
    import numpy as np

    failed = {index: found.error for index, found in enumerate(chunk) if not isinstance(found, TextRecord)}
    texts = {index: found for index, found in enumerate(chunk) if isinstance(found, TextRecord)}
    embeddings = embed_usable(job, texts, failed, progress)
    good = list(texts.values())
    notes = notes.with_texts(good, embeddings)
    if not failed:
        return embeddings.vectors, failed, notes
    vectors = np.empty((len(chunk), embeddings.vectors.shape[1]), embeddings.vectors.dtype)
    vectors[list(texts)] = embeddings.vectors
    return vectors, dict(sorted(failed.items())), notes


def embed_usable(
    job: EmbedRun, texts: dict[int, TextRecord], failed: dict[int, InputError], progress: Callable[[int], None]
) -> Embeddings:
    """Embed the valid texts; move the others from `texts` to `failed`, all with the same error at once."""
    try:
        return job.embed([found.text for found in texts.values()], progress=progress)
    except TextError as error:
        if not error.texts:
            raise
        for index in [list(texts)[place] for place in error.texts]:
            failed[index] = job.placed(error, texts.pop(index).where)
    return embed_usable(job, texts, failed, progress)


def failure(found: Record, error: InputError) -> bytes:
    """A line of FILE.failed.jsonl."""
    noun, number = found.where.split(" ")
    return json.dumps({noun: int(number), "error": error.message}, ensure_ascii=False).encode() + b"\n"


def opened_at(path: Path, size: int) -> BinaryIO:
    """Open a file to append after its first `size` bytes; the rest is cut off."""
    if size == 0:
        path.unlink(missing_ok=True)
    file = os.fdopen(open_own(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), "ab")
    file.truncate(size)
    file.seek(size)
    return file


def regular_size(stream: BinaryIO) -> int | None:
    """The size of a regular file; None for a pipe, which cannot be read again."""
    try:
        status = os.fstat(stream.fileno())
    except (OSError, AttributeError):
        return None
    return status.st_size if stat.S_ISREG(status.st_mode) else None


def put_in_place(files: OutputFiles, done: ResumeState, *, ranges: NDArray[np.float32] | None) -> None:
    """Rename the hidden files to the output and the list of failures, and delete the state."""
    if done.failed:
        files.failed_partial.replace(files.failed)
    else:
        # One of an earlier run is not about this output.
        files.failed.unlink(missing_ok=True)
    if ranges is not None:
        write_ranges(files.ranges, ranges)
    files.partial.replace(files.target)
    flush(files.target.parent)
    files.discard()
