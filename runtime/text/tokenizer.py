"""Texts to token ids, with the limits of the manifest instead of those in tokenizer.json."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..bundle.manifest import Side, TokenizerFacts
from ..errors import BundleError, InputError, TextError
from .safe_tokenizer import Spans, UnreadableError, open_tokenizer
from .sentences import sentence_starts

BLOCK = 256
"""Texts to tokenize at a time."""


class LongTexts(StrEnum):
    """What to do with a text over the model's limit: `truncate`, `error` or `mean`."""

    TRUNCATE = "truncate"
    """Truncate it, and report that."""
    ERROR = "error"
    """Raise TextTooLongError before anything is computed."""
    MEAN = "mean"
    """Split it into chunks, and average their embeddings, weighted by tokens."""


@dataclass(frozen=True)
class TokenizedText:
    """Token ids of a text, after truncation."""

    chunks: tuple[NDArray[np.int64], ...]
    """The ids of each chunk: one, except for long texts with LongTexts.MEAN."""
    dropped: int
    """Number of tokens that were truncated."""

    @property
    def ids(self) -> NDArray[np.int64]:
        """The ids of the text, or of its first chunk."""
        return self.chunks[0]

    @property
    def tokens(self) -> int:
        """Number of tokens that the model reads, including special tokens and the prompt of each chunk."""
        return sum(map(len, self.chunks))

    @property
    def total(self) -> int:
        """Number of tokens before truncation."""
        return self.tokens + self.dropped


class Tokenizer:
    """A tokenizer.json with the manifest's limits."""

    def __init__(self, path: Path, facts: TokenizerFacts) -> None:
        """Raises BundleError for an invalid file, and for limits that leave no room for a text."""
        self.tokenizer = open_tokenizer(path, vocabulary=facts.known_tokens)
        self.facts = facts
        self.before, self.after = self.tokenizer.before, self.tokenizer.after
        self.room = facts.max_length - len(self.before) - len(self.after)
        """Largest number of tokens between the special tokens."""
        if self.room < 0:
            raise self._no_room()

    def tokenize(
        self, texts: Sequence[str], *, prefix: str = "", long: LongTexts = LongTexts.TRUNCATE, before: int = 0
    ) -> list[TokenizedText]:
        """Tokenize texts with `prefix` and special tokens, truncated to the manifest's limit.

        Raises InputError for anything but strings of valid Unicode, and TextError for texts that cannot be tokenized.
        Messages number the texts after the `before` texts of earlier calls. With LongTexts.ERROR, texts are truncated
        as with TRUNCATE, and the caller raises where `dropped` is not 0.
        """
        faults: dict[int, str] = {}
        found = list(self._read(texts, faults, prefix=prefix, long=long, before=before))
        _refuse_faulty(faults, before)
        return found

    def ids_of(self, text: str, *, special: bool = True) -> list[int]:
        """The token ids of a whole text, before truncation; raises InputError where it cannot be tokenized."""
        ids = self.tokenizer.encode(self._cased(checked_text(text, "the text")))
        return [*map(int, self.before), *ids, *map(int, self.after)] if special else ids

    def count(self, texts: Sequence[str], *, prefix: str = "") -> Iterator[int]:
        """Number of tokens of each text before truncation, including special tokens; raises as `tokenize` does."""
        faults: dict[int, str] = {}
        for text in self._read(texts, faults, prefix=prefix):
            _refuse_faulty(faults, 0)
            yield text.total
        _refuse_faulty(faults, 0)

    def sizes(self, texts: Sequence[str]) -> list[int | str]:
        """Count tokens as `count` does; for a text that cannot be tokenized, the reason (a predicate) instead."""
        faults: dict[int, str] = {}
        sizes = [text.total for text in self._read(texts, faults)]
        return [faults.get(index, size) for index, size in enumerate(sizes)]

    def tokenized(self, texts: Sequence[str], *, prefix: str = "") -> list[TokenizedText | str]:
        """Tokenize as `tokenize` does; for a text that cannot be tokenized, the reason (a predicate) instead."""
        faults: dict[int, str] = {}
        found = list(self._read(texts, faults, prefix=prefix))
        return [faults.get(index, text) for index, text in enumerate(found)]

    def spans(self, text: str) -> Spans:
        """Token ids of a text without special tokens, and where each is in `text`; raises InputError."""
        cased = self._cased(checked_text(text, "the text"))
        spans = self.tokenizer.spans(cased)
        if len(cased) == len(text):
            return spans
        # One character may have several in lower case, such as \u0130.
        origins = np.repeat(np.arange(len(text)), [len(character.lower()) for character in text])
        origins = np.append(origins, len(text))
        return Spans(spans.ids, origins[spans.starts], np.maximum(origins[spans.ends], origins[spans.starts]))

    def _read(
        self,
        texts: Sequence[str],
        faults: dict[int, str],
        *,
        prefix: str = "",
        long: LongTexts = LongTexts.TRUNCATE,
        before: int = 0,
    ) -> Iterator[TokenizedText]:
        """Tokenize lazily; a text that cannot be tokenized has no tokens, and an entry in `faults`."""
        left = self.facts.truncation_side is Side.LEFT
        for start in range(0, len(texts), BLOCK):
            block = [
                self._prepared(text, index, prefix)
                for index, text in enumerate(texts[start : start + BLOCK], before + start)
            ]
            found = self.tokenizer.ids(block, faults, keep=self.room, left=left, first=start)
            for place, (text, ids) in enumerate(zip(block, found, strict=True)):
                dropped = ids.total - len(ids.ids)
                if dropped and long is LongTexts.MEAN:
                    try:
                        yield TokenizedText(self._split(text, prefix), 0)
                        continue
                    except UnreadableError as error:
                        faults[start + place] = error.fault
                if start + place in faults:
                    yield TokenizedText((np.empty(0, np.int64),), 0)
                else:
                    yield TokenizedText((np.concatenate([self.before, ids.ids, self.after]),), dropped)

    def _split(self, text: str, prefix: str) -> tuple[NDArray[np.int64], ...]:
        """Split a long text, prefix included, into chunks within the model's limit, at the last sentence end that fits.

        Each chunk has special tokens, the tokens of the prefix, and the next tokens of the text; without a sentence end
        in the window it is filled. Raises InputError where the prefix leaves no room.
        """
        if self.room < 1:
            raise self._no_room()
        spans = self.tokenizer.spans(text)
        ids = spans.ids
        repeated = int(np.searchsorted(spans.ends, len(self._cased(prefix)), side="right")) if prefix else 0
        room = self.room - repeated
        if room < 1:
            raise InputError(
                f"the prompt alone has {repeated} tokens, and the model's limit is {self.facts.max_length}",
                hint="long texts cannot be split into chunks with it; use another prompt, or truncate long texts",
            )
        cuts = np.searchsorted(spans.starts, list(sentence_starts(text))).tolist()
        chunks = []
        start = repeated
        while start < len(ids):
            end = min(start + room, len(ids))
            if end < len(ids):
                place = bisect_right(cuts, end) - 1
                if place >= 0 and cuts[place] > start:
                    end = cuts[place]
            chunks.append(np.concatenate([self.before, ids[:repeated], ids[start:end], self.after]))
            start = end
        return tuple(chunks)

    def _no_room(self) -> BundleError:
        return BundleError(f"the model's limit of {self.facts.max_length} tokens leaves no room for a text")

    def _prepared(self, text: object, index: int, prefix: str) -> str:
        return self._cased(prefix + checked_text(text, f"text {index}"))

    def _cased(self, text: str) -> str:
        return text.lower() if self.facts.lower_case else text


def _refuse_faulty(faults: Mapping[int, str], before: int) -> None:
    """Raise TextError for the first text that cannot be tokenized, and all with the same fault."""
    if faults:
        first, fault = min(faults.items())
        same = tuple(sorted(index for index, other in faults.items() if other == fault))
        raise TextError(f"text {before + first} {fault}", texts=same, fault=fault)


NO_TOKENS = "has no tokens"
NO_TOKENS_HINT = "leave it out: this model's tokenizer adds no special tokens, so an empty text has none"
"""The publishers' libraries fail too: sentence-transformers and transformers raise IndexError."""


def stack_ids(rows: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
    """Stack the ids of texts with the same number of tokens: (batch, tokens)."""
    return rows[0][np.newaxis] if len(rows) == 1 else np.stack(rows)


def checked_text(text: object, name: str) -> str:
    """Return `text`; raises InputError, with `name`, for anything but a string of valid Unicode."""
    if not isinstance(text, str):
        raise InputError(f"{name} must be a string, not {type(text).__name__}")
    # Most texts are ASCII, and `isascii` is O(1).
    if not text.isascii():
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise InputError(f"{name} is not valid Unicode: {error.reason} at character {error.start}") from error
    return text
