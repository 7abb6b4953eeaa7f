"""Keep the quantized blocks of a GGUF file: match each output row of a decoder's matrices with a row of the file."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import pairwise

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from exporters.block_rounding import BlockMatrix, StoredMatrix
from exporters.block_weights import VECTORS, multiplied, packed, put_product, put_result, put_vectors
from exporters.decoder_graph import output_product
from exporters.embedding_gather import embedding_gathers, table_of
from exporters.kept_arrays import Keep, Made, in_memory
from exporters.nodes import Linear, constant, insert, linears, required
from runtime.errors import UnsupportedModelError

MOST_RANGES = 8
"""Parts of a product's outputs that are in blocks and not by turns; the most are those of three merged matrices."""


def keep_blocks(model: ir.Model, stored: Iterable[StoredMatrix], *, keep: Keep = in_memory) -> int:
    """Let the products and the word vectors of a decoder's float32 graph read the blocks of the file it comes from.

    Each output of a matrix of the graph is looked up by its weights, so outputs may be merged or in another order; the
    weights must be those that the file's stand for, to the bit. Outputs that are in no blocks stay as they are, also
    beside others of a matrix that are: files may hold the matrices of values in float16 where those of keys are in
    blocks. Returns how many products read weights that are in none.
    """
    graph = model.graph
    known = KnownRows(stored)
    matmul, tables = output_product(graph), embedding_gathers(graph)
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
