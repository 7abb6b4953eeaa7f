"""Pairs of a query and a document to token ids, joined and truncated as the manifest says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..bundle.graph_io import INPUT_IDS, TOKEN_TYPE_IDS
from ..bundle.manifest import PairFacts, Side, TokenizerFacts, Truncation
from ..errors import BundleError, TextError
from .safe_tokenizer import open_tokenizer
from .tokenizer import checked_text, stack_ids

_BLOCK = 256
"""Documents to tokenize at a time, which bounds the memory of `tokenizers`."""

Pair = tuple[str, str]
"""A query and a document."""


@dataclass(frozen=True)
class TokenizedPair:
    """Token ids of a pair, after truncation."""

    ids: NDArray[np.int64]
    document_start: int
    """Position of the first token of the document."""
    dropped: int
    """Number of tokens that were truncated from the document."""
    query_dropped: int
    """Number of tokens that were truncated from the query."""


class PairTokenizer:
    """A tokenizer.json with the manifest's rules for joining and truncating pairs."""

    def __init__(self, path: Path, facts: TokenizerFacts, pair: PairFacts, *, typed: bool) -> None:
        """`typed`: whether the graph has the input `token_type_ids`."""
        self.tokenizer = open_tokenizer(path, vocabulary=facts.known_tokens)
        self.pair = pair
        self.typed = typed
        self.left = facts.truncation_side is Side.LEFT
        self.before, self.between, self.after = (
            np.array(ids, np.int64) for ids in (pair.before, pair.between, pair.after)
        )
        self.room = facts.max_length - len(pair.before) - len(pair.between) - len(pair.after)
        """Largest number of tokens of query and document together."""
        if self.room < 2:
            raise BundleError(
                f"the model's limit of {facts.max_length} tokens leaves no room for a query and a document"
            )

    def tokenize(self, pairs: Sequence[Pair], *, before: int = 0) -> list[TokenizedPair]:
        """Tokenize pairs; each distinct query is tokenized once.

        Raises InputError for anything but strings of valid Unicode, and TextError for texts that cannot be tokenized.
        Messages number the pairs after the `before` pairs of earlier calls.
        """
        numbers: dict[str, int] = {}
        for index, (query, _) in enumerate(pairs, before):
            numbers.setdefault(checked_text(query, f"the query of pair {index}"), len(numbers))
        faulty: dict[int, str] = {}
        queries = self._ids([self.pair.query_prefix + query + self.pair.query_suffix for query in numbers], faulty)
        for number, fault in sorted(faulty.items()):
            found = tuple(index for index, (query, _) in enumerate(pairs) if numbers[query] == number)
            raise TextError(f"the query of pair {before + found[0]} {fault}", texts=found, fault=fault)
        documents: list[NDArray[np.int64]] = []
        for start in range(0, len(pairs), _BLOCK):
            block = [
                self.pair.document_prefix + checked_text(document, f"the document of pair {index}")
                for index, (_, document) in enumerate(pairs[start : start + _BLOCK], before + start)
            ]
            documents += self._ids(block, faulty, first=start)
        for index, fault in sorted(faulty.items()):
            raise TextError(f"the document of pair {before + index} {fault}", texts=(index,), fault=fault)
        return [
            self._joined(query, queries[numbers[query]], document)
            for (query, _), document in zip(pairs, documents, strict=True)
        ]

    def feeds(self, batch: Sequence[TokenizedPair]) -> dict[str, NDArray[np.int64]]:
        """The graph's inputs for pairs with the same number of tokens, each (pairs, tokens)."""
        ids = stack_ids([pair.ids for pair in batch])
        if not self.typed:
            return {INPUT_IDS: ids}
        types = np.zeros_like(ids)
        for row, pair in zip(types, batch, strict=True):
            row[pair.document_start :] = self.pair.document_type
        return {INPUT_IDS: ids, TOKEN_TYPE_IDS: types}

    def _ids(
        self, texts: list[str], faults: dict[int, str] | None = None, *, first: int = 0
    ) -> list[NDArray[np.int64]]:
        return [found.ids for found in self.tokenizer.ids(texts, {} if faults is None else faults, first=first)]

    def _joined(self, text: str, query: NDArray[np.int64], document: NDArray[np.int64]) -> TokenizedPair:
        """Join a query (its text and ids) and a document, and truncate them to the model's limit."""
        whole = len(query), len(document)
        if self.pair.truncation is Truncation.DOCUMENT:
            if len(query) + min(len(document), 1) > self.room:
                query = self._truncated_query(text)
            document = document[: self.room - len(query)]
        else:
            lengths = longest_first if self.pair.truncation is Truncation.LONGEST else _end_first
            query, document = (
                ids[len(ids) - length :] if self.left else ids[:length]
                for ids, length in zip((query, document), lengths(*whole, self.room), strict=True)
            )
        head = [self.before, query, self.between]
        return TokenizedPair(
            ids=np.concatenate([*head, document, self.after]),
            document_start=sum(map(len, head)),
            dropped=whole[1] - len(document),
            query_dropped=whole[0] - len(query),
        )

    def _truncated_query(self, query: str) -> NDArray[np.int64]:
        """Truncate a query that leaves no room for a document to half of the room."""
        start, suffix = self._ids([self.pair.query_prefix + query, self.pair.query_suffix])
        return np.concatenate([start[: max(1, self.room // 2 - len(suffix))], suffix])


def longest_first(query: int, document: int, room: int) -> tuple[int, int]:
    """Numbers of tokens of query and document after truncation with the strategy `longest_first` of `tokenizers`."""
    if query + document <= room:
        return query, document
    short = min(query, document)
    if 2 * short <= room:
        return (short, room - short) if query <= document else (room - short, short)
    return (room // 2, room - room // 2) if query <= document else (room - room // 2, room // 2)


def _end_first(query: int, document: int, room: int) -> tuple[int, int]:
    """Numbers of tokens of query and document after truncating the end of both joined."""
    kept = min(query, room)
    return kept, min(document, room - kept)
