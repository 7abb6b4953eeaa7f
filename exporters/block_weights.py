"""Weights in blocks for decoders: products with 4- or 8-bit matrices, and the table of word vectors with them.

A decoder reads all its weights for each token, so the time of a token is theirs to be read. Each product with a
constant matrix becomes `MatMulNBits`, which multiplies with the packed weights. The output matrix has many more rows
than any other and decides between tokens, so it may have more bits. Where the word vectors are the output matrix, both
read the same packed bytes.

Weights that a file holds in blocks already are kept as they are: see `keep_blocks`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from exporters.block_rounding import BlockForm, BlockMatrix, Rounding, in_blocks, in_blocks_in_turn
from exporters.calibration import second_moments
from exporters.decoder_graph import output_product
from exporters.nodes import ORT_DOMAIN, Linear, array_of, constant, insert, linears, replace, required
from exporters.rounding import make_up_factors
from runtime.encoder import INPUT_IDS
from runtime.errors import UnsupportedModelError

INT8_ACTIVATIONS = 4
"""MatMulNBits' accuracy level at which it multiplies with 8-bit activations, a scale for each block: the fast one."""
MOMENTS_AT_ONCE = 2**31
"""Bytes of second moments that are held at a time."""


@dataclass(frozen=True)
class BlockRecipe:
    """How the matrices of a decoder are put in blocks."""

    bits: int = 4
    block: int = 32
    symmetric: bool = False
    """No zero points: a little smaller, less exact and no faster."""
    rounding: Rounding = Rounding.IMPORTANCE
    output_bits: int = 4
    """Bits of the output matrix, and of the word vectors where they are the same."""
    output_block: int | None = None
    """Its block, None for that of all."""

    @property
    def form(self) -> BlockForm:
        return BlockForm(self.bits, self.block, self.symmetric)

    @property
    def output_form(self) -> BlockForm:
        return BlockForm(self.output_bits, self.output_block or self.block, self.symmetric)


@dataclass(frozen=True)
class StoredMatrix:
    """A matrix (outputs, inputs) as a file holds it: the weights that it stands for, and their blocks."""

    weights: NDArray[np.float32]
    blocks: BlockMatrix


def quantize_decoder(
    model: ir.Model, recipe: BlockRecipe, runs: Sequence[Mapping[str, NDArray[np.generic]]] = ()
) -> None:
    """Put the matrices of a decoder's float32 graph and its table of word vectors in blocks.

    `runs` are inputs of the graph, calibration texts for the roundings that want them: see `calibration.prompts`.
    """
    graph = model.graph
    products = list(linears(graph))
    matmul = output_product(graph)
    output = next((product for product in products if product.matmul is matmul), None)
    if recipe.rounding is not Rounding.NEAREST and not runs:
        raise ValueError(f"rounding by {recipe.rounding.value} needs calibration texts")
    made: dict[ir.Value, BlockMatrix] = {}
    for group in groups(products, recipe.rounding):
        moments = {}
        if recipe.rounding is not Rounding.NEAREST:
            inputs = [product.input for product in group]
            squares_only = recipe.rounding is Rounding.IMPORTANCE
            moments = second_moments(model, inputs, runs, squares_only=squares_only)
        factors: dict[str, NDArray[np.float64]] = {}
        for product in group:
            form = recipe.output_form if product is output else recipe.form
            name = product.input.name or ""
            if recipe.rounding is Rounding.GPTQ:
                if name not in factors:
                    factors = {name: make_up_factors(moments[name])}
                found = in_blocks_in_turn(product.weight, form, factors[name])
            else:
                found = in_blocks(product.weight, form, importance=moments.get(name))
            made[product.matmul.outputs[0]] = found
    for gather, table in word_vectors(graph):
        if output is not None and np.array_equal(table.T, output.weight):
            put_vectors(graph, gather, output.name, made[output.matmul.outputs[0]])
        else:
            alike = None if recipe.rounding is Rounding.NEAREST else np.ones(table.shape[1], np.float32)
            put_vectors(graph, gather, "word_vectors", in_blocks(table.T, recipe.form, importance=alike))
    for product in products:
        put_product(graph, product, made[product.matmul.outputs[0]])


def keep_blocks(model: ir.Model, stored: Iterable[StoredMatrix]) -> None:
    """Let the products and the word vectors of a decoder's float32 graph read the blocks of the file it comes from.

    Each output of a matrix of the graph is looked up by its weights, so outputs may be merged or in another order; the
    weights must be those that the file's stand for, to the bit. Matrices whose outputs are in no blocks stay as they
    are. Raises UnsupportedModelError for one of which only some are.
    """
    graph = model.graph
    known = KnownRows(stored)
    made = {}
    products = list(linears(graph))
    for product in products:
        found = known.find(product.name, product.weight.T)
        if found is not None:
            made[product.matmul.outputs[0]] = (product.name, found)
    matmul = output_product(graph)
    output = next((product for product in products if product.matmul is matmul), None)
    for gather, table in word_vectors(graph):
        found = known.find("word_vectors", table)
        if found is None:
            continue
        name = "word_vectors"
        if output is not None and output.matmul.outputs[0] in made:
            output_name, blocks = made[output.matmul.outputs[0]]
            if same_blocks(blocks, found):
                name, found = output_name, blocks
        put_vectors(graph, gather, name, found)
    for product in products:
        if product.matmul.outputs[0] in made:
            put_product(graph, product, made[product.matmul.outputs[0]][1])


class KnownRows:
    """The rows of stored matrices, found by their weights."""

    def __init__(self, stored: Iterable[StoredMatrix]) -> None:
        self.matrices: list[BlockMatrix] = []
        self.places: dict[bytes, dict[int, int]] = {}
        """Digest of a row's weights -> the matrices that have it, and at which of their rows."""
        for number, matrix in enumerate(stored):
            self.matrices.append(matrix.blocks)
            for row, digest in enumerate(digests(matrix.weights)):
                self.places.setdefault(digest, {})[number] = row

    def find(self, name: str, rows: NDArray[np.float32]) -> BlockMatrix | None:
        """The blocks of rows (outputs, inputs), None where they are in none."""
        places = [self.places.get(digest, {}) for digest in digests(rows)]
        missing = sum(not options for options in places)
        if missing == len(places):
            return None
        if missing:
            raise UnsupportedModelError(
                f"of the {len(places)} outputs of `{name}`, {missing} are not stored in blocks",
                hint="use `--precision int4`, which rounds all weights anew",
            )
        # Rows of zeros are in many matrices; the one that the rows around them are in has them in the right form.
        number = Counter(number for options in places for number in options).most_common(1)[0][0]
        numbers = np.empty(len(places), np.int64)
        for row, options in enumerate(places):
            number = number if number in options else next(iter(options))
            numbers[row] = number
        places_in = np.array([options[int(number)] for options, number in zip(places, numbers, strict=True)])
        # What one matrix after another gives, in the order in which they come.
        cuts = np.flatnonzero(np.diff(numbers)) + 1
        pieces = [
            rows_of(self.matrices[part[0]], where)
            for part, where in zip(np.split(numbers, cuts), np.split(places_in, cuts), strict=True)
        ]
        return one_after_another(pieces)


def digests(rows: NDArray[np.float32]) -> Iterator[bytes]:
    for row in np.ascontiguousarray(rows, np.float32):
        yield blake2b(row.tobytes(), digest_size=16).digest()


def rows_of(matrix: BlockMatrix, rows: NDArray[np.int64]) -> BlockMatrix:
    """Some outputs of a matrix, in this order."""
    return BlockMatrix(
        matrix.inputs,
        matrix.bits,
        matrix.levels[rows],
        matrix.scales[rows],
        None if matrix.zeros is None else matrix.zeros[rows],
        None if matrix.offsets is None else matrix.offsets[rows],
    )


def one_after_another(pieces: Sequence[BlockMatrix]) -> BlockMatrix:
    """The outputs of several matrices without zero points as one matrix, in the smallest form that holds all of them.

    Blocks may be cut in equal parts, and 4-bit levels be 8-bit levels as far from the middle, without a change in any
    weight.
    """
    bits = max(piece.bits for piece in pieces)
    block = min(piece.block for piece in pieces)
    levels, scales, offsets = [], [], []
    for piece in pieces:
        if piece.zeros is not None or piece.block % block:
            raise ValueError("only blocks without zero points, each a multiple of the smallest, can be put together")
        raised = piece.levels + np.uint8(2 ** (bits - 1) - 2 ** (piece.bits - 1))
        repeated = piece.block // block
        levels.append(raised.reshape(piece.outputs, -1, block))
        scales.append(np.repeat(piece.scales, repeated, axis=1))
        found = np.zeros_like(piece.scales) if piece.offsets is None else piece.offsets
        offsets.append(np.repeat(found, repeated, axis=1))
    return BlockMatrix(
        pieces[0].inputs,
        bits,
        np.concatenate(levels),
        np.concatenate(scales),
        None,
        np.concatenate(offsets) if any(piece.offsets is not None for piece in pieces) else None,
    )


def same_blocks(first: BlockMatrix, second: BlockMatrix) -> bool:
    return (
        first.bits == second.bits
        and np.array_equal(first.levels, second.levels)
        and np.array_equal(first.scales, second.scales)
        and (first.offsets is None) == (second.offsets is None)
        and (first.offsets is None or second.offsets is None or np.array_equal(first.offsets, second.offsets))
    )


def groups(products: Sequence[Linear], rounding: Rounding) -> Iterator[list[Linear]]:
    """Products in the order in which the graph runs them, cut where their inputs' second moments would take too much.

    Only GPTQ holds whole matrices of moments; each group costs it a run over the calibration texts.
    """
    group: list[Linear] = []
    sizes: dict[ir.Value, int] = {}
    for product in products:
        width = product.weight.shape[0]
        size = 4 * width**2 if rounding is Rounding.GPTQ else 4 * width
        if group and product.input not in sizes and sum(sizes.values()) + size > MOMENTS_AT_ONCE:
            yield group
            group, sizes = [], {}
        group.append(product)
        sizes[product.input] = size
    if group:
        yield group


def word_vectors(graph: ir.Graph) -> Iterator[tuple[ir.Node, NDArray[np.float32]]]:
    """Each Gather that picks a token's vector, with its table (vocabulary, width)."""
    for node in list(graph):
        ids = node.inputs[1] if node.op_type == "Gather" else None
        table = array_of(node.inputs[0]) if ids is not None else None
        if ids is not None and ids.name == INPUT_IDS and table is not None and table.ndim == 2:
            yield node, table.astype(np.float32, copy=False)


def put_product(graph: ir.Graph, product: Linear, matrix: BlockMatrix) -> None:
    """Let a product read a matrix in blocks instead of its own.

    Where blocks have offsets, their part is the sum of each block's inputs times the offsets: a weight is
    `scale * (level - zero) + offset`, so the product is what MatMulNBits gives plus that.
    """
    matmul, name = product.matmul, product.name
    zeros = matrix.packed_zeros
    inputs = [product.input, levels_of(graph, name, matrix), constant(graph, f"{name}_scales", matrix.scales)]
    if zeros is not None:
        inputs.append(constant(graph, f"{name}_zeros", zeros))
    attributes = {
        "K": matrix.inputs,
        "N": matrix.outputs,
        "bits": matrix.bits,
        "block_size": matrix.block,
        "accuracy_level": INT8_ACTIVATIONS,
    }
    result = insert(matmul, "MatMulNBits", inputs, attributes, domain=ORT_DOMAIN)
    if matrix.offsets is not None:
        offsets = constant(graph, f"{name}_offsets", np.ascontiguousarray(matrix.offsets.T))
        sums = block_sums(graph, product.input, matmul, matrix.block)
        result = insert(matmul, "Add", [result, insert(matmul, "MatMul", [sums, offsets])])
    old = matmul.outputs[0]
    result.shape, result.type = old.shape, old.type
    replace(old, result)


def levels_of(graph: ir.Graph, name: str, matrix: BlockMatrix) -> ir.Value:
    return constant(graph, f"{name}_levels", matrix.packed_levels)


def block_sums(graph: ir.Graph, value: ir.Value, before: ir.Node, block: int) -> ir.Value:
    """The sums by blocks of the channels of a value (batch, tokens, width), once for all products that read them."""
    shape = constant(graph, f"blocks_of_{block}", np.array([0, 0, -1, block], np.int64))
    for node, _ in value.uses():
        if node.op_type == "Reshape" and node.inputs[1] is shape:
            return next(user for user, _ in node.outputs[0].uses()).outputs[0]
    rows = insert(before, "Reshape", [value, shape])
    axis = constant(graph, "axis_of_blocks", np.array([-1], np.int64))
    return insert(before, "ReduceSum", [rows, axis], {"keepdims": 0})


def put_vectors(graph: ir.Graph, gather: ir.Node, name: str, matrix: BlockMatrix) -> None:
    """Let tokens pick their vectors from a table in blocks, which is `matrix`, (width, vocabulary).

    Its levels are picked block by block in the form in which MatMulNBits reads them, since a Reshape of them would be
    a second table in memory as soon as onnxruntime folds it.
    """
    ids = required(gather.inputs[1])
    inputs = [levels_of(graph, name, matrix), ids, column_of(graph, gather, name, "scales", matrix.scales)]
    if matrix.zeros is not None:
        # Not as MatMulNBits packs them: here each is a block of its own, which starts with a byte.
        inputs.append(constant(graph, f"{name}_zeros_apart", matrix.zeros[:, :, np.newaxis]))
    attributes = {"bits": matrix.bits, "block_size": matrix.block, "gather_axis": 0, "quantize_axis": 2}
    vectors = insert(gather, "GatherBlockQuantized", inputs, attributes, domain=ORT_DOMAIN)
    if matrix.offsets is not None:
        # Read by tokens here and by products as (blocks, vocabulary), so not the same bytes.
        table = constant(graph, f"{name}_offsets_apart", matrix.offsets[:, :, np.newaxis])
        vectors = insert(gather, "Add", [vectors, insert(gather, "Gather", [table, ids])])
    whole = constant(graph, "blocks_as_one", np.array([0, 0, -1], np.int64))
    result = insert(gather, "Reshape", [vectors, whole])
    if matrix.blocks * matrix.block > matrix.inputs:
        bounds = [("start", 0), ("width", matrix.inputs), ("axis", 2)]
        edges = [constant(graph, f"word_vectors_{edge}", np.array([at], np.int64)) for edge, at in bounds]
        result = insert(gather, "Slice", [result, *edges])
    old = gather.outputs[0]
    result.shape, result.type = old.shape, old.type
    replace(old, result)


def column_of(graph: ir.Graph, before: ir.Node, name: str, what: str, array: NDArray[np.float32]) -> ir.Value:
    """A constant (outputs, blocks), shared with the product that reads it so, with another axis of 1 at its end."""
    shape = constant(graph, f"{name}_{what}_apart", np.array([*array.shape, 1], np.int64))
    return insert(before, "Reshape", [constant(graph, f"{name}_{what}", array), shape])
