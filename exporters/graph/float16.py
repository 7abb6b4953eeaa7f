"""Convert a graph, or the part of it that is computed from some values, to float16."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ...runtime.errors import UnsupportedModelError
from .nodes import constant, constant_of, insert, replace, required, values_after
from .streamed_tensor import StreamedTensor

_MAX_FLOAT16 = float(np.finfo(np.float16).max)
"""The largest finite float16."""
_INSTEAD = "use `--provider cpu`"


class Float16Tensor(ir.LazyTensor):
    """A constant in float16, converted each time it is read."""

    def __init__(self, exact: ir.TensorProtocol, name: str) -> None:
        super().__init__(
            lambda: ir.tensor(to_float16(exact)), ir.DataType.FLOAT16, ir.Shape(exact.shape.numpy()), name=name
        )


def to_float16(exact: ir.TensorProtocol) -> NDArray[np.float16]:
    """Round to float16; raises UnsupportedModelError for weights outside its range."""
    numbers = exact.numpy()
    check_weights(exact, numbers)
    return numbers.astype(np.float16)


def check_weights(exact: ir.TensorProtocol, numbers: NDArray[np.generic], *, instead: str = _INSTEAD) -> None:
    """Raise UnsupportedModelError, with a hint, for weights outside of float16's range: `numbers`, those of `exact`."""
    if max_magnitude(numbers) > _MAX_FLOAT16:
        name, largest = exact.name, max_magnitude(numbers)
        for part in exact.parts if isinstance(exact, StreamedTensor) else ():
            if (found := max_magnitude(part.read())) > _MAX_FLOAT16:
                name, largest = part.name, found
        raise UnsupportedModelError(
            f"`{name}` has a weight of magnitude {largest:g}; the largest float16 is {_MAX_FLOAT16:g}", hint=instead
        )


def max_magnitude(numbers: NDArray[np.generic]) -> float:
    """Return the largest absolute value, infinities (which float16 has too) left out."""
    largest = max(float(np.max(numbers, initial=0)), -float(np.min(numbers, initial=0)))
    if math.isfinite(largest):
        # The usual case, without a copy of the matrix.
        return largest
    return float(np.max(np.abs(numbers), where=np.isfinite(numbers), initial=0.0))


def check_hidden_states(name: str, largest: float, *, instead: str = _INSTEAD) -> None:
    """Raise UnsupportedModelError, with a hint, for a model whose hidden states, `largest` at most, overflow float16.

    They would overflow on a GPU; the CPU that certifies a bundle computes most operators in float32 and would not show
    it.
    """
    # Written so that NaN fails too.
    if not largest <= _MAX_FLOAT16:
        raise UnsupportedModelError(
            f"hidden states of `{name}` reach {largest:g} on the probe set; the largest float16 is {_MAX_FLOAT16:g}",
            hint=instead,
        )


class Float16Values:
    """Float16 versions of a graph's values, each cast once for all its readers."""

    def __init__(self, graph: ir.Graph) -> None:
        self.graph = graph
        self.rounded: dict[ir.Value, ir.Value] = {}

    def of(self, value: ir.Value, before: ir.Node) -> ir.Value:
        """Return a float32 value in float16; a cast is inserted before the first node that asks for it."""
        if value not in self.rounded:
            exact = constant_of(value)
            if exact is not None:
                name = f"{value.name}_half"
                self.rounded[value] = constant(self.graph, name, Float16Tensor(exact, name))
            else:
                self.rounded[value] = _cast(value, before, ir.DataType.FLOAT16)
        return self.rounded[value]


def convert_values(graph: ir.Graph, roots: Iterable[ir.Value]) -> None:
    """Convert what is computed from `roots` to float16, and the graph's first output back to float32.

    What is computed from positions alone stays in float32 until it meets a converted value: float16 counts to 2,048
    only.
    """
    output = graph.outputs[0]
    exact = ir.node("Cast", [output], {"to": ir.DataType.FLOAT.value})
    replace(output, exact.outputs[0])
    exact.replace_input_with(0, output)
    graph.insert_after(required(output.producer()), [exact])
    halves = values_after(graph, roots) - {exact.outputs[0]}
    rounded = Float16Values(graph)
    for node in list(graph):
        if node is exact or not any(value in halves for value in node.outputs):
            continue
        if any(attribute.type is ir.AttributeType.GRAPH for attribute in node.attributes.values()):
            raise UnsupportedModelError(
                f"the graph has `{node.op_type}`, whose subgraphs cannot be converted to float16", hint=_INSTEAD
            )
        for place, value in enumerate(node.inputs):
            if value is not None and value not in halves and _dtype_of(value) is ir.DataType.FLOAT:
                node.replace_input_with(place, rounded.of(value, node))
        if node.op_type == "Cast" and node.attributes.get_int("to", 0) == ir.DataType.FLOAT.value:
            node.attributes["to"] = ir.AttrInt64("to", ir.DataType.FLOAT16.value)
    for value in halves:
        if value.dtype in (ir.DataType.FLOAT, None):
            value.type = ir.TensorType(ir.DataType.FLOAT16)


def _cast(value: ir.Value, before: ir.Node, dtype: ir.DataType) -> ir.Value:
    found = insert(before, "Cast", [value], {"to": dtype.value})
    found.type, found.shape = ir.TensorType(dtype), value.shape
    return found


def _dtype_of(value: ir.Value) -> ir.DataType | None:
    found = constant_of(value)
    return value.dtype if found is None else found.dtype
