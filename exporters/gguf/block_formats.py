"""Convert GGUF block formats to MatMulNBits blocks without changing any weight.

Layouts are from ggml-common.h, dequantization from ggml-quants.c. A weight `d * q + m`, with levels q from 0, becomes
`d * (q - middle) + offset`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from ..quantization.blockwise import BlockMatrix

_BLOCK = 32
_LARGE = 256
"""Weights in a super-block of the K types, whose scales are quantized too."""

_Bytes = NDArray[np.uint8]


def _split_fields(data: _Bytes, *sizes: int) -> list[_Bytes]:
    """Split the bytes of each block, (outputs, blocks, bytes), in fields of these sizes."""
    blocks = data.reshape(len(data), -1, sum(sizes))
    return np.split(blocks, np.cumsum(sizes)[:-1], axis=2)


def _float16_field(piece: _Bytes) -> NDArray[np.float32]:
    """Decode a float16 field -> (outputs, blocks)."""
    return np.ascontiguousarray(piece).view(np.float16)[:, :, 0].astype(np.float32)


def _unpack_nibbles(piece: _Bytes) -> _Bytes:
    """Unpack 4-bit levels: the first half of a block is in the low nibbles."""
    return np.concatenate([piece & np.uint8(15), piece >> np.uint8(4)], axis=2)


def _block_matrix(
    levels: _Bytes, scales: NDArray[np.float32], minima: NDArray[np.float32] | None, *, bits: int, middle: int
) -> BlockMatrix:
    """Levels from 0 with weights `scale * level + minimum`, or `scale * (level - middle)` where there are no minima."""
    blocks, block = levels.shape[1:]
    raised = levels + np.uint8((1 << (bits - 1)) - middle)
    offsets = None if minima is None else minima + np.float32(middle) * scales
    return BlockMatrix(blocks * block, bits, raised, scales, None, offsets)


def _read_q4_0(data: _Bytes) -> BlockMatrix:
    scale, levels = _split_fields(data, 2, 16)
    return _block_matrix(_unpack_nibbles(levels), _float16_field(scale), None, bits=4, middle=8)


def _read_q4_1(data: _Bytes) -> BlockMatrix:
    scale, minimum, levels = _split_fields(data, 2, 2, 16)
    return _block_matrix(_unpack_nibbles(levels), _float16_field(scale), _float16_field(minimum), bits=4, middle=8)


def _fifth_bits(piece: _Bytes) -> _Bytes:
    """Unpack the fifth bits of 32 levels."""
    return np.asarray(np.unpackbits(piece, axis=2, bitorder="little") << np.uint8(4))


def _read_q5_0(data: _Bytes) -> BlockMatrix:
    scale, high, levels = _split_fields(data, 2, 4, 16)
    return _block_matrix(_unpack_nibbles(levels) | _fifth_bits(high), _float16_field(scale), None, bits=8, middle=16)


def _read_q5_1(data: _Bytes) -> BlockMatrix:
    scale, minimum, high, levels = _split_fields(data, 2, 2, 4, 16)
    return _block_matrix(
        _unpack_nibbles(levels) | _fifth_bits(high), _float16_field(scale), _float16_field(minimum), bits=8, middle=16
    )


def _read_q8_0(data: _Bytes) -> BlockMatrix:
    scale, levels = _split_fields(data, 2, _BLOCK)
    return _block_matrix(levels ^ np.uint8(128), _float16_field(scale), None, bits=8, middle=128)


def _scales_and_minima(piece: _Bytes) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Unpack eight 6-bit scales and eight 6-bit minima from 12 bytes: (outputs, blocks, 8) each."""
    first, second, third = np.split(piece, 3, axis=2)
    scales = np.concatenate([first & 63, (third & 15) | ((first >> 6) << 4)], axis=2)
    minima = np.concatenate([second & 63, (third >> 4) | ((second >> 6) << 4)], axis=2)
    return scales.astype(np.float32), minima.astype(np.float32)


def _read_q4_k(data: _Bytes) -> BlockMatrix:
    scale, minimum, both, levels = _split_fields(data, 2, 2, 12, 128)
    return _from_super_block(_unpack_pairs(levels), scale, minimum, both, bits=4, middle=8)


def _read_q5_k(data: _Bytes) -> BlockMatrix:
    scale, minimum, both, high, levels = _split_fields(data, 2, 2, 12, 32, 128)
    # Bit n of the byte of a place belongs to the n-th of the eight blocks.
    fifth = (high[:, :, np.newaxis, :] >> np.arange(8, dtype=np.uint8)[:, np.newaxis]) & np.uint8(1)
    return _from_super_block(_unpack_pairs(levels) | (fifth << np.uint8(4)), scale, minimum, both, bits=8, middle=16)


def _unpack_pairs(levels: _Bytes) -> _Bytes:
    """Unpack 128 bytes, two blocks of 32 levels in each 32: (outputs, super-blocks, 8, 32)."""
    pairs = levels.reshape(*levels.shape[:2], 4, 1, _BLOCK)
    shifts = np.array([0, 4], np.uint8)[:, np.newaxis]
    return np.asarray((pairs >> shifts) & np.uint8(15)).reshape(*levels.shape[:2], 8, _BLOCK)


def _from_super_block(
    levels: _Bytes, scale: _Bytes, minimum: _Bytes, both: _Bytes, *, bits: int, middle: int
) -> BlockMatrix:
    scales, minima = _scales_and_minima(both)
    outputs = len(levels)
    return _block_matrix(
        levels.reshape(outputs, -1, _BLOCK),
        (_float16_field(scale)[:, :, np.newaxis] * scales).reshape(outputs, -1),
        -(_float16_field(minimum)[:, :, np.newaxis] * minima).reshape(outputs, -1),
        bits=bits,
        middle=middle,
    )


def _read_q6_k(data: _Bytes) -> BlockMatrix:
    """Blocks of 16, with scales of 8 bits."""
    low, high, scales, scale = _split_fields(data, 128, 64, 16, 2)
    outputs, large = low.shape[:2]
    # Each 64 bytes of the lower four bits, with 32 of the upper two, are 128 levels.
    fours = low.reshape(outputs, large, 2, 1, 64) >> np.array([0, 4], np.uint8)[:, np.newaxis] & np.uint8(15)
    twos = high.reshape(outputs, large, 2, 1, 32) >> np.array([0, 2, 4, 6], np.uint8)[:, np.newaxis] & np.uint8(3)
    levels = fours.reshape(outputs, large, _LARGE) | (twos.reshape(outputs, large, _LARGE) << np.uint8(4))
    factors = _float16_field(scale)[:, :, np.newaxis] * np.ascontiguousarray(scales).view(np.int8).astype(np.float32)
    return _block_matrix(levels.reshape(outputs, -1, 16), factors.reshape(outputs, -1), None, bits=8, middle=32)


def _read_q2_k(data: _Bytes) -> BlockMatrix:
    """Blocks of 16, with scales and minima of 4 bits."""
    both, levels, scale, minimum = _split_fields(data, 16, 64, 2, 2)
    outputs = len(both)
    scales = _float16_field(scale)[:, :, np.newaxis] * (both & np.uint8(15)).astype(np.float32)
    minima = -_float16_field(minimum)[:, :, np.newaxis] * (both >> np.uint8(4)).astype(np.float32)
    return _block_matrix(
        _unpack_2_bits(levels).reshape(outputs, -1, 16),
        scales.reshape(outputs, -1),
        minima.reshape(outputs, -1),
        bits=4,
        middle=2,
    )


def _unpack_2_bits(piece: _Bytes) -> _Bytes:
    """Unpack 64 bytes, 128 2-bit levels in each 32: (outputs, super-blocks, 2, 4, 32)."""
    rows = piece.reshape(*piece.shape[:2], 2, 1, _BLOCK)
    return np.asarray(rows >> np.array([0, 2, 4, 6], np.uint8)[:, np.newaxis] & np.uint8(3))


def _read_q3_k(data: _Bytes) -> BlockMatrix:
    """Blocks of 16, with 6-bit scales; the third bits of the levels are stored separately."""
    high, low, packed, scale = _split_fields(data, 32, 64, 12, 2)
    outputs, large = high.shape[:2]
    thirds = (high[:, :, np.newaxis, :] >> np.arange(8, dtype=np.uint8)[:, np.newaxis]) & np.uint8(1)
    levels = _unpack_2_bits(low).reshape(outputs, large, 8, _BLOCK) | (thirds << np.uint8(2))
    fours = np.concatenate([packed[:, :, :8] & np.uint8(15), packed[:, :, :8] >> np.uint8(4)], axis=2)
    twos = packed[:, :, np.newaxis, 8:] >> np.array([0, 2, 4, 6], np.uint8)[:, np.newaxis] & np.uint8(3)
    factors = (fours | (twos.reshape(outputs, large, 16) << np.uint8(4))).astype(np.float32) - np.float32(32)
    scales = _float16_field(scale)[:, :, np.newaxis] * factors
    return _block_matrix(levels.reshape(outputs, -1, 16), scales.reshape(outputs, -1), None, bits=4, middle=4)


def _read_iq4_nl(data: _Bytes) -> BlockMatrix:
    scale, levels = _split_fields(data, 2, 16)
    return _block_matrix(_IQ4_LEVELS[_unpack_nibbles(levels)], _float16_field(scale), None, bits=8, middle=128)


def _read_iq4_xs(data: _Bytes) -> BlockMatrix:
    """Eight blocks of 32, with scales of 6 bits."""
    scale, high, low, levels = _split_fields(data, 2, 2, 4, 128)
    outputs, large = scale.shape[:2]
    fours = (low[:, :, :, np.newaxis] >> np.array([0, 4], np.uint8) & np.uint8(15)).reshape(outputs, large, 8)
    twos = np.ascontiguousarray(high).view("<u2") >> np.arange(0, 16, 2, dtype=np.uint16) & np.uint16(3)
    factors = (fours | (twos.astype(np.uint8) << np.uint8(4))).astype(np.float32) - np.float32(32)
    scales = _float16_field(scale)[:, :, np.newaxis] * factors
    numbers = _unpack_nibbles(levels.reshape(outputs, -1, 16))
    return _block_matrix(_IQ4_LEVELS[numbers], scales.reshape(outputs, -1), None, bits=8, middle=128)


_IQ4_LEVELS: _Bytes = np.array([1, 24, 45, 63, 79, 93, 106, 118, 129, 141, 153, 166, 181, 197, 217, 241], np.uint8)
"""The non-uniform levels of IQ4 types: ggml's `kvalues_iq4nl` plus 128."""
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
"""Byte offsets of the float16 fields of a block, by ggml-common.h; everything else in it is finite."""
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
"""Bytes per block."""


def scales_of(kind: str, data: _Bytes) -> Iterator[NDArray[np.float16]]:
    """Yield the float16 fields of the blocks of rows (outputs, bytes): scales, and minima where there are some."""
    blocks = data.reshape(-1, BYTES[kind])
    for place in SCALES[kind]:
        yield np.ascontiguousarray(blocks[:, place : place + 2]).view(np.float16)


BLOCK_READERS: Mapping[str, Callable[[_Bytes], BlockMatrix]] = {
    "Q2_K": _read_q2_k,
    "Q3_K": _read_q3_k,
    "Q4_0": _read_q4_0,
    "Q4_1": _read_q4_1,
    "Q4_K": _read_q4_k,
    "Q5_0": _read_q5_0,
    "Q5_1": _read_q5_1,
    "Q5_K": _read_q5_k,
    "Q6_K": _read_q6_k,
    "Q8_0": _read_q8_0,
    "IQ4_NL": _read_iq4_nl,
    "IQ4_XS": _read_iq4_xs,
}
"""Type name -> function from a matrix's bytes (outputs, bytes) to its blocks."""
