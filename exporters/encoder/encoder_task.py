"""The steps that exports of embedders and of rerankers share: quantize, write, certify."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar, Generic, TypeVar

import onnx_ir as ir

from ...runtime.bundle.bundle import GRAPH
from ...runtime.bundle.folder import DraftBundle
from ...runtime.bundle.manifest import Certificate, Precision
from ...runtime.encoder.base import Encoder
from ..graph.external_data import save_graph
from ..providers.coreml_certify import check_buckets
from ..steps import QuantizedGraph, Workspace
from .quantize import Calibrated, Feeds, in_float16, quantize_with_recipe, with_threshold
from .recipe_search import Outputs

Model = TypeVar("Model", bound=Encoder)
Reference = TypeVar("Reference")


class EncoderTask(Calibrated, ABC, Generic[Model, Reference]):
    """Base of the tasks of encoders; a graph is compared with the reference in float32 before anything is rounded."""

    resumable: ClassVar[bool] = False

    @abstractmethod
    def opened(self, bundle: DraftBundle) -> Model:
        """The runtime's model."""

    @abstractmethod
    def check_exact(self, model: Model, reference: Reference) -> None:
        """Raise UnsupportedModelError where a float32 graph differs from the reference by more than rounding."""

    @abstractmethod
    def expected(self, reference: Reference) -> Outputs:
        """What the publisher's library gives for the probe set."""

    @abstractmethod
    def certified(self, model: Model, reference: Reference, threshold: float | None) -> Certificate:
        """Compare a model with the reference; raises OrtkitError where they agree less than `threshold`."""

    @abstractmethod
    def probe_feeds(self, trial: DraftBundle) -> Iterator[Feeds]:
        """The graph's inputs for the probe set."""

    def quantize(
        self, graph: ir.Model, trial: DraftBundle, reference: Reference, threshold: float | None, work: Workspace
    ) -> QuantizedGraph:
        save_graph(graph, trial.path / GRAPH)
        self.check_exact(self.opened(trial), reference)
        if trial.manifest.precision is Precision.FP16:
            return in_float16(graph, trial.manifest, self.probe_feeds(trial), work.scratch)
        return quantize_with_recipe(graph, trial, self, self.expected(reference), threshold, work.scratch)

    def write(self, graph: ir.Model, folder: Path, work: Workspace) -> None:  # noqa: ARG002
        save_graph(graph, folder / GRAPH)

    def certify(
        self,
        draft: DraftBundle,
        reference: Reference,
        threshold: float | None,
        work: Workspace,  # noqa: ARG002
    ) -> Certificate:
        model = self.opened(draft)
        if draft.manifest.precision is Precision.FP32:
            self.check_exact(model, reference)
        if draft.manifest.buckets is not None:
            check_buckets(model, list(self.probe_feeds(draft)))
        found = self.certified(model, reference, threshold)
        return with_threshold(found, draft, self.default_threshold if threshold is None else threshold)
