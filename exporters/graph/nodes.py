"""Reading and editing the nodes of a traced graph: constants, products with matrices, what stands before and after."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ...runtime.bundle.graph_io import INPUT_IDS

ORT_DOMAIN = "com.microsoft"
ATTENTION_MASK = "attention_mask"
POSITION_IDS = "position_ids"


@dataclass(frozen=True, eq=False)
class Linear:
    """A product with a constant matrix and the bias after it: `rows @ weight + bias`."""

    matmul: ir.Node
    bias_add: ir.Node | None

    @property
    def matrix(self) -> ir.TensorProtocol:
        """The matrix (inputs, outputs); what is streamed from a checkpoint is not read yet."""
        return required(constant_of(self.matmul.inputs[1]))

    @property
    def inputs(self) -> int:
        return self.matrix.shape.numpy()[0]

    @property
    def outputs(self) -> int:
        return self.matrix.shape.numpy()[1]

    @property
    def weight(self) -> NDArray[np.float32]:
        """The numbers of the matrix, read again each time where they are streamed."""
        return np.asarray(self.matrix.numpy(), np.float32)

    @property
    def bias(self) -> NDArray[np.float32]:
        """(outputs,), zeros where the product adds none."""
        if self.bias_add is None:
            return np.zeros(self.outputs, np.float32)
        return np.asarray(array_of(_other_input(self.bias_add, self.matmul.outputs[0])), np.float32)

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


def constant(graph: ir.Graph, name: str, content: NDArray[np.generic] | ir.TensorProtocol) -> ir.Value:
    """The initializer `name` of `graph`, made from `content` unless it is there; ValueError when it holds another."""
    tensor = ir.tensor(content, name=name) if isinstance(content, np.ndarray) else content
    if name in graph.initializers:
        found = graph.initializers[name].const_value
        if found is not tensor and (
            found is None or found.dtype != tensor.dtype or not np.array_equal(found.numpy(), tensor.numpy())
        ):
            raise ValueError(f"the graph has another constant `{name}`")
        return graph.initializers[name]
    tensor.name = name
    value = ir.val(name, const_value=tensor)
    graph.register_initializer(value)
    return value


def constant_of(value: ir.Value | None) -> ir.TensorProtocol | None:
    """A constant's tensor, whose shape can be asked for without its content; None for what is computed."""
    return None if value is None or value.is_graph_input() else value.const_value


def array_of(value: ir.Value | None) -> NDArray[np.generic] | None:
    """The content of a constant, None for what is computed."""
    found = constant_of(value)
    return None if found is None else found.numpy()


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


def insert_linear(
    before: ir.Node,
    rows: ir.Value,
    name: str,
    weight: NDArray[np.generic] | ir.TensorProtocol,
    bias: NDArray[np.generic] | None,
) -> ir.Value:
    """Put `rows @ weight + bias` before a node, the matrix under this name, and return the result."""
    graph = required(before.graph)
    if not isinstance(graph, ir.Graph):
        raise TypeError("products are inserted into graphs only")
    product = insert(before, "MatMul", [rows, constant(graph, name, weight)])
    if bias is None:
        return product
    return insert(before, "Add", [product, constant(graph, f"{name}_bias", bias)])


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


def only_user(value: ir.Value, op_type: str) -> ir.Node | None:
    """The one operator that reads a value's content, when it is an `op_type`; reading its shape does not count."""
    users = [node for node, _ in value.uses() if node.op_type != "Shape"]
    if len(users) != 1 or value.is_graph_output() or users[0].op_type != op_type:
        return None
    return users[0]


def linears(graph: ir.Graph) -> Iterator[Linear]:
    """Every product of what texts decide with a constant matrix, in the order in which the graph runs them.

    DeBERTa has others too, of the vectors of distances, which are the same for all texts.
    """
    of_texts = values_of_texts(graph)
    for node in list(graph):
        found = linear_of(node)
        if found is not None and found.input in of_texts:
            yield found


def values_of_texts(graph: ir.Graph) -> set[ir.Value]:
    """The values that depend on the graph's inputs, and on more than their shapes."""
    return values_after(graph, graph.inputs)


def values_after(graph: ir.Graph, values: Iterable[ir.Value]) -> set[ir.Value]:
    """These values and what depends on them, and on more than their shapes."""
    found = set(values)
    for node in graph:
        # What a graph inside a node reads is not among the node's inputs.
        reads = any(value in found for value in node.inputs) or node.op_type in ("If", "Loop")
        if reads and node.op_type != "Shape":
            found.update(node.outputs)
    return found


def linear_of(matmul: ir.Node | None) -> Linear | None:
    """The `Linear` of a MatMul, with the Add after it where that adds a bias; None for any other node."""
    weight = constant_of(matmul.inputs[1]) if matmul is not None and matmul.op_type == "MatMul" else None
    if matmul is None or weight is None or len(weight.shape) != 2:
        return None
    add = only_user(matmul.outputs[0], "Add")
    bias = constant_of(_other_input(add, matmul.outputs[0])) if add is not None else None
    return Linear(matmul, add if bias is not None and tuple(bias.shape) == (weight.shape[1],) else None)


def _other_input(node: ir.Node, value: ir.Value) -> ir.Value | None:
    """What a node of two inputs reads beside `value`."""
    return node.inputs[1] if node.inputs[0] is value else node.inputs[0]


def linear_before(value: ir.Value | None) -> Linear | None:
    """The `Linear` that makes a value."""
    producer = required(value).producer()
    if producer is not None and producer.op_type == "Add":
        before = [required(part).producer() for part in producer.inputs]
        producer = next((node for node in before if node is not None and node.op_type == "MatMul"), None)
    found = linear_of(producer)
    return found if found is not None and found.output is value else None


def change_linear(
    graph: ir.Graph, linear: Linear, *, weight: NDArray[np.float32], bias: NDArray[np.float32] | None = None
) -> None:
    """Let a product read another matrix of the same shape, and another bias where it adds one."""
    name = linear.name
    linear.matmul.replace_input_with(1, constant(graph, f"{name}_changed", weight))
    if linear.bias_add is not None and bias is not None:
        index = 1 if linear.bias_add.inputs[0] is linear.matmul.outputs[0] else 0
        linear.bias_add.replace_input_with(index, constant(graph, f"{name}_changed_bias", bias))


def graph_input(graph: ir.Graph, name: str) -> ir.Value | None:
    return next((value for value in graph.inputs if value.name == name), None)


def batch_and_length(graph: ir.Graph) -> ir.Value:
    """The shape of the token ids, computed once at the head of the graph."""
    ids = graph_input(graph, INPUT_IDS)
    if ids is None:
        raise ValueError(f"the graph has no input `{INPUT_IDS}`")
    for node, _ in ids.uses():
        if node.op_type == "Shape" and not node.attributes:
            return node.outputs[0]
    return insert(graph[0], "Shape", [ids])


def length_and_batch(graph: ir.Graph) -> ir.Value:
    """The shape of token ids with their first tokens first, computed once at the head of the graph."""
    return _sizes_of_ids(graph, "length_before_batch", np.array([1, 0], np.int64))


def token_count(graph: ir.Graph) -> ir.Value:
    """The number of tokens of each text of the batch, a scalar, computed once at the head of the graph."""
    return _sizes_of_ids(graph, "one_int64", np.array(1, np.int64))


def batch_alone(graph: ir.Graph) -> ir.Value:
    """The number of texts of the batch in one dimension (1,), computed once at the head of the graph."""
    return _sizes_of_ids(graph, "batch_axis", np.array([0], np.int64))


def _sizes_of_ids(graph: ir.Graph, name: str, axes: NDArray[np.int64]) -> ir.Value:
    """The sizes of the token ids along these axes, which the graph holds as the constant `name`."""
    shape = batch_and_length(graph)
    for node, _ in shape.uses():
        index = array_of(node.inputs[1]) if node.op_type == "Gather" else None
        if index is not None and index.shape == axes.shape and np.array_equal(index, axes):
            return node.outputs[0]
    gather = ir.node("Gather", [shape, constant(graph, name, axes)], {"axis": 0})
    graph.insert_after(required(shape.producer()), [gather])
    return gather.outputs[0]


def rows_of(graph: ir.Graph, width: int) -> ir.Value:
    """The shape by which a Reshape makes rows (tokens * batch, width)."""
    return constant(graph, "rows", np.array([-1, width], np.int64))
