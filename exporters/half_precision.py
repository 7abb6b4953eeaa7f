"""Decoders in float16: all of a graph, as GPUs want it, or its keys and values alone.

onnxruntime's CPU has float16 for few operators and computes the others in float32, with casts around them: correct, and
slow.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from exporters.decoder_graph import KEY, PAST_KEY, QUERY, VALUE, attentions
from exporters.nodes import constant, constant_of, insert, only_user, replace, required, values_after
from exporters.stored_tensors import StreamedTensor
from runtime.errors import UnsupportedModelError
from runtime.graph_io import decoder_inputs

LARGEST = float(np.finfo(np.float16).max)
"""Of the numbers that float16 has."""
COS, SIN = 7, 8
"""The places of the tables of angles among the attention's inputs."""
INSTEAD = "use `--precision int4`, `int8` or `fp32`"


class HalfTensor(ir.LazyTensor):
    """The numbers of another constant in float16, read and rounded whenever they are asked for."""

    def __init__(self, exact: ir.TensorProtocol, name: str) -> None:
        super().__init__(
            lambda: ir.tensor(in_half(exact)), ir.DataType.FLOAT16, ir.Shape(exact.shape.numpy()), name=name
        )


def in_half(exact: ir.TensorProtocol) -> NDArray[np.float16]:
    """Each number rounded to the nearest in float16; raises UnsupportedModelError where one is beyond its range."""
    numbers = exact.numpy()
    if largest_of(numbers) > LARGEST:
        name, largest = exact.name, largest_of(numbers)
        for part in exact.parts if isinstance(exact, StreamedTensor) else ():
            if (found := largest_of(part.read())) > LARGEST:
                name, largest = part.name, found
        raise UnsupportedModelError(
            f"`{name}` holds a weight of {largest:g}, and float16 has no number beyond {LARGEST:g}", hint=INSTEAD
        )
    return numbers.astype(np.float16)


def largest_of(numbers: NDArray[np.generic]) -> float:
    """The largest absolute value; infinities, which float16 has too, are left out."""
    largest = max(float(np.max(numbers, initial=0)), -float(np.min(numbers, initial=0)))
    if math.isfinite(largest):
        # As nearly always, and without a second matrix in memory.
        return largest
    return float(np.max(np.abs(numbers), where=np.isfinite(numbers), initial=0.0))


def check_states(name: str, states: tuple[NDArray[np.float32], ...]) -> None:
    """Raise UnsupportedModelError for a model whose hidden states, as PyTorch has them, are beyond float16.

    A GPU would make infinities of them, and the CPU that certifies a bundle computes most operators in float32.
    """
    largest = max(map(largest_of, states), default=0.0)
    if largest > LARGEST:
        raise UnsupportedModelError(
            f"hidden states of `{name}` reach {largest:g} on the probe set, and float16 has no number beyond "
            f"{LARGEST:g}",
            hint=INSTEAD,
        )


class Halves:
    """What a graph's values are in float16, each rounded once for all that read it."""

    def __init__(self, graph: ir.Graph) -> None:
        self.graph = graph
        self.rounded: dict[ir.Value, ir.Value] = {}

    def of(self, value: ir.Value, before: ir.Node) -> ir.Value:
        """A float32 value in float16, made before a node that stands before all others which ask for it."""
        if value not in self.rounded:
            exact = constant_of(value)
            if exact is not None:
                name = f"{value.name}_half"
                self.rounded[value] = constant(self.graph, name, HalfTensor(exact, name))
            else:
                self.rounded[value] = cast(value, before, ir.DataType.FLOAT16)
        return self.rounded[value]


def put_in_half(graph: ir.Graph) -> None:
    """Let all that is computed from word vectors be float16, and the keys and values; the logits are float32 again.

    What is computed from positions alone, such as angles, stays in float32 until it meets a token's vector: float16
    counts to 2,048 only.
    """
    logits = graph.outputs[0]
    exact = ir.node("Cast", [logits], {"to": ir.DataType.FLOAT.value})
    replace(logits, exact.outputs[0])
    exact.replace_input_with(0, logits)
    graph.insert_after(required(logits.producer()), [exact])
    halves = values_after(graph, [*cache_inputs(graph), *word_vectors(graph)]) - {exact.outputs[0]}
    rounded = Halves(graph)
    for node in list(graph):
        if node is exact or not any(output in halves for output in node.outputs):
            continue
        if any(attribute.type is ir.AttributeType.GRAPH for attribute in node.attributes.values()):
            raise UnsupportedModelError(
                f"the graph has `{node.op_type}`, inside of which edgekit makes nothing float16", hint=INSTEAD
            )
        for place, value in enumerate(node.inputs):
            if value is not None and value not in halves and dtype_of(value) is ir.DataType.FLOAT:
                node.replace_input_with(place, rounded.of(value, node))
        if node.op_type == "Cast" and node.attributes.get_int("to", 0) == ir.DataType.FLOAT.value:
            node.attributes["to"] = ir.AttrInt64("to", ir.DataType.FLOAT16.value)
    for value in halves:
        if value.dtype in (ir.DataType.FLOAT, None):
            value.type = ir.TensorType(ir.DataType.FLOAT16)


def put_cache_in_half(graph: ir.Graph) -> None:
    """Let the attention alone be float16, so that the keys and values are.

    Raises UnsupportedModelError for a cache that is used otherwise than edgekit's attentions do.
    """
    rounded = Halves(graph)
    for attention in attentions(graph):
        for place in (QUERY, KEY, VALUE, COS, SIN):
            value = attention.inputs[place] if place < len(attention.inputs) else None
            if value is not None:
                attention.replace_input_with(place, rounded.of(value, attention))
        give_exact(attention.outputs[0])
        for value in (*attention.inputs[PAST_KEY : PAST_KEY + 2], *attention.outputs[1:3]):
            required(value).type = ir.TensorType(ir.DataType.FLOAT16)
    if not attentions(graph):
        for past in cache_inputs(graph):
            put_kept_in_half(past, rounded)


def put_kept_in_half(past: ir.Value, rounded: Halves) -> None:
    """The same for a cache of the attention in plain operators: what is kept of new tokens, and picked for them."""
    scatter = only_user(past, "ScatterElements")
    picks = [node for node, _ in scatter.outputs[0].uses()] if scatter is not None else []
    if scatter is None or any(node.op_type != "Gather" for node in picks):
        raise UnsupportedModelError(
            "the attention of the model uses its keys and values in a way that edgekit has no float16 for",
            hint="leave out `--cache float16`",
        )
    scatter.replace_input_with(2, rounded.of(required(scatter.inputs[2]), scatter))
    for pick in picks:
        give_exact(pick.outputs[0])
    for value in (past, scatter.outputs[0]):
        value.type = ir.TensorType(ir.DataType.FLOAT16)


def give_exact(value: ir.Value) -> None:
    """Give a value that is float16 now to what reads it in float32."""
    node = required(value.producer())
    exact = ir.node("Cast", [value], {"to": ir.DataType.FLOAT.value})
    value.replace_all_uses_with(exact.outputs[0])
    exact.replace_input_with(0, value)
    exact.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    exact.outputs[0].shape = value.shape
    value.type = ir.TensorType(ir.DataType.FLOAT16)
    required(node.graph).insert_after(node, [exact])


def cast(value: ir.Value, before: ir.Node, dtype: ir.DataType) -> ir.Value:
    found = insert(before, "Cast", [value], {"to": dtype.value})
    found.type, found.shape = ir.TensorType(dtype), value.shape
    return found


def cache_inputs(graph: ir.Graph) -> Sequence[ir.Value]:
    """The keys and values of each layer, which come last."""
    return graph.inputs[len(decoder_inputs(0)) :]


def word_vectors(graph: ir.Graph) -> list[ir.Value]:
    """What is picked from tables that come from the checkpoint, of tokens or of positions."""
    return [
        node.outputs[0]
        for node in graph
        if node.op_type == "Gather" and isinstance(constant_of(node.inputs[0]), StreamedTensor)
    ]


def dtype_of(value: ir.Value) -> ir.DataType | None:
    found = constant_of(value)
    return value.dtype if found is None else found.dtype
