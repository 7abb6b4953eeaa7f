"""Block-wise quantization: 4 or 8 bits per weight, a scale and a zero point per block of an output's inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from ...runtime.errors import InputError
from ...runtime.session.cores import find_cores
from .gptq import SMALLEST, gptq_quantize

_BITS = (4, 8)
_BLOCK_SIZES = (32, 64, 128)
_CUDA_OUTPUTS = {4: 64, 8: 32}
"""Bits -> what the number of outputs is a multiple of, for CUDA's kernels that multiply by packed weights."""
_SMALLEST_FLOAT16 = np.float32(np.finfo(np.float16).smallest_subnormal)
_SCALE_FACTORS = np.linspace(0.6, 1.05, 10, dtype=np.float32)
"""Factors tried on the min-max scale: clipping the extremes buys precision for the rest."""
_ZERO_POINT_SHIFTS = (0, -1, 1)
"""Shifts tried on the min-max zero point."""
_REFINEMENTS = 2
"""Least-squares refits of the best scale at the end of a search."""
COLUMNS = 2048
GPTQ_COLUMNS = 512
"""Outputs quantized together, so that the working set fits a core's cache."""

_Part = TypeVar("_Part")


class Rounding(StrEnum):
    """How weights become levels, each more accurate and slower than the one before."""

    NEAREST = "nearest"
    """Round to nearest with the min-max scale of each block."""
    IMPORTANCE = "importance"
    """Search each block's scale and zero point, errors weighted by mean squared activations, as llama.cpp's imatrix."""
    GPTQ = "gptq"
    """GPTQ: error compensation along each output, on calibration texts."""


@dataclass(frozen=True)
class BlockFormat:
    """Bits, block size and symmetry, limited to what onnxruntime has kernels for."""

    bits: int
    block_size: int
    symmetric: bool
    cuda: bool = False
    """For CUDA: float16 scales, and inputs and outputs padded with zeros to the multiples that its kernels take."""

    def __post_init__(self) -> None:
        if self.bits not in _BITS:
            raise InputError(f"{self.bits}-bit weights are not supported", hint="supported: 4 and 8")
        if self.block_size not in _BLOCK_SIZES:
            raise InputError(f"blocks of {self.block_size} weights are not supported", hint="supported: 32, 64 and 128")

    @property
    def top(self) -> int:
        """The highest level."""
        return (1 << self.bits) - 1

    @property
    def middle(self) -> int:
        """The zero point of symmetric blocks."""
        return 1 << (self.bits - 1)

    def padded_inputs(self, inputs: int) -> int:
        """The number of inputs of a matrix in this format."""
        return -(-inputs // self.block_size) * self.block_size if self.cuda else inputs

    def padded_outputs(self, outputs: int) -> int:
        """The number of outputs of a matrix in this format."""
        multiple = _CUDA_OUTPUTS[self.bits] if self.cuda else 1
        return -(-outputs // multiple) * multiple


@dataclass(frozen=True)
class BlockMatrix:
    """A quantized matrix (inputs, outputs): weight = `scale * (level - zero) + offset`, all but the level per block.

    The last block of each output is padded where the block size does not divide the inputs.
    """

    inputs: int
    bits: int
    levels: NDArray[np.uint8]
    """(outputs, blocks, block size), one byte per level."""
    scales: NDArray[np.floating]
    """(outputs, blocks), float32 or float16; may be negative."""
    zeros: NDArray[np.uint8] | None = None
    """(outputs, blocks); None for symmetric blocks."""
    offsets: NDArray[np.float32] | None = None
    """(outputs, blocks); None when all are 0."""

    @property
    def outputs(self) -> int:
        return len(self.levels)

    @property
    def blocks(self) -> int:
        return int(self.levels.shape[1])

    @property
    def block_size(self) -> int:
        """The block size."""
        return int(self.levels.shape[2])

    def dequantized(self) -> NDArray[np.float32]:
        """Return the float32 weights, (inputs, outputs)."""
        zeros = 1 << (self.bits - 1) if self.zeros is None else self.zeros[:, :, np.newaxis].astype(np.float32)
        scales = self.scales[:, :, np.newaxis].astype(np.float32)
        weights = (self.levels.astype(np.float32) - np.float32(zeros)) * scales
        if self.offsets is not None:
            weights += self.offsets[:, :, np.newaxis]
        return np.asarray(weights.reshape(self.outputs, -1)[:, : self.inputs].T)

    @cached_property
    def packed_levels(self) -> NDArray[np.uint8]:
        """In MatMulNBits' layout: (outputs, blocks, bytes), two 4-bit levels per byte, the first in the low nibble."""
        return _pack(self.levels, self.bits)

    @cached_property
    def packed_zeros(self) -> NDArray[np.uint8] | None:
        """In MatMulNBits' layout: (outputs, bytes). Float zero points would not take its fast kernel."""
        if self.zeros is None:
            return None
        odd = self.blocks % 2 if self.bits == 4 else 0
        return _pack(np.pad(self.zeros, ((0, 0), (0, odd))), self.bits)


@dataclass(frozen=True)
class StoredMatrix:
    """A weight matrix (outputs, inputs) of a file that is quantized already: its dequantized weights and its blocks."""

    weights: NDArray[np.float32]
    blocks: BlockMatrix


def _pack(levels: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    return levels if bits == 8 else levels[..., 0::2] | (levels[..., 1::2] << np.uint8(4))


def quantize_blockwise(
    weight: NDArray[np.float32], form: BlockFormat, *, importance: NDArray[np.float32] | None = None
) -> BlockMatrix:
    """Quantize a matrix (inputs, outputs), each block by itself.

    `importance` (inputs,) weights the squared error of each input: its mean squared activation. Without it, blocks get
    their min-max scale.
    """
    inputs, outputs = weight.shape
    levels, scales, zeros = _empty_blocks(inputs, outputs, form)

    def fill(part: tuple[int, slice]) -> None:
        number, columns = part
        start, end = number * form.block_size, min((number + 1) * form.block_size, inputs)
        rows = np.ascontiguousarray(weight[start:end, columns])
        weights = None if importance is None else importance[start:end, np.newaxis]
        scale, zero = _search_scale(rows, form, weights)
        scales[columns, number], zeros[columns, number] = scale, zero
        levels[columns, number] = zero[:, np.newaxis]
        levels[columns, number, : end - start] = (_nearest_steps(rows, scale, zero, form) + zero).T

    parts = [(number, part) for part in _slices(outputs, COLUMNS) for number in range(levels.shape[1])]
    _run_in_threads(fill, parts)
    return _matrix_of(inputs, form, levels, scales, zeros)


def gptq_quantize_blockwise(
    weight: NDArray[np.float32], form: BlockFormat, factors: NDArray[np.float64]
) -> BlockMatrix:
    """Quantize a matrix (inputs, outputs) by GPTQ: see `gptq_quantize`.

    `factors` is `inverse_hessian_cholesky` of the second moments. The scale and zero point of a block are searched when
    its first row is reached, on the weights as updated by then; each error is weighted by the part that later rows
    cannot compensate.
    """
    inputs, outputs = weight.shape
    levels, scales, zeros = _empty_blocks(inputs, outputs, form)
    importance = (1 / np.diag(factors) ** 2).astype(np.float32)[:, np.newaxis]

    def fill(columns: slice) -> None:
        def round_first(row: int, rows: NDArray[np.float64]) -> NDArray[np.float32]:
            number, place = divmod(row, form.block_size)
            if place == 0:
                current = rows[: form.block_size].astype(np.float32)
                scale, zero = _search_scale(current, form, importance[row : row + form.block_size])
                scales[columns, number], zeros[columns, number] = scale, zero
                levels[columns, number] = zero[:, np.newaxis]
            scale, zero = scales[columns, number], zeros[columns, number].astype(np.float32)
            steps = _nearest_steps(rows[0], scale, zero, form)
            levels[columns, number, place] = steps + zero
            return np.asarray(steps * scale, np.float32)

        gptq_quantize(weight[:, columns], factors, round_first)

    _run_in_threads(fill, _slices(outputs, GPTQ_COLUMNS))
    return _matrix_of(inputs, form, levels, scales, zeros)


def _empty_blocks(
    inputs: int, outputs: int, form: BlockFormat
) -> tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.uint8]]:
    """Levels, scales and zero points of a matrix of zeros, with the outputs that pad it."""
    rows, blocks = form.padded_outputs(outputs), -(-inputs // form.block_size)
    levels = np.full((rows, blocks, form.block_size), form.middle, np.uint8)
    return levels, np.zeros((rows, blocks), np.float32), np.full((rows, blocks), form.middle, np.uint8)


def _matrix_of(
    inputs: int,
    form: BlockFormat,
    levels: NDArray[np.uint8],
    scales: NDArray[np.float32],
    zeros: NDArray[np.uint8],
) -> BlockMatrix:
    # The scales of blocks for CUDA were rounded when they were chosen.
    stored = scales.astype(np.float16) if form.cuda else scales
    return BlockMatrix(form.padded_inputs(inputs), form.bits, levels, stored, None if form.symmetric else zeros)


def _slices(count: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


def _run_in_threads(work: Callable[[_Part], None], parts: Iterable[_Part]) -> None:
    """Run work on all usable CPU cores; numpy releases the GIL while it computes."""
    with ThreadPoolExecutor(find_cores().usable) as pool:
        for _ in pool.map(work, parts):
            pass


def _search_scale(
    rows: NDArray[np.float32], form: BlockFormat, importance: NDArray[np.float32] | None
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Search the scale and zero point, (outputs,) each, of one block: rows (block size, outputs)."""
    scale, zero = _min_max_scale(rows, form)
    # With 256 levels a search gains less than the rounding of float32 sums.
    if importance is None or form.bits == 8:
        return _stored_scale(scale, form), zero
    best_scale, best_zero, best_gain = scale, zero, np.full_like(scale, -1)
    weighted = rows * importance

    def attempt(scale: NDArray[np.float32], zero: NDArray[np.float32]) -> None:
        """Refit the scale by least squares to the levels that it gives; keep it where it is the best so far."""
        nonlocal best_scale, best_zero, best_gain
        steps = _nearest_steps(rows, scale, zero, form)
        along = (steps * weighted).sum(axis=0)
        steps *= steps
        steps *= importance
        length = np.maximum(steps.sum(axis=0), np.finfo(np.float32).tiny)
        # The squared error is a constant, the same for all attempts, minus this.
        gain = along * along / length
        better = gain > best_gain
        best_scale = np.where(better & (along != 0), along / length, best_scale)
        best_zero = np.where(better, zero, best_zero)
        best_gain = np.where(better, gain, best_gain)

    for shift in _ZERO_POINT_SHIFTS[:1] if form.symmetric else _ZERO_POINT_SHIFTS:
        shifted = np.clip(zero + np.float32(shift), 0, form.top)
        for shrink in _SCALE_FACTORS:
            attempt(scale * shrink, shifted)
    for _ in range(_REFINEMENTS):
        attempt(best_scale, best_zero)
    return _stored_scale(best_scale, form), best_zero


def _stored_scale(scale: NDArray[np.float32], form: BlockFormat) -> NDArray[np.float32]:
    """Round scales to the type that they are stored in, so that the levels are those for the rounded scale."""
    if not form.cuda:
        return scale
    half = scale.astype(np.float16).astype(np.float32)
    # A scale of 0 would be divided by.
    return np.where(half == 0, np.copysign(_SMALLEST_FLOAT16, scale), half)


def _min_max_scale(rows: NDArray[np.float32], form: BlockFormat) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the scale and zero point with which the levels span a block's range, 0 included."""
    lowest, highest = np.minimum(rows.min(axis=0), 0), np.maximum(rows.max(axis=0), 0)
    if form.symmetric:
        # The lowest level is one step further from the zero point than the highest: it takes the largest magnitude.
        furthest = np.where(-lowest > highest, lowest, highest)
        scale = furthest / np.float32(-form.middle)
        scale = np.where(np.abs(scale) < SMALLEST, np.float32(SMALLEST), scale)
        return scale, np.full_like(scale, form.middle)
    scale = np.maximum((highest - lowest) / np.float32(form.top), np.float32(SMALLEST))
    return scale, np.clip(np.rint(-lowest / scale), 0, form.top)


def _nearest_steps(
    rows: NDArray[np.floating], scale: NDArray[np.float32], zero: NDArray[np.float32], form: BlockFormat
) -> NDArray[np.floating]:
    """Return the nearest levels minus the zero point: (rows, outputs) or (outputs,)."""
    steps = rows / scale
    np.rint(steps, out=steps)
    # Four times as fast as numpy.clip, which would take most of the time of a search.
    np.maximum(steps, -zero, out=steps)
    np.minimum(steps, form.top - zero, out=steps)
    return steps
