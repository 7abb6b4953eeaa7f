"""Texts to token ids by `tokenizers`, under the limits of the manifest instead of those in tokenizer.json."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import BundleError, InputError, TextError
from ..bundle.manifest import Side, TokenizerFacts
from .safe_tokenizer import UnreadableError, open_tokenizer

BLOCK = 256
"""Texts tokenized before the first of them is given."""
SENTENCE_END = re.compile(r"(?<=[.!?…])(?=\s)|(?<=[.!?…][\"'”’)\]])(?=\s)|(?<=[。！？])|(?=\n)")  # noqa: RUF001 - CJK


class LongTexts(StrEnum):
    """What happens to a text that is longer than the model reads."""

    TRUNCATE = "truncate"
    """Its end is cut off, and that is reported."""
    ERROR = "error"
    """The call fails before anything is computed."""
    MEAN = "mean"
    """It is read in chunks, and its vector is the mean of theirs, each weighted by its tokens."""


@dataclass(frozen=True)
class TokenizedText:
    """The ids that go into the model and what did not."""

    chunks: tuple[NDArray[np.int64], ...]
    """The ids of each run of the model over this text: one, unless it is long and read in chunks."""
    dropped: int
    """How many tokens were cut off at the end."""

    @property
    def ids(self) -> NDArray[np.int64]:
        """The ids of a text that is read at once, or of its first chunk."""
        return self.chunks[0]

    @property
    def tokens(self) -> int:
        """How many tokens the model reads, special tokens and repeated prompts included."""
        return sum(map(len, self.chunks))


class Tokenizer:
    """A tokenizer.json, opened with the manifest's limits."""

    def __init__(self, path: Path, facts: TokenizerFacts) -> None:
        """Raises BundleError for a file that is no tokenizer, or limits that leave no room for a text."""
        self.tokenizer = open_tokenizer(path, known=facts.known_tokens)
        self.facts = facts
        self.before, self.after = self.tokenizer.before, self.tokenizer.after
        self.room = facts.max_length - len(self.before) - len(self.after)
        """Tokens of a text that fit between the special tokens."""
        if self.room < 0:
            raise self.no_room()

    def tokenize(
        self, texts: Sequence[str], *, prefix: str = "", long: LongTexts = LongTexts.TRUNCATE, before: int = 0
    ) -> list[TokenizedText]:
        """Tokenize texts with their special tokens and `prefix` before each, none longer than the manifest's length.

        Raises InputError for what is no string or not valid Unicode, and TextError for what the tokenizer cannot read,
        by its place after the `before` texts of earlier calls. `LongTexts.ERROR` is the caller's to raise: a text is
        cut as with TRUNCATE, and `dropped` tells.
        """
        faults: dict[int, str] = {}
        found = list(self.read(texts, faults, prefix=prefix, long=long, before=before))
        refuse_faulty(faults, before)
        return found

    def count(self, texts: Sequence[str], *, prefix: str = "") -> Iterator[int]:
        """How many tokens each text has before it is cut, special tokens included; raises as `tokenize` does."""
        faults: dict[int, str] = {}
        for text in self.read(texts, faults, prefix=prefix):
            refuse_faulty(faults, 0)
            yield text.tokens + text.dropped
        refuse_faulty(faults, 0)

    def read(
        self,
        texts: Sequence[str],
        faults: dict[int, str],
        *,
        prefix: str = "",
        long: LongTexts = LongTexts.TRUNCATE,
        before: int = 0,
    ) -> Iterator[TokenizedText]:
        """Tokenize a block at a time; a text that cannot be read has no tokens, and its fault goes into `faults`."""
        left = self.facts.truncation_side is Side.LEFT
        for start in range(0, len(texts), BLOCK):
            block = [
                self.prepared(text, index, prefix)
                for index, text in enumerate(texts[start : start + BLOCK], before + start)
            ]
            found = self.tokenizer.ids(block, faults, keep=self.room, left=left, first=start)
            for place, (text, ids) in enumerate(zip(block, found, strict=True)):
                dropped = ids.total - len(ids.ids)
                if dropped and long is LongTexts.MEAN:
                    try:
                        yield TokenizedText(self.split(text, prefix), 0)
                        continue
                    except UnreadableError as error:
                        faults[start + place] = error.fault
                if start + place in faults:
                    yield TokenizedText((np.empty(0, np.int64),), 0)
                else:
                    yield TokenizedText((np.concatenate([self.before, ids.ids, self.after]),), dropped)

    def split(self, text: str, prefix: str) -> tuple[NDArray[np.int64], ...]:
        """The ids of a long prepared text in chunks that the model can read, at the last end of a sentence that fits.

        A chunk holds the special tokens of any text, the tokens of the prefix, and the next tokens of the text; where
        no sentence ends within the window it is filled up. Raises InputError when the prefix leaves no room.
        """
        if self.room < 1:
            raise self.no_room()
        spans = self.tokenizer.spans(text)
        ids = spans.ids
        repeated = int(np.searchsorted(spans.ends, len(self.cased(prefix)), side="right")) if prefix else 0
        room = self.room - repeated
        if room < 1:
            raise InputError(
                f"the prompt alone has {repeated} tokens, and the model reads {self.facts.max_length}",
                hint="a long text cannot be read in chunks behind it; use another prompt, or have long texts cut",
            )
        cuts = np.searchsorted(spans.starts, [match.start() for match in SENTENCE_END.finditer(text)]).tolist()
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

    def no_room(self) -> BundleError:
        return BundleError(f"the model reads {self.facts.max_length} tokens, which leaves no room for a text")

    def prepared(self, text: object, index: int, prefix: str) -> str:
        return self.cased(prefix + checked_text(text, f"text {index}"))

    def cased(self, text: str) -> str:
        return text.lower() if self.facts.lower_case else text


def refuse_faulty(faults: Mapping[int, str], before: int) -> None:
    """Raise TextError for the first text that cannot be read, and all that have the same fault."""
    if faults:
        first, fault = min(faults.items())
        same = tuple(sorted(index for index, other in faults.items() if other == fault))
        raise TextError(f"text {before + first} {fault}", texts=same, fault=fault)


NO_TOKENS = "has no tokens"
NO_TOKENS_HINT = (
    "leave it out: without special tokens, which this model's tokenizer does not add, there is nothing to read"
)
"""The publishers' libraries give no result either: sentence-transformers and transformers raise IndexError."""


def stack_ids(rows: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
    """Stack the token ids of texts of one length: (batch, tokens)."""
    return rows[0][np.newaxis] if len(rows) == 1 else np.stack(rows)


def checked_text(text: object, name: str) -> str:
    """The same text; raises InputError, with what it is called, for what is no string or not valid Unicode."""
    if not isinstance(text, str):
        raise InputError(f"{name} must be a string, not {type(text).__name__}")
    # The usual text is ASCII, and asking for that costs nothing.
    if not text.isascii():
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise InputError(f"{name} is not valid Unicode: {error.reason} at character {error.start}") from error
    return text
