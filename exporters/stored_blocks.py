"""The blocks of GGUF files, as the blocks of MatMulNBits, without a change in any weight.

The layouts are those of ggml's ggml-common.h, and what they stand for that of ggml-quants.c. Where a weight is
`d * q + m`, with levels q from 0, it becomes `d * (q - middle) + offset`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

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


def read_q2_k(data: Bytes) -> BlockMatrix:
    """Blocks of 16, with scales and minima of 4 bits."""
    both, levels, scale, minimum = pieces(data, 16, 64, 2, 2)
    outputs = len(both)
    scales = halves(scale)[:, :, np.newaxis] * (both & np.uint8(15)).astype(np.float32)
    minima = -halves(minimum)[:, :, np.newaxis] * (both >> np.uint8(4)).astype(np.float32)
    return made(
        quarters(levels).reshape(outputs, -1, 16),
        scales.reshape(outputs, -1),
        minima.reshape(outputs, -1),
        bits=4,
        middle=2,
    )


def quarters(piece: Bytes) -> Bytes:
    """64 bytes, of which each 32 hold 128 levels of 2 bits: (outputs, large blocks, 2, 4, 32)."""
    rows = piece.reshape(*piece.shape[:2], 2, 1, BLOCK)
    return np.asarray(rows >> np.array([0, 2, 4, 6], np.uint8)[:, np.newaxis] & np.uint8(3))


def read_q3_k(data: Bytes) -> BlockMatrix:
    """Blocks of 16, with scales of 6 bits; the third bit of the levels lies apart."""
    high, low, packed, scale = pieces(data, 32, 64, 12, 2)
    outputs, large = high.shape[:2]
    thirds = (high[:, :, np.newaxis, :] >> np.arange(8, dtype=np.uint8)[:, np.newaxis]) & np.uint8(1)
    levels = quarters(low).reshape(outputs, large, 8, BLOCK) | (thirds << np.uint8(2))
    fours = np.concatenate([packed[:, :, :8] & np.uint8(15), packed[:, :, :8] >> np.uint8(4)], axis=2)
    twos = packed[:, :, np.newaxis, 8:] >> np.array([0, 2, 4, 6], np.uint8)[:, np.newaxis] & np.uint8(3)
    factors = (fours | (twos.reshape(outputs, large, 16) << np.uint8(4))).astype(np.float32) - np.float32(32)
    scales = halves(scale)[:, :, np.newaxis] * factors
    return made(levels.reshape(outputs, -1, 16), scales.reshape(outputs, -1), None, bits=4, middle=4)


def read_iq4_nl(data: Bytes) -> BlockMatrix:
    scale, levels = pieces(data, 2, 16)
    return made(UNEVEN[low_then_high(levels)], halves(scale), None, bits=8, middle=128)


def read_iq4_xs(data: Bytes) -> BlockMatrix:
    """Eight blocks of 32, with scales of 6 bits."""
    scale, high, low, levels = pieces(data, 2, 2, 4, 128)
    outputs, large = scale.shape[:2]
    fours = (low[:, :, :, np.newaxis] >> np.array([0, 4], np.uint8) & np.uint8(15)).reshape(outputs, large, 8)
    twos = np.ascontiguousarray(high).view("<u2") >> np.arange(0, 16, 2, dtype=np.uint16) & np.uint16(3)
    factors = (fours | (twos.astype(np.uint8) << np.uint8(4))).astype(np.float32) - np.float32(32)
    scales = halves(scale)[:, :, np.newaxis] * factors
    numbers = low_then_high(levels.reshape(outputs, -1, 16))
    return made(UNEVEN[numbers], scales.reshape(outputs, -1), None, bits=8, middle=128)


UNEVEN: Bytes = np.array([1, 24, 45, 63, 79, 93, 106, 118, 129, 141, 153, 166, 181, 197, 217, 241], np.uint8)
"""The levels of IQ4 types, which are not evenly spaced, in 8 bits from 0: ggml's `kvalues_iq4nl`, raised by 128."""
SCALES: Mapping[str, tuple[int, ...]] = {
    "Q2_K": (80, 82),
    "Q3_K": (108,),
    "Q4_0": (0,),
    "Q4_1": (0, 2),
    "Q4_K": (0, 2),
    "Q5_0": (0,),
    "Q5_1": (0, 2),
    "Q5_K": (0, 2),
    "Q6_K": (208,),
    "Q8_0": (0,),
    "IQ4_NL": (0,),
    "IQ4_XS": (0,),
}
"""Where the float16 numbers of a block stand in its bytes, by ggml-common.h; all else in it is finite."""
BYTES: Mapping[str, int] = {
    "Q2_K": 84,
    "Q3_K": 110,
    "Q4_0": 18,
    "Q4_1": 20,
    "Q4_K": 144,
    "Q5_0": 22,
    "Q5_1": 24,
    "Q5_K": 176,
    "Q6_K": 210,
    "Q8_0": 34,
    "IQ4_NL": 18,
    "IQ4_XS": 136,
}
"""Of a block."""


def scales_of(kind: str, data: Bytes) -> Iterator[NDArray[np.float16]]:
    """The float16 numbers of the blocks of some rows (outputs, bytes): scales, and minima where there are some."""
    blocks = data.reshape(-1, BYTES[kind])
    for place in SCALES[kind]:
        yield np.ascontiguousarray(blocks[:, place : place + 2]).view(np.float16)


BLOCK_READERS: Mapping[str, Callable[[Bytes], BlockMatrix]] = {
    "Q2_K": read_q2_k,
    "Q3_K": read_q3_k,
    "Q4_0": read_q4_0,
    "Q4_1": read_q4_1,
    "Q4_K": read_q4_k,
    "Q5_0": read_q5_0,
    "Q5_1": read_q5_1,
    "Q5_K": read_q5_k,
    "Q6_K": read_q6_k,
    "Q8_0": read_q8_0,
    "IQ4_NL": read_iq4_nl,
    "IQ4_XS": read_iq4_xs,
}
"""By the names of the types: a matrix's bytes (outputs, bytes) -> its blocks."""
