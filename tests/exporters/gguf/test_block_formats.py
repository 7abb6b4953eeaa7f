from __future__ import annotations

import gguf
import numpy as np
import pytest

from ortkit.exporters.gguf.block_formats import BLOCK_READERS, BYTES, SCALES, scales_of
from ortkit.exporters.quantization.blockwise import BlockMatrix

EXACT = {"Q3_K", "Q4_0", "Q5_0", "Q6_K", "Q8_0", "IQ4_NL", "IQ4_XS"}


def random_bytes(kind: str, outputs: int, inputs: int) -> np.ndarray:
    """Blocks of every bit pattern, but with scales that are numbers, some of them negative."""
    rng = np.random.default_rng(len(kind) + inputs)
    block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    data = rng.integers(0, 256, (outputs, inputs // block, size), dtype=np.uint8)
    for place in SCALES[kind]:
        halves = rng.normal(size=data.shape[:2]).astype(np.float16)
        data[:, :, place : place + 2] = halves[:, :, np.newaxis].view(np.uint8)
    return data.reshape(outputs, -1)


def stored(kind: str) -> tuple[BlockMatrix, np.ndarray]:
    data = random_bytes(kind, 6, 768)
    return BLOCK_READERS[kind](data), gguf.dequantize(data, gguf.GGMLQuantizationType[kind])


def test_every_type_is_tested() -> None:
    assert BLOCK_READERS.keys() == SCALES.keys() == BYTES.keys()


@pytest.mark.parametrize("kind", SCALES)
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


@pytest.mark.parametrize("kind", SCALES)
def test_no_more_bits_than_the_file_has_where_four_are_enough(kind: str) -> None:
    found, _ = stored(kind)

    assert found.bits == (4 if kind[:2] in ("Q2", "Q3", "Q4") else 8)
    assert found.block_size == (16 if kind in ("Q2_K", "Q3_K", "Q6_K") else 32)
    assert found.levels.max() < 2**found.bits


@pytest.mark.parametrize("kind", SCALES)
def test_numbers_that_are_not_finite_are_seen_in_each_scale(kind: str) -> None:
    assert gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]][1] == BYTES[kind]
    for place in SCALES[kind]:
        data = random_bytes(kind, 6, 768)
        assert all(np.isfinite(found).all() for found in scales_of(kind, data))

        data[2, BYTES[kind] + place : BYTES[kind] + place + 2] = np.array([np.nan], np.float16).view(np.uint8)

        assert not all(np.isfinite(found).all() for found in scales_of(kind, data))
        assert not np.isfinite(gguf.dequantize(data, gguf.GGMLQuantizationType[kind])).all()
