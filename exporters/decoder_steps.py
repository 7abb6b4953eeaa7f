"""Export decoders: the steps of `decoder.task` as the pipeline calls them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import onnx_ir as ir

from ..runtime.bundle.bundle import TOKENIZER
from ..runtime.bundle.folder import DraftBundle
from ..runtime.bundle.manifest import CacheType, Certificate, Manifest, TokenizerFacts
from ..runtime.text.safe_tokenizer import open_tokenizer
from .checkpoint.checkpoint import Checkpoint
from .decoder.config import check_tokens
from .decoder.task import DecoderTask
from .steps import ModelFacts, QuantizedGraph, Workspace


@dataclass(frozen=True)
class DecoderSteps:
    """Next-token logits; agreement is the KL divergence."""

    task: DecoderTask

    resumable: ClassVar[bool] = True

    @classmethod
    def open(cls, checkpoint: Checkpoint, cache: CacheType) -> DecoderSteps:
        """`cache` is the type of the graph's KV cache."""
        return cls(DecoderTask(checkpoint, cache=cache))

    def facts(self, tokenizer: TokenizerFacts, folder: Path) -> ModelFacts:
        task = self.task
        check_tokens(task.checkpoint.name, task.tokenizer, open_tokenizer(folder / TOKENIZER), task.facts)
        tokens = dataclasses.replace(tokenizer, max_length=task.facts.context_length)
        return ModelFacts(tokens, decoder=task.facts)

    def load(self) -> Any:
        return self.task.load()

    def trace(self, model: Any, manifest: Manifest, work: Workspace) -> ir.Model:
        self.task.begin(work.resumable, work.progress)
        return self.task.graph(model, work.scratch, manifest)

    def reference(self, model: Any, draft: DraftBundle, work: Workspace) -> Any:  # noqa: ARG002
        return self.task.reference(model, draft.manifest)

    def quantize(
        self,
        graph: ir.Model,
        trial: DraftBundle,
        reference: Any,
        threshold: float | None,
        work: Workspace,  # noqa: ARG002
    ) -> QuantizedGraph:
        made, manifest = self.task.quantized(graph, trial, reference, threshold)  # type: ignore[arg-type]
        return QuantizedGraph(made, blocks=manifest.blocks)

    def write(self, graph: ir.Model, folder: Path, work: Workspace) -> None:  # noqa: ARG002
        self.task.write(graph, folder)

    def certify(self, draft: DraftBundle, reference: Any, threshold: float | None, work: Workspace) -> Certificate:  # noqa: ARG002
        return self.task.certify(draft, reference, threshold)  # type: ignore[arg-type]
