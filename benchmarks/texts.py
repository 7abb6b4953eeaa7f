"""Benchmark texts: real English that is in neither the calibration nor the probe set."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np
from numpy.typing import NDArray

from ortkit.exporters.checkpoint.wheel import download_folder

CORPUS = "lee_background.cor"
"""Lee's background corpus, 300 news texts, one per line."""
JUDGED = "lee.cor"
"""Lee's 50 news texts, one per line, with human judgements of similarity."""
JUDGEMENTS = "similarities0-1.txt"
"""Similarity of each pair by human judgement: 50 x 50, upper triangle."""
FEWEST_WORDS = 3
MOST_WORDS = 250
FEWEST_WORDS_OF_PASSAGE = 30
QUERY_WORDS = 8
TASKS = (
    "Continue this news story in as much detail as you can:",
    "Write a long letter to the editor about this news:",
    "Explain at length why this matters, and to whom:",
    "Retell this for children, as a long story:",
)
"""Of questions that ask for long answers."""
SEED = 20


@dataclass(frozen=True)
class JudgedTexts:
    """Texts and human judgements of their similarity (Lee, Pincombe and Welsh 2005)."""

    texts: list[str]
    similarities: NDArray[np.float64]
    """(pairs,): the mean judgement from 0 to 1, for the pairs of `numpy.triu_indices(len(texts), 1)`."""


def text_path(name: str) -> Path:
    return download_folder() / "texts" / name


def read_lines(name: str, encoding: str = "utf-8") -> list[str]:
    path = text_path(name)
    if not path.exists():
        raise SystemExit(f"no such file: `{path}`\n\nhint: `python -m tests.assets` fetches it")
    return path.read_text(encoding=encoding).splitlines()


def held_out_texts(count: int) -> list[str]:
    """Texts of 3 to 250 words in mixed order, the same for the same count: 2/3 single sentences, 1/3 passages."""
    choose = Random(SEED)
    documents = read_lines(CORPUS)
    passages = unique(
        " ".join(document.split()[: choose.randint(FEWEST_WORDS_OF_PASSAGE, MOST_WORDS)]) for document in documents
    )
    sentences = sentences_of(documents)
    longer = count // 3
    texts = sample(choose, sentences, count - longer) + sample(choose, passages, longer)
    choose.shuffle(texts)
    return texts


def held_out_sentences(count: int) -> list[str]:
    """Single sentences, no two alike, the same for the same count."""
    return sample(Random(SEED), sentences_of(read_lines(CORPUS)), count)


def held_out_passages(words: int) -> list[str]:
    """The beginnings of all texts of the corpus, of at most this many words, no two alike."""
    return unique(" ".join(document.split()[:words]) for document in read_lines(CORPUS))


def queries(count: int) -> list[str]:
    """Texts of 8 words, the length of a search: the beginnings of held-out sentences, no two alike."""
    sentences = sentences_of(read_lines(CORPUS))
    beginnings = [" ".join(sentence.split()[:QUERY_WORDS]) for sentence in sentences]
    return sample(Random(SEED), [text for text in unique(beginnings) if len(text.split()) == QUERY_WORDS], count)


def searches(count: int, documents: int, *, words: int) -> list[tuple[str, list[str]]]:
    """Queries, each with as many documents of at most `words` words, the same for the same counts."""
    choose = Random(SEED)
    passages = held_out_passages(words)
    return [(query, sample(choose, passages, documents)) for query in queries(count)]


def judged_texts() -> JudgedTexts:
    """Lee's 50 texts with the 1,225 judgements."""
    matrix = np.array([line.split() for line in read_lines(JUDGEMENTS)], np.float64)
    texts = read_lines(JUDGED, "latin-1")
    return JudgedTexts(texts, matrix[np.triu_indices(len(texts), 1)])


def texts_of_any_length(count: int, fewest: int, most: int) -> Iterator[str]:
    """Texts of `fewest` to `most` words, cut from the corpus at random places, made one by one, the same every time.

    The logarithm of the length is spread evenly: of 3 to 500 words, half the texts have fewer than 39.
    """
    choose = Random(SEED)
    words = " ".join(read_lines(CORPUS)).split()
    for _ in range(count):
        length = min(most, int(fewest * ((most + 1) / fewest) ** choose.random()))
        start = choose.randrange(len(words) - length + 1)
        yield " ".join(words[start : start + length])


def questions_of(words: int, *, seed: int) -> Iterator[str]:
    """Questions without end that ask an LLM for long answers: a task and so many words of a news text."""
    choose = Random(seed)
    corpus = " ".join(read_lines(CORPUS)).split()
    while True:
        start = choose.randrange(len(corpus) - words)
        yield f"{choose.choice(TASKS)} {' '.join(corpus[start : start + words])}"


def pairs_of_any_length(count: int) -> list[tuple[str, str]]:
    """Queries of 1 to 29 words with documents of 1 to 599, short ones as frequent as long ones, the same every time.

    About one in fifteen is longer than the 512 tokens that most rerankers read.
    """
    words = " ".join(held_out_texts(400)).split()
    random = np.random.default_rng(SEED)
    pairs = []
    for _ in range(count):
        start, end = random.integers(len(words) - 700, size=2)
        query, document = int(random.integers(1, 30)), int(np.exp(random.uniform(0, np.log(600))))
        pairs.append((" ".join(words[start : start + query]), " ".join(words[end : end + document])))
    return pairs


def sentences_of(documents: Iterable[str]) -> list[str]:
    return unique(sentence for document in documents for sentence in re.split(r"(?<=[.!?])\s+", document))


def unique(texts: Iterable[str]) -> list[str]:
    """Drop repetitions, and texts that are too short or too long."""
    return [text for text in dict.fromkeys(texts) if FEWEST_WORDS <= len(text.split()) <= MOST_WORDS]


def sample(choose: Random, texts: list[str], count: int) -> list[str]:
    if count > len(texts):
        raise SystemExit(f"`{text_path(CORPUS)}` holds {len(texts)} texts of this kind, not {count}")
    return choose.sample(texts, count)
