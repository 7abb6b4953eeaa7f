"""What is different about exporting one kind of model: its facts, its reference, and what agreeing with it means."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar

import numpy as np
import onnx_ir as ir
import tokenizers
from numpy.typing import NDArray

from exporters.calibration import Calibration
from exporters.certify import (
    LOWEST_COSINE,
    Sample,
    certify_embedder,
    check_exact,
    check_length,
    exact_samples,
)
from exporters.certify_reranker import (
    DEFAULT_TAU,
    PairReference,
    agreement_of,
    certify_reranker,
    check_exact_pairs,
    check_tokens,
)
from exporters.checkpoint import Checkpoint
from exporters.counts import counted
from exporters.cross_encoder import Form, read_cross_encoder
from exporters.decoder_task import DecoderTask
from exporters.dense import dense_layers, write_dense
from exporters.encoder import IMPLEMENTED_HERE, load_model, rebuild, trace
from exporters.facts import check_kind, embedder_facts, positions_of
from exporters.graph_files import save_graph
from exporters.pair_facts import pair_length, reference_ids, reranker_facts
from exporters.pair_probe import pair_probe
from exporters.probe import calibration_pairs, calibration_texts, probe_searches, probe_texts
from exporters.published_embedder import PublishedEmbedder
from exporters.publisher import published_reranker
from exporters.pytorch_model import load_tokenizer
from exporters.recipes import Outputs, Trials
from exporters.stored_tensors import Told
from runtime.bundle import GRAPH, TOKENIZER, Bundle
from runtime.embedder import Embedder
from runtime.encoder import INPUT_IDS, TOKEN_TYPE_IDS
from runtime.errors import UnsupportedModelError
from runtime.manifest import (
    CacheType,
    Certificate,
    EmbedderFacts,
    Kind,
    Manifest,
    Pooling,
    Precision,
    Quantization,
    Side,
)
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
    default_threshold: ClassVar[float]
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
        recipe = trials.find(bar, expected)
        told = Quantization(
            trials.products, len(recipe.exact), recipe.smoothing, recipe.per_token, recipe.precise_first_token
        )
        return trials.quantized(recipe), dataclasses.replace(bundle.manifest, quantization=told)

    def with_threshold(self, certificate: Certificate, precision: Precision, bar: float | None) -> Certificate:
        """The certificate with the threshold by which an int8 recipe was chosen."""
        if precision is not Precision.INT8:
            return certificate
        threshold = self.default_threshold if bar is None else bar
        return dataclasses.replace(certificate, figures={**certificate.figures, "threshold": threshold})

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
        self, graph: ir.Model, bundle: Bundle, expected: Outputs, bar: float | None
    ) -> tuple[ir.Model, Manifest]:
        self.write(graph, bundle.path)
        check_exact(Embedder(bundle), self.samples)
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
        embedder = Embedder(bundle)
        if bundle.manifest.precision is Precision.FP32:
            check_exact(embedder, self.samples)
        found = certify_embedder(embedder, expected, reference=self.reference_name, min_cosine=bar)
        return self.with_threshold(found, bundle.manifest.precision, bar)


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
        self, graph: ir.Model, bundle: Bundle, expected: PairReference, bar: float | None
    ) -> tuple[ir.Model, Manifest]:
        self.write(graph, bundle.path)
        check_exact_pairs(Reranker(bundle), expected)
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
            check_exact_pairs(reranker, expected)
        found = certify_reranker(reranker, expected, min_tau=bar)
        return self.with_threshold(found, bundle.manifest.precision, bar)


def told_apart(pairs: Sequence[Pair], tokenizer: PairTokenizer) -> tuple[Pair, ...]:
    """Of the pairs that show differences, as many as PyTorch computes soon."""
    short = [pair for pair in pairs if len(tokenizer.tokenize([pair])[0].ids) <= TELLING_TOKENS]
    return tuple(short[:: math.ceil(len(short) / TELLING_PAIRS)])


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
