"""Convert an encoder's graph for CoreML to float16."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ...runtime.bundle.graph_io import BIAS
from ...runtime.encoder.buckets import MASKED
from ..graph.embedding import float_lookups
from ..graph.float16 import check_weights, convert_values
from ..graph.nodes import (
    array_of,
    constant,
    constant_of,
    graph_input,
    insert,
    insert_node,
    only_user,
    replace,
    required,
    values_after,
)
from .coreml_padding import NOT_PADDING

_INSTEAD = "use `--precision fp32`"


def convert_for_coreml(graph: ir.Graph) -> None:
    """Convert weights and activations to float16; token embeddings and logits are cast back to float32.

    What counts tokens stays in float32, as do RMS norms, whose squares float16 does not hold.

    Raises UnsupportedModelError for weights outside of its range.
    """
    tables = [value for value in float_lookups(graph) if table_of(value).name != NOT_PADDING]
    computed = values_after(graph, tables)
    readers = [node for node in graph if any(output in computed for output in node.outputs)]
    read = {*(value for node in readers for value in node.inputs), *map(table_of, tables)}
    for tensor in map(constant_of, read):
        if tensor is not None and tensor.dtype is ir.DataType.FLOAT:
            check_weights(tensor, tensor.numpy(), instead=_INSTEAD)
    _limit_bias(graph)
    norms = _rms_norms(graph)
    exact = {node: list(node.inputs) for norm in norms for node in norm}
    convert_values(graph, tables)
    for norm in norms:
        _keep_exact(norm, exact)


def table_of(embedding: ir.Value) -> ir.Value:
    """The table from which a Gather looks something up."""
    return required(required(embedding.producer()).inputs[0])


def _limit_bias(graph: ir.Graph) -> None:
    """Let the attention read the input `bias` by way of a Max, because CoreML casts no input of a graph."""
    bias = required(graph_input(graph, BIAS))
    lowest = constant(graph, "lowest_bias", np.array(MASKED, np.float32))
    users = list(bias.uses())
    limit = ir.node("Max", [bias, lowest])
    insert_node(graph[0], limit)
    limit.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    for node, place in users:
        node.replace_input_with(place, limit.outputs[0])


def _rms_norms(graph: ir.Graph) -> list[list[ir.Node]]:
    """The nodes of each `x / sqrt(mean(x * x) + epsilon)`, in order."""
    found = []
    for square in graph:
        if square.op_type != "Pow" or array_of(square.inputs[1]) != 2:
            continue
        chain = [square]
        for op_type in ("ReduceMean", "Add", "Sqrt", "Div", "Mul"):
            user = only_user(chain[-1].outputs[0], op_type)
            if user is None:
                break
            chain.append(user)
        else:
            found.append(chain)
    return found


def _keep_exact(norm: list[ir.Node], inputs: dict[ir.Node, list[ir.Value | None]]) -> None:
    """Let the nodes of a norm, which read `inputs` in a float32 graph, compute in float32 in one of float16."""
    square, scaled = norm[0], norm[-1]
    vectors = required(square.inputs[0])
    exact = insert(square, "Cast", [vectors], {"to": ir.DataType.FLOAT.value})
    exact.type = ir.TensorType(ir.DataType.FLOAT)
    for node in norm:
        for place, value in enumerate(inputs[node]):
            node.replace_input_with(place, exact if value is vectors else value)
        node.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    output = scaled.outputs[0]
    following = ir.node("Cast", [output], {"to": ir.DataType.FLOAT16.value})
    replace(output, following.outputs[0])
    following.replace_input_with(0, output)
    following.outputs[0].type = ir.TensorType(ir.DataType.FLOAT16)
    required(scaled.graph).insert_after(scaled, [following])
