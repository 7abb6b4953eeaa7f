"""The bundle against the PyTorch reference: how far apart they are, and outputs to compare with on another machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray

from exporters.checkpoint import Checkpoint
from exporters.dense import DenseLayer
from exporters.pair_facts import reference_ids
from exporters.probe import PairSet, TextSet, probe_searches, probe_texts
from exporters.pytorch_model import load_tokenizer
from runtime.embedder import Embedder
from runtime.errors import EdgekitError, UnsupportedModelError
from runtime.manifest import Activation, Certificate, Golden, GoldenAnswer, Manifest, Precision, pack_vector
from runtime.pairs import Pair, PairTokenizer
from runtime.pooling import cosines, normalize, pool
from runtime.ranking import kendall_tau
from runtime.reranker import Reranker

GOLDEN_TEXTS = 8
LOWEST_COSINE = {Precision.FP32: 0.9999, Precision.INT8: 0.98}
"""Below this, on any text of the probe set, an export is not what it claims to be, and no bundle is written."""
LOWEST_TAU = {Precision.FP32: 0.99, Precision.INT8: 0.7}
"""The same for the mean of Kendall's tau over the queries of the probe set. Of a trained model's documents, most answer
a query not at all and score alike, so that their order is chance."""
LARGEST_DIFFERENCE = 1e-3
"""Of a float32 reranker's logit from PyTorch's, on any pair of the probe set."""
TOP = 10
NOISE = 1e-4
"""Logits of PyTorch that differ less may change places between two ways to compute the same in float32."""


def reference_vectors(
    model: Any, checkpoint: Checkpoint, layers: Sequence[DenseLayer], manifest: Manifest, texts: Sequence[str]
) -> NDArray[np.float32]:
    """Embed with PyTorch and transformers' own tokenizer, one text at a time: (texts, dimension)."""
    facts = manifest.embedder
    if facts is None:
        raise ValueError("only embedders have vectors")
    tokenizer = load_tokenizer(checkpoint)
    prefix = facts.prompts[facts.default_prompt] if facts.default_prompt is not None else ""
    vectors = []
    for text in texts:
        given = (prefix + text).lower() if manifest.tokenizer.lower_case else prefix + text
        encoded = tokenizer(given, truncation=True, max_length=manifest.tokenizer.max_length, return_tensors="pt")
        with torch.inference_mode():
            tokens = model(input_ids=encoded["input_ids"]).last_hidden_state.numpy()
        vectors.append(pool(tokens.swapaxes(0, 1), facts.pooling)[0])
    found = np.stack(vectors)
    for layer in layers:
        product = torch.from_numpy(found) @ torch.from_numpy(layer.weight) + torch.from_numpy(layer.bias)
        found = (product.tanh() if layer.activation is Activation.TANH else product).numpy()
    return normalize(found) if facts.normalize else found


def certify_embedder(
    embedder: Embedder, expected: NDArray[np.float32], *, min_cosine: float | None = None
) -> Certificate:
    """Compare a bundle with its reference on the probe set; `expected` are the `reference_vectors` of its texts.

    Raises EdgekitError when they agree less than `min_cosine`, or so little that something must be wrong.
    """
    probe = probe_texts()
    manifest = embedder.bundle.manifest
    found = embedder.embed_with_report(probe.texts).vectors
    agreement = cosines(found, expected)
    lowest = max(LOWEST_COSINE[manifest.precision], min_cosine or 0)
    # Written so that NaN fails too.
    if not agreement.min() >= lowest:
        worst = int(agreement.argmin())
        raise EdgekitError(
            f"the exported `{manifest.name}` does not agree with PyTorch: cosine {agreement.min():.4f} on text {worst} "
            f"of the probe set, and {manifest.precision.value} must reach {lowest:g}",
            hint=hint_of(manifest.precision, f"--min-cosine {lowest:g}"),
        )
    golden = tuple(
        Golden(probe.texts[index], pack_vector(expected[index]), pack_vector(found[index]))
        for index in golden_places(len(probe.texts))
    )
    figures = {"cosine_mean": float(agreement.mean()), "cosine_min": float(agreement.min())}
    return certificate_of(probe, len(probe.texts), figures, golden)


def reference_logits(model: Any, tokenizer: Any, manifest: Manifest, pairs: Sequence[Pair]) -> NDArray[Any]:
    """Score with PyTorch and transformers' own `tokenizer`, one pair at a time: float32 (pairs, labels)."""
    facts = manifest.reranker
    if facts is None:
        raise ValueError("only rerankers have logits")
    logits = []
    for query, document in pairs:
        ids = reference_ids(tokenizer, facts.pair, manifest.tokenizer.max_length, query, document)
        with torch.inference_mode():
            logits.append(model(**{name: torch.tensor([row]) for name, row in ids.items()}).logits[0].numpy())
    return np.stack(logits)


def check_pairs(name: str, tokenizer: Any, own: PairTokenizer, max_length: int) -> None:
    """Raise UnsupportedModelError where the runtime puts pairs together otherwise than transformers' `tokenizer`."""
    pairs = probe_searches().pairs
    for (query, document), found in zip(pairs, own.tokenize(pairs), strict=True):
        expected = reference_ids(tokenizer, own.pair, max_length, query, document)["input_ids"]
        if found.ids.tolist() != expected:
            raise UnsupportedModelError(
                f"the tokenizer of `{name}` puts a query and a document together in a way that edgekit does "
                f"not know: {found.ids.tolist()[:8]}... instead of {expected[:8]}..."
            )


@dataclass(frozen=True)
class Agreement:
    """How alike two rerankers rank the documents of several queries."""

    taus: NDArray[np.float64]
    """Kendall's tau of each ranking."""
    top: float
    """Share of the first one's best ten documents that the other has among its best ten, on average."""
    largest_difference: float
    """Between two logits of the same pair."""
    swapped: int
    """Neighbours in the first one's order that the other one has the other way round, by more than noise."""


def agreement_of(searches: PairSet, found: NDArray[np.float32], expected: NDArray[np.float32]) -> Agreement:
    """Compare logits (pairs, labels) with those of PyTorch; each label of each query makes a ranking."""
    taus, shared, swapped, start = [], [], 0, 0
    for _, documents in searches.searches:
        rows = slice(start, start + len(documents))
        start += len(documents)
        for here, there in zip(found[rows].T, expected[rows].T, strict=True):
            taus.append(kendall_tau(here.tolist(), there.tolist()))
            order = np.argsort(-there, kind="stable")
            best = set(order[:TOP].tolist())
            shared.append(len(best & set(np.argsort(-here, kind="stable")[:TOP].tolist())) / len(best))
            apart = there[order[:-1]] - there[order[1:]] > NOISE
            swapped += int((apart & (here[order[:-1]] < here[order[1:]])).sum())
    return Agreement(np.array(taus), float(np.mean(shared)), float(np.abs(found - expected).max()), swapped)


def certify_reranker(reranker: Reranker, expected: NDArray[np.float32], *, min_tau: float | None = None) -> Certificate:
    """Compare a bundle with its reference on the probe set; `expected` are the `reference_logits` of its pairs.

    Raises EdgekitError when they agree less than `min_tau`, or so little that something must be wrong.
    """
    probe = probe_searches()
    pairs = probe.pairs
    manifest = reranker.bundle.manifest
    found = reranker.score_with_report(pairs).logits
    agreement = agreement_of(probe, found, expected)
    tau, lowest = float(agreement.taus.mean()), max(LOWEST_TAU[manifest.precision], min_tau or 0)
    # Written so that NaN fails too.
    if not tau >= lowest:
        raise EdgekitError(
            f"the exported `{manifest.name}` does not rank as PyTorch does: Kendall's tau {tau:.4f} on average over "
            f"{len(probe.searches)} queries, and {manifest.precision.value} must reach {lowest:g}",
            hint=hint_of(manifest.precision, f"--min-tau {lowest:g}"),
        )
    if manifest.precision is Precision.FP32 and not agreement.largest_difference <= LARGEST_DIFFERENCE:
        raise EdgekitError(
            f"the exported `{manifest.name}` does not score as PyTorch does: a logit differs by "
            f"{agreement.largest_difference:.4f}, and fp32 must stay within {LARGEST_DIFFERENCE:g}",
            hint="no bundle was written",
        )
    golden = tuple(
        Golden(document, pack_vector(expected[index]), pack_vector(found[index]), query)
        for index in golden_places(len(pairs))
        for query, document in [pairs[index]]
    )
    figures = {
        "tau_mean": tau,
        "tau_min": float(agreement.taus.min()),
        "top10_overlap": agreement.top,
        "largest_difference": agreement.largest_difference,
        "swapped_neighbours": float(agreement.swapped),
    }
    return certificate_of(probe, len(probe.searches), figures, golden)


def hint_of(precision: Precision, option: str) -> str:
    if precision is Precision.FP32:
        return "no bundle was written"
    return f"no bundle was written; try `{option}`, or `--precision fp32`"


def golden_places(count: int) -> list[int]:
    """The places of the golden ones among so many, spread evenly."""
    places: list[int] = np.linspace(0, count - 1, GOLDEN_TEXTS).astype(int).tolist()
    return places


def certificate_of(
    probe: TextSet | PairSet,
    size: int,
    figures: dict[str, float],
    golden: tuple[Golden, ...],
    answers: tuple[GoldenAnswer, ...] = (),
) -> Certificate:
    return Certificate(
        reference=f"torch {torch.__version__}, transformers {transformers.__version__}, float32",
        probe=probe.name,
        probe_sha256=probe.sha256,
        probe_size=size,
        figures=figures,
        golden=golden,
        answers=answers,
    )
