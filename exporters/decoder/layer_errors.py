"""Relative error of a decoder graph's hidden states after each layer, compared with PyTorch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from numpy.typing import NDArray

from .passes import SKIP_NORM, attentions
from ..graph.passes import RMS_NORM
from ..graph.nodes import constant_of
from ...runtime.decoder import kv_cache
from ...runtime.session.cores import find_cores
from ...runtime.decoder.model_runner import GRAPH_TYPES
from ...runtime.bundle.graph_io import INPUT_IDS, LAST_POSITIONS, LOGIT_POSITIONS, TOTAL_LENGTH
from ...runtime.bundle.manifest import Provider
from ...runtime.session.session import Session, SessionConfig

_DTYPES = {GRAPH_TYPES[cache_type]: dtype for cache_type, dtype in kv_cache.DTYPES.items()}
"""onnxruntime's type names of KV caches -> numpy types."""


def layer_errors(graph: Path, ids: Sequence[int], expected: Sequence[NDArray[np.float32]]) -> tuple[float, ...]:
    """Return the relative RMS error of the hidden states after each layer.

    `expected` are PyTorch's, (tokens, width) of the text `ids`, after each layer. Empty for a graph whose layers do not
    have two residual additions each. A temporary graph is written next to `graph`.
    """
    model = ir.load(graph)
    states = states_after_layers(model.graph)
    if not states:
        return ()
    # The hidden states of a float16 graph are float16.
    shown = [ir.node("Cast", [state], {"to": ir.DataType.FLOAT}) for state in states]
    for number, node in enumerate(shown):
        node.outputs[0].name, node.outputs[0].type = f"after_layer_{number}", ir.TensorType(ir.DataType.FLOAT)
    model.graph.extend(shown)
    model.graph.outputs[:] = [node.outputs[0] for node in shown]
    model.graph.sort()
    path = graph.with_name(f"layers.{graph.name}")
    try:
        ir.save(model, path)
        inputs = [value.name or "" for value in model.graph.inputs]
        opened = Session(path, SessionConfig(Provider.CPU, tuple(inputs), threads=find_cores().usable))
    finally:
        path.unlink(missing_ok=True)
    found = opened.session.run(None, _inputs_for(opened.session, ids))
    return tuple(
        float(np.sqrt(np.square(own[0] - other, dtype=np.float64).sum() / np.square(other, dtype=np.float64).sum()))
        for own, other in zip(found, expected, strict=True)
    )


def states_after_layers(graph: ir.Graph) -> list[ir.Value]:
    """Find the hidden states after each layer: from the first norm on, each layer has two residual additions."""
    norm = next((node for node in graph if node.op_type == RMS_NORM), None)
    state = norm.inputs[0] if norm is not None else None
    sums: list[ir.Value] = []
    while state is not None:
        following = next(_residual_adds(state), None)
        state = following.outputs[3 if following.op_type == SKIP_NORM else 0] if following is not None else None
        if state is not None:
            sums.append(state)
    return sums[1::2] if len(sums) == 2 * len(attentions(graph)) else []


def _residual_adds(state: ir.Value) -> Iterator[ir.Node]:
    """Yield the residual additions to hidden states, or to some of their tokens."""
    for use in state.uses():
        node = use.node
        if node.op_type == SKIP_NORM or (
            node.op_type == "Add" and all(constant_of(value) is None for value in node.inputs)
        ):
            yield node
        elif node.op_type == "Gather":
            yield from _residual_adds(node.outputs[0])


def _inputs_for(session: ort.InferenceSession, ids: Sequence[int]) -> dict[str, NDArray[np.generic]]:
    """Return the inputs for a text with an empty cache."""
    count = len(ids)
    known: dict[str, NDArray[np.generic]] = {
        INPUT_IDS: np.array([list(ids)], np.int64),
        LAST_POSITIONS: np.array([count - 1], np.int32),
        TOTAL_LENGTH: np.array(count, np.int32),
        LOGIT_POSITIONS: np.arange(count),
    }
    return {
        value.name: known[value.name]
        if value.name in known
        else np.zeros((1, value.shape[1], count, value.shape[3]), _DTYPES[value.type])
        for value in session.get_inputs()
    }
