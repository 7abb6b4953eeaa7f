"""How far a decoder's graph is from PyTorch after each of its layers, by the hidden states of a text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from numpy.typing import NDArray

from exporters.decoder_graph import SKIP_NORM, attentions
from exporters.graph import RMS_NORM
from exporters.nodes import constant_of
from runtime import kv_cache
from runtime.cores import find_cores
from runtime.forward import GRAPH_TYPES
from runtime.graph_io import INPUT_IDS, LAST_POSITIONS, LOGIT_POSITIONS, TOTAL_LENGTH
from runtime.manifest import Provider
from runtime.session import Session, SessionConfig

DTYPES = {GRAPH_TYPES[cache_type]: dtype for cache_type, dtype in kv_cache.DTYPES.items()}
"""Of keys and values, by the names that onnxruntime has for them."""


def layer_errors(graph: Path, ids: Sequence[int], expected: Sequence[NDArray[np.float32]]) -> tuple[float, ...]:
    """The root mean square of the difference after each layer, as a part of that of PyTorch's hidden states.

    `expected` are PyTorch's after each layer, (tokens, width) of the text `ids`. Nothing for a graph whose layers do
    not add twice each to what they are given. Another graph is written beside `graph`, and removed.
    """
    model = ir.load(graph)
    states = states_after_layers(model.graph)
    if not states:
        return ()
    # Sessions give float32, and a graph in float16 has its states in that.
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
    found = opened.session.run(None, inputs_for(opened.session, ids))
    return tuple(
        float(np.sqrt(np.square(own[0] - other, dtype=np.float64).sum() / np.square(other, dtype=np.float64).sum()))
        for own, other in zip(found, expected, strict=True)
    )


def states_after_layers(graph: ir.Graph) -> list[ir.Value]:
    """What hidden states are after each layer: they begin at the first norm, and each layer adds to them twice."""
    norm = next((node for node in graph if node.op_type == RMS_NORM), None)
    state = norm.inputs[0] if norm is not None else None
    sums: list[ir.Value] = []
    while state is not None:
        following = next(adding(state), None)
        state = following.outputs[3 if following.op_type == SKIP_NORM else 0] if following is not None else None
        if state is not None:
            sums.append(state)
    return sums[1::2] if len(sums) == 2 * len(attentions(graph)) else []


def adding(state: ir.Value) -> Iterator[ir.Node]:
    """The nodes that add something that is computed to hidden states, or to some of their tokens."""
    for use in state.uses():
        node = use.node
        if node.op_type == SKIP_NORM or (
            node.op_type == "Add" and all(constant_of(value) is None for value in node.inputs)
        ):
            yield node
        elif node.op_type == "Gather":
            yield from adding(node.outputs[0])


def inputs_for(session: ort.InferenceSession, ids: Sequence[int]) -> dict[str, NDArray[np.generic]]:
    """The inputs with which a graph reads a text, with nothing in its past."""
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
        else np.zeros((1, value.shape[1], count, value.shape[3]), DTYPES[value.type])
        for value in session.get_inputs()
    }
