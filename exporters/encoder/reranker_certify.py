"""A reranker's bundle against the publisher's library: tokens, float32 scores, and rankings after quantization."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...runtime.bundle.golden_vector import pack_vector
from ...runtime.bundle.graph_io import INPUT_IDS, TOKEN_TYPE_IDS
from ...runtime.bundle.manifest import Certificate, Golden, Precision
from ...runtime.encoder.ranking import score
from ...runtime.encoder.reranker import Reranker
from ...runtime.errors import OrtkitError, UnsupportedModelError
from ...runtime.text.pair_tokenizer import Pair, PairTokenizer, TokenizedPair
from ..certification.certificate import certificate_of, golden_places, hint_of
from ..certification.probe import PairSet, probe_searches
from ..certification.rank_correlation import kendall_tau

Inputs = Mapping[str, list[int]]
"""A model's inputs for one pair, by name."""

LOWEST_TAU = {Precision.FP32: 0.99, Precision.FP16: 0.99, Precision.INT8: 0.7}
"""The same for the mean of Kendall's tau over the queries of the probe set. Of a trained model's documents, most answer
a query not at all and score alike, so that their order is chance."""
DEFAULT_TAU = 0.95
"""The mean Kendall's tau on the probe set at which the fastest int8 recipe is good enough, without `--min-tau`.

At 0.95 one pair of documents in forty changes places. A trained reranker confirms it (`benchmarks/README.md`): static
scales reach 0.965, a little above OpenVINO's int8 (0.940), the top ten keep their gain (nDCG@10 to float32 0.999), and
the slower recipes 0.969 to 0.976. Seeded weights show more damage, as their scores lie close together: static scales
reach 0.960 for 12 layers and 0.944 for the trained MiniLM under a seeded head; with 16 bits for [CLS] 0.986 and 0.979.
Where order matters more than speed, `--min-tau 0.97` takes 16 bits for [CLS] for all three.
"""
_LARGEST_DIFFERENCE = {Precision.FP32: 1e-3, Precision.FP16: 2e-2}
"""Of a reranker's logit from PyTorch's, on any pair of the probe set; of fp16 as a part of the largest one above 1."""
_TOP = 10
_CROSS_ENCODER = "sentence-transformers' CrossEncoder"
EXACT = 1e-5
"""How far a float32 logit or score may be from the publisher's library, as a part of the largest logit above 1."""
_EXACT_STRIDE = 8
"""Of so many pairs of the probe set, one is compared before quantization."""
_SHOWN = 60
"""Characters of a text that a message repeats."""
_NOISE = 1e-4
"""Logits of PyTorch that differ less may change places between two ways to compute the same in float32."""


@dataclass(frozen=True)
class PairReference:
    """What the publisher's library gives for pairs."""

    name: str
    """The library with its version, and those below it."""
    logits: NDArray[np.float32]
    """Of the probe set, (pairs, labels)."""
    telling: tuple[Pair, ...]
    """Pairs that show how two readings of a checkpoint differ."""
    telling_logits: NDArray[np.float32]
    telling_scores: NDArray[np.float32]
    """Of the first of them, as published, (pairs, labels)."""


def check_tokens(name: str, own: PairTokenizer, pairs: Sequence[Pair], reads: Callable[[Pair], Inputs]) -> None:
    """Raise UnsupportedModelError where the runtime makes other tokens of a pair than the reference `reads`."""
    for pair in pairs:
        [found] = own.tokenize([pair])
        expected = reads(pair)
        types = expected.get(TOKEN_TYPE_IDS)
        if found.ids.tolist() != expected[INPUT_IDS]:
            raise UnsupportedModelError(
                f"the tokenizer of `{name}` puts a query and a document together in a way that is not supported: "
                f"{difference(found.ids.tolist(), expected[INPUT_IDS])}",
                hint=f"the query {shown(pair[0])} and the document {shown(pair[1])}",
            )
        if types is not None and types != _types_of(own, found):
            raise UnsupportedModelError(
                f"the tokenizer of `{name}` gives the tokens of a pair types that are not supported",
                hint=f"the query {shown(pair[0])} and the document {shown(pair[1])}",
            )


def _types_of(own: PairTokenizer, pair: TokenizedPair) -> list[int]:
    after = len(pair.ids) - pair.document_start
    return [0] * pair.document_start + [own.pair.document_type] * after


def difference(found: list[int], expected: list[int]) -> str:
    """Where two lists of tokens part, in words."""
    if len(found) != len(expected):
        return f"{len(found)} tokens instead of {len(expected)}"
    place = next(place for place, (here, there) in enumerate(zip(found, expected, strict=True)) if here != there)
    return f"token {place} is {found[place]} instead of {expected[place]}"


def shown(text: str) -> str:
    return repr(text) if len(text) <= _SHOWN else f"{text[:_SHOWN]!r}..."


def check_exact_pairs(reranker: Reranker, reference: PairReference) -> None:
    """Raise UnsupportedModelError where a float32 graph does not give the publisher's scores.

    Before anything is quantized: what is seen here is a part of the checkpoint that was read otherwise.
    """
    name = reranker.bundle.manifest.name
    every = slice(None, None, _EXACT_STRIDE)
    pairs = [*probe_searches().pairs[every], *reference.telling]
    logits = reranker.score_with_report(pairs).logits
    expected = np.concatenate([reference.logits[every], reference.telling_logits])
    # All logits of a model are rounded alike, those near 0 too.
    largest = max(1.0, float(np.abs(expected).max(initial=0)))
    _check_close(name, "logit", pairs, logits, expected, EXACT * largest)
    scored = reference.telling[: len(reference.telling_scores)]
    scores = score(reranker.score_with_report(scored).logits, reranker.facts.scores)
    _check_close(name, "score", scored, scores, reference.telling_scores, EXACT * largest)


def _check_close(
    name: str, what: str, pairs: Sequence[Pair], found: NDArray[Any], expected: NDArray[Any], tolerance: float
) -> None:
    if found.shape != expected.shape:
        raise UnsupportedModelError(
            f"the exported `{name}` gives {found.shape[1]} numbers for a pair where {_CROSS_ENCODER} gives "
            f"{expected.shape[1]}",
            hint="no bundle was written",
        )
    apart = np.abs(found - expected)
    # Written so that NaN fails too.
    if not apart.max(initial=0) <= tolerance:
        worst = int(np.where(np.isnan(apart), np.inf, apart).max(axis=1).argmax())
        query, document = pairs[worst]
        raise UnsupportedModelError(
            f"the exported `{name}` does not give the {what}s of {_CROSS_ENCODER}: {found[worst].tolist()} instead of "
            f"{expected[worst].tolist()} for the query {shown(query)} and the document {shown(document)}",
            hint="no bundle was written: a part of the checkpoint has a meaning that is not supported",
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
            best = set(order[:_TOP].tolist())
            shared.append(len(best & set(np.argsort(-here, kind="stable")[:_TOP].tolist())) / len(best))
            apart = there[order[:-1]] - there[order[1:]] > _NOISE
            swapped += int((apart & (here[order[:-1]] < here[order[1:]])).sum())
    return Agreement(np.array(taus), float(np.mean(shared)), float(np.abs(found - expected).max()), swapped)


def certify_reranker(reranker: Reranker, reference: PairReference, *, min_tau: float | None = None) -> Certificate:
    """Compare a bundle with its reference on the probe set.

    Raises OrtkitError when they agree less than `min_tau`, or so little that something must be wrong.
    """
    probe = probe_searches()
    pairs = probe.pairs
    manifest = reranker.bundle.manifest
    expected = reference.logits
    found = reranker.score_with_report(pairs).logits
    agreement = agreement_of(probe, found, expected)
    tau, lowest = float(agreement.taus.mean()), max(LOWEST_TAU[manifest.precision], min_tau or 0)
    # Written so that NaN fails too.
    if not tau >= lowest:
        raise OrtkitError(
            f"the exported `{manifest.name}` does not rank as PyTorch does: Kendall's tau {tau:.4f} on average over "
            f"{len(probe.searches)} queries, and {manifest.precision.value} must reach {lowest:g}",
            hint=hint_of(manifest.precision, f"--min-tau {lowest:g}"),
        )
    allowed = _LARGEST_DIFFERENCE.get(manifest.precision, np.inf)
    if manifest.precision is Precision.FP16:
        allowed *= max(1.0, float(np.abs(expected).max(initial=0)))
    if not agreement.largest_difference <= allowed:
        raise OrtkitError(
            f"the exported `{manifest.name}` does not score as PyTorch does: a logit differs by "
            f"{agreement.largest_difference:.4f}, and {manifest.precision.value} must stay within {allowed:g}",
            hint=hint_of(manifest.precision, ""),
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
    return certificate_of(probe, len(probe.searches), figures, golden, reference=reference.name)
