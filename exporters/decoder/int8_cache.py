"""Quantize a decoder's KV cache to int8, with a static scale for each of its channels.

Scales come from the KV cache of calibration texts. Rotary embeddings turn a pair of channels of a key by an
angle that grows with its position, and slow pairs reach angles at 4,000 tokens that no calibration text has. So both
channels of a pair share a scale, that of the pair's norm, which no position changes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ...runtime.bundle.bundle import GRAPH
from ...runtime.bundle.folder import DraftBundle
from ...runtime.decoder.decoder import Decoder
from ...runtime.decoder.model_runner import ModelRunner
from ..graph.external_data import weights_file, write_stored_graph
from ..graph.nodes import constant, constant_of, required
from .passes import PAST_KEY, attentions

MARGIN = 1.25
"""Scales are for magnitudes that are larger than those of the calibration texts by this factor.

What is larger still is clipped. SmolLM2-135M's KL divergence is the same with 1, 1.2 and 1.5.
"""
_LEVELS = 127
_COS, _HEAD_SINK, _KEY_SCALE, _VALUE_SCALE = 7, 11, 12, 13
"""Positions of GroupQueryAttention's inputs."""
_NO_SINK = -1e30
"""A sink adds the exponential of this score to the denominator of the softmax: nothing."""


def quantize_cache(
    model: ir.Model, draft: DraftBundle, windows: Sequence[Sequence[int]], *, prefill: ir.Model | None = None
) -> None:
    """Quantize the KV cache of a graph whose weights are stored; `draft` describes it, and takes its files for a while.

    `windows` are the token ids of the calibration texts. The graph for prompts, if there is one, has the same cache.
    """
    write_stored_graph(model, required(weights_file(model)), draft.path / GRAPH)
    magnitudes = cache_magnitudes(Decoder(draft), windows, list(map(_rotated_pairs, attentions(model.graph))))
    for made in (model, prefill):
        if made is not None:
            convert_cache_to_int8(made.graph, magnitudes)


def cache_magnitudes(
    decoder: Decoder, windows: Sequence[Sequence[int]], pairs: Sequence[int]
) -> list[NDArray[np.float32]]:
    """Run texts, and return the largest magnitude (kv_heads, head_size) of each buffer of the KV cache, by channel.

    `pairs` is the number of pairs of channels that each layer rotates; the magnitude of a key's pair is its norm.
    """
    cache = decoder.new_cache()
    shape = (decoder.facts.kv_heads, decoder.facts.head_size)
    largest = [np.zeros(shape, np.float32) for _ in range(2 * decoder.facts.layers)]
    for window in windows:
        cache.rewind(0)
        ModelRunner(decoder.session, cache).run(window)
        for place, content in enumerate(cache.contents()):
            found = np.abs(content[0, :, : len(window)])
            is_key = place % 2 == 0
            rotated = pairs[place // 2] if is_key else 0
            norms = np.hypot(found[..., :rotated], found[..., rotated : 2 * rotated])
            found[..., : 2 * rotated] = np.concatenate([norms, norms], axis=-1)
            np.maximum(largest[place], found.max(axis=1), out=largest[place])
    return largest


def _rotated_pairs(attention: ir.Node) -> int:
    """Return how many pairs of channels an attention rotates: the first ones against those after them."""
    table = constant_of(attention.inputs[_COS]) if len(attention.inputs) > _COS else None
    return 0 if table is None else table.shape.numpy()[-1]


def convert_cache_to_int8(graph: ir.Graph, magnitudes: Sequence[NDArray[np.float32]]) -> None:
    """Let the attentions have a KV cache in int8; `magnitudes` are those of `cache_magnitudes`.

    The attentions get a sink, which changes nothing but their kernel: onnxruntime's tiled one takes none, and with an
    int8 cache it is slower for a new token than the one that computes all scores at once. SmolLM2 with the tiled one
    and without, new tokens per second to those with a float32 cache: 1.00 and 1.37 after 900 tokens, 1.05 and 1.42
    after 4,000 (x86 with VNNI).
    """
    scales = iter(map(_scales, magnitudes))
    for number, attention in enumerate(attentions(graph)):
        added = {
            _HEAD_SINK: np.full(required(attention.attributes.get_int("num_heads")), _NO_SINK, np.float32),
            _KEY_SCALE: next(scales),
            _VALUE_SCALE: next(scales),
        }
        attention.resize_inputs(_VALUE_SCALE + 1)
        for place, content in added.items():
            attention.replace_input_with(place, constant(graph, f"cache.{number}.{place}", content))
        for name in ("k_quant_type", "v_quant_type"):
            attention.attributes.add(ir.AttrString(name, "PER_CHANNEL"))
        attention.attributes.add(ir.AttrInt64("kv_cache_bit_width", 8))
        for value in _cached_values(attention):
            value.type = ir.TensorType(ir.DataType.INT8)


def _scales(magnitude: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the scales (kv_heads, 1, head_size) for the magnitudes of channels.

    A channel that the calibration texts leave near zero gets room for 1/127 of the head's largest one.
    """
    least = magnitude.max(axis=-1, keepdims=True) / _LEVELS
    scales = np.maximum(magnitude, least) * np.float32(MARGIN / _LEVELS)
    return np.where(scales > 0, scales, np.float32(1))[:, np.newaxis]


def _cached_values(attention: ir.Node) -> Iterator[ir.Value]:
    """Yield the KV cache of a layer, before and after a run."""
    yield from map(required, attention.inputs[PAST_KEY : PAST_KEY + 2])
    yield from attention.outputs[1:3]
