"""Export embedders and rerankers: their facts, their reference, int8 by the fastest recipe that reaches a threshold."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
import onnx_ir as ir
import tokenizers
from numpy.typing import NDArray

from ...runtime.bundle.bundle import GRAPH, TOKENIZER, Bundle
from ...runtime.bundle.graph_io import INPUT_IDS, TOKEN_TYPE_IDS
from ...runtime.bundle.manifest import (
    Certificate,
    EmbedderFacts,
    Kind,
    Manifest,
    Pooling,
    Precision,
    Quantization,
    Side,
)
from ...runtime.encoder.embedder import Embedder
from ...runtime.encoder.pooling import cosines
from ...runtime.encoder.reranker import Reranker
from ...runtime.errors import UnsupportedModelError
from ...runtime.text.pair_tokenizer import Pair, PairTokenizer
from ...runtime.text.tokenizer import Tokenizer
from ..certification.pair_probe import pair_probe
from ..certification.probe import calibration_pairs, calibration_texts, probe_searches, probe_texts
from ..checkpoint.checkpoint import Checkpoint
from ..checkpoint.cross_encoder import Form, read_cross_encoder
from ..checkpoint.kind import positions_of
from ..graph.external_data import save_graph
from ..models.loading import load_tokenizer
from ..progress import counted
from .calibration import Calibration
from .certify import LOWEST_COSINE, Sample, certify_embedder, check_exact, check_length, exact_samples
from .certify_reranker import (
    DEFAULT_TAU,
    PairReference,
    agreement_of,
    certify_reranker,
    check_exact_pairs,
    check_tokens,
)
from .config import embedder_facts
from .dense import dense_layers, write_dense
from .embedder_reference import PublishedEmbedder
from .recipe_search import Measured, Outputs, Trials
from .reranker_config import pair_length, reference_ids, reranker_facts
from .reranker_reference import published_reranker
from .tracing import IMPLEMENTED_HERE, load_model, rebuild, trace

TELLING_TOKENS, TELLING_PAIRS, SCORED_PAIRS = 512, 48, 8
"""Of the pairs that show differences: the longest and the most that have reference logits, and how many have scores."""
SAMPLE = 48
"""Calibration texts on which a single product's share in the error is measured."""
Feeds = Mapping[str, NDArray[np.int64]]


class EncoderTask:
    """What embedders and rerankers have in common."""

    kind: ClassVar[Kind]
    measure: ClassVar[str]
    default_threshold: ClassVar[float]

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint

    def write(self, graph: ir.Model, folder: Path) -> None:
        save_graph(graph, folder / GRAPH)

    def load(self) -> Any:
        return load_model(self.checkpoint, self.kind)

    def graph(self, model: Any, scratch: Path, manifest: Manifest) -> ir.Model:
        graph = trace(model, scratch, self.kind)
        rebuild(graph, self.checkpoint, manifest)
        return graph

    def with_threshold(self, certificate: Certificate, precision: Precision, threshold: float | None) -> Certificate:
        """Add the threshold by which an int8 recipe was chosen to the figures."""
        if precision is not Precision.INT8:
            return certificate
        chosen = self.default_threshold if threshold is None else threshold
        return dataclasses.replace(certificate, figures={**certificate.figures, "threshold": chosen})


class Calibrated(Measured, Protocol):
    """What int8 needs to know of a kind of model: how it is judged, and what it is calibrated with."""

    def calibration_feeds(self, bundle: Bundle) -> Iterator[Feeds]:
        """The graph's inputs for the calibration texts."""


def quantize_with_recipe(
    graph: ir.Model, bundle: Bundle, judge: Calibrated, expected: Outputs, threshold: float | None
) -> tuple[ir.Model, Manifest]:
    """Quantize a float32 graph to int8, by the fastest recipe that agrees with `expected` to `threshold` if given.

    `bundle` is the one being made: its folder takes the trials. Raises OrtkitError when no recipe reaches `threshold`.
    """
    calibration = Calibration(graph, judge.calibration_feeds(bundle), scratch=bundle.path)
    trials = Trials(graph, calibration, judge, bundle)
    recipe = trials.find(threshold, expected)
    quantization = Quantization(
        trials.products, len(recipe.exact), recipe.smoothing, recipe.per_token, recipe.precise_first_token
    )
    return trials.quantized(recipe), dataclasses.replace(bundle.manifest, quantization=quantization)


class EmbedderTask(EncoderTask):
    """Token vectors, pooled to the vector of a text; agreement is the lowest cosine."""

    kind: ClassVar[Kind] = Kind.EMBEDDER
    measure: ClassVar[str] = "cosine"
    default_threshold: ClassVar[float] = LOWEST_COSINE[Precision.INT8]

    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__(checkpoint)
        self.facts = embedder_facts(checkpoint)
        self.layers = dense_layers(checkpoint, self.facts.dimension)
        self.samples: list[Sample] = []
        self.reference_name = ""
        self.own_tokenizer: Tokenizer | None = None

    def described(self, manifest: Manifest, folder: Path) -> Manifest:
        facts = self.facts
        published = load_tokenizer(self.checkpoint)
        if manifest.tokenizer.lower_case:
            # As the library does it: added tokens keep their case.
            lower_case_first(folder / TOKENIZER)
        side = Side(published.truncation_side)
        tokenizer = dataclasses.replace(manifest.tokenizer, lower_case=False, truncation_side=side)
        manifest = dataclasses.replace(manifest, tokenizer=tokenizer)
        self.own_tokenizer = Tokenizer(folder / TOKENIZER, tokenizer)
        if facts.unpooled_tokens:
            special = set(published.all_special_ids)
            texts = {name: facts.prompts[name] for name in facts.unpooled_tokens}
            counts = {name: prompt_tokens(self.own_tokenizer, text, special) for name, text in texts.items()}
            facts = dataclasses.replace(facts, unpooled_tokens=counts)
            check_room(manifest, facts)
        if self.layers:
            dimension = self.layers[-1].weight.shape[1]
            facts = dataclasses.replace(facts, dimension=dimension, dense=write_dense(self.layers, folder))
        return dataclasses.replace(manifest, embedder=facts)

    def calibration_feeds(self, bundle: Bundle) -> Iterator[Feeds]:
        tokenizer = Tokenizer(bundle.file(TOKENIZER), bundle.manifest.tokenizer)
        for text in counted(tokenizer.tokenize(calibration_texts().texts), "texts"):
            yield {INPUT_IDS: text.ids[np.newaxis]}

    def reference(self, model: Any, manifest: Manifest) -> Outputs:
        if self.own_tokenizer is None:
            raise ValueError("a bundle's tokenizer is compared after it was written")
        here = self.checkpoint.architecture.name in IMPLEMENTED_HERE
        published = PublishedEmbedder(self.checkpoint, model, implemented_here=here)
        self.reference_name = published.name
        check_length(published, manifest, positions_of(self.checkpoint))
        self.samples = exact_samples(published, self.own_tokenizer, manifest)
        return published.vectors(probe_texts().texts)

    def quantized(
        self, graph: ir.Model, bundle: Bundle, expected: Outputs, threshold: float | None
    ) -> tuple[ir.Model, Manifest]:
        self.write(graph, bundle.path)
        check_exact(Embedder(bundle), self.samples)
        return quantize_with_recipe(graph, bundle, self, expected, threshold)

    def outputs(self, bundle: Bundle, *, sample: bool = False) -> Outputs:
        texts = calibration_texts().texts[:SAMPLE] if sample else probe_texts().texts
        found: Outputs = Embedder(bundle).embed_with_report(texts).vectors
        return found

    def agreement(self, found: Outputs, expected: Outputs) -> float:
        return float(cosines(found, expected).min())

    def damage(self, found: Outputs, exact: Outputs) -> float:
        return float(1 - cosines(found, exact).mean())

    def certify(self, bundle: Bundle, expected: Outputs, threshold: float | None) -> Certificate:
        embedder = Embedder(bundle)
        if bundle.manifest.precision is Precision.FP32:
            check_exact(embedder, self.samples)
        found = certify_embedder(embedder, expected, reference=self.reference_name, min_cosine=threshold)
        return self.with_threshold(found, bundle.manifest.precision, threshold)


def lower_case_first(path: Path) -> None:
    """Have a tokenizer.json put texts in lower case before all else, unless it has a step for that already."""
    content = json.loads(path.read_bytes())
    normalizer = content.get("normalizer")
    steps = normalizer["normalizers"] if normalizer and normalizer["type"] == "Sequence" else [normalizer]
    if {"type": "Lowercase"} in steps:
        return
    steps = [step for step in steps if step is not None]
    content["normalizer"] = {"type": "Sequence", "normalizers": [{"type": "Lowercase"}, *steps]}
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")


def check_room(manifest: Manifest, facts: EmbedderFacts) -> None:
    """Raise UnsupportedModelError for a prompt that takes all tokens, where the maximum over others is asked for."""
    name, tokens = max(facts.unpooled_tokens.items(), key=lambda entry: entry[1])
    if Pooling.MAX in facts.poolings and tokens >= manifest.tokenizer.max_length:
        raise UnsupportedModelError(
            f"`{manifest.name}` reads {manifest.tokenizer.max_length} tokens, which its prompt `{name}` takes alone, "
            "and leaves the prompt out of pooling, so that no text would have a vector"
        )


def prompt_tokens(tokenizer: Tokenizer, prompt: str, special: Collection[int]) -> int:
    """How many tokens sentence-transformers takes a prompt to have: all but a special one at its end."""
    ids = tokenizer.tokenize([prompt])[0].ids
    return len(ids) - (len(ids) > 0 and int(ids[-1]) in special)


class RerankerTask(EncoderTask):
    """Logits of pairs, which rank documents; agreement is the mean of Kendall's tau over queries."""

    kind: ClassVar[Kind] = Kind.RERANKER
    measure: ClassVar[str] = "Kendall's tau"
    default_threshold: ClassVar[float] = DEFAULT_TAU

    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__(checkpoint)
        self.files = read_cross_encoder(checkpoint)
        self.tokenizer = load_tokenizer(checkpoint)
        self.facts = reranker_facts(checkpoint, self.tokenizer)
        self.max_length = pair_length(checkpoint, self.tokenizer, self.facts.pair)

    def described(self, manifest: Manifest, folder: Path) -> Manifest:
        if self.files.lower_case:
            lower_case_first(folder / TOKENIZER)
            lower = tokenizers.Tokenizer.from_file(str(folder / TOKENIZER))
            self.tokenizer.backend_tokenizer.normalizer = lower.normalizer
        side = Side(self.tokenizer.truncation_side)
        tokenizer = dataclasses.replace(
            manifest.tokenizer, max_length=self.max_length, lower_case=False, truncation_side=side
        )
        own = PairTokenizer(folder / TOKENIZER, tokenizer, self.facts.pair, typed=False)
        pairs = pair_probe(self.tokenizer, self.max_length)
        self.telling = [pair for pair in pairs if self.is_known(pair, tokenizer.known_tokens)]
        # Before the weights are loaded; the publisher's library comes after that.
        pairs = [*probe_searches().pairs, *self.telling]
        check_tokens(self.checkpoint.name, own, pairs, self.reads_with_transformers)
        self.own = own
        return dataclasses.replace(manifest, reranker=self.facts, tokenizer=tokenizer)

    def is_known(self, pair: Pair, known: int | None) -> bool:
        """Whether the model knows all tokens of a pair; the library fails on others."""
        if known is None:
            return True
        found = self.tokenizer(list(pair), add_special_tokens=False, verbose=False)["input_ids"]
        return all(id_ < known for ids in found for id_ in ids)

    def reads_with_transformers(self, pair: Pair) -> Mapping[str, list[int]]:
        return reference_ids(self.tokenizer, self.facts.pair, self.max_length, *pair)

    def graph(self, model: Any, scratch: Path, manifest: Manifest) -> ir.Model:
        graph = trace(model, scratch, self.kind)
        rebuild(graph, self.checkpoint, manifest, pooled=self.files.form is Form.MODULES)
        return graph

    def calibration_feeds(self, bundle: Bundle) -> Iterator[Feeds]:
        typed = TOKEN_TYPE_IDS in bundle.manifest.inputs
        tokenizer = PairTokenizer(bundle.file(TOKENIZER), bundle.manifest.tokenizer, self.facts.pair, typed=typed)
        for pair in counted(list(tokenizer.tokenize(calibration_pairs())), "pairs"):
            yield tokenizer.feeds([pair])

    def reference(self, model: Any, manifest: Manifest) -> PairReference:  # noqa: ARG002 - told by the facts
        # The library loads its own; two copies of the weights are not to be in memory at once.
        model.to("meta")
        library = published_reranker(self.checkpoint, self.max_length)
        check_tokens(self.checkpoint.name, self.own, self.telling, library.tokens)
        telling = told_apart(self.telling, self.own)
        return PairReference(
            library.name,
            np.stack([library.logits(pair) for pair in counted(probe_searches().pairs, "pairs")]),
            telling,
            np.stack([library.logits(pair) for pair in telling]),
            np.stack([library.scores(pair) for pair in telling[:SCORED_PAIRS]]),
        )

    def quantized(
        self, graph: ir.Model, bundle: Bundle, expected: PairReference, threshold: float | None
    ) -> tuple[ir.Model, Manifest]:
        self.write(graph, bundle.path)
        check_exact_pairs(Reranker(bundle), expected)
        return quantize_with_recipe(graph, bundle, self, expected.logits, threshold)

    def outputs(self, bundle: Bundle, *, sample: bool = False) -> Outputs:
        pairs = calibration_pairs()[:SAMPLE] if sample else probe_searches().pairs
        return Reranker(bundle).score_with_report(pairs).logits

    def agreement(self, found: Outputs, expected: Outputs) -> float:
        return float(agreement_of(probe_searches(), found, expected).taus.mean())

    def damage(self, found: Outputs, exact: Outputs) -> float:
        return float(np.abs(found - exact).mean())

    def certify(self, bundle: Bundle, expected: PairReference, threshold: float | None) -> Certificate:
        reranker = Reranker(bundle)
        if bundle.manifest.precision is Precision.FP32:
            check_exact_pairs(reranker, expected)
        found = certify_reranker(reranker, expected, min_tau=threshold)
        return self.with_threshold(found, bundle.manifest.precision, threshold)


def told_apart(pairs: Sequence[Pair], tokenizer: PairTokenizer) -> tuple[Pair, ...]:
    """Of the pairs that show differences, as many as PyTorch computes soon."""
    short = [pair for pair in pairs if len(tokenizer.tokenize([pair])[0].ids) <= TELLING_TOKENS]
    return tuple(short[:: math.ceil(len(short) / TELLING_PAIRS)])
