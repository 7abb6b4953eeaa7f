"""Convert a decoder's graph to float16, for CUDA, whose attention has no float32 kernel; or its KV cache alone.

onnxruntime's CPU provider, which certifies the graph, has float16 kernels for few operators and computes the others in
float32 with casts around them: correct, and slow.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from ...runtime.bundle.graph_io import decoder_inputs
from ...runtime.errors import UnsupportedModelError
from ..graph.embedding import streamed_gathers
from ..graph.float16 import Float16Values, convert_values
from ..graph.nodes import only_user, required
from .passes import KEY, PAST_KEY, QUERY, VALUE, attentions

_BLOCK_GATHER = "GatherBlockQuantized"
_COS, _SIN = 7, 8
"""The positions of the rotary tables among the attention's inputs."""


def convert_to_float16(graph: ir.Graph) -> None:
    """Convert everything computed from embeddings, and the KV cache, to float16; logits are cast back to float32.

    Weights may be quantized block-wise, with float16 scales (`BlockFormat.cuda`). Rotary tables are rounded after they
    were computed in float32: float16 counts to 2,048 only.
    """
    embeddings = [*streamed_gathers(graph), *(node for node in graph if node.op_type == _BLOCK_GATHER)]
    convert_values(graph, [*_cache_inputs(graph), *(node.outputs[0] for node in embeddings)])


def _cache_inputs(graph: ir.Graph) -> Sequence[ir.Value]:
    """Return the inputs of the KV cache, which come last."""
    return graph.inputs[len(decoder_inputs(0)) :]


def convert_cache_to_float16(graph: ir.Graph) -> None:
    """Convert the attention, and so the KV cache, to float16, and leave everything else in float32.

    Raises UnsupportedModelError for a cache that is not used as ortkit's attentions use it.
    """
    rounded = Float16Values(graph)
    for attention in attentions(graph):
        for place in (QUERY, KEY, VALUE, _COS, _SIN):
            value = attention.inputs[place] if place < len(attention.inputs) else None
            if value is not None:
                attention.replace_input_with(place, rounded.of(value, attention))
        _cast_to_float32(attention.outputs[0])
        for value in (*attention.inputs[PAST_KEY : PAST_KEY + 2], *attention.outputs[1:3]):
            required(value).type = ir.TensorType(ir.DataType.FLOAT16)
    if not attentions(graph):
        for past in _cache_inputs(graph):
            _convert_plain_cache(past, rounded)


def _convert_plain_cache(past: ir.Value, rounded: Float16Values) -> None:
    """Convert the cache of a plain attention: what is scattered into it, and what is gathered from it."""
    scatter = only_user(past, "ScatterElements")
    picks = [node for node, _ in scatter.outputs[0].uses()] if scatter is not None else []
    if scatter is None or any(node.op_type != "Gather" for node in picks):
        raise UnsupportedModelError(
            "the model's attention uses its KV cache in a way that does not support float16",
            hint="export without `--cache float16`",
        )
    scatter.replace_input_with(2, rounded.of(required(scatter.inputs[2]), scatter))
    for pick in picks:
        _cast_to_float32(pick.outputs[0])
    for value in (past, scatter.outputs[0]):
        value.type = ir.TensorType(ir.DataType.FLOAT16)


def _cast_to_float32(value: ir.Value) -> None:
    """Mark a value as float16 and cast it to float32 for its readers."""
    node = required(value.producer())
    exact = ir.node("Cast", [value], {"to": ir.DataType.FLOAT.value})
    value.replace_all_uses_with(exact.outputs[0])
    exact.replace_input_with(0, value)
    exact.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    exact.outputs[0].shape = value.shape
    value.type = ir.TensorType(ir.DataType.FLOAT16)
    required(node.graph).insert_after(node, [exact])
