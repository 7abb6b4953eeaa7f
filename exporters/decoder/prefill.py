"""The 8-bit graph for prompts: where rows are many, u8 x s8 matmuls are more than twice as fast as MatMulNBits.

It has the inputs and outputs of the decoder's own graph, so both use one KV cache. Weights are rounded from float32 to
int8 with a scale per output channel, activations with a scale per token: a token's result depends on no other row, and
the int32 sums are exact, so the KV cache does not depend on how a prompt is split. Token embeddings and the output
projection, which runs for a prompt's last token only, are those of the decoder's own graph.

It runs one sequence: the per-token scales are one axis.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir

from ...runtime.bundle.manifest import PrefillGraph
from ..graph.array_store import Kept, KeptArrays, Made
from ..graph.external_data import store_weights
from ..graph.nodes import ORT_DOMAIN, Linear, constant, insert, linears, required
from ..graph.passes import tidy
from ..progress import Progress, WeightCounter
from ..quantization.gptq import LEVELS, SMALLEST, quantize_weight
from .passes import output_matmul
from .weight_only import replace_output

_MIDDLE = 128
"""The zero point of activations: with it onnxruntime uses the kernel for unsigned times signed bytes."""


def make_prefill_graph(
    graph: ir.Model,
    quantize_rest: Callable[[ir.Model], None],
    weights: KeptArrays,
    *,
    progress: Progress | None = None,
) -> PrefillGraph:
    """Make a decoder's float32 graph the 8-bit one for prompts, in place, and store its weights.

    `quantize_rest` quantizes what is left, embeddings and output projection, as in the decoder's own graph.
    """
    matmul = output_matmul(graph.graph)
    layers = [linear for linear in linears(graph.graph) if linear.matmul is not matmul]
    counter = WeightCounter(progress, [linear.matrix.nbytes for linear in layers])
    for linear in layers:
        replace_output(linear, _int8_matmul(graph.graph, linear, weights.keep(linear.name, _quantized(linear))))
        counter.advance(linear.matrix.nbytes)
    quantize_rest(graph)
    _take_into_memory(graph, weights.path)
    tidy(graph)
    store_weights(graph, weights)
    return PrefillGraph(len(layers))


def _quantized(linear: Linear) -> Callable[[], Made]:
    def quantize() -> Made:
        weight = quantize_weight(linear.weight)
        return Made({"int8": np.ascontiguousarray(weight.values), "scales": weight.scales})

    return quantize


def _int8_matmul(graph: ir.Graph, linear: Linear, weight: Kept) -> ir.Value:
    """Insert `rows @ weight` with 8-bit rows, each token's largest absolute value being 127; without the bias."""
    before, rows = linear.matmul, linear.input
    insert_here = functools.partial(insert, before)
    peak = insert_here("ReduceMax", [insert_here("Abs", [rows]), _int64(graph, "last_axis", [-1])], {"keepdims": 1})
    peak = insert_here("Max", [peak, constant(graph, "smallest_peak", np.array(SMALLEST, np.float32))])
    scale = insert_here("Mul", [peak, constant(graph, "one_127th", np.array(1 / LEVELS, np.float32))])
    by_token = insert_here("Reshape", [scale, _int64(graph, "one_axis", [-1])])
    middle = constant(graph, "zero_point_of_rows", np.array(_MIDDLE, np.uint8))
    middles = insert_here("Expand", [middle, insert_here("Shape", [by_token])])
    # Rows are (1, tokens, width), or (tokens, width) where a model flattens them.
    axis = 1 if rows.shape is None else len(rows.shape) - 2
    quantized = insert_here("QuantizeLinear", [rows, by_token, middles], {"axis": axis})
    product = insert_here(
        "MatMulIntegerToFloat",
        [
            quantized,
            constant(graph, f"{linear.name}_int8", weight.arrays["int8"]),
            constant(graph, "scale_of_rows", np.array(1, np.float32)),
            constant(graph, f"{linear.name}_int8_scales", weight.arrays["scales"]),
            middle,
        ],
        domain=ORT_DOMAIN,
    )
    return insert_here("Mul", [product, scale])


def _int64(graph: ir.Graph, name: str, numbers: list[int]) -> ir.Value:
    return constant(graph, name, np.array(numbers, np.int64))


def _take_into_memory(graph: ir.Model, but: Path) -> None:
    """Read the weights that are in other files than this one: a graph's weights are in one file."""
    for value in graph.graph.initializers.values():
        tensor = required(value.const_value)
        if isinstance(tensor, ir.ExternalTensor) and Path(tensor.path) != but:
            value.const_value = ir.tensor(np.array(tensor.numpy()), name=tensor.name)
