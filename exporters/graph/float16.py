"""Convert a graph, or the part that is computed from some values, to float16."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ...runtime.errors import UnsupportedModelError
from .nodes import constant, constant_of, insert, replace, required, values_after

MAX_FLOAT16 = float(np.finfo(np.float16).max)
"""The largest finite float16."""


class Float16Tensor(ir.LazyTensor):
    """A constant in float16, converted each time it is read by `convert`."""

    def __init__(
        self, exact: ir.TensorProtocol, name: str, convert: Callable[[ir.TensorProtocol], NDArray[np.float16]]
    ) -> None:
        super().__init__(
            lambda: ir.tensor(convert(exact)), ir.DataType.FLOAT16, ir.Shape(exact.shape.numpy()), name=name
        )


def max_magnitude(numbers: NDArray[np.generic]) -> float:
    """Return the largest absolute value, infinities (which float16 has too) left out."""
    largest = max(float(np.max(numbers, initial=0)), -float(np.min(numbers, initial=0)))
    if math.isfinite(largest):
        # The usual case, without a copy of the matrix.
        return largest
    return float(np.max(np.abs(numbers), where=np.isfinite(numbers), initial=0.0))


class Float16Values:
    """Float16 versions of a graph's values, each cast once for all its readers."""

    def __init__(self, graph: ir.Graph, convert: Callable[[ir.TensorProtocol], NDArray[np.float16]]) -> None:
        self.graph = graph
        self._convert = convert
        self._rounded: dict[ir.Value, ir.Value] = {}

    def of(self, value: ir.Value, before: ir.Node) -> ir.Value:
        """Return a float32 value in float16; a cast is inserted before the first node that asks for it."""
        if value not in self._rounded:
            exact = constant_of(value)
            if exact is not None:
                name = f"{value.name}_half"
                self._rounded[value] = constant(self.graph, name, Float16Tensor(exact, name, self._convert))
            else:
                self._rounded[value] = _cast(value, before, ir.DataType.FLOAT16)
        return self._rounded[value]


def convert_values(
    graph: ir.Graph,
    roots: Iterable[ir.Value],
    convert: Callable[[ir.TensorProtocol], NDArray[np.float16]],
    *,
    instead: str,
) -> None:
    """Convert what is computed from `roots` to float16, and the graph's first output back to float32.

    What is computed from positions alone stays in float32 until it meets a converted value: float16 counts to 2,048
    only. `instead` is the hint for a graph that cannot be converted.
    """
    output = graph.outputs[0]
    exact = ir.node("Cast", [output], {"to": ir.DataType.FLOAT.value})
    replace(output, exact.outputs[0])
    exact.replace_input_with(0, output)
    graph.insert_after(required(output.producer()), [exact])
    halves = values_after(graph, roots) - {exact.outputs[0]}
    rounded = Float16Values(graph, convert)
    for node in list(graph):
        if node is exact or not any(output in halves for output in node.outputs):
            continue
        if any(attribute.type is ir.AttributeType.GRAPH for attribute in node.attributes.values()):
            raise UnsupportedModelError(
                f"the graph has `{node.op_type}`, whose subgraphs cannot be converted to float16", hint=instead
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
