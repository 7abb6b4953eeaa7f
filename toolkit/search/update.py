"""Build or update an index: only new and changed files are read, and only new texts are embedded."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...runtime.encoder.embedder import Embedder
from ...runtime.errors import BundleError, InputError, NotFoundError, OrtkitError
from ...runtime.output_path import cannot_write
from ...runtime.text.tokenizer import TokenizedText
from .batches import Batch, BatchReader
from .bundle_of_index import bundle_record
from .chunks import Chunk, Chunker
from .facts import IndexProgress, UpdateReport
from .folder import FolderRules, FoundFile, SkippedFile, check_folder, check_rules, walk
from .storage.index_file import IndexFile, Origin, check_sizes, missing, read_index_file, uri_of
from .storage.store import StoredFile
from .storage.vectors import unit_rows
from .storage.workspace import PendingChunk, Workspace, published_files
from .storage.writer_lock import writing

Progress = Callable[[IndexProgress], None]


def update(
    path: Path,
    folder: Path,
    embedder: Embedder,
    *,
    rules: FolderRules | None,
    chunker: Chunker,
    restart: bool,
    progress: Progress | None,
) -> UpdateReport:
    """Build the index at `path`, or update it; without `rules`, by its own. Raises as `Index.build` does."""
    started = time.monotonic()
    origin = Origin(bundle_record(embedder), chunker.settings, uri_of(folder))
    # Before a folder for the index is made.
    check_folder(folder)
    if rules is not None:
        check_rules(rules)
    with writing(path):
        published = _published(path, restart=restart)
        if published is not None and not restart:
            _check_origin(path, published.origin, origin)
        chosen = rules or (FolderRules() if published is None else published.rules)
        found = list(_walked(folder, chosen, without=path))
        with _writing_errors(path):
            workspace = Workspace(path, origin, chosen, published, restart=restart)
        try:
            run = _Update(workspace, embedder, chunker, folder, progress)
            run.read(found)
            with _writing_errors(path):
                return run.finish(restart=restart, started=started)
        finally:
            workspace.close()


@contextmanager
def _writing_errors(path: Path) -> Iterator[None]:
    """Raise OutputError for an OSError while the index is written."""
    try:
        yield
    except OSError as error:
        if isinstance(error, OrtkitError):
            raise
        raise cannot_write(error, path) from error


def _walked(folder: Path, rules: FolderRules, *, without: Path) -> Iterator[FoundFile | SkippedFile]:
    """The files of a folder, except those of the index itself."""
    own = f"{os.path.realpath(without)}{os.sep}"
    inside = own.startswith(f"{os.path.realpath(folder)}{os.sep}")
    for found in walk(folder, rules):
        if inside and os.path.realpath(folder / found.name).startswith(own):
            continue
        yield found


def _published(path: Path, *, restart: bool) -> IndexFile | None:
    """The generation that is published; a build from nothing needs only its number of it, and no file."""
    try:
        published = read_index_file(path)
    except NotFoundError:
        return None
    except BundleError:
        if restart:
            return None
        raise
    if not restart:
        try:
            check_sizes(path, published)
        except FileNotFoundError as error:
            raise missing(path, error) from error
    return published


def _check_origin(path: Path, was: Origin, now: Origin) -> None:
    """Raise InputError where vectors or chunks would be mixed with others."""
    again = "to rebuild it, add `--restart`, in Python `restart=True`"
    if was.bundle.digest != now.bundle.digest:
        raise InputError(
            f"the index `{path}` was built with the bundle `{was.bundle.name}` ({was.bundle.digest[:16]}...), and this "
            f"is `{now.bundle.name}` ({now.bundle.digest[:16]}...)",
            hint=f"use that bundle, or another name for the index; {again}",
        )
    if was.chunking != now.chunking:
        raise InputError(
            f"the index `{path}` has chunks of {was.chunking.max_tokens} tokens with an overlap of "
            f"{was.chunking.overlap} (version {was.chunking.version}), and these are {now.chunking.max_tokens} and "
            f"{now.chunking.overlap} (version {now.chunking.version})",
            hint=f"use its settings; {again}",
        )
    if was.folder != now.folder and was.folder_path.is_dir():
        raise InputError(
            f"the index `{path}` is that of the folder `{was.folder_path}`, and not of `{now.folder_path}`",
            hint=f"use another name for the index; {again}",
        )


class _Update:
    """One run: what it reads, embeds and commits."""

    def __init__(
        self, workspace: Workspace, embedder: Embedder, chunker: Chunker, folder: Path, progress: Progress | None
    ) -> None:
        self._workspace, self._embedder, self._chunker = workspace, embedder, chunker
        self._folder, self._progress = folder, progress
        self._path = workspace.folder
        with _writing_errors(self._path):
            self._known = workspace.known_files()
        self._reader = BatchReader(chunker, self._known, self._report)
        self._of_files = self._embedded = self._reused = 0
        self._counting = threading.RLock()

    def read(self, found: Sequence[FoundFile | SkippedFile]) -> None:
        """Read and embed what is new; raises what the embedder raises, and OutputError."""
        self._of_files = len(found)
        with closing(self._reader.batches(found)) as batches:
            for batch in batches:
                self._embed_batch(batch)
                self._report()

    def _embed_batch(self, batch: Batch) -> None:
        """Embed and commit a batch."""
        if not batch.chunks and not batch.finished:
            return
        chunks, vectors = self._vectors(batch.chunks)
        with _writing_errors(self._path):
            self._workspace.commit(chunks, vectors, batch.finished)

    def _vectors(self, pending: Sequence[PendingChunk]) -> tuple[list[PendingChunk], NDArray[np.float32]]:
        """The chunks that have an embedding, and the embeddings, of length 1."""
        first_of: dict[bytes, Chunk] = {}
        for one in pending:
            first_of.setdefault(one.hash, one.chunk)
        with _writing_errors(self._path):
            found = self._workspace.known_vectors(list(first_of)) if first_of else {}
        new = [known for known in first_of if known not in found]
        tokenized = [_tokens_of(first_of[known]) for known in new]
        # Without any token, not even a special one, a text has no embedding.
        new = [known for known, text in zip(new, tokenized, strict=True) if text.tokens]
        embedded = self._embed([text for text in tokenized if text.tokens])
        found.update(zip(new, embedded, strict=True))
        self._embedded += len(new)
        chunks = [one for one in pending if one.hash in found]
        self._reused += len(chunks) - len(new)
        vectors = np.empty((len(chunks), self._embedder.dimension), np.float32)
        for row, one in enumerate(chunks):
            vectors[row] = found[one.hash]
        return chunks, vectors

    def _embed(self, passages: Sequence[TokenizedText]) -> NDArray[np.float32]:
        """Embed passages, and report each batch of the embedder, which counts on several threads."""
        before = self._embedded

        def advance(count: int) -> None:
            with self._counting:
                self._embedded += count
                self._report()

        if not passages:
            return np.empty((0, self._embedder.dimension), np.float32)
        vectors = self._embedder.embed_tokenized(passages, progress=advance)
        self._embedded = before
        return unit_rows(vectors)

    def _report(self) -> None:
        """Report progress, one call at a time, from the threads that read and that embed."""
        if self._progress is not None:
            with self._counting:
                reader = self._reader
                self._progress(IndexProgress(reader.files, self._of_files, reader.chunks, self._embedded))

    def finish(self, *, restart: bool, started: float) -> UpdateReport:
        """Remove what is gone, and publish, where something changed."""
        workspace = self._workspace
        before = self._before(restart=restart)
        if workspace.store is not None or self._known.keys() - self._reader.names:
            self._tidy()
        after = self._known if workspace.store is None else workspace.store.files()
        self._check_not_empty(after)
        changed = sum(name in before and before[name].stamp.sha256 != file.stamp.sha256 for name, file in after.items())
        added, removed = len(after.keys() - before.keys()), len(before.keys() - after.keys())
        published = workspace.published
        moved = published is not None and published.origin != workspace.origin
        rules_changed = published is not None and published.rules != workspace.rules
        wrote = bool(published is None or added or changed or removed or moved or rules_changed or restart)
        if wrote:
            published = workspace.publish()
        else:
            workspace.discard()
        return UpdateReport(
            added=added,
            changed=changed,
            removed=removed,
            unchanged=len(after) - added - changed,
            chunks=0 if published is None else published.chunks,
            embedded=self._embedded,
            reused=self._reused,
            skipped=tuple(self._reader.skipped),
            partly_read=tuple(self._reader.partly_read),
            rules_changed=rules_changed,
            resumed=workspace.resumed,
            wrote=wrote,
            seconds=time.monotonic() - started,
        )

    def _before(self, *, restart: bool) -> dict[str, StoredFile]:
        """The published files, to say what changed."""
        if self._workspace.published is None:
            return {}
        try:
            return published_files(self._path, self._workspace.published)
        except OrtkitError:
            # What is rebuilt may be damaged.
            if restart:
                return {}
            raise

    def _tidy(self) -> None:
        """Remove files that are gone, and what interrupted runs left of files; record times of unchanged ones."""
        store = self._workspace.begin()
        with store.transaction():
            store.remove_files(store.incomplete())
            gone = [file.id for name, file in store.files().items() if name not in self._reader.names]
            store.remove_files(gone)
            for number, stamp in self._reader.stamps:
                store.set_stamp(number, stamp)

    def _check_not_empty(self, after: dict[str, StoredFile]) -> None:
        """Refuse a folder without any text: a mistyped name, or a disk that is not mounted."""
        if after and (self._workspace.store is None or self._workspace.store.counts()[1]):
            return
        if self._workspace.published is None:
            self._workspace.discard()
            consequence = ""
        else:
            consequence = "; the index is unchanged"
        if skipped := self._reader.skipped:
            first = skipped[0]
            found = f"{len(skipped)} of its files cannot be read, the first `{first.name}`: {first.reason}"
        else:
            found = "it has no file with text" if self._reader.names else "no file of it matches the rules"
        raise InputError(
            f"there is nothing to index in `{self._folder}`: {found}{consequence}",
            hint="name another folder, or look at the patterns and the ignore files",
        )


def _tokens_of(chunk: Chunk) -> TokenizedText:
    assert chunk.tokenized is not None  # noqa: S101 - for mypy: only chunks from an index have no tokens
    return chunk.tokenized
