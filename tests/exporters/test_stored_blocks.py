from __future__ import annotations

import gguf
import numpy as np
import pytest

from exporters.block_rounding import BlockMatrix
from exporters.stored_blocks import BLOCK_READERS

# Where the scales of two bytes stand in the bytes of a block, by ggml-common.h.
HALVES = {
    "Q4_0": (0,),
    "Q4_1": (0, 2),
    "Q4_K": (0, 2),
    "Q5_0": (0,),
    "Q5_1": (0, 2),
    "Q5_K": (0, 2),
    "Q6_K": (208,),
    "Q8_0": (0,),
}
EXACT = {"Q4_0", "Q5_0", "Q6_K", "Q8_0"}


def random_bytes(kind: str, outputs: int, inputs: int) -> np.ndarray:
    """Blocks of every bit pattern, but with scales that are numbers, some of them negative."""
    rng = np.random.default_rng(len(kind) + inputs)
    block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    data = rng.integers(0, 256, (outputs, inputs // block, size), dtype=np.uint8)
    for place in HALVES[kind]:
        halves = rng.normal(size=data.shape[:2]).astype(np.float16)
        data[:, :, place : place + 2] = halves[:, :, np.newaxis].view(np.uint8)
    return data.reshape(outputs, -1)


def stored(kind: str) -> tuple[BlockMatrix, np.ndarray]:
    data = random_bytes(kind, 6, 768)
    return BLOCK_READERS[kind](data), gguf.dequantize(data, gguf.GGMLQuantizationType[kind])


def test_every_type_is_tested() -> None:
    assert BLOCK_READERS.keys() == HALVES.keys()


@pytest.mark.parametrize("kind", HALVES)
def test_blocks_stand_for_the_weights_that_ggml_gives(kind: str) -> None:
    """To the bit where a weight is a scale times a level; else up to the rounding of one sum in float32."""
    found, expected = stored(kind)

    assert found.inputs == 768
    assert found.zeros is None
    assert (found.offsets is None) == (kind in EXACT)
    if kind in EXACT:
        assert np.array_equal(found.dequantized().T, expected)
    else:
        assert np.abs(found.dequantized().T - expected).max() < 1e-6 * np.abs(expected).max()


@pytest.mark.parametrize("kind", HALVES)
def test_no_more_bits_than_the_file_has_where_four_are_enough(kind: str) -> None:
    found, _ = stored(kind)

    assert found.bits == (4 if kind.startswith("Q4") else 8)
    assert found.block == (16 if kind == "Q6_K" else 32)
    assert found.levels.max() < 2**found.bits
