"""Convert an encoder's graph to float16, for GPUs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ..graph.embedding import float_lookups
from ..graph.float16 import check_hidden_states, check_weights, convert_values
from ..graph.nodes import required, values_after
from .calibration import open_session

_INSTEAD = "use `--precision fp32`"
_LARGEST = "largest_magnitude"


def convert_to_float16(graph: ir.Graph) -> None:
    """Convert weights and activations to float16; token embeddings and logits are cast back to float32.

    Raises UnsupportedModelError for weights outside of its range.
    """
    for value in graph.initializers.values():
        tensor = required(value.const_value)
        if tensor.dtype is ir.DataType.FLOAT:
            check_weights(tensor, tensor.numpy(), instead=_INSTEAD)
    convert_values(graph, float_lookups(graph))


def check_range(
    model: ir.Model,
    name: str,
    texts: Iterable[Mapping[str, NDArray[np.int64]]],
    *,
    scratch: Path | None = None,
) -> None:
    """Raise UnsupportedModelError where what a float32 graph computes for texts, its inputs, is outside of float16.

    It would overflow on a GPU; the CPU, which certifies bundles, computes many operators in float32 and would not.
    """
    check_hidden_states(name, _largest_magnitude(model, texts, scratch=scratch), instead=_INSTEAD)


def _largest_magnitude(
    model: ir.Model, texts: Iterable[Mapping[str, NDArray[np.int64]]], *, scratch: Path | None = None
) -> float:
    """The largest absolute value that a float32 graph computes from its embeddings, for texts given as its inputs."""
    probed = model.clone()
    graph = probed.graph
    computed = values_after(graph, float_lookups(graph))
    last = graph[-1]
    peaks = []
    for node in list(graph):
        for value in node.outputs:
            if value in computed and value.dtype in (ir.DataType.FLOAT, None):
                size = ir.node("Abs", [value])
                peak = ir.node("ReduceMax", size.outputs, {"keepdims": 0})
                graph.insert_after(last, [size, peak])
                last = peak
                peaks.append(peak.outputs[0])
    largest = ir.node("Max", peaks)
    graph.insert_after(last, [largest])
    output = largest.outputs[0]
    output.name, output.type, output.shape = _LARGEST, ir.TensorType(ir.DataType.FLOAT), ir.Shape([])
    graph.outputs[:] = [output]
    session = open_session(probed, scratch)
    return max((float(session.run([_LARGEST], dict(feeds))[0]) for feeds in texts), default=0.0)
