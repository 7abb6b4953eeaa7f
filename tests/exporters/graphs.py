"""Tiny graphs made in code, and a way to run them."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from numpy.typing import NDArray

WIDTH = 8


def make_model(nodes: list[ir.Node], inputs: list[ir.Value], output: ir.Value, constants: list[ir.Value]) -> ir.Model:
    graph = ir.Graph(
        inputs, [output], nodes=nodes, initializers=constants, opset_imports={"": 20, "com.microsoft": 1}, name="tiny"
    )
    return ir.Model(graph, ir_version=10)


def token_rows() -> tuple[ir.Value, ir.Value, ir.Node]:
    """Token ids, a table of seeded vectors for them, and the Gather of the rows."""
    ids = ir.val("input_ids", ir.DataType.INT64, ["batch", "tokens"])
    table = np.random.default_rng(5).normal(size=(50, WIDTH)).astype(np.float32)
    vectors = ir.val("table", const_value=ir.tensor(table, name="table"))
    return ids, vectors, ir.node("Gather", [vectors, ids])


def run(model: ir.Model, **feeds: NDArray) -> NDArray[np.float32]:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    # As `ortkit.runtime.session.session` has it: without it, processors without 8-bit dot products overflow.
    options.add_session_config_entry("session.x64quantprecision", "1")
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {value.name: feeds[value.name] for value in session.get_inputs()})[0]


def widen(model: ir.Model) -> None:
    """Let a graph compute in float32 with the weights, scales and cache that it has in float16."""
    graph = model.graph
    for value in graph.initializers.values():
        if value.const_value is not None and value.const_value.dtype is ir.DataType.FLOAT16:
            value.const_value = ir.tensor(value.const_value.numpy().astype(np.float32), name=value.name)
    for value in [*graph.inputs, *graph.initializers.values(), *(output for node in graph for output in node.outputs)]:
        if value.dtype is ir.DataType.FLOAT16:
            value.type = ir.TensorType(ir.DataType.FLOAT)
