"""The texts that are embedded: real English that neither the calibration nor the probe set holds."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from random import Random

from exporters.wheel import cache_folder

CORPUS = "lee_background.cor"
"""Lee's background corpus, 300 news texts, a line each."""
FEWEST_WORDS = 3
MOST_WORDS = 250
FEWEST_WORDS_OF_PASSAGE = 30
SEED = 20


def corpus_path() -> Path:
    return cache_folder() / "texts" / CORPUS


def held_out_texts(count: int) -> list[str]:
    """Texts of 3 to 250 words in mixed order, the same for the same count: 2/3 single sentences, 1/3 passages."""
    path = corpus_path()
    if not path.exists():
        raise SystemExit(f"there is no `{path}`\n\nhint: `python -m tests.assets` fetches it")
    choose = Random(SEED)
    documents = path.read_text(encoding="utf-8").splitlines()
    passages = unique(
        " ".join(document.split()[: choose.randint(FEWEST_WORDS_OF_PASSAGE, MOST_WORDS)]) for document in documents
    )
    sentences = unique(sentence for document in documents for sentence in re.split(r"(?<=[.!?])\s+", document))
    longer = count // 3
    if longer > len(passages) or count - longer > len(sentences):
        raise SystemExit(f"`{path}` does not hold enough for {count} texts")
    texts = choose.sample(sentences, count - longer) + choose.sample(passages, longer)
    choose.shuffle(texts)
    return texts


def unique(texts: Iterable[str]) -> list[str]:
    """Drop repetitions, and texts that are too short or too long."""
    return [text for text in dict.fromkeys(texts) if FEWEST_WORDS <= len(text.split()) <= MOST_WORDS]
