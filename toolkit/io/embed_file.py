"""`ortkit embed --output`: embed a file of any size in bounded memory, skip invalid records, resume."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import click

from ...runtime.errors import InputError, OrtkitError
from ...runtime.output_path import flush_folder
from ..console.progress import Progress, fresh_line
from .embed_run import EmbedRun, embed_records
from .resumable import OutputFiles, ResumableRecords, ResumeState, locked, open_regular, resume_state, save_state
from .writers import Record, output_errors, write_ranges, writer_for

Finish = Callable[[OutputFiles, ResumeState, BinaryIO], None]
"""Makes the output of the complete rows, which the file holds."""


def embed_to_file(
    run: EmbedRun,
    records: ResumableRecords,
    *,
    target: Path,
    restart: bool,
    progress: Progress,
    finish: Finish,
) -> ResumeState:
    """Embed the texts of an input into a file, atomically.

    If the input can be read again, an interrupted run resumes unless `restart`. Raises OutputError if another process
    writes the same output, InputError if the unfinished output has another bundle, input or options.
    """
    options, empty = run.options, run.empty
    files = OutputFiles(target)
    input_size = records.input_size
    done = begun = ResumeState(bundle=run.embedder.bundle.digest, options=options, input_size=input_size or 0)
    with output_errors(target, *files.hidden), locked(files) as file:
        if input_size is not None and not restart:
            done = resume_state(files, begun, records=records)
        if done is begun:
            files.state.unlink(missing_ok=True)
        else:
            click.echo(f"{fresh_line()}note: resuming after {done.rows} completed records", err=True)
            progress.advance(done.read, 0)
        try:
            with _open_at(files.failed_partial, done.failed_size) as failures:
                file.truncate(done.output_size)
                file.seek(done.output_size)
                writer = writer_for(options.output_format, file, empty=empty.vectors, rows=done.rows)
                found = records.records(None if done is begun else done.position)
                for chunk in embed_records(run, found, writer, progress=progress, strict=False):
                    for index, error in chunk.failed.items():
                        row = done.rows + index if options.output_format.is_table else None
                        failures.write(_failure_line(chunk.records[index], error, row=row))
                    before = done
                    done = replace(
                        done,
                        position=records.position,
                        read=records.size,
                        read_sha256=records.digest,
                        rows=done.rows + len(chunk.records),
                        output_size=file.tell(),
                        failed=done.failed + len(chunk.failed),
                        failed_size=failures.tell(),
                        warnings=done.warnings + chunk.warnings,
                    )
                    if input_size is not None:
                        save_state(files, done, file, failures)
                    progress.advance(done.read - before.read, len(chunk.records))
                file.flush()
                os.fsync(file.fileno())
            if empty.ranges is not None:
                write_ranges(files.ranges, empty.ranges)
            finish(files, done, file)
        except BaseException:
            if input_size is None or done.rows == 0:
                files.discard()
            else:
                command = "the same command without `--restart`" if restart else "the same command"
                click.echo(
                    f"{fresh_line()}note: {done.rows} records are complete; {command} resumes after them", err=True
                )
            raise
        files.discard()
    return done


def report(run: EmbedRun, done: ResumeState, *, where: str) -> None:
    """Print the warnings; raises OrtkitError when some records failed, whose reasons are `where`."""
    done.warnings.print(done.rows, run.embedder.max_length)
    if done.failed:
        raise OrtkitError(
            f"{done.failed} of {done.rows} records failed and have no embedding",
            hint=f"{where} has the reason for each",
        )


def _failure_line(found: Record, error: InputError, *, row: int | None) -> bytes:
    """A line of FILE.failed.jsonl; with `row`, counted from 0, for the column of a table."""
    if row is not None:
        return json.dumps([row, error.message]).encode() + b"\n"
    noun, number = found.where.split(" ")
    return json.dumps({noun: int(number), "error": error.message}, ensure_ascii=False).encode() + b"\n"


def _open_at(path: Path, size: int) -> BinaryIO:
    """Open a file to append after its first `size` bytes; the rest is truncated."""
    if size == 0:
        path.unlink(missing_ok=True)
    file = os.fdopen(open_regular(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), "ab")
    file.truncate(size)
    file.seek(size)
    return file


def put_in_place(files: OutputFiles, done: ResumeState, _file: BinaryIO) -> None:
    """Rename the hidden files to the output and the list of failures."""
    if done.failed:
        files.failed_partial.replace(files.failed)
    else:
        # Left by an earlier run.
        files.failed.unlink(missing_ok=True)
    files.partial.replace(files.target)
    flush_folder(files.target.parent)
