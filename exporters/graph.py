"""Reading and editing a traced graph: fold what is constant, find its products, let it run on rows of tokens.

Every pass finds its place by the shape of the graph, never by a node's name, and leaves alone what it does not know.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import onnx_ir as ir
import onnxscript.optimizer
from numpy.typing import NDArray
from onnx_ir.passes import common as passes

ORT_DOMAIN = "com.microsoft"
INPUT_IDS = "input_ids"
ATTENTION_MASK = "attention_mask"
TOKEN_TYPE_IDS = "token_type_ids"  # noqa: S105

# Operators that treat each token's row on its own, whatever dimensions stand before the last.
ROW_WISE = frozenset({"MatMul", "Add", "Mul", "LayerNormalization", "Gelu", "Tanh", "Relu"})


@dataclass(frozen=True, eq=False)
class Linear:
    """A product with a constant matrix and the bias after it: `rows @ weight + bias`."""

    matmul: ir.Node
    bias_add: ir.Node | None
    weight: NDArray[np.float32]
    bias: NDArray[np.float32]

    @property
    def name(self) -> str:
        """The name of the matrix, after which what is made of it is named."""
        return required(self.matmul.inputs[1]).name or "matrix"

    @property
    def input(self) -> ir.Value:
        return required(self.matmul.inputs[0])

    @property
    def output(self) -> ir.Value:
        return (self.bias_add or self.matmul).outputs[0]


T = TypeVar("T")


def required(found: T | None) -> T:
    """What must be there in a well-formed graph."""
    if found is None:
        raise ValueError("the graph lacks an input or a producer that it must have")
    return found


def fold_constants(model: ir.Model) -> None:
    """Compute once what does not depend on the input."""
    onnxscript.optimizer.optimize(model)


def constant(graph: ir.Graph, name: str, array: NDArray[np.generic]) -> ir.Value:
    """The initializer `name` of `graph`, made from `array` unless it is there; ValueError when it holds another."""
    if name in graph.initializers:
        found = array_of(graph.initializers[name])
        if found is None or found.dtype != array.dtype or not np.array_equal(found, array):
            raise ValueError(f"the graph has another constant `{name}`")
        return graph.initializers[name]
    value = ir.val(name, const_value=ir.tensor(array, name=name))
    graph.register_initializer(value)
    return value


def array_of(value: ir.Value | None) -> NDArray[np.generic] | None:
    """The content of a constant, None for what is computed."""
    if value is None or value.const_value is None or value.is_graph_input():
        return None
    return value.const_value.numpy()


def insert(
    before: ir.Node,
    op_type: str,
    inputs: Sequence[ir.Value | None],
    attributes: Mapping[str, int | float | Sequence[int]] | None = None,
    *,
    domain: str = "",
) -> ir.Value:
    """Put a new node with one output before another one and return that output."""
    return insert_node(before, ir.node(op_type, inputs, dict(attributes or {}), domain=domain)).outputs[0]


def insert_node(before: ir.Node, node: ir.Node) -> ir.Node:
    graph = before.graph
    if not isinstance(graph, ir.Graph):
        raise TypeError("nodes are inserted into graphs only")
    graph.insert_before(before, [node])
    return node


def replace(old: ir.Value, new: ir.Value) -> None:
    """Let everything that reads `old` read `new`, the graph's outputs included; an output keeps its name and type."""
    if old.is_graph_output():
        new.name, old.name = old.name, f"{old.name}_traced"
        new.shape, new.type = old.shape, old.type
    old.replace_all_uses_with(new, replace_graph_outputs=True)


def tidy(model: ir.Model) -> None:
    """Drop nodes, initializers and names that nothing reads any more."""
    passes.RemoveUnusedNodesPass()(model)
    passes.DeduplicateInitializersPass()(model)
    passes.RemoveUnusedOpsetsPass()(model)
    model.graph.sort()


def only_user(value: ir.Value, op_type: str) -> ir.Node | None:
    """The one operator that reads a value's content, when it is an `op_type`; reading its shape does not count."""
    users = [node for node, _ in value.uses() if node.op_type != "Shape"]
    if len(users) != 1 or value.is_graph_output() or users[0].op_type != op_type:
        return None
    return users[0]


def linears(graph: ir.Graph) -> Iterator[Linear]:
    """Every product with a constant matrix, in the order in which the graph runs them."""
    for node in list(graph):
        found = linear_of(node)
        if found is not None:
            yield found


def linear_of(matmul: ir.Node | None) -> Linear | None:
    """The `Linear` of a MatMul, with the Add after it where that adds a bias; None for any other node."""
    weight = array_of(matmul.inputs[1]) if matmul is not None and matmul.op_type == "MatMul" else None
    if matmul is None or weight is None or weight.ndim != 2:
        return None
    add = only_user(matmul.outputs[0], "Add")
    bias = None
    if add is not None:
        bias = array_of(add.inputs[1] if add.inputs[0] is matmul.outputs[0] else add.inputs[0])
    if bias is None or bias.shape != (weight.shape[1],):
        add, bias = None, np.zeros(weight.shape[1], np.float32)
    return Linear(matmul, add, weight.astype(np.float32), bias.astype(np.float32))


def linear_before(value: ir.Value | None) -> Linear | None:
    """The `Linear` that makes a value."""
    producer = required(value).producer()
    if producer is not None and producer.op_type == "Add":
        before = [required(part).producer() for part in producer.inputs]
        producer = next((node for node in before if node is not None and node.op_type == "MatMul"), None)
    found = linear_of(producer)
    return found if found is not None and found.output is value else None


def graph_input(graph: ir.Graph, name: str) -> ir.Value | None:
    return next((value for value in graph.inputs if value.name == name), None)


def drop_unused_inputs(graph: ir.Graph) -> None:
    for value in list(graph.inputs):
        if not value.uses():
            graph.inputs.remove(value)


def drop_token_types(graph: ir.Graph) -> None:
    """Take the token types out of a graph whose tokens are all of type 0, which saves a Gather over all tokens."""
    token_types = graph_input(graph, TOKEN_TYPE_IDS)
    if token_types is None:
        return
    for gather, _ in list(token_types.uses()):
        table = array_of(gather.inputs[0])
        if gather.op_type == "Gather" and table is not None:
            replace(gather.outputs[0], constant(graph, "token_type_0", table[0]))


def batch_and_length(graph: ir.Graph) -> ir.Value:
    """The shape of the token ids, computed once at the head of the graph."""
    ids = graph_input(graph, INPUT_IDS)
    if ids is None:
        raise ValueError(f"the graph has no input `{INPUT_IDS}`")
    for node, _ in ids.uses():
        if node.op_type == "Shape" and not node.attributes:
            return node.outputs[0]
    return insert(graph[0], "Shape", [ids])


def shapes_from_ids(graph: ir.Graph) -> None:
    """Compute the shape of a layer norm's result, (batch, tokens, width), from the token ids, which are always there.

    What asks for it, such as a bias for relative positions, then does not mind when the layers run on rows.
    """
    for node in list(graph):
        value = node.inputs[0] if node.op_type == "Shape" and not node.attributes else None
        width = value.shape[-1] if value is not None and value.shape is not None and len(value.shape) == 3 else None
        if value is None or not isinstance(width, int) or required(value.producer()).op_type != "LayerNormalization":
            continue
        last = constant(graph, f"width_{width}", np.array([width], np.int64))
        replace(node.outputs[0], insert(node, "Concat", [batch_and_length(graph), last], {"axis": 0}))
        graph.remove(node, safe=True)


def run_on_rows(graph: ir.Graph) -> bool:
    """Let the layers work on (batch * tokens, width) instead of (batch, tokens, width); returns whether they could.

    Products and quantizers want rows. Only the attention needs to know which row belongs to which text, and it reshapes
    by the shape of the token ids. Does nothing when the graph has an operator that would see the difference.
    """
    first = next(linears(graph), None)
    if first is None:
        return False
    start = first.input
    rows: set[ir.Value] = {start}
    contexts: list[ir.Node] = []
    for node in graph:
        shape = required(node.inputs[1]).producer() if node.op_type == "Reshape" else None
        by_ids = shape is not None and shape.op_type == "Concat" and shape.inputs[0] is batch_and_length(graph)
        if by_ids and node.inputs[0] not in rows:
            contexts.append(node)
            rows.update(node.outputs)
        elif any(value in rows for value in node.inputs) and not by_ids:
            if node.op_type not in ROW_WISE or node.attributes.get_int("axis", -1) != -1:
                return False
            rows.update(node.outputs)
    output = graph.outputs[0]
    if output not in rows or len(graph.outputs) != 1:
        return False
    width = first.weight.shape[0]
    for value in rows - {output}:
        # What was noted while tracing has three dimensions.
        value.shape = None
    rows_shape = constant(graph, "rows", np.array([-1, width], np.int64))
    for node in contexts:
        node.replace_input_with(1, rows_shape)
    flat = insert_after(start, "Reshape", rows_shape)
    replace(start, flat)
    required(flat.producer()).replace_input_with(0, start)
    merged = constant(graph, "merged_heads", np.array([width], np.int64))
    original = insert(graph[-1], "Concat", [batch_and_length(graph), merged], {"axis": 0})
    unflat = insert_after(output, "Reshape", original)
    replace(output, unflat)
    required(unflat.producer()).replace_input_with(0, output)
    output.shape = None
    return True


def insert_after(value: ir.Value, op_type: str, *others: ir.Value) -> ir.Value:
    """Put a new node that reads `value` right after what makes it, and return the node's output."""
    node = ir.node(op_type, [value, *others])
    graph = value.graph
    producer = value.producer()
    if not isinstance(graph, ir.Graph) or producer is None:
        raise ValueError("a node can follow only what a graph computes")
    graph.insert_after(producer, [node])
    return node.outputs[0]
