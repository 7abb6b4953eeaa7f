"""Export embedders and rerankers: their facts, their reference, int8 by the fastest recipe that reaches a threshold."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
import onnx_ir as ir
import tokenizers
from numpy.typing import NDArray

from ...runtime.bundle.bundle import GRAPH, TOKENIZER
from ...runtime.bundle.folder import DraftBundle
from ...runtime.bundle.graph_io import INPUT_IDS, TOKEN_TYPE_IDS
from ...runtime.bundle.manifest import (
    Certificate,
    EmbedderFacts,
    Kind,
    Manifest,
    Pooling,
    Precision,
    Provider,
    Quantization,
    RerankerFacts,
    Side,
    TokenizerFacts,
)
from ...runtime.encoder.base import graph_feeds
from ...runtime.encoder.buckets import pad_to
from ...runtime.encoder.embedder import Embedder
from ...runtime.encoder.pooling import cosines
from ...runtime.encoder.reranker import Reranker
from ...runtime.errors import UnsupportedModelError
from ...runtime.text.pair_tokenizer import Pair, PairTokenizer
from ...runtime.text.tokenizer import Tokenizer
from ..certification.pair_probe import pair_probe
from ..certification.probe import calibration_pairs, calibration_texts, probe_searches, probe_texts
from ..checkpoint.checkpoint import Checkpoint
from ..checkpoint.cross_encoder import CrossEncoderFiles, Form, read_cross_encoder
from ..checkpoint.kind import positions_of
from ..graph.external_data import save_graph
from ..graph.passes import tidy
from ..models.loading import load_tokenizer
from ..progress import counted
from ..steps import ModelFacts, QuantizedGraph, Workspace
from .calibration import Calibration
from .certify import LOWEST_COSINE, Sample, certify_embedder, check_exact, check_length, exact_samples
from .certify_reranker import (
    DEFAULT_TAU,
    LOWEST_TAU,
    PairReference,
    agreement_of,
    certify_reranker,
    check_exact_pairs,
    check_tokens,
)
from .coreml_certify import check_buckets
from .coreml_float16 import convert_for_coreml
from .coreml_graph import rebuild_for_coreml
from .cuda_graph import rebuild_for_cuda
from .dense import dense_layers, write_dense
from .embedder_reference import PublishedEmbedder
from .float16 import check_range, convert_to_float16
from .recipe_search import Measured, Outputs, Trials
from .reranker_config import pair_length, reference_ids, reranker_facts
from .reranker_reference import published_reranker
from .tracing import IMPLEMENTED_HERE, load_model, rebuild, trace

_PROBE_TOKENS, _PROBE_PAIRS, _SCORED_PAIRS = 512, 48, 8
"""Of the probe pairs of a tokenizer: the longest, the most that have reference logits, and how many have scores."""
_SAMPLE = 48
"""Calibration texts on which the error of a single matmul is measured."""
_Feeds = Mapping[str, NDArray[np.int64]]


class _Calibrated(Measured, Protocol):
    """What int8 needs to know of a kind of model: how it is judged, and what it is calibrated with."""

    def calibration_feeds(self, trial: DraftBundle) -> Iterator[_Feeds]:
        """The graph's inputs for the calibration texts."""


@dataclass(frozen=True)
class EmbedderReference:
    """What sentence-transformers gives for the texts of an embedder."""

    name: str
    """The library with its version, and those below it."""
    vectors: Outputs
    """Of the probe set, (texts, dimension)."""
    samples: Sequence[Sample]
    """What the float32 graph must agree with to rounding."""


@dataclass(frozen=True)
class EmbedderTask:
    """Token vectors, pooled to the vector of a text; agreement is the lowest cosine."""

    checkpoint: Checkpoint
    settings: EmbedderFacts
    """What the checkpoint's files say, without the tokenizer and the weights of dense layers."""

    resumable: ClassVar[bool] = False
    measure: ClassVar[str] = "cosine"
    default_threshold: ClassVar[float] = LOWEST_COSINE[Precision.INT8]
    lowest: ClassVar[float] = LOWEST_COSINE[Precision.INT8]

    def facts(self, tokenizer: TokenizerFacts, folder: Path) -> ModelFacts:
        facts = self.settings
        layers = dense_layers(self.checkpoint, facts.dimension)
        published = load_tokenizer(self.checkpoint)
        if tokenizer.lower_case:
            # As the library does it: added tokens keep their case.
            lower_case_first(folder / TOKENIZER)
        side = Side(published.truncation_side)
        tokenizer = dataclasses.replace(tokenizer, lower_case=False, truncation_side=side)
        if facts.unpooled_tokens:
            own = Tokenizer(folder / TOKENIZER, tokenizer)
            special = set(published.all_special_ids)
            texts = {name: facts.prompts[name] for name in facts.unpooled_tokens}
            counts = {name: _prompt_tokens(own, text, special) for name, text in texts.items()}
            facts = dataclasses.replace(facts, unpooled_tokens=counts)
            _check_room(self.checkpoint.name, tokenizer.max_length, facts)
        if layers:
            dimension = layers[-1].weight.shape[1]
            facts = dataclasses.replace(facts, dimension=dimension, dense=write_dense(layers, folder))
        return ModelFacts(tokenizer, embedder=facts)

    def load(self) -> Any:
        return load_model(self.checkpoint, Kind.EMBEDDER)

    def trace(self, model: Any, manifest: Manifest, work: Workspace) -> ir.Model:
        return _rebuilt(trace(model, work.scratch, Kind.EMBEDDER), self.checkpoint, manifest, work)

    def reference(self, model: Any, draft: DraftBundle, work: Workspace) -> EmbedderReference:  # noqa: ARG002
        here = self.checkpoint.architecture.name in IMPLEMENTED_HERE
        published = PublishedEmbedder(self.checkpoint, model, implemented_here=here)
        check_length(published, draft.manifest, positions_of(self.checkpoint))
        own = Tokenizer(draft.file(TOKENIZER), draft.manifest.tokenizer)
        samples = exact_samples(published, own, draft.manifest)
        return EmbedderReference(published.name, published.vectors(probe_texts().texts), samples)

    def quantize(
        self,
        graph: ir.Model,
        trial: DraftBundle,
        reference: EmbedderReference,
        threshold: float | None,
        work: Workspace,
    ) -> QuantizedGraph:
        save_graph(graph, trial.path / GRAPH)
        check_exact(Embedder(trial), reference.samples)
        if trial.manifest.precision is Precision.FP16:
            return _in_float16(graph, trial.manifest, self._probe_feeds(trial), work.scratch)
        return _quantize_with_recipe(graph, trial, self, reference.vectors, threshold, work.scratch)

    def write(self, graph: ir.Model, folder: Path, work: Workspace) -> None:  # noqa: ARG002
        save_graph(graph, folder / GRAPH)

    def certify(
        self,
        draft: DraftBundle,
        reference: EmbedderReference,
        threshold: float | None,
        work: Workspace,  # noqa: ARG002
    ) -> Certificate:
        embedder = Embedder(draft)
        if draft.manifest.precision is Precision.FP32:
            check_exact(embedder, reference.samples)
        if draft.manifest.buckets is not None:
            check_buckets(embedder, list(self._probe_feeds(draft)))
        found = certify_embedder(embedder, reference.vectors, reference=reference.name, min_cosine=threshold)
        return _with_threshold(found, draft, self.default_threshold if threshold is None else threshold)

    def calibration_feeds(self, trial: DraftBundle) -> Iterator[_Feeds]:
        tokenizer = Tokenizer(trial.file(TOKENIZER), trial.manifest.tokenizer)
        for text in counted(tokenizer.tokenize(calibration_texts().texts), "texts"):
            yield {INPUT_IDS: text.ids[np.newaxis]}

    def _probe_feeds(self, trial: DraftBundle) -> Iterator[_Feeds]:
        tokenizer = Tokenizer(trial.file(TOKENIZER), trial.manifest.tokenizer)
        for text in counted(tokenizer.tokenize(probe_texts().texts), "texts"):
            yield graph_feeds({INPUT_IDS: text.ids[np.newaxis]}, trial.manifest)

    def outputs(self, bundle: DraftBundle, *, sample: bool = False) -> Outputs:
        texts = calibration_texts().texts[:_SAMPLE] if sample else probe_texts().texts
        found: Outputs = Embedder(bundle).embed_with_report(texts).vectors
        return found

    def agreement(self, found: Outputs, expected: Outputs) -> float:
        return float(cosines(found, expected).min())

    def damage(self, found: Outputs, exact: Outputs) -> float:
        return float(1 - cosines(found, exact).mean())


@dataclass(frozen=True)
class RerankerTask:
    """Logits of pairs, which rank documents; agreement is the mean of Kendall's tau over queries."""

    checkpoint: Checkpoint
    files: CrossEncoderFiles
    settings: RerankerFacts
    tokenizer: Any
    """The tokenizer of transformers, which puts texts in lower case where the library does so before."""
    max_length: int
    """In tokens, of a pair."""

    resumable: ClassVar[bool] = False
    measure: ClassVar[str] = "Kendall's tau"
    default_threshold: ClassVar[float] = DEFAULT_TAU
    lowest: ClassVar[float] = LOWEST_TAU[Precision.INT8]

    @classmethod
    def open(cls, checkpoint: Checkpoint) -> RerankerTask:
        """Read what the checkpoint's files and its tokenizer say of pairs."""
        files, tokenizer = read_cross_encoder(checkpoint), load_tokenizer(checkpoint)
        facts = reranker_facts(checkpoint, tokenizer)
        length = pair_length(checkpoint, tokenizer, facts.pair)
        if files.lower_case:
            lower = tokenizers.Tokenizer.from_str(_lower_cased(tokenizer.backend_tokenizer.to_str()))
            tokenizer.backend_tokenizer.normalizer = lower.normalizer
        return cls(checkpoint, files, facts, tokenizer, length)

    def facts(self, tokenizer: TokenizerFacts, folder: Path) -> ModelFacts:
        if self.files.lower_case:
            lower_case_first(folder / TOKENIZER)
        side = Side(self.tokenizer.truncation_side)
        tokenizer = dataclasses.replace(tokenizer, max_length=self.max_length, lower_case=False, truncation_side=side)
        # Before the weights are loaded; the publisher's library comes after that.
        pairs = [*probe_searches().pairs, *self._probe_pairs(tokenizer)]
        reads = partial(reference_ids, self.tokenizer, self.settings.pair, self.max_length)
        own = self._own_tokenizer(folder, tokenizer)
        check_tokens(self.checkpoint.name, own, pairs, lambda pair: reads(*pair))
        return ModelFacts(tokenizer, reranker=self.settings)

    def _own_tokenizer(self, folder: Path, facts: TokenizerFacts, *, typed: bool = False) -> PairTokenizer:
        return PairTokenizer(folder / TOKENIZER, facts, self.settings.pair, typed=typed)

    def _probe_pairs(self, facts: TokenizerFacts) -> list[Pair]:
        """The probe pairs of the tokenizer, without those with tokens that the model does not know."""
        pairs = pair_probe(self.tokenizer, self.max_length)
        known = facts.known_tokens
        return pairs if known is None else [pair for pair in pairs if self._largest_id(pair) < known]

    def _largest_id(self, pair: Pair) -> int:
        found = self.tokenizer(list(pair), add_special_tokens=False, verbose=False)["input_ids"]
        return max((id_ for ids in found for id_ in ids), default=0)

    def load(self) -> Any:
        return load_model(self.checkpoint, Kind.RERANKER)

    def trace(self, model: Any, manifest: Manifest, work: Workspace) -> ir.Model:
        graph = trace(model, work.scratch, Kind.RERANKER)
        return _rebuilt(graph, self.checkpoint, manifest, work, pooled=self.files.form is Form.MODULES)

    def reference(self, model: Any, draft: DraftBundle, work: Workspace) -> PairReference:  # noqa: ARG002
        # The library loads its own; two copies of the weights are not to be in memory at once.
        model.to("meta")
        library = published_reranker(self.checkpoint, self.max_length)
        facts = draft.manifest.tokenizer
        own, pairs = self._own_tokenizer(draft.path, facts), self._probe_pairs(facts)
        check_tokens(self.checkpoint.name, own, pairs, library.tokens)
        short = _short_pairs(pairs, own)
        return PairReference(
            library.name,
            np.stack([library.logits(pair) for pair in counted(probe_searches().pairs, "pairs")]),
            short,
            np.stack([library.logits(pair) for pair in short]),
            np.stack([library.scores(pair) for pair in short[:_SCORED_PAIRS]]),
        )

    def quantize(
        self, graph: ir.Model, trial: DraftBundle, reference: PairReference, threshold: float | None, work: Workspace
    ) -> QuantizedGraph:
        save_graph(graph, trial.path / GRAPH)
        check_exact_pairs(Reranker(trial), reference)
        if trial.manifest.precision is Precision.FP16:
            return _in_float16(graph, trial.manifest, self._probe_feeds(trial), work.scratch)
        return _quantize_with_recipe(graph, trial, self, reference.logits, threshold, work.scratch)

    def write(self, graph: ir.Model, folder: Path, work: Workspace) -> None:  # noqa: ARG002
        save_graph(graph, folder / GRAPH)

    def certify(
        self,
        draft: DraftBundle,
        reference: PairReference,
        threshold: float | None,
        work: Workspace,  # noqa: ARG002
    ) -> Certificate:
        reranker = Reranker(draft)
        if draft.manifest.precision is Precision.FP32:
            check_exact_pairs(reranker, reference)
        if draft.manifest.buckets is not None:
            check_buckets(reranker, list(self._probe_feeds(draft)))
        found = certify_reranker(reranker, reference, min_tau=threshold)
        return _with_threshold(found, draft, self.default_threshold if threshold is None else threshold)

    def calibration_feeds(self, trial: DraftBundle) -> Iterator[_Feeds]:
        typed = TOKEN_TYPE_IDS in trial.manifest.inputs
        tokenizer = self._own_tokenizer(trial.path, trial.manifest.tokenizer, typed=typed)
        for pair in counted(list(tokenizer.tokenize(calibration_pairs())), "pairs"):
            yield tokenizer.feeds([pair])

    def _probe_feeds(self, trial: DraftBundle) -> Iterator[_Feeds]:
        typed = TOKEN_TYPE_IDS in trial.manifest.inputs
        tokenizer = self._own_tokenizer(trial.path, trial.manifest.tokenizer, typed=typed)
        for pair in counted(tokenizer.tokenize(probe_searches().pairs), "pairs"):
            yield graph_feeds(tokenizer.feeds([pair]), trial.manifest)

    def outputs(self, bundle: DraftBundle, *, sample: bool = False) -> Outputs:
        pairs = calibration_pairs()[:_SAMPLE] if sample else probe_searches().pairs
        return Reranker(bundle).score_with_report(pairs).logits

    def agreement(self, found: Outputs, expected: Outputs) -> float:
        return float(agreement_of(probe_searches(), found, expected).taus.mean())

    def damage(self, found: Outputs, exact: Outputs) -> float:
        return float(np.abs(found - exact).mean())


def _rebuilt(
    graph: ir.Model, checkpoint: Checkpoint, manifest: Manifest, work: Workspace, *, pooled: bool = False
) -> ir.Model:
    """A traced graph, rebuilt for the provider; `pooled` says whether a reranker pools its tokens in the graph."""
    if manifest.provider is Provider.CUDA:
        rebuild_for_cuda(graph, checkpoint, manifest, scratch=work.scratch)
    elif manifest.provider is Provider.COREML:
        rebuild_for_coreml(graph, checkpoint, manifest)
    else:
        rebuild(graph, checkpoint, manifest, pooled=pooled)
    return graph


def _in_float16(graph: ir.Model, manifest: Manifest, texts: Iterator[_Feeds], scratch: Path) -> QuantizedGraph:
    """Convert a float32 graph, which gives what PyTorch does, to float16.

    Raises UnsupportedModelError where what it computes for the probe set, given as its inputs, is outside of float16.
    """
    if manifest.buckets is None:
        check_range(graph, manifest.name, texts, scratch=scratch)
        convert_to_float16(graph.graph)
    else:
        padded = (pad_to((1, row[INPUT_IDS].shape[1]), [row]).feeds for row in texts)
        check_range(graph, manifest.name, padded, scratch=scratch)
        convert_for_coreml(graph.graph)
    tidy(graph)
    return QuantizedGraph(graph)


def _quantize_with_recipe(
    graph: ir.Model,
    trial: DraftBundle,
    judge: _Calibrated,
    expected: Outputs,
    threshold: float | None,
    scratch: Path,
) -> QuantizedGraph:
    """Quantize a float32 graph to int8, by the fastest recipe that agrees with `expected` to `threshold` if given.

    The folder of `trial` takes the graphs that are measured. Raises OrtkitError when no recipe reaches `threshold`.
    """
    calibration = Calibration(graph, judge.calibration_feeds(trial), scratch=scratch)
    trials = Trials(graph, calibration, judge, trial)
    recipe = trials.find(threshold, expected)
    quantization = Quantization(
        trials.products, len(recipe.exact), recipe.smoothing, recipe.per_token, recipe.precise_first_token
    )
    return QuantizedGraph(trials.quantized(recipe), quantization=quantization)


def _with_threshold(certificate: Certificate, draft: DraftBundle, threshold: float) -> Certificate:
    """Add the threshold by which an int8 recipe was chosen to the figures."""
    if draft.manifest.precision is not Precision.INT8:
        return certificate
    return dataclasses.replace(certificate, figures={**certificate.figures, "threshold": threshold})


def lower_case_first(path: Path) -> None:
    """Have a tokenizer.json put texts in lower case before all else, unless it has a step for that already."""
    content = path.read_bytes().decode("utf-8")
    changed = _lower_cased(content)
    if changed != content:
        path.write_text(changed, encoding="utf-8")


def _lower_cased(text: str) -> str:
    """A tokenizer.json with a step that puts texts in lower case before all else; the same where it has one."""
    content = json.loads(text)
    normalizer = content.get("normalizer")
    steps = normalizer["normalizers"] if normalizer and normalizer["type"] == "Sequence" else [normalizer]
    if {"type": "Lowercase"} in steps:
        return text
    steps = [step for step in steps if step is not None]
    content["normalizer"] = {"type": "Sequence", "normalizers": [{"type": "Lowercase"}, *steps]}
    return json.dumps(content, ensure_ascii=False)


def _check_room(name: str, max_length: int, facts: EmbedderFacts) -> None:
    """Raise UnsupportedModelError for a prompt that takes all tokens, where the maximum over others is asked for."""
    prompt, tokens = max(facts.unpooled_tokens.items(), key=lambda entry: entry[1])
    if Pooling.MAX in facts.poolings and tokens >= max_length:
        raise UnsupportedModelError(
            f"`{name}` reads {max_length} tokens, which its prompt `{prompt}` takes alone, "
            "and leaves the prompt out of pooling, so that no text would have a vector"
        )


def _prompt_tokens(tokenizer: Tokenizer, prompt: str, special: Collection[int]) -> int:
    """How many tokens sentence-transformers takes a prompt to have: all but a special one at its end."""
    ids = tokenizer.tokenize([prompt])[0].ids
    return len(ids) - (len(ids) > 0 and int(ids[-1]) in special)


def _short_pairs(pairs: Sequence[Pair], tokenizer: PairTokenizer) -> tuple[Pair, ...]:
    """Some of the pairs, few and short enough for PyTorch."""
    short = [pair for pair in pairs if len(tokenizer.tokenize([pair])[0].ids) <= _PROBE_TOKENS]
    return tuple(short[:: math.ceil(len(short) / _PROBE_PAIRS)])
