"""Any number of texts to a file: in bounded memory, past lines that hold no text, continued after a kill."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import click

from runtime.bundle import MANIFEST, sha256_of
from runtime.bundle_writer import flush
from runtime.errors import EdgekitError, InputError, TextError
from toolkit.job import Job, chunks_of
from toolkit.progress import Progress, fresh_line
from toolkit.resumable import Done, Files, HashedSource, done_before, locked, open_own, record
from toolkit.texts import Reading, RecordReader, TextRecord
from toolkit.warnings_report import Notes
from toolkit.writers import Record, output_errors, write_ranges, writer_for

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from runtime.results import Embeddings


def embed_to_file(
    job: Job, stream: BinaryIO, *, reading: Reading, target: Path, restart: bool, progress: Progress
) -> Done:
    """Embed the texts of a stream into a file, which appears when all is done; returns how it went.

    What was done before of a regular file is not done again, unless `restart`. `progress` is told what is done. Raises
    OutputError when another process writes the same output, InputError when it was begun with something else.
    """
    options = job.options
    # No text at all: a prompt, a type or ranges that cannot be used end it before a file is touched.
    nothing = job.embed([])
    files = Files(target)
    input_size = regular_size(stream)
    bundle = sha256_of(job.embedder.bundle.path / MANIFEST)
    source = HashedSource(stream)
    done = begun = Done(bundle=bundle, options=options, input_size=input_size or 0)
    with output_errors(target, *files.hidden), locked(files) as file:
        if input_size is not None and not restart:
            done = done_before(files, begun, source=source)
        if done is begun:
            files.state.unlink(missing_ok=True)
        else:
            click.echo(f"{fresh_line()}note: {done.rows} records were done before, and it goes on after them", err=True)
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
                click.echo(f"{fresh_line()}note: {done.rows} records are done; {command} goes on after them", err=True)
            raise
        put_in_place(files, done, ranges=nothing.ranges)
    return done


def report(job: Job, done: Done, *, target: Path) -> None:
    """Tell what is to tell about the texts; raises EdgekitError when some records failed."""
    done.notes.print(done.rows, job.embedder.max_length)
    if done.failed:
        raise EdgekitError(
            f"{done.failed} of {done.rows} records failed and have no vector",
            hint=f"`{Files(target).failed}` says why, a line for each",
        )


def embed_chunk(
    job: Job, chunk: Sequence[Record], *, notes: Notes, progress: Callable[[int], None]
) -> tuple[NDArray[Any], dict[int, InputError], Notes]:
    """A row for each record, those that failed by their place, and the notes with what is to tell of the others."""
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
    job: Job, texts: dict[int, TextRecord], failed: dict[int, InputError], progress: Callable[[int], None]
) -> Embeddings:
    """Embed what can be; the others go from `texts` to `failed`, all that have the same fault at once."""
    try:
        return job.embed([found.text for found in texts.values()], progress=progress)
    except TextError as error:
        if not error.texts:
            raise
        for index in [list(texts)[place] for place in error.texts]:
            failed[index] = job.placed(error, texts.pop(index).where)
    return embed_usable(job, texts, failed, progress)


def failure(found: Record, error: InputError) -> bytes:
    """A line of the list of failed records."""
    noun, number = found.where.split(" ")
    return json.dumps({noun: int(number), "error": error.message}, ensure_ascii=False).encode() + b"\n"


def opened_at(path: Path, size: int) -> BinaryIO:
    """A file to be written on after its first `size` bytes, the rest of it cut off."""
    if size == 0:
        path.unlink(missing_ok=True)
    file = os.fdopen(open_own(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), "ab")
    file.truncate(size)
    file.seek(size)
    return file


def regular_size(stream: BinaryIO) -> int | None:
    """The size of a regular file; None for what cannot be read again, such as a pipe."""
    try:
        status = os.fstat(stream.fileno())
    except (OSError, AttributeError):
        return None
    return status.st_size if stat.S_ISREG(status.st_mode) else None


def put_in_place(files: Files, done: Done, *, ranges: NDArray[np.float32] | None) -> None:
    """Make the hidden files the output and the list of failures, and forget that there was something to continue."""
    if done.failed:
        files.failed_partial.replace(files.failed)
    else:
        # What an earlier run left is not about this output.
        files.failed.unlink(missing_ok=True)
    if ranges is not None:
        write_ranges(files.ranges, ranges)
    files.partial.replace(files.target)
    flush(files.target.parent)
    files.discard()
