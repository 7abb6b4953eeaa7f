"""The search index of a folder: build or update it, open it, search in it."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import datetime
from pathlib import Path
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from ...runtime.arguments import checked_flag, checked_integer, checked_path
from ...runtime.bundle.records import choice
from ...runtime.encoder.embedder import Embedder
from ...runtime.encoder.reranker import Reranker
from ...runtime.errors import InputError, OrtkitError
from ...runtime.session.closing import Closable
from ...runtime.text.tokenizer import checked_text
from .bundle_of_index import open_embedder
from .chunks import Chunker, ChunkSettings
from .facts import IndexFacts, IndexProgress, UpdateReport
from .folder import FolderRules
from .hits import Hit, SearchMode
from .ranking import Request, search
from .storage.index_file import read_index_file
from .storage.snapshot import Snapshot
from .storage.vectors import unit_rows
from .update import update


class Index(Closable):
    """The index of a folder's files: hybrid search by embeddings and BM25. Thread-safe.

    A reader sees one generation, whatever writers do meanwhile, until `reload`. Searches are exact: every embedding is
    compared. The similarity is the cosine.

        >>> with Index.build("manuals.index", "manuals", embedder_bundle) as index:
        ...     [hit] = index.search("the pump does not start", top_n=1)
        ...     hit.file, hit.place.lines
        ('pump.md', (3, 4))

    Words are found by their stem (English) and without diacritics; Chinese, Japanese and Korean text by its bigrams.
    Languages that do not separate words otherwise, such as Thai, are found by embeddings alone.
    """

    def __init__(
        self, snapshot: Snapshot, embedder: Embedder, *, owned: bool, update_report: UpdateReport | None = None
    ) -> None:
        """Use `Index.open` or `Index.build`. An `owned` embedder is closed with the index."""
        self.path = snapshot.folder
        self.embedder = embedder
        self.update_report = update_report
        """What `build` did; None for an index that was opened."""
        self._snapshot = snapshot
        self._owned = owned
        self._reloading = threading.Lock()

    @classmethod
    def build(
        cls,
        path: str | os.PathLike[str],
        folder: str | os.PathLike[str],
        embedder: Embedder | str | os.PathLike[str],
        *,
        rules: FolderRules | None = None,
        chunk_tokens: int | None = None,
        overlap: int | None = None,
        restart: bool = False,
        progress: Callable[[IndexProgress], None] | None = None,
    ) -> Index:
        """Make the index of a folder, or update it: only new and changed files are read, only new texts embedded.

        A file is unchanged where its size and time of change are, or else its sha256. What cannot be read is listed in
        `update_report`. An interrupted run resumes. `restart` rebuilds it; readers see the old one until it is done.
        The index keeps `rules`, `chunk_tokens` and `overlap`: None takes those of the index, also with `restart`, and
        for a new index the default ones. Tokens are counted by the embedder, so with another bundle the lengths of
        chunks are default ones too. `progress` is called for each file and each batch of the embedder, one call at a
        time, also on worker threads.

        Raises InputError for an index of another bundle, folder or chunk size without `restart`, and where nothing can
        be indexed; NotFoundError for a missing folder; OutputError where the index cannot be written, and while another
        process writes it; BundleError for a damaged index; and what the embedder raises.
        """
        target = checked_path(path, "path")
        source = Path(os.path.abspath(checked_path(folder, "folder")))  # noqa: PTH100 - `resolve` follows links
        checked_flag(restart, "restart")
        with ExitStack() as opened:
            owned = not isinstance(embedder, Embedder)
            model = embedder if isinstance(embedder, Embedder) else opened.enter_context(Embedder(embedder))
            report = update(
                target,
                source,
                model,
                rules=rules,
                chunker=_chunker(target, model, chunk_tokens, overlap),
                restart=restart,
                progress=progress,
            )
            index = cls(Snapshot.newest(target), model, owned=owned, update_report=report)
            opened.pop_all()
        return index

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, embedder: Embedder | str | os.PathLike[str] | None = None) -> Index:
        """Open an index, by default with the bundle that it names: where that was, beside the index, or in `bundles`.

        Nothing is written, so read-only media and other users' folders work. Raises NotFoundError where there is no
        index or no bundle, BundleError for a damaged index, one of another format or another bundle than it was built
        with, and what opening a bundle raises.
        """
        folder = checked_path(path, "path")
        # Before the bundle is opened, which takes longer.
        record = read_index_file(folder).origin.bundle
        model, owned = open_embedder(folder, record, embedder)
        try:
            index = cls(Snapshot.newest(folder), model, owned=owned)
            open_embedder(folder, index._snapshot.index.origin.bundle, model)
        except BaseException:
            if owned:
                model.close()
            raise
        return index

    @property
    def facts(self) -> IndexFacts:
        """What the generation that is open was built from, and its size."""
        self._check_open()
        index = self._snapshot.index
        return IndexFacts(
            path=self.path,
            format=index.format,
            generation=index.generation,
            folder=index.origin.folder_path,
            bundle=index.origin.bundle.name,
            digest=index.origin.bundle.digest,
            dimension=index.origin.bundle.dimension,
            files=index.files,
            chunks=index.chunks,
            built=datetime.fromisoformat(index.built),
            chunking=index.origin.chunking,
            rules=index.rules,
            size=sum(index.sizes.values()),
        )

    def search(
        self,
        query: str,
        *,
        top_n: int = 5,
        paths: Sequence[str] = (),
        mode: SearchMode | str = SearchMode.HYBRID,
        reranker: Reranker | None = None,
        candidates: int = 100,
        vector: NDArray[np.float32] | None = None,
    ) -> list[Hit]:
        """The best passages for a query, best first; ties in order of files.

        `paths` limits the search to files that match a pattern, such as `*.pdf` (at any depth), `manuals/*.md` or a
        folder. `candidates` is how many passages each of embeddings and BM25 gives, and a reranker scores. `vector` is
        what `Embedder.embed_query` gives for the query, where that was computed before. Warns of a query over the
        model's limit (TruncationWarning). Any text is a query; what FTS5 cannot use is left to the embeddings.

        Raises InputError for an empty query or an option that is not valid, and BundleError for a damaged index.
        """
        self._check_open()
        if not checked_text(query, "`query`").strip():
            raise InputError("the query is empty", hint="write a question or some words")
        count = checked_integer(top_n, "top_n")
        request = Request(
            query=query,
            top_n=count,
            mode=choice(SearchMode, mode, "mode"),
            candidates=max(checked_integer(candidates, "candidates"), count),
            paths=_checked_paths(paths),
            reranker=reranker,
        )
        with self._reading() as snapshot:
            return search(snapshot, request, self._embedded if vector is None else lambda _: unit_rows(vector))

    @contextmanager
    def _reading(self) -> Iterator[Snapshot]:
        """The generation that is open, and stays so in the block; `reload` and `close` may run meanwhile."""
        while not (snapshot := self._snapshot).acquire():
            self._check_open()
        try:
            snapshot.check_files()
            yield snapshot
        finally:
            snapshot.release()

    def _embedded(self, query: str) -> NDArray[np.float32]:
        return unit_rows(self.embedder.embed_query(query))

    def reload(self) -> bool:
        """Read the newest generation; False where this is the newest.

        Raises as `open` does; then the generation that was open stays so.
        """
        self._check_open()
        with self._reloading:
            if read_index_file(self.path) == self._snapshot.index:
                return False
            newest = Snapshot.newest(self.path)
            try:
                open_embedder(self.path, newest.index.origin.bundle, self.embedder)
            except BaseException:
                newest.retire()
                raise
            old, self._snapshot = self._snapshot, newest
            old.retire()
            return True

    def close(self) -> None:
        """Release the files, and the embedder if it was opened here; a second call does nothing."""
        if self._closed:
            return
        self._closed = True
        self._snapshot.retire()
        if self._owned:
            self.embedder.close()

    def __reduce__(self) -> NoReturn:
        """Open files are of their process."""
        raise TypeError(f"Index cannot be pickled: open it in each process, `Index.open({str(self.path)!r})`")

    def __repr__(self) -> str:
        index = self._snapshot.index
        facts = f"{index.files} files, {index.chunks} chunks, {index.origin.bundle.name}"
        return f"<Index {str(self.path)!r}: {facts}{', closed' if self._closed else ''}>"

    def _closed_error(self) -> InputError:
        path = str(self.path)
        return InputError(f"the Index `{path}` is closed", hint=f"open it again: `Index.open({path!r})`")


def _chunker(path: Path, embedder: Embedder, max_tokens: int | None, overlap: int | None) -> Chunker:
    """The chunker of these settings; what is not given is that of the index at `path`, if this is its bundle."""
    try:
        origin = read_index_file(path).origin
    except OrtkitError:
        # `update` says why, if the index is not rebuilt.
        return Chunker(embedder, max_tokens=max_tokens, overlap=overlap)
    known = origin.chunking
    if origin.bundle.digest != embedder.bundle.digest:
        return Chunker(embedder, max_tokens=max_tokens, overlap=overlap)
    if max_tokens is None:
        max_tokens = known.max_tokens
    if overlap is None and (max_tokens == known.max_tokens or not _is_default(embedder, known)):
        overlap = known.overlap
    return Chunker(embedder, max_tokens=max_tokens, overlap=overlap)


def _is_default(embedder: Embedder, known: ChunkSettings) -> bool:
    """Whether the overlap is that which chunks of this length have by default."""
    return known.overlap == Chunker(embedder, max_tokens=known.max_tokens).settings.overlap


def _checked_paths(paths: Sequence[str]) -> tuple[str, ...]:
    if isinstance(paths, str):
        raise InputError("`paths` must be several patterns, not one string", hint=f"pass a list: `[{paths!r}]`")
    for path in paths:
        # Names of files may have bytes that are not UTF-8, as surrogates.
        if not isinstance(path, str):
            raise InputError(f"a pattern of `paths` must be a string, not {type(path).__name__}")
    return tuple(paths)
