"""`ortkit index`."""

from __future__ import annotations

import dataclasses
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ...runtime.errors import InputError, NotFoundError, OrtkitError
from ...runtime.sizes import megabytes
from ..console.help import ExampleCommand
from ..console.progress import HEARTBEAT, REDRAW, counted, duration, rated, show
from ..console.terminal import say
from ..io.writers import object_to_json
from .bundle_names import BundleType
from .index_report import described_rules
from .options import Size, Text, max_memory_option, once

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ...runtime.encoder.embedder import Embedder
    from ..search.facts import IndexFacts, IndexProgress, UpdateReport
    from ..search.folder import FolderRules, SkippedFile

_WIDTH = 20
"""Characters of the progress bar."""
_SHOWN_REASONS = 5
_SHOWN_FILES = 3
"""Files that are named for each reason, without --verbose."""


@click.command(
    cls=ExampleCommand,
    sections={
        "Files": "--include --exclude --hidden --max-file-size",
        "Chunks": "--chunk-tokens --overlap",
        "Output": "--output --restart --json --verbose",
    },
    examples=[
        "ortkit index ./manuals --bundle all-MiniLM-L6-v2-int8 -o manuals.index",
        "ortkit index ./manuals -o manuals.index",
        'ortkit index ./work --bundle all-MiniLM-L6-v2-int8 -o work.index --include "*.md" --exclude "drafts/"',
    ],
)
@click.argument("folder", metavar="FOLDER")
@click.option(
    "--bundle", type=BundleType(), metavar="BUNDLE", help="The embedder.  [default: that of the index, if there is one]"
)
@once("--output", "-o", metavar="INDEX", required=True, help="The index: a folder, which is made or updated.")
@click.option(
    "--include",
    multiple=True,
    type=Text(),
    metavar="GLOB",
    help="Read only files that match, such as `*.md` or `docs/`; may be repeated.",
)
@click.option(
    "--exclude",
    multiple=True,
    type=Text(),
    metavar="GLOB",
    help="Leave out files and folders that match, as a line of .ortkitignore does; may be repeated.",
)
@click.option("--hidden", is_flag=True, help="Read caches, and files and folders whose names begin with a dot, too.")
@click.option(
    "--max-file-size", type=Size(), metavar="SIZE", help="Leave out larger files, such as 5M.  [default: 64M]"
)
@click.option(
    "--chunk-tokens",
    type=click.IntRange(min=1),
    metavar="N",
    help="Largest number of tokens of a chunk.  [default: by the embedder's limit]",
)
@click.option(
    "--overlap",
    type=click.IntRange(min=0),
    metavar="N",
    help="Tokens that a chunk repeats of the one before.  [default: by the length of chunks]",
)
@click.option(
    "--restart",
    is_flag=True,
    help="Build it again: needed for another bundle, folder or length of chunks.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the report as a JSON object.")
@click.option("--verbose", is_flag=True, help="List all skipped files, each with its reason.")
@max_memory_option
def index(
    *,
    folder: str,
    bundle: str | None,
    output: str,
    include: tuple[str, ...],
    exclude: tuple[str, ...],
    hidden: bool,
    max_file_size: int | None,
    chunk_tokens: int | None,
    overlap: int | None,
    restart: bool,
    as_json: bool,
    verbose: bool,
    max_memory: int | None,
) -> None:
    """Index the files of a folder for `ortkit search` and `ortkit ask`; again, to update the index.

    Reads text, Markdown, HTML, CSV, JSONL and source code, and with the extra `docs` PDF and DOCX. An update reads and
    embeds only what changed, and removes what was deleted. Files that cannot be read are listed and left out. An
    interrupted run resumes when repeated. Patterns are those of .gitignore, and so are the files .ortkitignore in the
    folder. The index keeps the bundle and the options of Files and Chunks: what is not given stays, with --restart too.
    With any of the options of Files, all of them are replaced.
    """
    from ..search.index import Index

    embedder = _embedder(bundle, output, max_memory, restart=restart)
    rules = _rules(include, exclude, max_file_size, hidden=hidden)
    with (
        indexing_progress() as progress,
        Index.build(
            output,
            folder,
            embedder,
            rules=rules,
            chunk_tokens=chunk_tokens,
            overlap=overlap,
            restart=restart,
            progress=progress,
        ) as built,
    ):
        report, facts = built.update_report, built.facts
    if report is None:
        raise AssertionError("an index that was built has a report")
    _print_skipped(report, verbose=verbose)
    if as_json:
        sys.stdout.buffer.write(object_to_json(_report_fields(report, facts)) + b"\n")
    else:
        _print_report(report, facts, output)


def _rules(
    include: tuple[str, ...], exclude: tuple[str, ...], max_file_size: int | None, *, hidden: bool
) -> FolderRules | None:
    """The rules of the command line; None, which stands for those of the index, where it has none."""
    from ..search.folder import MAX_FILE_BYTES, FolderRules

    if not (include or exclude or hidden or max_file_size is not None):
        return None
    most = MAX_FILE_BYTES if max_file_size is None else max_file_size
    return FolderRules(include, exclude, most, hidden)


def _embedder(bundle: str | None, output: str, max_memory: int | None, *, restart: bool) -> Embedder:
    """The embedder of the command line or of the index.

    Raises InputError where there is neither, and what opening the index raises.
    """
    from ...runtime.encoder.embedder import Embedder
    from ..search.bundle_of_index import open_embedder
    from ..search.storage.index_file import read_index_file

    path = Path(output)
    origin = None
    try:
        origin = read_index_file(path).origin
    except NotFoundError:
        pass
    except OrtkitError as error:
        # One that cannot be read can be built again, with a bundle.
        if bundle is None:
            raise
        if restart:
            say(f"note: {error.message}; settings that were not given are the default ones", err=True)
    if bundle is not None:
        return Embedder(bundle, max_memory=max_memory)
    if origin is None:
        raise InputError(
            f"there is no index `{output}` yet, and a new one needs an embedder",
            hint="add `--bundle BUNDLE`; `ortkit list` shows the bundles",
        )
    return open_embedder(path, origin.bundle, None)[0]


@contextmanager
def indexing_progress() -> Iterator[Callable[[IndexProgress], None] | None]:
    """A callback that shows the progress on a terminal; None elsewhere."""
    if not sys.stderr.isatty():
        yield None
        return
    shown = _Shown()
    shown.begin()
    try:
        yield shown.update
    finally:
        shown.end()


class _Shown:
    """The progress line: files, chunks, and chunks per second; the elapsed time where nothing changes for a second."""

    def __init__(self) -> None:
        self.start = time.monotonic()
        self.began: float | None = None
        """When the first chunk was embedded."""
        self.before = 0
        self.drawn = 0.0
        self.latest: IndexProgress | None = None
        self.drawing = threading.Lock()
        self.stop = threading.Event()
        self.beat = threading.Thread(target=self._beat, daemon=True)

    def begin(self) -> None:
        show("indexing ...")
        self.beat.start()

    def update(self, progress: IndexProgress) -> None:
        now = time.monotonic()
        with self.drawing:
            if self.began is None and progress.embedded:
                self.began, self.before = now, progress.embedded
            self.latest = progress
            if now - self.drawn >= REDRAW:
                self.drawn = now
                show(self.line(progress, now))

    def _beat(self) -> None:
        """Chunks are embedded thousands at a time, which can take a minute on a slow machine."""
        while not self.stop.wait(HEARTBEAT):
            now = time.monotonic()
            with self.drawing:
                if now - self.drawn >= HEARTBEAT:
                    line = "indexing ..." if self.latest is None else self.line(self.latest, now)
                    show(f"{line}, {duration(now - self.start)}")

    def line(self, progress: IndexProgress, now: float) -> str:
        part = progress.files / max(progress.of_files, 1)
        filled = int(part * _WIDTH)
        line = (
            f"indexing [{'#' * filled}{'-' * (_WIDTH - filled)}] {part:4.0%}, {progress.files} of "
            f"{counted(progress.of_files, 'file')}, {progress.embedded} of {counted(progress.chunks, 'chunk')} embedded"
        )
        if self.began is None or now <= self.began:
            return line
        rate = (progress.embedded - self.before) / (now - self.began)
        return f"{line}, {rated(rate)}/s" if rate > 0 else line

    def end(self) -> None:
        self.stop.set()
        self.beat.join()
        click.echo(err=True)


def _print_report(report: UpdateReport, facts: IndexFacts, output: str) -> None:
    counts = {
        "added": report.added,
        "changed": report.changed,
        "removed": report.removed,
        "unchanged": report.unchanged,
    }
    changes = ", ".join(f"{count} {what}" for what, count in counts.items() if count) or "no files"
    say(f"{output}: {counted(facts.files, 'file')}, {counted(report.chunks, 'chunk')}, {megabytes(facts.size)}")
    say(f"  files: {changes}" + ("; resumed an interrupted run" if report.resumed else ""))
    if report.rules_changed:
        say(f"  rules changed, for later runs too: {described_rules(facts.rules)}")
    rate = f", {rated(report.embedded / report.seconds)}/s" if report.embedded and report.seconds > 0 else ""
    reused = f", {report.reused} reused" if report.reused else ""
    say(f"  chunks: {report.embedded} embedded{rate}{reused}; {report.seconds:.1f} s")


def _report_fields(report: UpdateReport, facts: IndexFacts) -> dict[str, object]:
    fields: dict[str, object] = {"index": str(facts.path), "files": facts.files, "size": facts.size}
    fields |= dataclasses.asdict(report) | {"rules": dataclasses.asdict(facts.rules)}
    return fields


def _print_skipped(report: UpdateReport, *, verbose: bool) -> None:
    """Print what was left out to stderr: grouped by reason, or every file."""
    if report.skipped:
        verb = "was" if len(report.skipped) == 1 else "were"
        say(f"warning: {counted(len(report.skipped), 'file')} {verb} skipped:", err=True)
        _print_files(report.skipped, verbose=verbose)
    if report.partly_read:
        say(f"warning: records were left out of {counted(len(report.partly_read), 'file')}:", err=True)
        _print_files(report.partly_read, verbose=verbose)


def _print_files(files: Sequence[SkippedFile], *, verbose: bool) -> None:
    if verbose:
        for file in files:
            say(f"  {file.name}: {file.reason}", err=True)
        return
    groups: dict[str, list[str]] = {}
    for file in files:
        groups.setdefault(file.reason, []).append(file.name)
    ordered = sorted(groups.items(), key=lambda group: -len(group[1]))
    for reason, names in ordered[:_SHOWN_REASONS]:
        named = ", ".join(names[:_SHOWN_FILES]) + (", ..." if len(names) > _SHOWN_FILES else "")
        say(f"  {reason} ({counted(len(names), 'file')}: {named})", err=True)
    left = len(ordered) - _SHOWN_REASONS
    if left > 0:
        say(f"  and for {counted(left, 'other reason')}", err=True)
    if left > 0 or any(len(names) > _SHOWN_FILES for names in groups.values()):
        say("  `--verbose` lists all", err=True)
