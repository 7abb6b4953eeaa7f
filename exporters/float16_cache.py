"""Convert a decoder's KV cache to float16 and leave everything else in float32."""

from __future__ import annotations

import onnx_ir as ir

from exporters.decoder_graph import KEY, PAST_KEY, QUERY, VALUE, attentions
from exporters.half_precision import Halves, cache_inputs
from exporters.nodes import only_user, required
from runtime.errors import UnsupportedModelError

COS, SIN = 7, 8
"""The places of the tables of angles among the attention's inputs."""


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
