"""What is different about exporting one kind of model: its facts, its reference, and what agreeing with it means."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar

import numpy as np
import onnx_ir as ir
import tokenizers
from numpy.typing import NDArray
from tokenizers import normalizers

from exporters.calibration import Calibration
from exporters.certify import certify_embedder, reference_vectors
from exporters.certify_reranker import PairReference, agreement_of, certify_reranker, check_exact, check_tokens
from exporters.checkpoint import Checkpoint
from exporters.cross_encoder import Form, read_cross_encoder
from exporters.decoder_task import DecoderTask
from exporters.dense import dense_layers, write_dense
from exporters.encoder import load_model, rebuild, trace
from exporters.facts import check_kind, embedder_facts
from exporters.graph_files import save_graph
from exporters.pair_facts import pair_length, reference_ids, reranker_facts
from exporters.pair_probe import pair_probe
from exporters.probe import calibration_pairs, calibration_texts, probe_searches, probe_texts
from exporters.publisher import published_reranker
from exporters.pytorch_model import load_tokenizer
from exporters.recipes import Outputs, Trials
from exporters.short_merges import with_short_merges
from exporters.stored_tensors import Told
from runtime.bundle import GRAPH, TOKENIZER, Bundle
from runtime.embedder import Embedder
from runtime.encoder import INPUT_IDS, TOKEN_TYPE_IDS
from runtime.manifest import CacheType, Certificate, Kind, Manifest, Precision, Quantization
from runtime.pairs import Pair, PairTokenizer
from runtime.pooling import cosines
from runtime.reranker import Reranker
from runtime.tokenizer import Tokenizer

SAMPLE = 48
"""Calibration texts on which a single product's share in the error is measured."""

TELLING_TOKENS, TELLING_PAIRS, SCORED_PAIRS = 512, 48, 8
"""Of the pairs that show differences: the longest and the most that have reference logits, and how many have scores."""

Feeds = Mapping[str, NDArray[np.int64]]
Expected = TypeVar("Expected")
"""What PyTorch gives for the probe set."""


class Task(Protocol[Expected]):
    """Exporting one kind of model."""

    checkpoint: Checkpoint
    keeps_work: ClassVar[bool]
    """Whether an export takes so long that what is done of it is kept, for when it is broken off."""

    def begin(self, work: Path, told: Told) -> None:
        """Be told the folder for work that is kept, and whom to tell how much is done."""

    def described(self, manifest: Manifest, folder: Path) -> Manifest:
        """The manifest with what is told of this kind; files that the runtime needs for it go into `folder`."""

    def load(self) -> Any:
        """The PyTorch model in float32."""

    def graph(self, model: Any, scratch: Path, manifest: Manifest) -> ir.Model:
        """The model's graph in float32, rebuilt for speed; files on the way go into `scratch`."""

    def reference(self, model: Any, manifest: Manifest) -> Expected:
        """What PyTorch gives for the probe set."""

    def quantized(
        self, graph: ir.Model, bundle: Bundle, expected: Expected, bar: float | None
    ) -> tuple[ir.Model, Manifest]:
        """The graph in the bundle's precision, and the manifest with how that was done.

        `bundle` is the one being made: its folder takes what is tried. Raises EdgekitError when nothing reaches `bar`.
        """

    def write(self, graph: ir.Model, folder: Path) -> None:
        """Put the graph into the bundle's folder."""

    def certify(self, bundle: Bundle, expected: Expected, bar: float | None) -> Certificate:
        """Compare a bundle with the reference; raises EdgekitError when they agree less than `bar`."""


class EncoderTask:
    """What embedders and rerankers have in common: int8 by the fastest recipe that holds the bar."""

    kind: ClassVar[Kind]
    measure: ClassVar[str]
    keeps_work: ClassVar[bool] = False

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint

    def begin(self, work: Path, told: Told) -> None:
        raise NotImplementedError

    def write(self, graph: ir.Model, folder: Path) -> None:
        save_graph(graph, folder / GRAPH)

    def load(self) -> Any:
        return load_model(self.checkpoint, self.kind)

    def graph(self, model: Any, scratch: Path, manifest: Manifest) -> ir.Model:
        graph = trace(model, scratch, self.kind)
        rebuild(graph, self.checkpoint, manifest)
        return graph

    def with_recipe(
        self, graph: ir.Model, bundle: Bundle, expected: Outputs, bar: float | None
    ) -> tuple[ir.Model, Manifest]:
        calibration = Calibration(graph, self.calibration_feeds(bundle), scratch=bundle.path)
        trials = Trials(graph, calibration, self, bundle)
        recipe = trials.find(bar, expected) if bar is not None else trials.default
        told = Quantization(
            trials.products, len(recipe.exact), recipe.smoothing, recipe.per_token, recipe.precise_first_token
        )
        return trials.quantized(recipe), dataclasses.replace(bundle.manifest, quantization=told)

    def calibration_feeds(self, bundle: Bundle) -> Iterator[Feeds]:
        """The graph's inputs for the calibration texts."""
        raise NotImplementedError

    def outputs(self, bundle: Bundle, *, sample: bool = False) -> Outputs:
        raise NotImplementedError

    def agreement(self, found: Outputs, expected: Outputs) -> float:
        raise NotImplementedError

    def damage(self, found: Outputs, exact: Outputs) -> float:
        raise NotImplementedError


class EmbedderTask(EncoderTask):
    """Token vectors, pooled to the vector of a text; agreement is the lowest cosine."""

    kind: ClassVar[Kind] = Kind.EMBEDDER
    measure: ClassVar[str] = "cosine"

    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__(checkpoint)
        self.facts = embedder_facts(checkpoint)
        self.layers = dense_layers(checkpoint, self.facts.dimension)

    def described(self, manifest: Manifest, folder: Path) -> Manifest:
        facts = self.facts
        if self.layers:
            dimension = self.layers[-1].weight.shape[1]
            facts = dataclasses.replace(facts, dimension=dimension, dense=write_dense(self.layers, folder))
        return dataclasses.replace(manifest, embedder=facts)

    def calibration_feeds(self, bundle: Bundle) -> Iterator[Feeds]:
        tokenizer = Tokenizer(bundle.file(TOKENIZER), bundle.manifest.tokenizer)
        for text in tokenizer.tokenize(calibration_texts().texts):
            yield {INPUT_IDS: text.ids[np.newaxis]}

    def reference(self, model: Any, manifest: Manifest) -> Outputs:
        return reference_vectors(model, self.checkpoint, self.layers, manifest, probe_texts().texts)

    def quantized(
        self, graph: ir.Model, bundle: Bundle, expected: Outputs, bar: float | None
    ) -> tuple[ir.Model, Manifest]:
        return self.with_recipe(graph, bundle, expected, bar)

    def outputs(self, bundle: Bundle, *, sample: bool = False) -> Outputs:
        texts = calibration_texts().texts[:SAMPLE] if sample else probe_texts().texts
        found: Outputs = Embedder(bundle).embed_with_report(texts).vectors
        return found

    def agreement(self, found: Outputs, expected: Outputs) -> float:
        return float(cosines(found, expected).min())

    def damage(self, found: Outputs, exact: Outputs) -> float:
        return float(1 - cosines(found, exact).mean())

    def certify(self, bundle: Bundle, expected: Outputs, bar: float | None) -> Certificate:
        return certify_embedder(Embedder(bundle), expected, min_cosine=bar)


class RerankerTask(EncoderTask):
    """Logits of pairs, which rank documents; agreement is the mean of Kendall's tau over queries."""

    kind: ClassVar[Kind] = Kind.RERANKER
    measure: ClassVar[str] = "Kendall's tau"

    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__(checkpoint)
        self.files = read_cross_encoder(checkpoint)
        self.tokenizer = load_tokenizer(checkpoint)
        if self.files.lower_case:
            lower_case(self.tokenizer.backend_tokenizer)
        self.facts = reranker_facts(checkpoint, self.tokenizer)
        self.max_length = pair_length(checkpoint, self.tokenizer, self.facts.pair)

    def described(self, manifest: Manifest, folder: Path) -> Manifest:
        if self.files.lower_case:
            lower_case_file(folder / TOKENIZER)
        tokenizer = dataclasses.replace(manifest.tokenizer, max_length=self.max_length, lower_case=False)
        own = PairTokenizer(folder / TOKENIZER, tokenizer, self.facts.pair, typed=False)
        # Before the weights are loaded; the publisher's library comes after that.
        pairs = [*probe_searches().pairs, *pair_probe(self.tokenizer, self.max_length)]
        check_tokens(self.checkpoint.name, own, pairs, self.reads_with_transformers)
        self.own = own
        return dataclasses.replace(manifest, reranker=self.facts, tokenizer=tokenizer)

    def reads_with_transformers(self, pair: Pair) -> Mapping[str, list[int]]:
        return reference_ids(self.tokenizer, self.facts.pair, self.max_length, *pair)

    def graph(self, model: Any, scratch: Path, manifest: Manifest) -> ir.Model:
        graph = trace(model, scratch, self.kind)
        rebuild(graph, self.checkpoint, manifest, pooled=self.files.form is Form.MODULES)
        return graph

    def calibration_feeds(self, bundle: Bundle) -> Iterator[Feeds]:
        typed = TOKEN_TYPE_IDS in bundle.manifest.inputs
        tokenizer = PairTokenizer(bundle.file(TOKENIZER), bundle.manifest.tokenizer, self.facts.pair, typed=typed)
        for pair in tokenizer.tokenize(calibration_pairs()):
            yield tokenizer.feeds([pair])

    def reference(self, model: Any, manifest: Manifest) -> PairReference:  # noqa: ARG002 - told by the facts
        # The library loads its own; two copies of the weights are not to be in memory at once.
        model.to("meta")
        library = published_reranker(self.checkpoint, self.max_length)
        pairs = pair_probe(self.tokenizer, self.max_length)
        check_tokens(self.checkpoint.name, self.own, pairs, library.tokens)
        telling = told_apart(pairs, self.own)
        return PairReference(
            library.name,
            np.stack([library.logits(pair) for pair in probe_searches().pairs]),
            telling,
            np.stack([library.logits(pair) for pair in telling]),
            np.stack([library.scores(pair) for pair in telling[:SCORED_PAIRS]]),
        )

    def quantized(
        self, graph: ir.Model, bundle: Bundle, expected: PairReference, bar: float | None
    ) -> tuple[ir.Model, Manifest]:
        self.write(graph, bundle.path)
        check_exact(Reranker(bundle), expected)
        return self.with_recipe(graph, bundle, expected.logits, bar)

    def outputs(self, bundle: Bundle, *, sample: bool = False) -> Outputs:
        pairs = calibration_pairs()[:SAMPLE] if sample else probe_searches().pairs
        return Reranker(bundle).score_with_report(pairs).logits

    def agreement(self, found: Outputs, expected: Outputs) -> float:
        return float(agreement_of(probe_searches(), found, expected).taus.mean())

    def damage(self, found: Outputs, exact: Outputs) -> float:
        return float(np.abs(found - exact).mean())

    def certify(self, bundle: Bundle, expected: PairReference, bar: float | None) -> Certificate:
        reranker = Reranker(bundle)
        if bundle.manifest.precision is Precision.FP32:
            check_exact(reranker, expected)
        return certify_reranker(reranker, expected, min_tau=bar)


def told_apart(pairs: Sequence[Pair], tokenizer: PairTokenizer) -> tuple[Pair, ...]:
    """Of the pairs that show differences, as many as PyTorch computes soon."""
    short = [pair for pair in pairs if len(tokenizer.tokenize([pair])[0].ids) <= TELLING_TOKENS]
    return tuple(short[:: math.ceil(len(short) / TELLING_PAIRS)])


def lower_case(tokenizer: Any) -> None:
    """Let a tokenizer put texts in lower case first, as sentence-transformers does for `do_lower_case`."""
    known = tokenizer.normalizer
    stated = str(known.__getstate__()) if known is not None else ""
    if '"Lowercase"' not in stated and '"lowercase":true' not in stated:
        tokenizer.normalizer = normalizers.Sequence([normalizers.Lowercase(), *([known] if known is not None else [])])


def lower_case_file(path: Path) -> None:
    tokenizer = tokenizers.Tokenizer.from_file(str(path))
    lower_case(tokenizer)
    path.write_text(with_short_merges(tokenizer.to_str()), encoding="utf-8")


def task_of(checkpoint: Checkpoint, kind: Kind, cache: CacheType = CacheType.FLOAT32) -> Task[Any]:
    """How a checkpoint is exported as `kind`, a decoder with a `cache` of this type.

    Raises UnsupportedModelError where edgekit does not know that.
    """
    check_kind(checkpoint, kind)
    tasks: dict[Kind, Callable[[Checkpoint], Task[Any]]] = {
        Kind.EMBEDDER: EmbedderTask,
        Kind.RERANKER: RerankerTask,
        Kind.DECODER: partial(DecoderTask, cache=cache),
    }
    return tasks[kind](checkpoint)
