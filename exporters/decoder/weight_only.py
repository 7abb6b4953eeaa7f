"""Block-wise weight-only quantization of decoders: linear layers to MatMulNBits, embeddings to GatherBlockQuantized.

A decoder reads all weights for each token, so decoding is bound by memory bandwidth. The output matrix (LM head) has
many more rows than any other and decides between tokens, so it may have more bits. Tied embeddings and LM head share
the same packed bytes.

Weights that a GGUF file holds quantized already are kept as they are: see `gguf_blocks`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ..graph.array_store import Keep, Kept, KeptArrays, Made, in_memory
from ..graph.embedding import embedding_gathers, table_of
from ..graph.float16 import check_weights
from ..graph.nodes import ORT_DOMAIN, Linear, constant, insert, linears, replace, required
from ..progress import Progress, WeightCounter
from ..quantization.blockwise import BlockFormat, BlockMatrix, Rounding, gptq_quantize_blockwise, quantize_blockwise
from ..quantization.gptq import inverse_hessian_cholesky
from .passes import output_is_tied, output_matmul

_INT8_ACTIVATIONS = 4
"""MatMulNBits' accuracy level 4: int8 activations with a scale per block, the CPU's fastest kernel.

CUDA ignores the level. It is not in graphs for CUDA, so that the CPU that certifies them does not round activations.
"""
EMBEDDING = "word_vectors"
"""Prefix of the initializers of an embedding table that is not tied to the output matrix."""
MOMENTS_AT_ONCE = 2**31
"""Bytes of second moments in memory at a time."""


@dataclass(frozen=True)
class BlockRecipe:
    """How the weights of a decoder are quantized block-wise."""

    bits: int = 4
    block_size: int = 32
    symmetric: bool = False
    """Without zero points: slightly smaller, less accurate and on a CPU no faster."""
    rounding: Rounding = Rounding.IMPORTANCE
    output_bits: int = 4
    """Bits of the output matrix, and of tied token embeddings."""
    output_block_size: int | None = None
    """Block size of the output matrix, None for `block_size`."""
    cuda: bool = False
    """For CUDA: see `BlockFormat`."""

    @property
    def form(self) -> BlockFormat:
        return BlockFormat(self.bits, self.block_size, self.symmetric, self.cuda)

    @property
    def output_form(self) -> BlockFormat:
        return BlockFormat(self.output_bits, self.output_block_size or self.block_size, self.symmetric, self.cuda)


Moments = Callable[[Sequence[Linear], bool], Mapping[str, NDArray[np.float32]]]
"""(linear layers, squares only) -> the second moments of each layer's input, by the layer's name."""


def quantize_decoder(
    model: ir.Model,
    recipe: BlockRecipe,
    moments: Moments | None = None,
    *,
    store: KeptArrays | None = None,
    progress: Progress | None = None,
) -> None:
    """Quantize the linear layers and token embeddings of a decoder's float32 graph in place, one matrix at a time.

    `moments` gives second moments on calibration texts, for importance-weighted rounding and GPTQ: see
    `gptq.second_moments`. It is called once per group of layers, before they are quantized: for GPTQ that is a pass of
    PyTorch over the calibration texts. Quantized arrays go to `store`, so that one matrix is in memory at a time, or
    stay in memory without one; layers that are there are not quantized again.
    """
    graph = model.graph
    layers = list(linears(graph))
    matmul = output_matmul(graph)
    tied = output_is_tied(graph)
    tables = embedding_gathers(graph)
    if recipe.rounding is not Rounding.NEAREST and moments is None:
        raise ValueError(f"{recipe.rounding.value} rounding needs calibration texts")
    matrices = [*(linear.matrix for linear in layers), *([] if tied else map(table_of, tables))]
    counter = WeightCounter(progress, [matrix.nbytes for matrix in matrices])
    keep: Keep = in_memory if store is None else store.keep
    stored = frozenset[str]() if store is None else store.entries.keys()
    for group in _groups(layers, recipe.rounding):
        quantized = _quantize_group(
            group, recipe, moments, keep=keep, stored=stored, output=matmul, tied=tied, counter=counter
        )
        for linear, blocks in zip(group, quantized, strict=True):
            if tied and linear.matmul is matmul:
                for gather in tables:
                    replace_embedding(graph, gather, linear.name, blocks)
            replace_linear(graph, linear, blocks)
    if not tied:
        for gather in tables:
            least_squares = recipe.rounding is not Rounding.NEAREST
            replace_embedding(
                graph,
                gather,
                EMBEDDING,
                keep(EMBEDDING, functools.partial(_quantize_table, gather, recipe, least_squares)),
            )
            counter.advance(table_of(gather).nbytes)


def _quantize_group(
    group: Sequence[Linear],
    recipe: BlockRecipe,
    moments: Moments | None,
    *,
    keep: Keep,
    stored: Collection[str],
    output: ir.Node | None,
    tied: bool,
    counter: WeightCounter,
) -> list[Kept]:
    """Compute the moments of a group's inputs, then quantize the weights that are not `stored`."""
    missing = [linear for linear in group if linear.name not in stored]
    inputs = _moments_for(missing, recipe.rounding, moments)
    quantized = []
    for linear in group:
        is_output = linear.matmul is output
        form = recipe.output_form if is_output else recipe.form
        size = linear.matrix.nbytes
        found = inputs.get(linear.name)
        quantize = functools.partial(
            _quantize_linear, linear, form, recipe.rounding, found, embedding=tied and is_output
        )
        quantized.append(keep(linear.name, quantize))
        counter.advance(size)
    return quantized


def _moments_for(
    layers: Sequence[Linear], rounding: Rounding, moments: Moments | None
) -> Mapping[str, NDArray[np.float32]]:
    """Return the second moments of the inputs of linear layers, by the layer's name, as the rounding needs them."""
    if moments is None or rounding is Rounding.NEAREST or not layers:
        return {}
    return moments(layers, rounding is Rounding.IMPORTANCE)


def _quantize_linear(
    linear: Linear, form: BlockFormat, rounding: Rounding, moments: NDArray[np.float32] | None, *, embedding: bool
) -> Made:
    """Quantize the weight of a linear layer."""
    weight = linear.weight
    if form.cuda:
        check_weights(linear.matrix, weight)
    if rounding is Rounding.GPTQ:
        matrix = gptq_quantize_blockwise(weight, form, inverse_hessian_cholesky(required(moments)))
    else:
        matrix = quantize_blockwise(weight, form, importance=moments)
    return packed_arrays(matrix, embedding=embedding)


def _quantize_table(gather: ir.Node, recipe: BlockRecipe, least_squares: bool) -> Made:  # noqa: FBT001
    """Quantize an embedding table: by least squares with `least_squares`, else by each block's range."""
    table = np.asarray(table_of(gather).numpy(), np.float32)
    if recipe.cuda:
        check_weights(table_of(gather), table)
    importance = np.ones(table.shape[1], np.float32) if least_squares else None
    return packed_arrays(quantize_blockwise(table.T, recipe.form, importance=importance), embedding=True)


def packed_arrays(matrix: BlockMatrix, *, embedding: bool) -> Made:
    """Return the arrays that MatMulNBits reads, and with `embedding` those of GatherBlockQuantized too."""
    arrays: dict[str, NDArray[np.generic]] = {"levels": matrix.packed_levels, "scales": matrix.scales}
    if matrix.packed_zeros is not None:
        arrays["zeros"] = matrix.packed_zeros
    if matrix.offsets is not None:
        arrays["offsets"] = np.ascontiguousarray(matrix.offsets.T)
    if embedding and matrix.zeros is not None:
        # Not packed as for MatMulNBits: here each is a block of its own, which starts at a byte.
        arrays["zeros_apart"] = matrix.zeros[:, :, np.newaxis]
    if embedding and matrix.offsets is not None:
        # (vocabulary, blocks) here and (blocks, vocabulary) in matmuls, so not the same bytes.
        arrays["offsets_apart"] = matrix.offsets[:, :, np.newaxis]
    return Made(arrays, {"inputs": matrix.inputs, "bits": matrix.bits, "block_size": matrix.block_size})


def _groups(layers: Sequence[Linear], rounding: Rounding) -> Iterator[list[Linear]]:
    """Group linear layers, in the graph's order, so that the second moments of a group fit `MOMENTS_AT_ONCE`.

    Only GPTQ needs whole moment matrices; each group costs it one pass over the calibration texts.
    """
    group: list[Linear] = []
    sizes: dict[ir.Value, int] = {}
    for linear in layers:
        width = linear.inputs
        size = 4 * width**2 if rounding is Rounding.GPTQ else 4 * width
        if group and linear.input not in sizes and sum(sizes.values()) + size > MOMENTS_AT_ONCE:
            yield group
            group, sizes = [], {}
        group.append(linear)
        sizes[linear.input] = size
    if group:
        yield group


def replace_linear(graph: ir.Graph, linear: Linear, matrix: Kept) -> None:
    """Replace a linear layer's MatMul by MatMulNBits."""
    replace_output(linear, insert_matmul_nbits(graph, linear, linear.name, linear.outputs, matrix))


def replace_output(linear: Linear, result: ir.Value) -> None:
    old = linear.matmul.outputs[0]
    result.shape, result.type = old.shape, old.type
    replace(old, result)


def insert_matmul_nbits(graph: ir.Graph, linear: Linear, name: str, outputs: int, matrix: Kept) -> ir.Value:
    """Insert MatMulNBits on a linear layer's input and return its result.

    A weight is `scale * (level - zero) + offset`. Where blocks have offsets, the sums of each block's inputs are
    multiplied by the offsets and added. Where the matrix is padded, so is the input, and the result is cut.
    """
    matmul = linear.matmul
    parts = [part for part in ("levels", "scales", "zeros") if part in matrix.arrays]
    width, rows = matrix.facts["inputs"], matrix.arrays["levels"].shape.numpy()[0]
    given = linear.input if width == linear.inputs else _padded(graph, linear.input, matmul, width - linear.inputs)
    inputs = [given, *(constant(graph, f"{name}_{part}", matrix.arrays[part]) for part in parts)]
    attributes = {"K": width, "N": rows, "bits": matrix.facts["bits"], "block_size": matrix.facts["block_size"]}
    if matrix.arrays["scales"].dtype is not ir.DataType.FLOAT16:
        attributes["accuracy_level"] = _INT8_ACTIVATIONS
    result = insert(matmul, "MatMulNBits", inputs, attributes, domain=ORT_DOMAIN)
    if rows > outputs:
        result = _first_of_last_axis(graph, result, matmul, outputs)
    if "offsets" in matrix.arrays:
        offsets = constant(graph, f"{name}_offsets", matrix.arrays["offsets"])
        sums = _block_sums(graph, linear.input, matmul, matrix.facts["block_size"])
        result = insert(matmul, "Add", [result, insert(matmul, "MatMul", [sums, offsets])])
    return result


def _padded(graph: ir.Graph, value: ir.Value, before: ir.Node, count: int) -> ir.Value:
    """Append `count` zeros to the last axis, once for all linear layers that need it."""
    pads = constant(graph, f"pad_by_{count}", np.array([0, count], np.int64))
    for node, _ in value.uses():
        if node.op_type == "Pad" and node.inputs[1] is pads:
            return node.outputs[0]
    return insert(before, "Pad", [value, pads, None, constant(graph, "last_axis", np.array([-1], np.int64))])


def _first_of_last_axis(graph: ir.Graph, value: ir.Value, before: ir.Node, count: int) -> ir.Value:
    """Cut the last axis after `count` elements."""
    bounds = (("start_of_axis", 0), (f"end_at_{count}", count), ("last_axis", -1))
    return insert(before, "Slice", [value, *(constant(graph, name, np.array([at], np.int64)) for name, at in bounds)])


def _block_sums(graph: ir.Graph, value: ir.Value, before: ir.Node, block: int) -> ir.Value:
    """Sum the channels of (batch, tokens, width) block by block, once for all linear layers that need it."""
    shape = constant(graph, f"blocks_of_{block}", np.array([0, 0, -1, block], np.int64))
    for node, _ in value.uses():
        if node.op_type == "Reshape" and node.inputs[1] is shape:
            return next(user for user, _ in node.outputs[0].uses()).outputs[0]
    rows = insert(before, "Reshape", [value, shape])
    axis = constant(graph, "axis_of_blocks", np.array([-1], np.int64))
    return insert(before, "ReduceSum", [rows, axis], {"keepdims": 0})


def replace_embedding(graph: ir.Graph, gather: ir.Node, name: str, matrix: Kept) -> None:
    """Replace an embedding's Gather by GatherBlockQuantized on `matrix`, (width, vocabulary).

    Levels are gathered in MatMulNBits' layout: onnxruntime would fold a Reshape into a second table in memory.
    """
    ids, arrays = required(gather.inputs[1]), matrix.arrays
    levels = constant(graph, f"{name}_levels", arrays["levels"])
    inputs = [levels, ids, _with_last_axis(graph, gather, f"{name}_scales", arrays["scales"])]
    if "zeros_apart" in arrays:
        inputs.append(constant(graph, f"{name}_zeros_apart", arrays["zeros_apart"]))
    block, width = matrix.facts["block_size"], table_of(gather).shape.numpy()[1]
    attributes = {"bits": matrix.facts["bits"], "block_size": block, "gather_axis": 0, "quantize_axis": 2}
    vectors = insert(gather, "GatherBlockQuantized", inputs, attributes, domain=ORT_DOMAIN)
    if "offsets_apart" in arrays:
        table = constant(graph, f"{name}_offsets_apart", arrays["offsets_apart"])
        vectors = insert(gather, "Add", [vectors, insert(gather, "Gather", [table, ids])])
    whole = constant(graph, "blocks_as_one", np.array([0, 0, -1], np.int64))
    result = insert(gather, "Reshape", [vectors, whole])
    if arrays["levels"].shape.numpy()[1] * block > width:
        bounds = [("start", 0), ("width", width), ("axis", 2)]
        edges = [constant(graph, f"word_vectors_{edge}", np.array([at], np.int64)) for edge, at in bounds]
        result = insert(gather, "Slice", [result, *edges])
    old = gather.outputs[0]
    result.shape, result.type = old.shape, old.type
    replace(old, result)


def _with_last_axis(graph: ir.Graph, before: ir.Node, name: str, array: ir.TensorProtocol) -> ir.Value:
    """Append an axis of size 1 to a constant (outputs, blocks) that the linear layer shares."""
    shape = constant(graph, f"{name}_apart", np.array([*array.shape, 1], np.int64))
    return insert(before, "Reshape", [constant(graph, name, array), shape])
