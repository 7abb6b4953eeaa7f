"""Export rerankers: facts, reference, agreement in Kendall's tau, certificate."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir
import tokenizers

from ...runtime.bundle.bundle import TOKENIZER
from ...runtime.bundle.folder import DraftBundle
from ...runtime.bundle.graph_io import TOKEN_TYPE_IDS
from ...runtime.bundle.manifest import (
    Certificate,
    Kind,
    Manifest,
    Precision,
    RerankerFacts,
    Side,
    TokenizerFacts,
)
from ...runtime.encoder.base import graph_feeds
from ...runtime.encoder.reranker import Reranker
from ...runtime.text.pair_tokenizer import Pair, PairTokenizer
from ..certification.pair_probe import pair_probe
from ..certification.probe import calibration_pairs, probe_searches
from ..checkpoint.checkpoint import Checkpoint
from ..checkpoint.cross_encoder import CrossEncoderFiles, Form
from ..models.loading import load_tokenizer
from ..models.tokenizer import lower_case_first, lower_cased
from ..progress import counted
from ..steps import ModelFacts, Workspace
from .encoder_task import EncoderTask
from .quantize import SAMPLE, Feeds
from .recipe_search import Outputs
from .reranker_certify import (
    DEFAULT_TAU,
    LOWEST_TAU,
    PairReference,
    agreement_of,
    certify_reranker,
    check_exact_pairs,
    check_tokens,
)
from .reranker_config import pair_length, reference_ids, reranker_facts
from .reranker_reference import published_reranker
from .tracing import load_model, rebuilt, trace

_PROBE_TOKENS, _PROBE_PAIRS, _SCORED_PAIRS = 512, 48, 8
"""Of the probe pairs of a tokenizer: the longest, the most that have reference logits, and how many have scores."""


@dataclass(frozen=True)
class RerankerTask(EncoderTask[Reranker, PairReference]):
    """Logits of pairs, which rank documents; agreement is the mean of Kendall's tau over queries."""

    checkpoint: Checkpoint
    files: CrossEncoderFiles
    settings: RerankerFacts
    tokenizer: Any
    """The tokenizer of transformers, which puts texts in lower case where the library does so before."""
    max_length: int
    """In tokens, of a pair."""

    measure: ClassVar[str] = "Kendall's tau"
    default_threshold: ClassVar[float] = DEFAULT_TAU
    lowest: ClassVar[float] = LOWEST_TAU[Precision.INT8]

    @classmethod
    def open(cls, checkpoint: Checkpoint, files: CrossEncoderFiles) -> RerankerTask:
        """Find out, from `files` and the tokenizer, how pairs are read."""
        tokenizer = load_tokenizer(checkpoint)
        facts = reranker_facts(checkpoint, files, tokenizer)
        length = pair_length(checkpoint, files, tokenizer, facts.pair)
        if files.lower_case:
            lower = tokenizers.Tokenizer.from_str(lower_cased(tokenizer.backend_tokenizer.to_str()))
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
        """The probe pairs of the tokenizer, without those with tokens that the model has no embedding for."""
        pairs = pair_probe(self.tokenizer, self.max_length)
        known = facts.known_tokens
        return pairs if known is None else [pair for pair in pairs if self._largest_id(pair) < known]

    def _largest_id(self, pair: Pair) -> int:
        found = self.tokenizer(list(pair), add_special_tokens=False, verbose=False)["input_ids"]
        return max((id_ for ids in found for id_ in ids), default=0)

    def load(self) -> Any:
        return load_model(self.checkpoint, self.files)

    def trace(self, model: Any, manifest: Manifest, work: Workspace) -> ir.Model:
        graph = trace(model, work.scratch, Kind.RERANKER)
        return rebuilt(graph, self.checkpoint, manifest, scratch=work.scratch, pooled=self.files.form is Form.MODULES)

    def reference(self, model: Any, draft: DraftBundle, work: Workspace) -> PairReference:  # noqa: ARG002
        # The library loads its own; two copies of the weights are not to be in memory at once.
        model.to("meta")
        library = published_reranker(self.checkpoint, self.files, self.max_length)
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

    def opened(self, bundle: DraftBundle) -> Reranker:
        return Reranker(bundle)

    def check_exact(self, model: Reranker, reference: PairReference) -> None:
        check_exact_pairs(model, reference)

    def expected(self, reference: PairReference) -> Outputs:
        return reference.logits

    def certified(self, model: Reranker, reference: PairReference, threshold: float | None) -> Certificate:
        return certify_reranker(model, reference, min_tau=threshold)

    def calibration_feeds(self, trial: DraftBundle) -> Iterator[Feeds]:
        typed = TOKEN_TYPE_IDS in trial.manifest.inputs
        tokenizer = self._own_tokenizer(trial.path, trial.manifest.tokenizer, typed=typed)
        for pair in counted(list(tokenizer.tokenize(calibration_pairs())), "pairs"):
            yield tokenizer.feeds([pair])

    def probe_feeds(self, trial: DraftBundle) -> Iterator[Feeds]:
        typed = TOKEN_TYPE_IDS in trial.manifest.inputs
        tokenizer = self._own_tokenizer(trial.path, trial.manifest.tokenizer, typed=typed)
        for pair in counted(tokenizer.tokenize(probe_searches().pairs), "pairs"):
            yield graph_feeds(tokenizer.feeds([pair]), trial.manifest)

    def outputs(self, bundle: DraftBundle, *, sample: bool = False) -> Outputs:
        pairs = calibration_pairs()[:SAMPLE] if sample else probe_searches().pairs
        return Reranker(bundle).score_with_report(pairs).logits

    def agreement(self, found: Outputs, expected: Outputs) -> float:
        return float(agreement_of(probe_searches(), found, expected).taus.mean())

    def damage(self, found: Outputs, exact: Outputs) -> float:
        return float(np.abs(found - exact).mean())


def _short_pairs(pairs: Sequence[Pair], tokenizer: PairTokenizer) -> tuple[Pair, ...]:
    """Some of the pairs, few and short enough for PyTorch."""
    short = [pair for pair in pairs if len(tokenizer.tokenize([pair])[0].ids) <= _PROBE_TOKENS]
    return tuple(short[:: math.ceil(len(short) / _PROBE_PAIRS)])
