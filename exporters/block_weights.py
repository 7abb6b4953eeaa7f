"""Weights in blocks for decoders: products with 4- or 8-bit matrices, and the table of word vectors with them.

A decoder reads all its weights for each token, so the time of a token is theirs to be read. Each product with a
constant matrix becomes `MatMulNBits`, which multiplies with the packed weights. The output matrix has many more rows
than any other and decides between tokens, so it may have more bits. Where the word vectors are the output matrix, both
read the same packed bytes.

Weights that a file holds in blocks already are kept as they are: see `keep_blocks`.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import pairwise

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from exporters.block_rounding import BlockForm, BlockMatrix, Rounding, in_blocks, in_blocks_in_turn
from exporters.decoder_graph import output_is_tied, output_product
from exporters.kept_arrays import Keep, Kept, Made, in_memory
from exporters.nodes import ORT_DOMAIN, Linear, constant, constant_of, insert, linears, replace, required
from exporters.rounding import make_up_factors
from exporters.stored_tensors import Tally, Told
from runtime.errors import UnsupportedModelError
from runtime.graph_io import INPUT_IDS

INT8_ACTIVATIONS = 4
"""MatMulNBits' accuracy level at which it multiplies with 8-bit activations, a scale for each block: the fast one."""
VECTORS = "word_vectors"
"""What a table of them is called where it is no product's matrix."""
MOST_RANGES = 8
"""Parts of a product's outputs that are in blocks and not by turns; the most are those of three merged matrices."""
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


Moments = Callable[[Sequence[Linear], bool], Mapping[str, NDArray[np.float32]]]
"""Gives, for some products and whether only squares are wanted, the second moments of their inputs by their names."""


def quantize_decoder(
    model: ir.Model,
    recipe: BlockRecipe,
    moments: Moments | None = None,
    *,
    keep: Keep = in_memory,
    told: Told | None = None,
) -> None:
    """Put the matrices of a decoder's float32 graph and its table of word vectors in blocks, one after another.

    `moments` are for the roundings that want calibration texts: see `calibration.moments_of`. What is made goes to
    `keep`, so that one matrix is in memory at a time.
    """
    graph = model.graph
    products = list(linears(graph))
    matmul = output_product(graph)
    tied = output_is_tied(graph)
    tables = list(word_vectors(graph))
    if recipe.rounding is not Rounding.NEAREST and moments is None:
        raise ValueError(f"rounding by {recipe.rounding.value} needs calibration texts")
    matrices = [*(product.matrix for product in products), *([] if tied else map(table_of, tables))]
    tally = Tally(told, [matrix.nbytes for matrix in matrices])
    for group in groups(products, recipe.rounding):
        inputs = InputMoments(group, recipe.rounding, moments)
        for product in group:
            is_output = product.matmul is matmul
            form = recipe.output_form if is_output else recipe.form
            size = product.matrix.nbytes
            blocks = keep(product.name, functools.partial(packed_product, product, form, inputs, tied and is_output))
            tally.advance(size)
            if tied and is_output:
                for gather in tables:
                    put_vectors(graph, gather, product.name, blocks)
            put_product(graph, product, blocks)
    if not tied:
        for gather in tables:
            alike = recipe.rounding is not Rounding.NEAREST
            put_vectors(graph, gather, VECTORS, keep(VECTORS, functools.partial(packed_table, gather, recipe, alike)))
            tally.advance(table_of(gather).nbytes)


class InputMoments:
    """The second moments of the inputs of some products, found when the first of them is asked for."""

    def __init__(self, group: Sequence[Linear], rounding: Rounding, moments: Moments | None) -> None:
        self.group = group
        self.rounding = rounding
        self.moments = moments

    @functools.cached_property
    def found(self) -> Mapping[str, NDArray[np.float32]]:
        if self.moments is None or self.rounding is Rounding.NEAREST:
            return {}
        return self.moments(self.group, self.rounding is Rounding.IMPORTANCE)


def packed_product(product: Linear, form: BlockForm, inputs: InputMoments, vectors: bool) -> Made:  # noqa: FBT001
    """The matrix of a product in blocks."""
    moments = inputs.found.get(product.name)
    if inputs.rounding is Rounding.GPTQ:
        return packed(in_blocks_in_turn(product.weight, form, make_up_factors(required(moments))), vectors=vectors)
    return packed(in_blocks(product.weight, form, importance=moments), vectors=vectors)


def packed_table(gather: ir.Node, recipe: BlockRecipe, alike: bool) -> Made:  # noqa: FBT001
    """A table of word vectors in blocks, whose levels span them or, with `alike`, make the sum of all errors small."""
    table = np.asarray(table_of(gather).numpy(), np.float32)
    importance = np.ones(table.shape[1], np.float32) if alike else None
    return packed(in_blocks(table.T, recipe.form, importance=importance), vectors=True)


def packed(matrix: BlockMatrix, *, vectors: bool) -> Made:
    """The arrays that the operators read, and for `vectors` those in the form that tables of word vectors have too."""
    arrays: dict[str, NDArray[np.generic]] = {"levels": matrix.packed_levels, "scales": matrix.scales}
    if matrix.packed_zeros is not None:
        arrays["zeros"] = matrix.packed_zeros
    if matrix.offsets is not None:
        arrays["offsets"] = np.ascontiguousarray(matrix.offsets.T)
    if vectors and matrix.zeros is not None:
        # Not as MatMulNBits packs them: here each is a block of its own, which starts with a byte.
        arrays["zeros_apart"] = matrix.zeros[:, :, np.newaxis]
    if vectors and matrix.offsets is not None:
        # Read by tokens here and by products as (blocks, vocabulary), so not the same bytes.
        arrays["offsets_apart"] = matrix.offsets[:, :, np.newaxis]
    return Made(arrays, {"inputs": matrix.inputs, "bits": matrix.bits, "block": matrix.block})


def keep_blocks(model: ir.Model, stored: Iterable[StoredMatrix], *, keep: Keep = in_memory) -> int:
    """Let the products and the word vectors of a decoder's float32 graph read the blocks of the file it comes from.

    Each output of a matrix of the graph is looked up by its weights, so outputs may be merged or in another order; the
    weights must be those that the file's stand for, to the bit. Outputs that are in no blocks stay as they are, also
    beside others of a matrix that are: files may hold the matrices of values in float16 where those of keys are in
    blocks. Returns how many products read weights that are in none.
    """
    graph = model.graph
    known = KnownRows(stored)
    matmul, tables = output_product(graph), list(word_vectors(graph))
    output: tuple[str, BlockMatrix] | None = None
    exact = 0
    for product in list(linears(graph)):
        weights = product.weight.T
        ranges = known.ranges(product.name, weights)
        if len(ranges) > 1 or not ranges[0].stored:
            exact += 1
            if len(ranges) > 1:
                put_ranges(graph, product, [(one, known.find(weights[one.start : one.stop])) for one in ranges], keep)
            continue
        found = required(known.find(weights))
        is_output = product.matmul is matmul
        if is_output:
            output = product.name, found
        blocks = functools.partial(packed, found, vectors=is_output)
        put_product(graph, product, keep(product.name, blocks))
    for gather in tables:
        table = known.find(np.asarray(table_of(gather).numpy(), np.float32))
        if table is not None:
            shared = output is not None and same_blocks(output[1], table)
            name = output[0] if output is not None and shared else VECTORS
            put_vectors(graph, gather, name, keep(name, functools.partial(packed, table, vectors=True)))
    return exact


@dataclass(frozen=True)
class Range:
    """Outputs of a matrix, one after another, that are all in blocks or all not."""

    start: int
    stop: int
    stored: bool


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

    def ranges(self, name: str, rows: NDArray[np.float32]) -> list[Range]:
        """Which rows (outputs, inputs) are in blocks; raises UnsupportedModelError where they change too often."""
        stored = np.array([digest in self.places for digest in digests(rows)])
        edges = [0, *(np.flatnonzero(np.diff(stored)) + 1).tolist(), len(stored)]
        if len(edges) > MOST_RANGES + 1:
            raise UnsupportedModelError(
                f"of the {len(stored)} outputs of `{name}`, {np.count_nonzero(~stored)} are not stored in blocks, "
                "here and there",
                hint="use `--precision int4`, which rounds all weights anew",
            )
        return [Range(start, stop, bool(stored[start])) for start, stop in pairwise(edges)]

    def find(self, rows: NDArray[np.float32]) -> BlockMatrix | None:
        """The blocks of rows (outputs, inputs), None unless all of them are in some."""
        places = [self.places.get(digest, {}) for digest in digests(rows)]
        if not all(places):
            return None
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
        width = product.inputs
        size = 4 * width**2 if rounding is Rounding.GPTQ else 4 * width
        if group and product.input not in sizes and sum(sizes.values()) + size > MOMENTS_AT_ONCE:
            yield group
            group, sizes = [], {}
        group.append(product)
        sizes[product.input] = size
    if group:
        yield group


def word_vectors(graph: ir.Graph) -> Iterator[ir.Node]:
    """Each Gather that picks a token's vector from a table (vocabulary, width)."""
    for node in list(graph):
        ids = node.inputs[1] if node.op_type == "Gather" else None
        table = constant_of(node.inputs[0]) if ids is not None else None
        if ids is not None and ids.name == INPUT_IDS and table is not None and len(table.shape) == 2:
            yield node


def table_of(gather: ir.Node) -> ir.TensorProtocol:
    return required(constant_of(gather.inputs[0]))


def put_product(graph: ir.Graph, product: Linear, matrix: Kept) -> None:
    """Let a product read a matrix in blocks instead of its own."""
    put_result(product, multiplied(graph, product, product.name, product.outputs, matrix))


def put_ranges(
    graph: ir.Graph, product: Linear, ranges: Sequence[tuple[Range, BlockMatrix | None]], keep: Keep
) -> None:
    """Let a product read some of its outputs from blocks, and the others from what is left of its own matrix."""
    results = []
    for one, found in ranges:
        name = f"{product.name}_from_{one.start}"
        if found is None:
            exact = keep(name, functools.partial(columns, product, one)).arrays["exact"]
            matrix = constant(graph, f"{name}_exact", exact)
            results.append(insert(product.matmul, "MatMul", [product.input, matrix]))
        else:
            blocks = keep(name, functools.partial(packed, found, vectors=False))
            results.append(multiplied(graph, product, name, one.stop - one.start, blocks))
    put_result(product, insert(product.matmul, "Concat", results, {"axis": -1}))


def columns(product: Linear, of: Range) -> Made:
    return Made({"exact": np.ascontiguousarray(product.weight[:, of.start : of.stop])})


def put_result(product: Linear, result: ir.Value) -> None:
    old = product.matmul.outputs[0]
    result.shape, result.type = old.shape, old.type
    replace(old, result)


def multiplied(graph: ir.Graph, product: Linear, name: str, outputs: int, matrix: Kept) -> ir.Value:
    """What a product's input gives with a matrix in blocks.

    Where blocks have offsets, their part is the sum of each block's inputs times the offsets: a weight is
    `scale * (level - zero) + offset`, so the product is what MatMulNBits gives plus that.
    """
    matmul = product.matmul
    parts = [part for part in ("levels", "scales", "zeros") if part in matrix.arrays]
    inputs = [product.input, *(constant(graph, f"{name}_{part}", matrix.arrays[part]) for part in parts)]
    attributes = {
        "K": matrix.facts["inputs"],
        "N": outputs,
        "bits": matrix.facts["bits"],
        "block_size": matrix.facts["block"],
        "accuracy_level": INT8_ACTIVATIONS,
    }
    result = insert(matmul, "MatMulNBits", inputs, attributes, domain=ORT_DOMAIN)
    if "offsets" in matrix.arrays:
        offsets = constant(graph, f"{name}_offsets", matrix.arrays["offsets"])
        sums = block_sums(graph, product.input, matmul, matrix.facts["block"])
        result = insert(matmul, "Add", [result, insert(matmul, "MatMul", [sums, offsets])])
    return result


def block_sums(graph: ir.Graph, value: ir.Value, before: ir.Node, block: int) -> ir.Value:
    """The sums by blocks of the channels of a value (batch, tokens, width), once for all products that read them."""
    shape = constant(graph, f"blocks_of_{block}", np.array([0, 0, -1, block], np.int64))
    for node, _ in value.uses():
        if node.op_type == "Reshape" and node.inputs[1] is shape:
            return next(user for user, _ in node.outputs[0].uses()).outputs[0]
    rows = insert(before, "Reshape", [value, shape])
    axis = constant(graph, "axis_of_blocks", np.array([-1], np.int64))
    return insert(before, "ReduceSum", [rows, axis], {"keepdims": 0})


def put_vectors(graph: ir.Graph, gather: ir.Node, name: str, matrix: Kept) -> None:
    """Let tokens pick their vectors from a table in blocks, which is `matrix`, (width, vocabulary).

    Its levels are picked block by block in the form in which MatMulNBits reads them, since a Reshape of them would be
    a second table in memory as soon as onnxruntime folds it.
    """
    ids, arrays = required(gather.inputs[1]), matrix.arrays
    levels = constant(graph, f"{name}_levels", arrays["levels"])
    inputs = [levels, ids, column_of(graph, gather, f"{name}_scales", arrays["scales"])]
    if "zeros_apart" in arrays:
        inputs.append(constant(graph, f"{name}_zeros_apart", arrays["zeros_apart"]))
    block, width = matrix.facts["block"], matrix.facts["inputs"]
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


def column_of(graph: ir.Graph, before: ir.Node, name: str, array: ir.TensorProtocol) -> ir.Value:
    """A constant (outputs, blocks), shared with the product that reads it so, with another axis of 1 at its end."""
    shape = constant(graph, f"{name}_apart", np.array([*array.shape, 1], np.int64))
    return insert(before, "Reshape", [constant(graph, name, array), shape])
