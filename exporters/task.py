"""The steps in which exporting one kind of model differs from exporting another."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, runtime_checkable

from .checkpoint.checkpoint import Checkpoint
from .checkpoint.kind import check_kind
from ..runtime.bundle.bundle import Bundle
from ..runtime.bundle.manifest import CacheType, Certificate, Kind, Manifest

if TYPE_CHECKING:
    import onnx_ir as ir

    from .progress import Progress

Expected = TypeVar("Expected")
"""What PyTorch gives for the probe set."""


class Task(Protocol[Expected]):
    """Export one kind of model; the methods are called in the order in which they stand here."""

    checkpoint: Checkpoint

    def described(self, manifest: Manifest, folder: Path) -> Manifest:
        """The manifest with the facts of this kind; files that the runtime needs for it go into `folder`."""

    def load(self) -> Any:
        """The PyTorch model in float32."""

    def graph(self, model: Any, scratch: Path, manifest: Manifest) -> ir.Model:
        """The model's graph in float32, rebuilt for speed; temporary files go into `scratch`."""

    def reference(self, model: Any, manifest: Manifest) -> Expected:
        """What PyTorch gives for the probe set."""

    def quantized(
        self, graph: ir.Model, bundle: Bundle, expected: Expected, threshold: float | None
    ) -> tuple[ir.Model, Manifest]:
        """The graph in the bundle's precision, and the manifest with how that was done.

        `bundle` is the one being made: its folder takes the trials. Raises OrtkitError when none reaches `threshold`.
        """

    def write(self, graph: ir.Model, folder: Path) -> None:
        """Put the graph into the bundle's folder."""

    def certify(self, bundle: Bundle, expected: Expected, threshold: float | None) -> Certificate:
        """Compare a bundle with the reference; raises OrtkitError when they agree less than `threshold`."""


@runtime_checkable
class ResumableTask(Task[Expected], Protocol[Expected]):
    """A task that takes so long that its intermediate results are kept, to resume an interrupted export."""

    def begin(self, work: Path, progress: Progress) -> None:
        """Set the folder for intermediate results and the listener for progress; called before all other methods."""


def task_of(checkpoint: Checkpoint, kind: Kind, cache: CacheType = CacheType.FLOAT32) -> Task[Any]:
    """Choose the task that exports a checkpoint as `kind`, a decoder with a KV cache of type `cache`.

    Raises UnsupportedModelError where models of this architecture are not exported as `kind`.
    """
    check_kind(checkpoint, kind)
    # Each kind imports its own modules only: those of decoders register operators with PyTorch.
    if kind is Kind.DECODER:
        from .decoder.task import DecoderTask  # noqa: PLC0415

        return DecoderTask(checkpoint, cache=cache)
    from .encoder.task import EmbedderTask, RerankerTask  # noqa: PLC0415

    return EmbedderTask(checkpoint) if kind is Kind.EMBEDDER else RerankerTask(checkpoint)
