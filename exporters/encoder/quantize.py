"""An encoder's graph in the bundle's precision: float16, or int8 by the fastest recipe that reaches a threshold."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Protocol

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ...runtime.bundle.folder import DraftBundle
from ...runtime.bundle.graph_io import INPUT_IDS
from ...runtime.bundle.manifest import (
    Certificate,
    LadderStep,
    Manifest,
    Precision,
    Quantization,
)
from ...runtime.encoder.buckets import pad_to
from ..graph.passes import tidy
from ..providers.coreml_float16 import convert_for_coreml
from ..steps import QuantizedGraph
from .calibration import Calibration
from .float16 import check_range, convert_to_float16
from .recipe_search import Measured, Outputs, Step, Trials

SAMPLE = 48
"""Calibration texts on which the error of a single matmul is measured."""
Feeds = Mapping[str, NDArray[np.int64]]
"""A graph's inputs for one text."""


class Calibrated(Measured, Protocol):
    """What int8 needs to know of a kind of model: how it is judged, and what it is calibrated with."""

    def calibration_feeds(self, trial: DraftBundle) -> Iterator[Feeds]:
        """The graph's inputs for the calibration texts."""


def in_float16(graph: ir.Model, manifest: Manifest, texts: Iterator[Feeds], scratch: Path) -> QuantizedGraph:
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


def quantize_with_recipe(
    graph: ir.Model,
    trial: DraftBundle,
    judge: Calibrated,
    expected: Outputs,
    threshold: float | None,
    scratch: Path,
) -> QuantizedGraph:
    """Quantize a float32 graph to int8, by the fastest recipe that agrees with `expected` to `threshold` if given.

    The folder of `trial` takes the graphs that are measured. Raises OrtkitError when no recipe reaches `threshold`.
    """
    calibration = Calibration(graph, judge.calibration_feeds(trial), scratch=scratch)
    trials = Trials(graph, calibration, judge, trial)
    found = trials.find(threshold, expected)
    recipe = found.recipe
    quantization = Quantization(
        trials.matmuls,
        len(recipe.float32),
        recipe.smoothing,
        recipe.per_token,
        recipe.cls_16bit,
        tuple(ladder_step(step) for step in found.ladder),
    )
    return QuantizedGraph(trials.quantized(recipe), quantization=quantization)


def ladder_step(step: Step) -> LadderStep:
    """What a manifest says of a recipe that was searched."""
    # A recipe that gives NaN has no agreement, and JSON no NaN.
    agreement = step.agreement if step.agreement is not None and math.isfinite(step.agreement) else None
    return LadderStep(step.recipe.per_token, step.recipe.cls_16bit, len(step.recipe.float32), agreement)


def with_threshold(certificate: Certificate, draft: DraftBundle, threshold: float) -> Certificate:
    """Add the threshold by which an int8 recipe was chosen to the figures."""
    if draft.manifest.precision is not Precision.INT8:
        return certificate
    return dataclasses.replace(certificate, figures={**certificate.figures, "threshold": threshold})
