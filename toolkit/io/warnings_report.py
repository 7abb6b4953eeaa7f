"""Warnings about truncated, chunked and empty texts, printed to stderr at the end of a run."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..console.terminal import say
from .input_format import as_typed
from .texts import TextRecord

if TYPE_CHECKING:
    from ...runtime.encoder.embeddings import Embeddings
    from ...runtime.encoder.ranking import Ranking

_SHOWN = 4
"""Places that are named; the rest becomes `...`."""


@dataclass(frozen=True)
class Places:
    """A count of texts, and where the first of them are."""

    count: int = 0
    first: tuple[str, ...] = ()

    @classmethod
    def of(cls, where: Iterable[str]) -> Places:
        found = tuple(where)
        return cls(len(found), found[:_SHOWN])

    def __add__(self, other: Places) -> Places:
        return Places(self.count + other.count, (self.first + other.first)[:_SHOWN])

    def __str__(self) -> str:
        return ", ".join(self.first) + (", ..." if self.count > len(self.first) else "")


@dataclass(frozen=True)
class TextWarnings:
    """Texts that were truncated, split into chunks, or empty."""

    cut: Places = Places()
    split: Places = Places()
    empty: Places = Places()

    @classmethod
    def of(cls, records: Sequence[TextRecord], embeddings: Embeddings) -> TextWarnings:
        """The warnings about texts and their embeddings."""
        return cls(
            cut=Places.of(records[index].where for index in embeddings.truncated),
            split=Places.of(records[index].where for index in embeddings.split),
            empty=Places.of(record.where for record in records if not record.text.strip()),
        )

    def __add__(self, other: TextWarnings) -> TextWarnings:
        return TextWarnings(self.cut + other.cut, self.split + other.split, self.empty + other.empty)

    def print(self, total: int, max_length: int) -> None:
        """Print the warnings about `total` texts."""
        from ...runtime.encoder.embedder import truncation_message

        if self.cut.count:
            message = truncation_message(self.cut.count, total, max_length)
            say(f"warning: {message} ({self.cut})", err=True)
        if self.split.count:
            verb = "was" if self.split.count == 1 else "were"
            say(
                f"note: {self.split.count} of {total} texts {verb} longer than {max_length} tokens, embedded in chunks "
                f"({self.split})",
                err=True,
            )
        if self.empty.count:
            _warn_of_empty(self.empty, total, "text", "embedding")


@dataclass(frozen=True)
class DocumentWarnings:
    """Documents that were truncated or empty, and queries that were truncated; places count from 0."""

    documents: int = 0
    cut: Places = Places()
    empty: Places = Places()
    queries: int = 0
    """How many queries were truncated with one of their documents."""

    def with_ranking(self, ranking: Ranking[TextRecord], *, prefix: str = "") -> DocumentWarnings:
        """These warnings, and those about one more ranking; documents are named by `prefix` and index."""
        return DocumentWarnings(
            documents=self.documents + ranking.documents,
            cut=self.cut + Places.of(f"{prefix}{index}" for index in ranking.truncated),
            empty=self.empty + Places.of(f"{prefix}{index}" for index in ranking.empty),
            queries=self.queries + (ranking.query_dropped > 0),
        )

    def print(self, max_length: int) -> None:
        """Print the warnings."""
        from ...runtime.encoder.reranker import cut_query_message, truncation_message

        if self.cut.count:
            message = truncation_message(self.cut.count, self.documents, max_length)
            say(f"warning: {message} ({self.cut})", err=True)
        if self.queries:
            say(f"warning: {cut_query_message(self.queries, max_length)}", err=True)
        if self.empty.count:
            _warn_of_empty(self.empty, self.documents, "document", "score")


def _warn_of_empty(empty: Places, total: int, noun: str, result: str) -> None:
    verb = "is" if empty.count == 1 else "are"
    say(
        f"warning: {empty.count} of {total} {noun}s {verb} empty, and the {result} of an empty {noun} is meaningless "
        f"({empty})",
        err=True,
    )


def print_error(message: str, hint: str | None) -> None:
    # File names are bytes, which a locale without UTF-8 turns into escapes.
    say(f"error: {as_typed(message)}", err=True)
    if hint is not None:
        say("", err=True)
        say(f"hint: {as_typed(hint)}", err=True)
