"""The search index of a folder: build or update it, open it, search in it."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

from ...runtime.encoder.embedder import Embedder
from ...runtime.encoder.reranker import Reranker
from .facts import IndexFacts, IndexProgress, UpdateReport
from .folder import FolderRules
from .hits import Hit, SearchMode


class Index:
    """The index of a folder's files: hybrid search by embeddings and BM25. Thread-safe.

    A reader sees one generation, whatever writers do meanwhile, until `reload`.
    """

    facts: IndexFacts
    embedder: Embedder
    update_report: UpdateReport | None
    """What `build` did; None for an index that was opened."""

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
        """Make the index of a folder, or update it: only what changed is read and embedded."""
        raise NotImplementedError

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, embedder: Embedder | str | os.PathLike[str] | None = None) -> Index:
        """Open an index, with the bundle that it names by default."""
        raise NotImplementedError

    def search(
        self,
        query: str,
        *,
        top_n: int = 5,
        paths: Sequence[str] = (),
        mode: SearchMode | str = SearchMode.HYBRID,
        reranker: Reranker | None = None,
        candidates: int = 100,
    ) -> list[Hit]:
        """The best passages for a query, best first."""
        raise NotImplementedError

    def reload(self) -> bool:
        """Read the newest generation; False where this is the newest."""
        raise NotImplementedError

    def close(self) -> None:
        """Release the files, and the embedder if it was opened here; a second call does nothing."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
