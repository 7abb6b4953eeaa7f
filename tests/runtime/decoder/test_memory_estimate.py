from __future__ import annotations

import dataclasses

import pytest

from ortkit import Bundle
from ortkit.runtime.bundle.manifest import (
    CacheType,
    DecoderFacts,
    FileRecord,
    Manifest,
    Precision,
    Provider,
    WeightBlocks,
)
from ortkit.runtime.decoder.memory_estimate import PROCESS, footprint_of, packed_share, run_tokens
from tests.decoders import TinyDecoder

BLOCKS = WeightBlocks(10, 0, 4, 4, 64, 64, symmetric=False, rounding="importance")


def decoder_facts(manifest: Manifest) -> DecoderFacts:
    assert manifest.decoder is not None
    return manifest.decoder


def test_mistral_7b(written: tuple[Bundle, TinyDecoder]) -> None:
    """Its 32 layers have 8 heads of 128 numbers, 4 bytes each, for keys and for values."""
    manifest = written[0].manifest
    facts = dataclasses.replace(decoder_facts(manifest), context_length=32768, layers=32, kv_heads=8, head_size=128)
    files = {"model.onnx": 10**6, "model.onnx.data": 4 * 10**9, "tokenizer.json": 10**7}
    records = {name: FileRecord(size, "0" * 64) for name, size in files.items()}

    large = dataclasses.replace(manifest, files=records, blocks=BLOCKS)
    found = footprint_of(large, facts)

    halved = dataclasses.replace(facts, cache_type=CacheType.FLOAT16)
    half = footprint_of(dataclasses.replace(manifest, files=records, blocks=BLOCKS), halved)
    assert [2 * length.cache for length in half.lengths] == [length.cache for length in found.lengths]
    assert half.lengths[1].cache == 4096 << 17, "0.54 GB"
    quarter = dataclasses.replace(facts, cache_type=CacheType.INT8)
    assert [4 * length.cache for length in footprint_of(large, quarter).lengths] == [
        length.cache for length in found.lengths
    ]
    assert run_tokens(large, quarter) == 64, "its attention takes more memory for each token of a run"
    assert half.lengths[1].total - half.lengths[1].cache == found.lengths[1].total - found.lengths[1].cache
    assert found.weights == pytest.approx(4_001 * 10**6 * 0.625 / (0.5 + 4 / 64 + 0.5 / 64))
    assert [length.tokens for length in found.lengths] == [1024, 4096, 8192]
    assert [length.cache for length in found.lengths] == [tokens << 18 for tokens in (1024, 4096, 8192)]
    assert run_tokens(large, facts) == 128
    for length in found.lengths:
        assert length.total == found.weights + length.cache + PROCESS


def test_a_run_is_shorter_the_wider_a_model_is(written: tuple[Bundle, TinyDecoder]) -> None:
    manifest = written[0].manifest
    facts = dataclasses.replace(decoder_facts(manifest), layers=32)

    def run_of(size: int) -> int:
        files = {"model.onnx.data": FileRecord(size, "0" * 64)}
        return run_tokens(dataclasses.replace(manifest, files=files, blocks=BLOCKS), facts)

    assert [run_of(size) for size in (0, 10**6, 10**8, 10**9, 4 * 10**9, 10**11, 10**13)] == [
        512,
        512,
        512,
        256,
        128,
        64,
        64,
    ]


def test_cpus_widen_float16(written: tuple[Bundle, TinyDecoder]) -> None:
    """SmolLM2's 270 MB were seen to take 540."""
    manifest = written[0].manifest
    assert manifest.decoder is not None

    found = footprint_of(dataclasses.replace(manifest, precision=Precision.FP16), manifest.decoder)

    assert found.weights == 2 * manifest.files["model.onnx"].size


@pytest.mark.parametrize(("precision", "blocks"), [(Precision.FP16, None), (Precision.INT4, BLOCKS)])
def test_a_gpu_has_weights_as_they_are_in_the_file(
    written: tuple[Bundle, TinyDecoder], precision: Precision, blocks: WeightBlocks | None
) -> None:
    manifest = dataclasses.replace(written[0].manifest, provider=Provider.CUDA, precision=precision, blocks=blocks)
    facts = dataclasses.replace(decoder_facts(manifest), cache_type=CacheType.FLOAT16)

    found = footprint_of(manifest, facts)

    assert found.weights == manifest.files["model.onnx"].size
    for length in found.lengths:
        assert length.cache == length.tokens * 2 * 2 * 2 * 16 * 2, (
            "2 layers, 2 heads of 16 halves, each with a key and a value"
        )
        assert length.total == found.weights + length.cache
    wide = {"model.onnx.data": FileRecord(10**11, "0" * 64)}
    assert run_tokens(dataclasses.replace(manifest, files=wide), facts) == 512


@pytest.mark.parametrize(
    ("blocks", "share"),
    [
        (None, 1),
        (dataclasses.replace(BLOCKS, symmetric=True), 0.625 / 0.5625),
        (dataclasses.replace(BLOCKS, bits=8, block=32), 1.25 / (1 + 0.125 + 1 / 32)),
    ],
)
def test_the_overhead_of_packing(blocks: WeightBlocks | None, share: float) -> None:
    assert packed_share(blocks) == pytest.approx(share)
