"""The steps in which exporting one kind of model differs from exporting another."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeVar

from ..runtime.bundle.folder import DraftBundle
from ..runtime.bundle.manifest import Certificate, Kind, Manifest, TokenizerFacts
from .checkpoint.checkpoint import Checkpoint
from .options import ExportPlan

if TYPE_CHECKING:
    import onnx_ir as ir

    from .steps import ModelFacts, QuantizedGraph, Workspace

Reference = TypeVar("Reference")
"""What PyTorch gives for the probe set."""


class Task(Protocol[Reference]):
    """How one kind of model is exported, step by step.

    A task holds the facts that precede the weights. Each method takes what earlier steps made as arguments and
    returns what it makes itself.
    """

    resumable: ClassVar[bool]
    """Whether results are kept in a work folder, from which an export that was interrupted resumes."""

    def facts(self, tokenizer: TokenizerFacts, folder: Path) -> ModelFacts:
        """The facts of this kind; files that the runtime needs for it go into the bundle's `folder`."""

    def load(self) -> Any:
        """The PyTorch model in float32."""

    def trace(self, model: Any, manifest: Manifest, work: Workspace) -> ir.Model:
        """The model's graph in float32, rebuilt for speed."""

    def reference(self, model: Any, draft: DraftBundle, work: Workspace) -> Reference:
        """What the publisher's library gives for the probe set; `model` may be given up for it."""

    def quantize(
        self, graph: ir.Model, trial: DraftBundle, reference: Reference, threshold: float | None, work: Workspace
    ) -> QuantizedGraph:
        """The graph in the precision of the bundle.

        The folder of `trial` takes graphs that are measured. Raises OrtkitError when none reaches `threshold`.
        """

    def write(self, graph: ir.Model, folder: Path, work: Workspace) -> None:
        """Write the graph into the bundle's folder."""

    def certify(
        self, draft: DraftBundle, reference: Reference, threshold: float | None, work: Workspace
    ) -> Certificate:
        """Compare a bundle with the reference; raises OrtkitError when they agree less than `threshold`."""


def task_of(checkpoint: Checkpoint, plan: ExportPlan) -> Task[Any]:
    """Choose the task that exports a checkpoint as planned."""
    # Each kind imports its own modules only: those of decoders register operators with PyTorch.
    if plan.kind is Kind.DECODER:
        from .decoder.task import DecoderTask  # noqa: PLC0415

        return DecoderTask.open(checkpoint, plan.cache, plan.provider, prefill=plan.prefill)
    if plan.kind is Kind.RERANKER:
        from .encoder.reranker_task import RerankerTask  # noqa: PLC0415

        if plan.cross_encoder is None:
            raise ValueError("the plan of a reranker has what its files say")
        return RerankerTask.open(checkpoint, plan.cross_encoder)
    from .encoder.embedder_task import EmbedderTask  # noqa: PLC0415

    if plan.embedder is None:
        raise ValueError("the plan of an embedder has its facts")
    return EmbedderTask(checkpoint, plan.embedder)
