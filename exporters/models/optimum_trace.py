"""Trace a PyTorch model to ONNX with Optimum's exporter, by way of a file."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import onnx_ir as ir
from onnx_ir.passes import common as passes
from optimum.exporters.onnx import export as optimum_export

_OPSET = 20
"""The first with GELU as one operator."""
UNTESTED = "its config.json asks for something that ortkit has not been tested with"
"""The hint for a model that traces to a graph unlike that of its architecture."""


def trace_with_optimum(
    model: Any, config: Any, scratch: Path, *, smallest_constant: int, fix_dynamic_axes: bool = True
) -> ir.Model:
    """Trace a model as an ONNX config of Optimum describes it, to a graph with all of its weights in memory.

    Constants of at least `smallest_constant` elements become initializers: weights of more than 2 GB come as constants
    in a file beside the graph. To fix dynamic axes, Optimum runs the graph.
    """
    with TemporaryDirectory(dir=scratch) as folder:
        path = Path(folder) / "traced.onnx"
        optimum_export(model, config, path, opset=_OPSET, disable_dynamic_axes_fix=not fix_dynamic_axes)
        traced = ir.load(path)
        passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=smallest_constant)(traced)
        ir.external_data.load_to_model(traced)
    return traced
