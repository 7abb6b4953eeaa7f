"""The texts that come with ortkit: one set to calibrate on, another, apart from it, to certify with."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DATA = Path(__file__).with_name("data")


CANDIDATES = 16
"""Documents that each query of the probe set ranks."""
_STRIDE = 7
"""Between the documents that are candidates for no reason; with no factor in common with the number of texts."""
QUERY_WORDS = 8
"""Words of a calibration text that stand for a query."""
_TOKENS_IN_A_TEXT = 8
"""Added tokens of a checkpoint that one probe text has."""


@dataclass(frozen=True)
class PairSet:
    """Queries with the documents that each ranks, under a name, with the sha256 of the files that hold them."""

    name: str
    sha256: str
    searches: tuple[tuple[str, tuple[str, ...]], ...]

    @property
    def pairs(self) -> list[tuple[str, str]]:
        return [(query, document) for query, documents in self.searches for document in documents]


@dataclass(frozen=True)
class TextSet:
    """Texts under a name, with the sha256 of the file that holds them, one a line."""

    name: str
    sha256: str
    texts: tuple[str, ...]


def lines_of(content: bytes) -> list[str]:
    r"""The lines of a file, ended by \n alone: `splitlines` would end them at U+2028 and others too."""
    return content.decode("utf-8").removesuffix("\n").split("\n")


def _load_texts(name: str) -> TextSet:
    content = (DATA / f"{name}.txt").read_bytes()
    return TextSet(name, hashlib.sha256(content).hexdigest(), tuple(lines_of(content)))


def calibration_texts() -> TextSet:
    """What the scales of static quantization are found on; never scored."""
    return _load_texts("calibration")


def probe_texts() -> TextSet:
    """What a certificate is measured on; never calibrated with. The longest go beyond what most models read."""
    return _load_texts("probe")


def probe_searches() -> PairSet:
    """What a reranker's certificate is measured on: queries, each with probe texts that answer it and others."""
    content = (DATA / "searches.jsonl").read_bytes()
    probe = probe_texts()
    searches = []
    for number, line in enumerate(lines_of(content)):
        search = json.loads(line)
        places = [int(place) - 1 for place in search["answers"]]
        others = ((number + _STRIDE * step) % len(probe.texts) for step in range(len(probe.texts)))
        places += [place for place in others if place not in places]
        searches.append((str(search["query"]), tuple(probe.texts[place] for place in places[:CANDIDATES])))
    digest = hashlib.sha256(content + probe.sha256.encode()).hexdigest()
    return PairSet("searches", digest, tuple(searches))


def telling_texts() -> tuple[str, ...]:
    """What tokenizers that differ in one setting read differently: case, accents, white space, scripts, long words."""
    return tuple(json.loads((DATA / "tokenizer_probe.json").read_text(encoding="utf-8")))


def tokenizer_probe(tokenizer: Any, max_length: int) -> tuple[str, ...]:
    """Texts on which tokenizers differ: `telling_texts`, texts around `max_length`, the checkpoint's own added tokens.

    `tokenizer` is that of transformers, and `max_length` the tokens that the model reads, special ones included. The
    texts around it have one token less, as many, one and several more, with other words at both ends, so that the side
    on which they are cut shows. Added tokens come in their own case and others, with and without spaces around them.
    """
    lengths = (_around_length(tokenizer, max_length + more) for more in (-1, 0, 1, 9))
    return tuple(dict.fromkeys([*telling_texts(), *lengths, *_added_token_texts(tokenizer, max_length)]))


def _around_length(tokenizer: Any, length: int) -> str:
    """A text of so many tokens, special ones included, or of the nearest number that its words can have."""
    ends = ("First", "last")
    bare, one = (count_tokens(tokenizer, [*ends[:1], *["a"] * count, *ends[1:]]) for count in (1, 2))
    fewest = bare - max(one - bare, 1)
    count = max(0, (length - fewest) // max(one - bare, 1))
    return " ".join([ends[0], *["a"] * count, ends[1]])


def count_tokens(tokenizer: Any, words: Iterable[str]) -> int:
    return len(tokenizer(" ".join(words), truncation=False, verbose=False)["input_ids"])


def _added_token_texts(tokenizer: Any, max_length: int) -> Iterator[str]:
    """Every token that a tokenizer has beside its model's vocabulary, and every special one, among words."""
    tokens = list(dict.fromkeys([*tokenizer.all_special_tokens, *tokenizer.get_added_vocab()]))
    size = max(1, min(_TOKENS_IN_A_TEXT, max_length // 6))
    for start in range(0, len(tokens), size):
        some = tokens[start : start + size]
        yield f"a {' '.join(some)} b"
        yield "".join(f"a{token}" for token in some) + "b"
        yield " ".join(token.swapcase() for token in some)


def calibration_pairs() -> list[tuple[str, str]]:
    """What the scales of a reranker are found on: texts with the first words of their own, or of the next text."""
    texts = calibration_texts().texts
    heads = [" ".join(text.split()[:QUERY_WORDS]) for text in texts]
    return [(heads[(number + number % 2) % len(texts)], text) for number, text in enumerate(texts)]
