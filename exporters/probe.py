"""The texts that come with edgekit: one set to calibrate on, another, apart from it, to certify with."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

DATA = Path(__file__).with_name("data")


CANDIDATES = 16
"""Documents that each query of the probe set ranks."""
STRIDE = 7
"""Between the documents that are candidates for no reason; with no factor in common with the number of texts."""
QUERY_WORDS = 8
"""Words of a calibration text that stand for a query."""


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


def load_texts(name: str) -> TextSet:
    content = (DATA / f"{name}.txt").read_bytes()
    return TextSet(name, hashlib.sha256(content).hexdigest(), tuple(lines_of(content)))


def calibration_texts() -> TextSet:
    """What the scales of static quantization are found on; never scored."""
    return load_texts("calibration")


def probe_texts() -> TextSet:
    """What a certificate is measured on; never calibrated with. The longest go beyond what most models read."""
    return load_texts("probe")


def probe_searches() -> PairSet:
    """What a reranker's certificate is measured on: queries, each with probe texts that answer it and others."""
    content = (DATA / "searches.jsonl").read_bytes()
    probe = probe_texts()
    searches = []
    for number, line in enumerate(lines_of(content)):
        search = json.loads(line)
        places = [int(place) - 1 for place in search["answers"]]
        others = ((number + STRIDE * step) % len(probe.texts) for step in range(len(probe.texts)))
        places += [place for place in others if place not in places]
        searches.append((str(search["query"]), tuple(probe.texts[place] for place in places[:CANDIDATES])))
    digest = hashlib.sha256(content + probe.sha256.encode()).hexdigest()
    return PairSet("searches", digest, tuple(searches))


def calibration_pairs() -> list[tuple[str, str]]:
    """What the scales of a reranker are found on: texts with the first words of their own, or of the next text."""
    texts = calibration_texts().texts
    heads = [" ".join(text.split()[:QUERY_WORDS]) for text in texts]
    return [(heads[(number + number % 2) % len(texts)], text) for number, text in enumerate(texts)]
