"""Searches, queries with their documents: as the pairs that a reranker scores, and their scores as rankings."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..text.pair_tokenizer import Pair
from ..text.tokenizer import checked_text
from .ranking import Document, OpenRanking, Ranking

Search = tuple[str, Iterable[Document]]
"""A query and its documents."""
_EXAMPLE = "`rank_many([(query, [document, ...]), ...])`"


@dataclass(frozen=True)
class PairScores:
    """The logits of pairs with a report: token counts and what was truncated."""

    logits: NDArray[np.float32]
    """(pairs, labels)"""
    tokens: NDArray[np.int64]
    """(pairs,): number of tokens that the model read, including special tokens."""
    dropped: NDArray[np.int64]
    """(pairs,): number of tokens that were truncated from the document."""
    query_dropped: NDArray[np.int64]
    """(pairs,): number of tokens that were truncated from the query."""

    def __repr__(self) -> str:
        return f"<PairScores of {len(self.tokens)} pairs: {self.logits.shape}, {len(self.truncated)} truncated>"

    @property
    def truncated(self) -> list[int]:
        """Indices of truncated pairs."""
        return [int(index) for index in np.flatnonzero(self.dropped + self.query_dropped)]


def pairs_of(
    searches: Iterable[Search[Document]],
    open_rankings: deque[OpenRanking[Document]],
    new: Callable[[], OpenRanking[Document]],
    text: Callable[[Document], str] | None,
) -> Iterator[Pair]:
    """The pairs of all searches; each search gets a ranking in `open_rankings`, which waits for its scores."""
    if text is not None and not callable(text):
        raise InputError(f"`text` must be a function from a document to its text, not {type(text).__name__}")
    if not isinstance(searches, Iterable):
        raise InputError("`searches` must be a list of queries with their documents", hint=_EXAMPLE)
    for number, search in enumerate(searches):
        if not isinstance(search, (tuple, list)) or len(search) != 2:
            raise InputError(f"search {number} must be a query and its documents", hint=_EXAMPLE)
        query, documents = search
        if not checked_text(query, "the query").strip():
            raise InputError("the query is empty")
        if isinstance(documents, str):
            raise InputError("`documents` must be several texts, not one", hint="for one document, pass a list of one")
        if not isinstance(documents, Iterable) or isinstance(documents, (bytes, Mapping)):
            raise InputError(f"`documents` must be an iterable of texts, not {type(documents).__name__}")
        ranking = new()
        open_rankings.append(ranking)
        for place, document in enumerate(documents):
            found = document if text is None else text(document)
            if not isinstance(found, str):
                raise _no_text(place, found, asked=text is not None)
            ranking.pending.append((found, document))
            yield query, found
        ranking.all_read = True


def _no_text(place: int, found: object, *, asked: bool) -> InputError:
    """The error for a document that is not a text, or whose `text` was `asked` for and is not one."""
    kind = type(found).__name__
    if asked:
        return InputError(f"`text` must return a string, not {kind}, as for document {place}")
    return InputError(
        f"document {place} must be a string, not {kind}",
        hint='for records, pass the function that gives their text: `text=lambda record: record["body"]`',
    )


def rankings_of(
    scored: Iterable[PairScores], open_rankings: deque[OpenRanking[Document]]
) -> Iterator[Ranking[Document]]:
    """Pass scores to the rankings that wait for them; yields each ranking once it is complete."""
    for found in scored:
        for logits, dropped, query_dropped in zip(found.logits, found.dropped, found.query_dropped, strict=True):
            while open_rankings[0].complete:
                yield open_rankings.popleft().ranking()
            open_rankings[0].take(logits, dropped=int(dropped), query_dropped=int(query_dropped))
        while open_rankings and open_rankings[0].complete:
            yield open_rankings.popleft().ranking()
    while open_rankings:
        yield open_rankings.popleft().ranking()
