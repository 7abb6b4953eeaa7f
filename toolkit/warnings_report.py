"""What to tell about the texts of a run when all is done: on stderr, bounded however many there were."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from toolkit.inputs import as_typed
from toolkit.terminal import say
from toolkit.texts import TextRecord

if TYPE_CHECKING:
    from runtime.ranking import Ranking
    from runtime.results import Embeddings

SHOWN = 4
"""Places named before the rest becomes `...`."""


@dataclass(frozen=True)
class Places:
    """How many texts something was true of, and where the first of them stood."""

    count: int = 0
    first: tuple[str, ...] = ()

    def __add__(self, where: Iterable[str]) -> Places:
        found = tuple(where)
        return Places(self.count + len(found), (self.first + found)[:SHOWN])

    def __str__(self) -> str:
        return ", ".join(self.first) + (", ..." if self.count > len(self.first) else "")


@dataclass(frozen=True)
class Notes:
    """Texts that were cut, long ones that were read in chunks, and texts of nothing."""

    cut: Places = Places()
    split: Places = Places()
    empty: Places = Places()

    def with_texts(self, records: Sequence[TextRecord], embeddings: Embeddings) -> Notes:
        """These notes and those on more texts."""
        return Notes(
            cut=self.cut + (records[index].where for index in embeddings.truncated),
            split=self.split + (records[index].where for index in embeddings.split),
            empty=self.empty + (record.where for record in records if not record.text.strip()),
        )

    def print(self, total: int, max_length: int) -> None:
        """Warn of what a person should know about `total` texts."""
        from runtime.embedder import truncation_message

        if self.cut.count:
            message = truncation_message(self.cut.count, total, max_length)
            say(f"warning: {message} ({self.cut})", err=True)
        if self.split.count:
            verb = "was" if self.split.count == 1 else "were"
            say(
                f"note: {self.split.count} of {total} texts {verb} longer than {max_length} tokens and read in chunks "
                f"({self.split})",
                err=True,
            )
        if self.empty.count:
            warn_of_empty(self.empty, total, "text", "vector")


@dataclass(frozen=True)
class PairNotes:
    """Documents of rankings that were cut, those of nothing, and queries that were cut; places count from 0."""

    documents: int = 0
    cut: Places = Places()
    empty: Places = Places()
    queries: int = 0
    """How many queries were cut beside one of their documents."""

    def with_ranking(self, ranking: Ranking[TextRecord], *, prefix: str = "") -> PairNotes:
        """These notes and those on one more ranking, whose documents are called by their index after `prefix`."""
        return PairNotes(
            documents=self.documents + ranking.documents,
            cut=self.cut + (f"{prefix}{index}" for index in ranking.truncated),
            empty=self.empty + (f"{prefix}{index}" for index in ranking.empty),
            queries=self.queries + (ranking.query_dropped > 0),
        )

    def print(self, max_length: int) -> None:
        """Warn of what a person should know."""
        from runtime.reranker import cut_query_message, truncation_message

        if self.cut.count:
            message = truncation_message(self.cut.count, self.documents, max_length)
            say(f"warning: {message} ({self.cut})", err=True)
        if self.queries:
            say(f"warning: {cut_query_message(self.queries, max_length)}", err=True)
        if self.empty.count:
            warn_of_empty(self.empty, self.documents, "document", "score")


def warn_of_empty(empty: Places, total: int, noun: str, result: str) -> None:
    verb = "is" if empty.count == 1 else "are"
    say(
        f"warning: {empty.count} of {total} {noun}s {verb} empty, and the {result} of an empty {noun} means nothing "
        f"({empty})",
        err=True,
    )


def print_error(message: str, hint: str | None) -> None:
    # Names of files are the bytes that they are, which a locale without UTF-8 shows as escapes.
    say(f"error: {as_typed(message)}", err=True)
    if hint is not None:
        say("", err=True)
        say(f"hint: {as_typed(hint)}", err=True)
