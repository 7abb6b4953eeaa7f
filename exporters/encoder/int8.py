"""int8 for encoders: 8-bit weights, and 8-bit activations whose scale never depends on the rest of the batch.

Each product with a constant matrix becomes `MatMulIntegerToFloat`, the unsigned-times-signed 8-bit product with which
CPUs are fastest. Where its input comes from decides how the input is quantized:

- from a layer norm: one scale for all tokens, found by calibration, after the activation's outlier channels were shrunk
  and the weights' rows grown by the same factor (SmoothQuant, Xiao et al. 2022, arXiv:2211.10438);
- from an attention, which mixes values: one scale for all tokens too, and the factors go into the weights that make
  the values, where they cost nothing;
- from a GELU, whose values are never below -0.17: a scale for each token and a zero point that spends no level on
  values that cannot be;
- from anywhere else: a scale for each token.

The [CLS] tokens, which the head of a classifier reads, can have rows of their own whose activations have 16
bits: nearly all of the error of its logits comes from the 8 bits that these rows have otherwise.

The embedding table is stored in 8 bits with a scale per token.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ..graph.attention import values_behind
from ..graph.embedding import embedding_gathers, table_of
from ..graph.nodes import ORT_DOMAIN, Linear, change_linear, constant, insert, insert_node, linears, replace, required
from ..graph.passes import RMS_NORM
from ..progress import counted
from ..quantization.gptq import LEVELS, SMALLEST, QuantizedWeight, quantize_weight
from .calibration import Calibration
from .cls_token import FirstTokens, follow_first_tokens

_NORMS = ("LayerNormalization", RMS_NORM)
GELU_FLOOR = 0.17
"""GELU's lowest value is -0.16997, at -0.7518."""
_MIDDLE = 128


@dataclass(frozen=True)
class Recipe:
    """How the linear layers of an encoder are quantized: the default is the fastest, each change costs time."""

    smoothing: float = 0.85
    """How much of the outliers moves from the activation to the weights (alpha of SmoothQuant)."""
    per_token: bool = False
    """Each token has its own scale after layer norms and attentions too."""
    cls_16bit: bool = False
    """Where a head reads [CLS] tokens only, those have rows of their own with 16-bit activations."""
    float32: frozenset[int] = frozenset()
    """Linear layers that stay in float32, by their number in the order in which the graph runs them."""


@dataclass(frozen=True, eq=False)
class Operands:
    """What a product multiplies."""

    rows: ir.Value
    """(tokens, inputs), in float32 still."""
    weight: QuantizedWeight
    peak: float
    """The largest absolute value of the rows, on calibration texts."""


def quantize_encoder(model: ir.Model, calibration: Calibration, recipe: Recipe) -> None:
    """Quantize a graph's linear layers, on rows of tokens, and its embedding table to int8.

    `calibration` was made with the same graph.
    """
    graph = model.graph
    contexts = {} if recipe.per_token else smooth_contexts(graph, calibration, recipe)
    products = {linear.matmul: number for number, linear in enumerate(linears(graph))}
    exact = {required(matmul.inputs[0]) for matmul, number in products.items() if number in recipe.float32}
    first = follow_first_tokens(graph) if recipe.cls_16bit else FirstTokens({}, set())
    for linear in counted(list(linears(graph)), "matrices"):
        # The same for all tokens, which calibration has seen.
        origin = first.origins.get(linear.input, linear.input)
        if products[linear.matmul] in recipe.float32 if linear.matmul in products else origin in exact:
            continue
        alone = linear.input in first.alone
        operands = _operands_of(graph, linear, origin, contexts.get(origin), calibration, recipe, first=alone)
        if alone:
            output = _precise_product(graph, linear, operands)
        elif made_by(origin, "Gelu"):
            output = _shifted_product(graph, linear, operands)
        elif origin in contexts or (made_by(origin, *_NORMS) and not recipe.per_token):
            output = _static_product(graph, linear, operands)
        else:
            output = _per_token_product(graph, linear, operands)
        replace(linear.output, output)
    _quantize_word_vectors(graph)


def _operands_of(
    graph: ir.Graph,
    linear: Linear,
    origin: ir.Value,
    divisors: NDArray[np.float32] | None,
    calibration: Calibration,
    recipe: Recipe,
    *,
    first: bool,
) -> Operands:
    """What a product multiplies in 8 bits, of which `origin` is the value that calibration has seen.

    Rows from a layer norm are divided by SmoothQuant's factors here; `divisors` are those by which other rows were
    divided where they are made.
    """
    peaks, rows, matrix = calibration.peaks[_name_of(origin)], linear.input, linear.weight
    if made_by(origin, *_NORMS):
        divisors = _smoothing_of(linear, peaks, recipe)
        rows = insert(linear.matmul, "Mul", [rows, constant(graph, f"{linear.name}_smoothing", 1 / divisors)])
        matrix = matrix * divisors[:, np.newaxis]
    weight = calibration.quantize(_name_of(origin), matrix, divisors=divisors, of_first_tokens=first)
    return Operands(rows, weight, float((peaks if divisors is None else peaks / divisors).max()))


def _name_of(value: ir.Value) -> str:
    return value.name or ""


def made_by(value: ir.Value, *op_types: str) -> bool:
    """Whether a value comes from one of these operators, in another shape or order or only a part of it."""
    producer = value.producer()
    while producer is not None and producer.op_type in ("Reshape", "Transpose", "Slice"):
        producer = required(producer.inputs[0]).producer()
    return producer is not None and producer.op_type in op_types


def _smoothing_of(linear: Linear, peaks: NDArray[np.float32], recipe: Recipe) -> NDArray[np.float32]:
    """By what each channel of a product's input is divided and each row of its matrix multiplied: (inputs,)."""
    rows = np.maximum(np.abs(linear.weight).max(axis=1), SMALLEST)
    peaks = np.maximum(peaks, SMALLEST)
    return np.asarray(peaks**recipe.smoothing / rows ** (1 - recipe.smoothing), np.float32)


def smooth_contexts(graph: ir.Graph, calibration: Calibration, recipe: Recipe) -> dict[ir.Value, NDArray[np.float32]]:
    """Shrink the outlier channels of what attentions give to products, by shrinking the values that they mix.

    A channel of a context is a mean of that channel of the values, so a factor may go into the weights that make them.
    Returns by what each context is divided now: (width,).
    """
    divisors = {}
    for number, linear in enumerate(list(linears(graph))):
        values = values_behind(linear.input)
        if values is None or number in recipe.float32:
            continue
        smoothing = _smoothing_of(linear, calibration.peaks[_name_of(linear.input)], recipe)
        columns = np.ones(values.weight.shape[1], np.float32)
        columns[-len(smoothing) :] = 1 / smoothing
        change_linear(graph, values, weight=values.weight * columns, bias=values.bias * columns)
        change_linear(graph, linear, weight=linear.weight * smoothing[:, np.newaxis])
        divisors[linear.input] = smoothing
    return divisors


def _static_product(graph: ir.Graph, linear: Linear, operands: Operands) -> ir.Value:
    """`rows @ weight + b` with one scale for all tokens: the peak becomes 127."""
    before, name = linear.matmul, linear.name
    scale = constant(graph, f"{name}_input_scale", np.array(max(operands.peak, SMALLEST) / LEVELS, np.float32))
    quantized = insert(before, "QuantizeLinear", [operands.rows, scale, middle(graph)])
    return _int8_product(graph, linear, name, operands.weight, quantized, scale, bias=linear.bias)


def _precise_product(graph: ir.Graph, linear: Linear, operands: Operands) -> ir.Value:
    """`rows @ weight + b` with 16-bit activations: the upper 8 bits, and the rest, as rows of one matmul.

    Twice the peak becomes 127, since there are bits to spare for rows that calibration has not seen. The matrix is one
    of its own, rounded for these rows: onnxruntime packs it for each product anyway, and cannot open a graph that
    shares one where it has to convert it (see `ortkit.runtime.session.session`).
    """
    before, name = linear.matmul, f"{linear.name}_first"
    unit, share = 2 * max(operands.peak, SMALLEST) / LEVELS, 1 / (2 * LEVELS)
    scale = constant(graph, f"{name}_scale", np.array(unit, np.float32))
    upper = insert(before, "QuantizeLinear", [operands.rows, scale, middle(graph)])
    rest = insert(before, "Sub", [operands.rows, insert(before, "DequantizeLinear", [upper, scale, middle(graph)])])
    rest_scale = constant(graph, f"{name}_rest_scale", np.array(unit * share, np.float32))
    lower = insert(before, "QuantizeLinear", [rest, rest_scale, middle(graph)])
    both = insert(before, "Concat", [upper, lower], {"axis": 0})
    product = _int8_product(graph, linear, name, operands.weight, both, scale)
    halves = insert_node(before, ir.node("Split", [product], {"axis": 0, "num_outputs": 2}, num_outputs=2)).outputs
    fraction = constant(graph, "lower_bits", np.array(share, np.float32))
    product = insert(before, "Add", [halves[0], insert(before, "Mul", [halves[1], fraction])])
    return insert(before, "Add", [product, constant(graph, f"{name}_bias", linear.bias)])


def _int8_product(
    graph: ir.Graph,
    linear: Linear,
    name: str,
    weight: QuantizedWeight,
    quantized: ir.Value,
    scale: ir.Value,
    *,
    zero_point: int = _MIDDLE,
    bias: NDArray[np.float32] | None = None,
) -> ir.Value:
    """Insert `scale * (quantized - zero_point) @ weight + bias` where the product of `linear` stands, named `name`."""
    inputs: list[ir.Value | None] = [
        quantized,
        constant(graph, f"{name}_int8", weight.values),
        scale,
        constant(graph, f"{name}_scales", weight.scales),
        constant(graph, f"zero_point_{zero_point}", np.array(zero_point, np.uint8)),
    ]
    if bias is not None:
        inputs += [None, constant(graph, f"{name}_int8_bias", bias)]
    return insert(linear.matmul, "MatMulIntegerToFloat", inputs, domain=ORT_DOMAIN)


def middle(graph: ir.Graph) -> ir.Value:
    return constant(graph, f"zero_point_{_MIDDLE}", np.array(_MIDDLE, np.uint8))


def _per_token_product(graph: ir.Graph, linear: Linear, operands: Operands) -> ir.Value:
    """`rows @ weight + b` with a scale for each token: its largest absolute value becomes 127."""
    before, rows = linear.matmul, operands.rows
    peak = insert(before, "ReduceMax", [insert(before, "Abs", [rows]), last_axis(graph)], {"keepdims": 0})
    peak = insert(before, "Max", [peak, constant(graph, "smallest", np.array(SMALLEST, np.float32))])
    scale = insert(before, "Mul", [peak, constant(graph, "one_127th", np.array(1 / LEVELS, np.float32))])
    count = insert(before, "Shape", [scale])
    middles = insert(before, "Expand", [middle(graph), count])
    return _scaled_rows(graph, linear, operands, scale, middles, _MIDDLE, linear.bias)


def _shifted_product(graph: ir.Graph, linear: Linear, operands: Operands) -> ir.Value:
    """A scale for each token of a GELU's output, with level 0 at -0.17 instead of at minus the largest value.

    The zero point k must be an integer, so the scale is chosen such that -0.17 falls on a level: 0.17 / k. The product
    then counts from -0.17, and what that adds, -0.17 times the sum of each output's weights, goes into the bias.
    """
    before, weight = linear.matmul, operands.weight
    floor = constant(graph, "gelu_floor", np.array(GELU_FLOOR, np.float32))
    peak = insert(before, "ReduceMax", [operands.rows, last_axis(graph)], {"keepdims": 0})
    levels = insert(
        before,
        "Div",
        [constant(graph, "gelu_levels", np.array(255 * GELU_FLOOR, np.float32)), insert(before, "Add", [peak, floor])],
    )
    below = insert(before, "Max", [insert(before, "Floor", [levels]), constant(graph, "one", np.array(1, np.float32))])
    scale = insert(before, "Div", [floor, below])
    zero_points = insert(before, "Cast", [below], {"to": ir.DataType.UINT8.value})
    sums = (weight.values.astype(np.float64) * weight.scales).sum(axis=0)
    bias = (linear.bias - GELU_FLOOR * sums).astype(np.float32)
    return _scaled_rows(graph, linear, operands, scale, zero_points, 0, bias)


def _scaled_rows(
    graph: ir.Graph,
    linear: Linear,
    operands: Operands,
    scale: ir.Value,
    zero_points: ir.Value,
    zero_point: int,
    bias: NDArray[np.float32],
) -> ir.Value:
    """Quantize rows with their own `scale` (tokens,) and `zero_points`, multiply, and scale the result's rows back.

    `zero_point` is one number for all rows.
    """
    before, name = linear.matmul, linear.name
    quantized = insert(before, "QuantizeLinear", [operands.rows, scale, zero_points], {"axis": 0})
    one = constant(graph, "one", np.array(1, np.float32))
    product = _int8_product(graph, linear, name, operands.weight, quantized, one, zero_point=zero_point)
    column = insert(before, "Unsqueeze", [scale, constant(graph, "axis_1", np.array([1], np.int64))])
    product = insert(before, "Mul", [product, column])
    return insert(before, "Add", [product, constant(graph, f"{name}_rows_bias", bias)])


def last_axis(graph: ir.Graph) -> ir.Value:
    return constant(graph, "last_axis", np.array([-1], np.int64))


def _quantize_word_vectors(graph: ir.Graph) -> None:
    """Store the table from which token ids pick their vectors in int8, with a scale for each of its rows."""
    for node in embedding_gathers(graph):
        ids = required(node.inputs[1])
        quantized = quantize_weight(table_of(node).numpy().T.astype(np.float32))
        values = constant(graph, "word_vectors_int8", np.ascontiguousarray(quantized.values.T))
        scales = constant(graph, "word_vectors_scales", quantized.scales[:, np.newaxis])
        rows = insert(node, "Cast", [insert(node, "Gather", [values, ids])], {"to": ir.DataType.FLOAT.value})
        replace(node.outputs[0], insert(node, "Mul", [rows, insert(node, "Gather", [scales, ids])]))
