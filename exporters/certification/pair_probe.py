"""Pairs that show differences between two readings of a reranker: spelling, special tokens, and every way to be cut."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from .probe import tokenizer_probe

_WORDS = ("water", "Boil", "north", "a", "rope", "unforgettable", "needle", "Straße", "12", "slip")
QUERY = "how does one tie a rope"
DOCUMENT = "A bowline does not slip."
_SHORT = 3
"""Words of a query that is short."""


def pair_probe(tokenizer: Any, max_length: int) -> list[tuple[str, str]]:
    """Pairs for a tokenizer of transformers whose model reads `max_length` tokens."""
    texts = tokenizer_probe(tokenizer, max_length)
    as_documents = [(QUERY, text) for text in texts]
    as_queries = [(text, DOCUMENT) for text in texts if text.strip()]
    around = [(QUERY, _around_length(tokenizer, max_length + more)) for more in (-1, 0, 1)]
    return [*as_documents, *as_queries, (QUERY, ""), *around, *_long_pairs(max_length)]


def _around_length(tokenizer: Any, length: int) -> str:
    """A document that makes a pair with `QUERY` of so many tokens, or of the nearest number that its words can have."""
    one, two = (count_tokens(tokenizer, ["a"] * count) for count in (1, 2))
    return " ".join(["a"] * max(1, 1 + (length - one) // max(two - one, 1)))


def count_tokens(tokenizer: Any, words: Sequence[str]) -> int:
    batch = [[QUERY, " ".join(words)]]
    return len(tokenizer(batch, truncation=False, verbose=False)["input_ids"][0])


def _long_pairs(max_length: int) -> Iterator[tuple[str, str]]:
    """Queries and documents of about as many tokens as the model reads, and of more."""
    half = max_length // 2
    for query, document in (
        (_SHORT, max_length),
        (_SHORT, 2 * max_length),
        (half - 1, half - 1),
        (half, half + 1),
        (half + 2, half),
        (max_length, _SHORT),
        (max_length, max_length),
        (max_length + 1, max_length),
    ):
        yield text_of(query), text_of(document)


def text_of(words: int) -> str:
    return " ".join(_WORDS[number % len(_WORDS)] for number in range(max(words, 1)))
