"""Export embedders: facts, reference, agreement in cosine, certificate."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from ...runtime.bundle.bundle import TOKENIZER
from ...runtime.bundle.folder import DraftBundle
from ...runtime.bundle.graph_io import INPUT_IDS
from ...runtime.bundle.manifest import (
    Certificate,
    EmbedderFacts,
    Kind,
    Manifest,
    Pooling,
    Precision,
    Side,
    TokenizerFacts,
)
from ...runtime.encoder.base import graph_feeds
from ...runtime.encoder.embedder import Embedder
from ...runtime.encoder.pooling import cosines
from ...runtime.errors import UnsupportedModelError
from ...runtime.text.tokenizer import Tokenizer
from ..certification.probe import calibration_texts, probe_texts
from ..checkpoint.checkpoint import Checkpoint
from ..checkpoint.kind import positions_of
from ..models.loading import load_tokenizer
from ..models.tokenizer import lower_case_first
from ..progress import counted
from ..steps import ModelFacts, Workspace
from .certify import LOWEST_COSINE, Sample, certify_embedder, check_exact, check_length, exact_samples
from .dense import dense_layers, write_dense
from .embedder_reference import PublishedEmbedder
from .encoder_task import EncoderTask
from .quantize import SAMPLE, Feeds
from .recipe_search import Outputs
from .tracing import IMPLEMENTED_HERE, load_model, rebuilt, trace


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
class EmbedderTask(EncoderTask[Embedder, EmbedderReference]):
    """Token vectors, pooled to the vector of a text; agreement is the lowest cosine."""

    checkpoint: Checkpoint
    settings: EmbedderFacts
    """What the checkpoint's files say, without the tokenizer and the weights of dense layers."""

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
        return load_model(self.checkpoint)

    def trace(self, model: Any, manifest: Manifest, work: Workspace) -> ir.Model:
        return rebuilt(trace(model, work.scratch, Kind.EMBEDDER), self.checkpoint, manifest, scratch=work.scratch)

    def reference(self, model: Any, draft: DraftBundle, work: Workspace) -> EmbedderReference:  # noqa: ARG002
        here = self.checkpoint.architecture.name in IMPLEMENTED_HERE
        published = PublishedEmbedder(self.checkpoint, model, implemented_here=here)
        check_length(published, draft.manifest, positions_of(self.checkpoint))
        own = Tokenizer(draft.file(TOKENIZER), draft.manifest.tokenizer)
        samples = exact_samples(published, own, draft.manifest)
        return EmbedderReference(published.name, published.vectors(probe_texts().texts), samples)

    def opened(self, bundle: DraftBundle) -> Embedder:
        return Embedder(bundle)

    def check_exact(self, model: Embedder, reference: EmbedderReference) -> None:
        check_exact(model, reference.samples)

    def expected(self, reference: EmbedderReference) -> Outputs:
        return reference.vectors

    def certified(self, model: Embedder, reference: EmbedderReference, threshold: float | None) -> Certificate:
        return certify_embedder(model, reference.vectors, reference=reference.name, min_cosine=threshold)

    def calibration_feeds(self, trial: DraftBundle) -> Iterator[Feeds]:
        tokenizer = Tokenizer(trial.file(TOKENIZER), trial.manifest.tokenizer)
        for text in counted(tokenizer.tokenize(calibration_texts().texts), "texts"):
            yield {INPUT_IDS: text.ids[np.newaxis]}

    def probe_feeds(self, trial: DraftBundle) -> Iterator[Feeds]:
        tokenizer = Tokenizer(trial.file(TOKENIZER), trial.manifest.tokenizer)
        for text in counted(tokenizer.tokenize(probe_texts().texts), "texts"):
            yield graph_feeds({INPUT_IDS: text.ids[np.newaxis]}, trial.manifest)

    def outputs(self, bundle: DraftBundle, *, sample: bool = False) -> Outputs:
        texts = calibration_texts().texts[:SAMPLE] if sample else probe_texts().texts
        found: Outputs = Embedder(bundle).embed_with_report(texts).vectors
        return found

    def agreement(self, found: Outputs, expected: Outputs) -> float:
        return float(cosines(found, expected).min())

    def damage(self, found: Outputs, exact: Outputs) -> float:
        return float(1 - cosines(found, exact).mean())


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
