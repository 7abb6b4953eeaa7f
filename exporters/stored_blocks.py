"""The blocks of GGUF files, as the blocks of MatMulNBits, without a change in any weight.

The layouts are those of ggml's ggml-common.h, and what they stand for that of ggml-quants.c. Where a weight is
`d * q + m`, with levels q from 0, it becomes `d * (q - middle) + offset`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from exporters.block_rounding import BlockMatrix

BLOCK = 32
LARGE = 256
"""Weights in a block of the K types, which have a scale of scales for each."""

Bytes = NDArray[np.uint8]


def pieces(data: Bytes, *sizes: int) -> list[Bytes]:
    """The bytes of each block, (outputs, blocks, bytes), cut in pieces of these sizes."""
    blocks = data.reshape(len(data), -1, sum(sizes))
    return np.split(blocks, np.cumsum(sizes)[:-1], axis=2)


def halves(piece: Bytes) -> NDArray[np.float32]:
    """Two bytes for each block -> (outputs, blocks)."""
    return np.ascontiguousarray(piece).view(np.float16)[:, :, 0].astype(np.float32)


def low_then_high(piece: Bytes) -> Bytes:
    """Levels of 4 bits of which the first half of a block are the lower ones of its bytes."""
    return np.concatenate([piece & np.uint8(15), piece >> np.uint8(4)], axis=2)


def made(
    levels: Bytes, scales: NDArray[np.float32], minima: NDArray[np.float32] | None, *, bits: int, middle: int
) -> BlockMatrix:
    """Levels from 0 with weights `scale * level + minimum`, or `scale * (level - middle)` where there are no minima."""
    blocks, block = levels.shape[1:]
    raised = levels + np.uint8((1 << (bits - 1)) - middle)
    offsets = None if minima is None else minima + np.float32(middle) * scales
    return BlockMatrix(blocks * block, bits, raised, scales, None, offsets)


def read_q4_0(data: Bytes) -> BlockMatrix:
    scale, levels = pieces(data, 2, 16)
    return made(low_then_high(levels), halves(scale), None, bits=4, middle=8)


def read_q4_1(data: Bytes) -> BlockMatrix:
    scale, minimum, levels = pieces(data, 2, 2, 16)
    return made(low_then_high(levels), halves(scale), halves(minimum), bits=4, middle=8)


def fifth_bits(piece: Bytes) -> Bytes:
    """The highest bits of 32 levels, one a bit."""
    return np.asarray(np.unpackbits(piece, axis=2, bitorder="little") << np.uint8(4))


def read_q5_0(data: Bytes) -> BlockMatrix:
    scale, high, levels = pieces(data, 2, 4, 16)
    return made(low_then_high(levels) | fifth_bits(high), halves(scale), None, bits=8, middle=16)


def read_q5_1(data: Bytes) -> BlockMatrix:
    scale, minimum, high, levels = pieces(data, 2, 2, 4, 16)
    return made(low_then_high(levels) | fifth_bits(high), halves(scale), halves(minimum), bits=8, middle=16)


def read_q8_0(data: Bytes) -> BlockMatrix:
    scale, levels = pieces(data, 2, BLOCK)
    return made(levels ^ np.uint8(128), halves(scale), None, bits=8, middle=128)


def scales_and_minima(piece: Bytes) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Eight scales and eight minima of 6 bits each, in 12 bytes: (outputs, blocks, 8) both."""
    first, second, third = np.split(piece, 3, axis=2)
    scales = np.concatenate([first & 63, (third & 15) | ((first >> 6) << 4)], axis=2)
    minima = np.concatenate([second & 63, (third >> 4) | ((second >> 6) << 4)], axis=2)
    return scales.astype(np.float32), minima.astype(np.float32)


def read_q4_k(data: Bytes) -> BlockMatrix:
    scale, minimum, both, levels = pieces(data, 2, 2, 12, 128)
    return from_large(levels_of_pairs(levels), scale, minimum, both, bits=4, middle=8)


def read_q5_k(data: Bytes) -> BlockMatrix:
    scale, minimum, both, high, levels = pieces(data, 2, 2, 12, 32, 128)
    # Bit n of the byte of a place belongs to the n-th of the eight blocks.
    fifth = (high[:, :, np.newaxis, :] >> np.arange(8, dtype=np.uint8)[:, np.newaxis]) & np.uint8(1)
    return from_large(levels_of_pairs(levels) | (fifth << np.uint8(4)), scale, minimum, both, bits=8, middle=16)


def levels_of_pairs(levels: Bytes) -> Bytes:
    """128 bytes that hold two blocks of 32 levels in each 32: (outputs, large blocks, 8, 32)."""
    pairs = levels.reshape(*levels.shape[:2], 4, 1, BLOCK)
    shifts = np.array([0, 4], np.uint8)[:, np.newaxis]
    return np.asarray((pairs >> shifts) & np.uint8(15)).reshape(*levels.shape[:2], 8, BLOCK)


def from_large(levels: Bytes, scale: Bytes, minimum: Bytes, both: Bytes, *, bits: int, middle: int) -> BlockMatrix:
    scales, minima = scales_and_minima(both)
    outputs = len(levels)
    return made(
        levels.reshape(outputs, -1, BLOCK),
        (halves(scale)[:, :, np.newaxis] * scales).reshape(outputs, -1),
        -(halves(minimum)[:, :, np.newaxis] * minima).reshape(outputs, -1),
        bits=bits,
        middle=middle,
    )


def read_q6_k(data: Bytes) -> BlockMatrix:
    """Blocks of 16, with scales of 8 bits."""
    low, high, scales, scale = pieces(data, 128, 64, 16, 2)
    outputs, large = low.shape[:2]
    # Each 64 bytes of the lower four bits, with 32 of the upper two, are 128 levels.
    fours = low.reshape(outputs, large, 2, 1, 64) >> np.array([0, 4], np.uint8)[:, np.newaxis] & np.uint8(15)
    twos = high.reshape(outputs, large, 2, 1, 32) >> np.array([0, 2, 4, 6], np.uint8)[:, np.newaxis] & np.uint8(3)
    levels = fours.reshape(outputs, large, LARGE) | (twos.reshape(outputs, large, LARGE) << np.uint8(4))
    factors = halves(scale)[:, :, np.newaxis] * np.ascontiguousarray(scales).view(np.int8).astype(np.float32)
    return made(levels.reshape(outputs, -1, 16), factors.reshape(outputs, -1), None, bits=8, middle=32)


BLOCK_READERS: Mapping[str, Callable[[Bytes], BlockMatrix]] = {
    "Q4_0": read_q4_0,
    "Q4_1": read_q4_1,
    "Q4_K": read_q4_k,
    "Q5_0": read_q5_0,
    "Q5_1": read_q5_1,
    "Q5_K": read_q5_k,
    "Q6_K": read_q6_k,
    "Q8_0": read_q8_0,
}
"""By the names of the types: a matrix's bytes (outputs, bytes) -> its blocks."""
