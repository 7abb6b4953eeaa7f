"""Texts to token ids by `tokenizers`, under the limits of the manifest instead of those in tokenizer.json."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tokenizers
from numpy.typing import NDArray

from runtime.errors import BundleError, InputError
from runtime.manifest import TokenizerFacts

BLOCK = 256
"""Texts tokenized at once; bounds what `tokenizers` keeps beside the ids."""


@dataclass(frozen=True)
class TokenizedText:
    """The ids that go into the model and what did not."""

    ids: NDArray[np.int64]
    dropped: int
    """How many tokens were cut off at the end."""


class Tokenizer:
    """A tokenizer.json, opened with the manifest's limits."""

    def __init__(self, path: Path, facts: TokenizerFacts) -> None:
        try:
            self.tokenizer = tokenizers.Tokenizer.from_file(str(path))
        # `tokenizers` raises bare Exception for a file that it cannot read, and has no class of its own.
        except Exception as error:
            raise BundleError(f"`{path}` is no tokenizer: {error}") from error
        self.facts = facts
        self.tokenizer.no_padding()
        self.tokenizer.enable_truncation(facts.max_length)

    def tokenize(self, texts: Sequence[str]) -> list[TokenizedText]:
        """Tokenize texts with their special tokens, each cut to the manifest's length.

        Raises InputError for what is no string or not valid Unicode.
        """
        tokenized = []
        for start in range(0, len(texts), BLOCK):
            block = [self.prepared(text, start + offset) for offset, text in enumerate(texts[start : start + BLOCK])]
            for encoding in self.tokenizer.encode_batch_fast(block):
                dropped = sum(part.special_tokens_mask.count(0) for part in encoding.overflowing)
                tokenized.append(TokenizedText(np.array(encoding.ids, np.int64), dropped))
        return tokenized

    def prepared(self, text: object, index: int) -> str:
        if not isinstance(text, str):
            raise InputError(f"text {index} is no string but {type(text).__name__}")
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise InputError(f"text {index} is not valid Unicode: {error.reason} at character {error.start}") from error
        return text.lower() if self.facts.lower_case else text
