"""Matrices in blocks: 4 or 8 bits a weight, and a scale and a zero point for each block of an output's inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from exporters.rounding import SMALLEST, rounded_in_turn
from runtime.cores import find_cores
from runtime.errors import InputError

BITS = (4, 8)
BLOCKS = (32, 64, 128)
SHRINKS = np.linspace(0.6, 1.05, 10, dtype=np.float32)
"""What a scale that spans a block is multiplied by in turn: what is cut off at the ends is paid back in the middle."""
SHIFTS = (0, -1, 1)
"""What is added to the zero point of the span in turn."""
REFINEMENTS = 2
"""How often, at the end, the best scale is fitted to the levels that the scale before gave."""
COLUMNS = 2048
COLUMNS_IN_TURN = 512
"""Outputs that are rounded together, so that what is worked on fits a core's cache."""

Part = TypeVar("Part")


class Rounding(StrEnum):
    """How weights become levels, each better and slower than the one before."""

    NEAREST = "nearest"
    """Each block's levels span it."""
    IMPORTANCE = "importance"
    """Each block's scale and zero point make the errors small of the inputs that are large on calibration texts."""
    GPTQ = "gptq"
    """The errors of each output make up for one another on calibration texts."""


@dataclass(frozen=True)
class BlockForm:
    """What a block is: checked where it is made, since onnxruntime has no kernel for anything else."""

    bits: int
    block: int
    symmetric: bool

    def __post_init__(self) -> None:
        if self.bits not in BITS:
            raise InputError(f"weights of {self.bits} bits are not possible", hint="possible are 4 and 8")
        if self.block not in BLOCKS:
            raise InputError(f"blocks of {self.block} weights are not possible", hint="possible are 32, 64 and 128")

    @property
    def top(self) -> int:
        """The highest level."""
        return (1 << self.bits) - 1

    @property
    def middle(self) -> int:
        """The level that stands for 0 where there are no zero points."""
        return 1 << (self.bits - 1)


@dataclass(frozen=True)
class BlockMatrix:
    """A matrix (inputs, outputs), each weight `scale * (level - zero) + offset`, all but the level those of its block.

    The last block of each output goes on beyond the inputs where their number is no multiple of the block's.
    """

    inputs: int
    bits: int
    levels: NDArray[np.uint8]
    """(outputs, blocks, block), each level a byte."""
    scales: NDArray[np.float32]
    """(outputs, blocks); may be negative."""
    zeros: NDArray[np.uint8] | None = None
    """(outputs, blocks); None when all are the middle level."""
    offsets: NDArray[np.float32] | None = None
    """(outputs, blocks); None when all are 0."""

    @property
    def outputs(self) -> int:
        return len(self.levels)

    @property
    def blocks(self) -> int:
        return int(self.levels.shape[1])

    @property
    def block(self) -> int:
        """Weights in a block."""
        return int(self.levels.shape[2])

    def dequantized(self) -> NDArray[np.float32]:
        """The weights that it stands for: (inputs, outputs)."""
        zeros = 1 << (self.bits - 1) if self.zeros is None else self.zeros[:, :, np.newaxis].astype(np.float32)
        weights = (self.levels.astype(np.float32) - np.float32(zeros)) * self.scales[:, :, np.newaxis]
        if self.offsets is not None:
            weights += self.offsets[:, :, np.newaxis]
        return np.asarray(weights.reshape(self.outputs, -1)[:, : self.inputs].T)

    @cached_property
    def packed_levels(self) -> NDArray[np.uint8]:
        """As MatMulNBits takes them: (outputs, blocks, bytes), two levels of 4 bits in a byte, the first one lower."""
        return packed(self.levels, self.bits)

    @cached_property
    def packed_zeros(self) -> NDArray[np.uint8] | None:
        """As MatMulNBits takes them: (outputs, bytes). Float zero points would fall off its fast kernel."""
        if self.zeros is None:
            return None
        odd = self.blocks % 2 if self.bits == 4 else 0
        return packed(np.pad(self.zeros, ((0, 0), (0, odd))), self.bits)


@dataclass(frozen=True)
class StoredMatrix:
    """A weight matrix (outputs, inputs) of a file that is quantized already: its dequantized weights and its blocks."""

    weights: NDArray[np.float32]
    blocks: BlockMatrix


def packed(levels: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    return levels if bits == 8 else levels[..., 0::2] | (levels[..., 1::2] << np.uint8(4))


def in_blocks(
    weight: NDArray[np.float32], form: BlockForm, *, importance: NDArray[np.float32] | None = None
) -> BlockMatrix:
    """Round a matrix (inputs, outputs), each weight by itself.

    `importance` (inputs,) is what the squared error of a weight counts: the mean square of its input. Without it each
    block's levels span its weights.
    """
    inputs, outputs = weight.shape
    blocks = -(-inputs // form.block)
    levels = np.full((outputs, blocks, form.block), form.middle, np.uint8)
    scales = np.empty((outputs, blocks), np.float32)
    zeros = np.empty((outputs, blocks), np.uint8)

    def fill(part: tuple[int, slice]) -> None:
        number, columns = part
        start, end = number * form.block, min((number + 1) * form.block, inputs)
        rows = np.ascontiguousarray(weight[start:end, columns])
        weights = None if importance is None else importance[start:end, np.newaxis]
        scale, zero = fit_block(rows, form, weights)
        scales[columns, number], zeros[columns, number] = scale, zero
        levels[columns, number] = zero[:, np.newaxis]
        levels[columns, number, : end - start] = (steps_of(rows, scale, zero, form) + zero).T

    at_once(fill, [(number, part) for part in parts(outputs, COLUMNS) for number in range(blocks)])
    return BlockMatrix(inputs, form.bits, levels, scales, None if form.symmetric else zeros)


def in_blocks_in_turn(weight: NDArray[np.float32], form: BlockForm, factors: NDArray[np.float64]) -> BlockMatrix:
    """Round a matrix (inputs, outputs) by GPTQ: see `rounded_in_turn`. `factors` are those of `make_up_factors`.

    The scale and zero point of a block are found when its first row is reached, for what its weights are by then, and
    count the error of each by what of it the rows after it cannot make up for.
    """
    inputs, outputs = weight.shape
    blocks = -(-inputs // form.block)
    levels = np.full((outputs, blocks, form.block), form.middle, np.uint8)
    scales = np.empty((outputs, blocks), np.float32)
    zeros = np.empty((outputs, blocks), np.uint8)
    importance = (1 / np.diag(factors) ** 2).astype(np.float32)[:, np.newaxis]

    def fill(columns: slice) -> None:
        def round_first(row: int, rows: NDArray[np.float64]) -> NDArray[np.float32]:
            number, place = divmod(row, form.block)
            if place == 0:
                current = rows[: form.block].astype(np.float32)
                scale, zero = fit_block(current, form, importance[row : row + form.block])
                scales[columns, number], zeros[columns, number] = scale, zero
                levels[columns, number] = zero[:, np.newaxis]
            scale, zero = scales[columns, number], zeros[columns, number].astype(np.float32)
            steps = steps_of(rows[0], scale, zero, form)
            levels[columns, number, place] = steps + zero
            return np.asarray(steps * scale, np.float32)

        rounded_in_turn(weight[:, columns], factors, round_first)

    at_once(fill, parts(outputs, COLUMNS_IN_TURN))
    return BlockMatrix(inputs, form.bits, levels, scales, None if form.symmetric else zeros)


def parts(count: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


def at_once(work: Callable[[Part], None], parts: Iterable[Part]) -> None:
    """Run the parts of some work on all cores; numpy lets go of Python's lock while it computes."""
    with ThreadPoolExecutor(find_cores().usable) as pool:
        for _ in pool.map(work, parts):
            pass


def fit_block(
    rows: NDArray[np.float32], form: BlockForm, importance: NDArray[np.float32] | None
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Scale and zero point, (outputs,) each, of a block of some outputs: rows (block, outputs)."""
    scale, zero = spanning(rows, form)
    # 256 levels are so close that a search gains nothing that float32 sums could tell.
    if importance is None or form.bits == 8:
        return scale, zero
    best_scale, best_zero, best_gain = scale, zero, np.full_like(scale, -1)
    weighted = rows * importance

    def attempt(scale: NDArray[np.float32], zero: NDArray[np.float32]) -> None:
        """Fit the scale, by least squares, to the levels that this one gives; keep it where nothing was better."""
        nonlocal best_scale, best_zero, best_gain
        steps = steps_of(rows, scale, zero, form)
        along = (steps * weighted).sum(axis=0)
        steps *= steps
        steps *= importance
        length = np.maximum(steps.sum(axis=0), np.finfo(np.float32).tiny)
        # The squared error is that of no weight at all, which is the same for all attempts, less this.
        gain = along * along / length
        better = gain > best_gain
        best_scale = np.where(better & (along != 0), along / length, best_scale)
        best_zero = np.where(better, zero, best_zero)
        best_gain = np.where(better, gain, best_gain)

    for shift in SHIFTS[:1] if form.symmetric else SHIFTS:
        shifted = np.clip(zero + np.float32(shift), 0, form.top)
        for shrink in SHRINKS:
            attempt(scale * shrink, shifted)
    for _ in range(REFINEMENTS):
        attempt(best_scale, best_zero)
    return best_scale, best_zero


def spanning(rows: NDArray[np.float32], form: BlockForm) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Scale and zero point with which the levels span a block and 0."""
    lowest, highest = np.minimum(rows.min(axis=0), 0), np.maximum(rows.max(axis=0), 0)
    if form.symmetric:
        # The lowest level is one step further from the middle than the highest: it stands for what is furthest from 0.
        furthest = np.where(-lowest > highest, lowest, highest)
        scale = furthest / np.float32(-form.middle)
        scale = np.where(np.abs(scale) < SMALLEST, np.float32(SMALLEST), scale)
        return scale, np.full_like(scale, form.middle)
    scale = np.maximum((highest - lowest) / np.float32(form.top), np.float32(SMALLEST))
    return scale, np.clip(np.rint(-lowest / scale), 0, form.top)


def steps_of(
    rows: NDArray[np.floating], scale: NDArray[np.float32], zero: NDArray[np.float32], form: BlockForm
) -> NDArray[np.floating]:
    """The nearest levels, less the zero point: (rows, outputs) or (outputs,)."""
    steps = rows / scale
    np.rint(steps, out=steps)
    # Four times as fast as numpy.clip, in which most of the time of a search would go.
    np.maximum(steps, -zero, out=steps)
    np.minimum(steps, form.top - zero, out=steps)
    return steps
