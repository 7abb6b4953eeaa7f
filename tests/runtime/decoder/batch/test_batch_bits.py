"""The answer to a request in a batch is the same, bit for bit, whatever runs beside it and whatever is cached."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.texts import held_out_texts
from ortkit import Batch, Bundle, Decoder, Precision
from ortkit.exporters import export
from ortkit.runtime.bundle.manifest import CacheType
from ortkit.runtime.decoder.batch import batch_engine
from tests.batch_traffic import Request, alone, follow_ups, requests, together
from tests.decoders import write_decoder
from tests.exporters.decoder_checkpoints import write_checkpoint
from tests.quantized_decoder import write_quantized

CONTEXT = 320
FAMILIES: dict[str, Callable[[Path], Bundle]] = {
    "float32": lambda folder: write_decoder(folder)[0],
    "float32, window": lambda folder: write_decoder(folder, window=24)[0],
    "float16 cache": lambda folder: write_decoder(folder, cache=CacheType.FLOAT16)[0],
    "int8 cache": lambda folder: write_decoder(folder, cache=CacheType.INT8)[0],
    "int8 cache, window": lambda folder: write_decoder(folder, window=24, cache=CacheType.INT8)[0],
    "4 bits in groups of 32": lambda folder: write_quantized(folder, block=32),
    "4 bits in groups of 64": lambda folder: write_quantized(folder, block=64),
    "4 bits in groups of 128, window": lambda folder: write_quantized(folder, block=128, window=50),
    "8 bits in groups of 128": lambda folder: write_quantized(folder, block=128, bits=8),
    "8-bit graph for prompts": lambda folder: write_quantized(folder, prefill=True),
    "heads of 256": lambda folder: write_quantized(folder, head_size=256),
}


@pytest.fixture(scope="module")
def decoders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Decoder]:
    made: dict[str, Decoder] = {}

    def opened(family: str) -> Decoder:
        if family not in made:
            bundle = FAMILIES[family](tmp_path_factory.mktemp("batch") / "m")
            prefill = "none" if bundle.manifest.prefill is None else "int8"
            made[family] = Decoder(bundle, threads=1, prefill=prefill)
        return made[family]

    return opened


@pytest.mark.parametrize("family", FAMILIES)
def test_an_answer_depends_neither_on_its_neighbours_nor_on_what_is_cached(
    family: str, decoders: Callable[[str], Decoder], monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = decoders(family)
    asked = requests(1, 12, vocabulary=decoder.facts.vocabulary)
    expected = alone(decoder, asked, context=CONTEXT)
    later = follow_ups(asked[:6], expected[:6])
    expected_later = alone(decoder, later, context=CONTEXT)

    for seed, (slots, chunk, prefix_bytes) in enumerate([(8, 128, None), (3, 2, 1 << 20), (5, 34, 0)]):
        monkeypatch.setattr(batch_engine, "_CHUNK_BESIDE_ANSWERS", chunk)
        monkeypatch.setattr(decoder, "run_tokens", (512, 64, 96)[seed])
        with Batch(decoder, slots=slots, context=CONTEXT, prefix_bytes=prefix_bytes) as batch:
            assert together(batch, asked, seed) == expected
            assert together(batch, later, seed) == expected_later
            assert batch.stats.cached_tokens > 0


@pytest.mark.slow
@pytest.mark.parametrize("precision", [Precision.FP32, Precision.INT4])
@pytest.mark.parametrize("family", ["exaone4", "gemma2", "gemma3_text", "gpt2", "phi3", "smollm3", "starcoder2"])
def test_exported_decoders(family: str, precision: Precision, tmp_path: Path) -> None:
    """With windows in some layers, soft caps, layers without positions, and learned positions in plain attention."""
    folder = write_checkpoint(tmp_path / "checkpoint", family)
    decoder = Decoder(export(str(folder), precision=precision, out=tmp_path / "b").bundle, threads=2)
    # Plain attention reuses whole parts of 64 tokens only.
    asked = requests(2, 12, vocabulary=decoder.facts.vocabulary, lengths=(1, 33, 66, 100))
    expected = alone(decoder, asked, context=256)

    for slots in (8, 3):
        with Batch(decoder, slots=slots, context=256) as batch:
            assert together(batch, asked, slots) == expected
            assert batch.stats.cached_tokens > 0


@pytest.mark.slow
def test_a_real_decoder(smollm_bundle: Bundle) -> None:
    decoder = Decoder(smollm_bundle, threads=2)
    ids = decoder.encode(" ".join(held_out_texts(60)))
    source = random.Random(3)
    beginnings = [ids[:200], ids[300:340]]
    asked = []
    for _ in range(10):
        start, own = source.randrange(len(ids) - 129), source.choice((1, 64, 129))
        beginning = source.choice(beginnings)[: source.choice((30, 64, 200))]
        asked.append(Request(beginning + ids[start : start + own], {"max_tokens": source.choice((4, 16))}))
    expected = alone(decoder, asked, context=512)

    for slots in (8, 3):
        with Batch(decoder, slots=slots, context=512) as batch:
            assert together(batch, asked, slots, pause=0.1) == expected
            assert batch.stats.cached_tokens > 0
