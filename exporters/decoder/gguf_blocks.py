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

from ...runtime.errors import UnsupportedModelError
from ..graph.array_store import Keep, Made, in_memory
from ..graph.embedding import embedding_gathers, table_of
from ..graph.nodes import Linear, constant, insert, linears, required
from ..quantization.blockwise import BlockMatrix, StoredMatrix
from .passes import output_matmul
from .weight_only import (
    EMBEDDING,
    insert_matmul_nbits,
    packed_arrays,
    replace_embedding,
    replace_linear,
    replace_output,
)

_MOST_RANGES = 8
"""Most ranges of a merged matrix that alternate between quantized and float; three merged matrices have fewer."""


def keep_gguf_blocks(model: ir.Model, stored: Iterable[StoredMatrix], *, keep: Keep = in_memory) -> int:
    """Let the linear layers and token embeddings of a decoder's float32 graph read the blocks of its GGUF file.

    Each output row of the graph is looked up by its weights, so rows may be merged or permuted; they must equal the
    file's dequantized weights bit by bit. Rows that the file does not quantize stay in float, also next to quantized
    rows of a merged matrix: a file may hold value matrices in float16 and key matrices in blocks. Returns how many
    linear layers read weights that are not quantized.
    """
    graph = model.graph
    index = RowIndex(stored)
    matmul, tables = output_matmul(graph), embedding_gathers(graph)
    output: tuple[str, BlockMatrix] | None = None
    exact = 0
    for linear in list(linears(graph)):
        weights = linear.weight.T
        ranges = index.ranges(linear.name, weights)
        if len(ranges) > 1 or not ranges[0].stored:
            exact += 1
            if len(ranges) > 1:
                _replace_by_ranges(
                    graph, linear, [(one, index.find(weights[one.start : one.stop])) for one in ranges], keep
                )
            continue
        found = required(index.find(weights))
        is_output = linear.matmul is matmul
        if is_output:
            output = linear.name, found
        blocks = functools.partial(packed_arrays, found, embedding=is_output)
        replace_linear(graph, linear, keep(linear.name, blocks))
    for gather in tables:
        table = index.find(np.asarray(table_of(gather).numpy(), np.float32))
        if table is not None:
            shared = output is not None and _same_blocks(output[1], table)
            name = output[0] if output is not None and shared else EMBEDDING
            replace_embedding(graph, gather, name, keep(name, functools.partial(packed_arrays, table, embedding=True)))
    return exact


@dataclass(frozen=True)
class _Range:
    """Consecutive output rows of a matrix that are all quantized or all not."""

    start: int
    stop: int
    stored: bool


class RowIndex:
    """Index of the rows of a file's quantized matrices by their dequantized weights."""

    def __init__(self, stored: Iterable[StoredMatrix]) -> None:
        self.matrices: list[BlockMatrix] = []
        self.places: dict[bytes, dict[int, int]] = {}
        """Digest of a row's weights -> matrix number -> row number."""
        for number, matrix in enumerate(stored):
            self.matrices.append(matrix.blocks)
            for row, digest in enumerate(_row_digests(matrix.weights)):
                self.places.setdefault(digest, {})[number] = row

    def ranges(self, name: str, rows: NDArray[np.float32]) -> list[_Range]:
        """Split rows (outputs, inputs) in quantized and float ranges; raises UnsupportedModelError for too many."""
        stored = np.array([digest in self.places for digest in _row_digests(rows)])
        edges = [0, *(np.flatnonzero(np.diff(stored)) + 1).tolist(), len(stored)]
        if len(edges) > _MOST_RANGES + 1:
            raise UnsupportedModelError(
                f"of the {len(stored)} outputs of `{name}`, {np.count_nonzero(~stored)} are not quantized, "
                "scattered over the matrix",
                hint="use `--precision int4`, which quantizes all weights again",
            )
        return [_Range(start, stop, bool(stored[start])) for start, stop in pairwise(edges)]

    def find(self, rows: NDArray[np.float32]) -> BlockMatrix | None:
        """Return the blocks of rows (outputs, inputs), None unless the file has all of them quantized."""
        places = [self.places.get(digest, {}) for digest in _row_digests(rows)]
        if not all(places):
            return None
        # Rows of zeros are in many matrices: take them from that of the rows around them, which has the same format.
        number = Counter(number for options in places for number in options).most_common(1)[0][0]
        numbers = np.empty(len(places), np.int64)
        for row, options in enumerate(places):
            number = number if number in options else next(iter(options))
            numbers[row] = number
        places_in = np.array([options[int(number)] for options, number in zip(places, numbers, strict=True)])
        # Runs of consecutive rows from one matrix.
        cuts = np.flatnonzero(np.diff(numbers)) + 1
        pieces = [
            _take_rows(self.matrices[part[0]], where)
            for part, where in zip(np.split(numbers, cuts), np.split(places_in, cuts), strict=True)
        ]
        return _concatenate(pieces)


def _row_digests(rows: NDArray[np.float32]) -> Iterator[bytes]:
    for row in np.ascontiguousarray(rows, np.float32):
        yield blake2b(row.tobytes(), digest_size=16).digest()


def _take_rows(matrix: BlockMatrix, rows: NDArray[np.int64]) -> BlockMatrix:
    """Select output rows of a matrix, in this order."""
    return BlockMatrix(
        matrix.inputs,
        matrix.bits,
        matrix.levels[rows],
        matrix.scales[rows],
        None if matrix.zeros is None else matrix.zeros[rows],
        None if matrix.offsets is None else matrix.offsets[rows],
    )


def _concatenate(pieces: Sequence[BlockMatrix]) -> BlockMatrix:
    """Concatenate the outputs of matrices without zero points, in the smallest format that holds all of them exactly.

    Splitting blocks and widening 4-bit levels to 8 bits changes no weight.
    """
    bits = max(piece.bits for piece in pieces)
    block = min(piece.block_size for piece in pieces)
    levels, scales, offsets = [], [], []
    for piece in pieces:
        if piece.zeros is not None or piece.block_size % block:
            raise ValueError("only blocks without zero points, of multiples of the smallest size, can be concatenated")
        raised = piece.levels + np.uint8(2 ** (bits - 1) - 2 ** (piece.bits - 1))
        repeated = piece.block_size // block
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


def _same_blocks(first: BlockMatrix, second: BlockMatrix) -> bool:
    return (
        first.bits == second.bits
        and np.array_equal(first.levels, second.levels)
        and np.array_equal(first.scales, second.scales)
        and (first.offsets is None) == (second.offsets is None)
        and (first.offsets is None or second.offsets is None or np.array_equal(first.offsets, second.offsets))
    )


def _replace_by_ranges(
    graph: ir.Graph, linear: Linear, ranges: Sequence[tuple[_Range, BlockMatrix | None]], keep: Keep
) -> None:
    """Compute some outputs of a linear layer from blocks and the others from its float32 weights."""
    results = []
    for one, found in ranges:
        name = f"{linear.name}_from_{one.start}"
        if found is None:
            exact = keep(name, functools.partial(_float32_columns, linear, one)).arrays["exact"]
            matrix = constant(graph, f"{name}_exact", exact)
            results.append(insert(linear.matmul, "MatMul", [linear.input, matrix]))
        else:
            blocks = keep(name, functools.partial(packed_arrays, found, embedding=False))
            results.append(insert_matmul_nbits(graph, linear, name, one.stop - one.start, blocks))
    replace_output(linear, insert(linear.matmul, "Concat", results, {"axis": -1}))


def _float32_columns(linear: Linear, of: _Range) -> Made:
    return Made({"exact": np.ascontiguousarray(linear.weight[:, of.start : of.stop])})
