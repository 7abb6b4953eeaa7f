"""Texts to token ids by `tokenizers`, under the limits of the manifest instead of those in tokenizer.json."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import numpy as np
import tokenizers
from numpy.typing import NDArray

from runtime.errors import BundleError, InputError
from runtime.manifest import TokenizerFacts

BLOCK = 256
"""Texts tokenized at once; bounds what `tokenizers` keeps beside the ids."""
SENTENCE_END = re.compile(r"(?<=[.!?…])(?=\s)|(?<=[.!?…][\"'”’)\]])(?=\s)|(?<=[。！？])|(?=\n)")  # noqa: RUF001 - CJK


class LongTexts(str, Enum):
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
        self.tokenizer = open_tokenizer(path)
        self.facts = facts
        self.tokenizer.enable_truncation(facts.max_length)

    def tokenize(
        self, texts: Sequence[str], *, prefix: str = "", long: LongTexts = LongTexts.TRUNCATE, before: int = 0
    ) -> list[TokenizedText]:
        """Tokenize texts with their special tokens and `prefix` before each, none longer than the manifest's length.

        Raises InputError for what is no string or not valid Unicode, by its place after the `before` texts of earlier
        calls. `LongTexts.ERROR` is the caller's to raise: a text is cut as with TRUNCATE, and `dropped` tells.
        """
        return list(self.stream(texts, prefix=prefix, long=long, before=before))

    def stream(
        self, texts: Sequence[str], *, prefix: str = "", long: LongTexts = LongTexts.TRUNCATE, before: int = 0
    ) -> Iterator[TokenizedText]:
        """Tokenize as `tokenize` does, a block at a time as they are asked for."""
        for start in range(0, len(texts), BLOCK):
            block = [
                self.prepared(text, index, prefix)
                for index, text in enumerate(texts[start : start + BLOCK], before + start)
            ]
            for text, encoding in zip(block, self.tokenizer.encode_batch_fast(block), strict=True):
                if not encoding.overflowing:
                    yield TokenizedText((np.array(encoding.ids, np.int64),), 0)
                elif long is LongTexts.MEAN:
                    yield TokenizedText(self.split(text, prefix), 0)
                else:
                    dropped = sum(part.special_tokens_mask.count(0) for part in encoding.overflowing)
                    yield TokenizedText((np.array(encoding.ids, np.int64),), dropped)

    def split(self, text: str, prefix: str) -> tuple[NDArray[np.int64], ...]:
        """The ids of a long prepared text in chunks that the model can read, at the last end of a sentence that fits.

        A chunk holds the special tokens of any text, the tokens of the prefix, and the next tokens of the text; where
        no sentence ends within the window it is filled up. Raises InputError when the prefix leaves no room.
        """
        before, after = self.special_tokens_around()
        whole = self.tokenizer.encode(text)
        parts = [whole, *whole.overflowing]
        body = slice(before, -after or None)
        ids = np.concatenate([np.array(part.ids[body], np.int64) for part in parts])
        starts, ends = np.concatenate([np.array(part.offsets[body], np.int64).reshape(-1, 2) for part in parts]).T
        head, tail = np.array(whole.ids[:before], np.int64), np.array(whole.ids[len(whole.ids) - after :], np.int64)
        repeated = int(np.searchsorted(ends, len(self.cased(prefix)), side="right")) if prefix else 0
        room = self.facts.max_length - before - after - repeated
        if room < 1:
            raise InputError(
                f"the prompt alone has {repeated} tokens, and the model reads {self.facts.max_length}",
                hint="a long text cannot be read in chunks behind it; use another prompt, or have long texts cut",
            )
        cuts = np.searchsorted(starts, [match.start() for match in SENTENCE_END.finditer(text)]).tolist()
        chunks = []
        start = repeated
        while start < len(ids):
            end = min(start + room, len(ids))
            if end < len(ids):
                place = bisect_right(cuts, end) - 1
                if place >= 0 and cuts[place] > start:
                    end = cuts[place]
            chunks.append(np.concatenate([head, ids[:repeated], ids[start:end], tail]))
            start = end
        return tuple(chunks)

    def special_tokens_around(self) -> tuple[int, int]:
        """How many special tokens stand before and after every text."""
        mask = self.tokenizer.encode("a").special_tokens_mask
        if 0 not in mask:
            raise BundleError(f"the model reads {self.facts.max_length} tokens, which leaves no room for a text")
        return mask.index(0), mask[::-1].index(0)

    def prepared(self, text: object, index: int, prefix: str) -> str:
        return self.cased(prefix + checked_text(text, f"text {index}"))

    def cased(self, text: str) -> str:
        return text.lower() if self.facts.lower_case else text


def open_tokenizer(path: Path) -> tokenizers.Tokenizer:
    """A tokenizer.json without the padding that it may ask for; raises BundleError when it is none."""
    try:
        tokenizer = tokenizers.Tokenizer.from_file(str(path))
    # `tokenizers` raises bare Exception for a file that it cannot read, and has no class of its own.
    except Exception as error:
        raise BundleError(f"`{path}` is no tokenizer: {error}") from error
    tokenizer.no_padding()
    return tokenizer


NO_TOKENS = "has no tokens"
NO_TOKENS_HINT = (
    "leave it out: without special tokens, which this model's tokenizer does not add, there is nothing to read"
)
"""The publishers' libraries give no result either: sentence-transformers and transformers raise IndexError."""


def checked_text(text: object, name: str) -> str:
    """The same text; raises InputError, with what it is called, for what is no string or not valid Unicode."""
    if not isinstance(text, str):
        raise InputError(f"{name} is no string but {type(text).__name__}")
    # The usual text is ASCII, and asking for that costs nothing.
    if not text.isascii():
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise InputError(f"{name} is not valid Unicode: {error.reason} at character {error.start}") from error
    return text
