from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from gguf import GGMLQuantizationType as Type
from numpy.typing import NDArray
from transformers import DynamicCache

from ortkit import Bundle, Decoder, InputError, Precision, UnsupportedModelError
from ortkit.exporters import export
from ortkit.exporters.decoder.int8_cache import MARGIN, cache_magnitudes, convert_cache_to_int8
from ortkit.exporters.decoder.passes import attentions
from ortkit.exporters.export_stage import bundle_name
from ortkit.exporters.options import ExportPlan
from ortkit.runtime.bundle.manifest import CacheType, Kind, Provider
from ortkit.runtime.decoder.cache.kv_cache import token_size
from ortkit.runtime.replay import replay
from tests.commands import Finished
from tests.decoders import HEAD_SIZE, write_decoder
from tests.exporters.decoder_checkpoints import write_checkpoint
from tests.exporters.decoders import FAMILIES, GraphRun, exported, loaded, logits_of, token_ids
from tests.exporters.gguf_files import seeded, write_gguf
from tests.marks import slow_but

TOKENS = 90


class RoundedCache(DynamicCache):
    """transformers' KV cache, which rounds what is put into it to int8 with these scales (kv_heads, 1, head_size)."""

    def __init__(self, scales: list[NDArray[np.float32]]) -> None:
        super().__init__()
        self.scales = scales

    def update(self, key_states: Any, value_states: Any, layer_idx: int, cache_kwargs: Any = None) -> Any:
        rounded = [
            torch.clamp(torch.round(states / scale), -128, 127) * scale
            for states, scale in zip(
                (key_states, value_states), map(torch.from_numpy, self.scales[2 * layer_idx :][:2]), strict=True
            )
        ]
        return super().update(*rounded, layer_idx, cache_kwargs)


def cached_by_pytorch(model: Any, ids: NDArray[np.int64]) -> list[NDArray[np.float32]]:
    """The KV cache, key and value of each layer in turn, (kv_heads, tokens, head_size)."""
    cache = DynamicCache()
    with torch.inference_mode():
        model(torch.from_numpy(ids)[None], past_key_values=cache)
    return [states[0].numpy() for layer in cache.layers for states in (layer.keys, layer.values)]


def rounded_logits(model: Any, ids: NDArray[np.int64], scales: list[NDArray[np.float32]]) -> NDArray[np.float32]:
    with torch.inference_mode():
        return model(torch.from_numpy(ids)[None], past_key_values=RoundedCache(scales)).logits[0].numpy()


def scales_in(graph: ir.Graph) -> list[NDArray[np.float32]]:
    return [node.inputs[place].const_value.numpy() for node in attentions(graph) for place in (12, 13)]


def off(found: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    """The root mean square of the difference."""
    return float(np.sqrt(np.square(found.astype(np.float64) - expected).mean()))


@pytest.mark.parametrize("family", slow_but(["gemma2", "llama", "phi3, partly rotated"], sorted(FAMILIES)))
def test_every_family_is_pytorch_with_a_rounded_cache(family: str, tmp_path: Path) -> None:
    """Windows, soft caps and the sink that selects the kernel included; single tokens have that kernel too."""
    ids = token_ids(TOKENS)
    model, graph = exported(tmp_path, family)
    exact = logits_of(model, ids)
    magnitudes = [np.abs(states).max(axis=1) for states in cached_by_pytorch(model, ids)]

    convert_cache_to_int8(graph.graph, magnitudes)

    run = GraphRun(graph, capacity=TOKENS)
    found = np.concatenate([run(part) for part in np.split(ids, [TOKENS - 4, TOKENS - 3, TOKENS - 2])])
    expected = rounded_logits(model, ids, scales_in(graph.graph))
    assert {cache.numpy().dtype for cache in run.caches.values()} == {np.dtype(np.int8)}
    # A number between two levels may be rounded to either.
    assert off(found, expected) < 0.2 * off(expected, exact)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint") / "tiny-llama")


@pytest.fixture(scope="module")
def quantized(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return export(str(folder), cache=CacheType.INT8, out=tmp_path_factory.mktemp("b") / "int4").bundle


def test_magnitudes_are_those_of_pytorchs_cache(folder: Path, tmp_path: Path) -> None:
    decoder = Decoder(export(str(folder), precision=Precision.FP32, out=tmp_path / "b").bundle, threads=1)
    half = decoder.facts.head_size // 2
    windows = [token_ids(60), token_ids(90)[60:]]

    found = cache_magnitudes(decoder, [window.tolist() for window in windows], [half] * decoder.facts.layers)

    for place, states in enumerate(zip(*(cached_by_pytorch(loaded(folder), ids) for ids in windows), strict=True)):
        expected = np.abs(np.concatenate(states, axis=1))
        if place % 2 == 0:
            norms = np.linalg.norm([expected[..., :half], expected[..., half:]], axis=0)
            expected = np.concatenate([norms, norms], axis=-1)
        assert np.allclose(found[place], expected.max(axis=1), rtol=1e-4)


def test_no_position_of_a_token_changes_the_scale_of_its_key(tmp_path: Path) -> None:
    """In the first layer a key depends on its token alone, and on the position by which it is turned."""
    decoder = Decoder(write_decoder(tmp_path / "b")[0], threads=1)

    def magnitudes(count: int, pairs: int) -> NDArray[np.float32]:
        return cache_magnitudes(decoder, [[7] * count], [pairs] * decoder.facts.layers)[0]

    assert np.allclose(magnitudes(1, HEAD_SIZE // 2), magnitudes(900, HEAD_SIZE // 2), rtol=1e-4)
    assert magnitudes(900, 0).max() > 1.1 * magnitudes(1, 0).max(), "without pairs it does"


def test_channels_without_numbers_have_a_scale_too(tmp_path: Path) -> None:
    _, graph = exported(tmp_path, "llama")
    magnitudes = [np.zeros((2, 16), np.float32) for _ in range(2 * len(attentions(graph.graph)))]
    magnitudes[1][0, :2] = 127, 0.5

    convert_cache_to_int8(graph.graph, magnitudes)

    keys, values, *_ = scales_in(graph.graph)
    assert (keys == 1).all()
    assert values[0, 0, :3] == pytest.approx(np.array([1, 1 / 127, 1 / 127]) * MARGIN)
    assert (values[1] == 1).all()


def test_what_an_int8_cache_costs_and_saves(quantized: Bundle, folder: Path, tmp_path: Path) -> None:
    plain = export(str(folder), out=tmp_path / "int4").bundle
    facts, other = quantized.manifest.decoder, plain.manifest.decoder
    assert facts is not None
    assert other is not None
    certificate, expected = quantized.manifest.certificate, plain.manifest.certificate
    assert certificate is not None
    assert expected is not None

    assert quantized.manifest.blocks == plain.manifest.blocks
    assert quantized.manifest.files["model.onnx.data"] == plain.manifest.files["model.onnx.data"], "the same weights"
    assert 4 * token_size(facts) == token_size(other)
    assert certificate.figures["kl_mean"] != expected.figures["kl_mean"], "it is certified with the cache that it has"
    assert certificate.figures["kl_mean"] == pytest.approx(expected.figures["kl_mean"], rel=0.02)
    decoder = Decoder(quantized, threads=1)
    cache = decoder.prefill("The quick brown fox")
    assert {buffer.dtype for buffer in cache.buffers} == {np.dtype(np.int8)}
    assert replay(decoder).same_bits
    decoder.save_cache(tmp_path / "saved", cache)
    with pytest.raises(InputError, match="was saved with another bundle"):
        Decoder(plain, threads=1).load_cache(tmp_path / "saved")


@pytest.mark.parametrize("precision", [Precision.INT8, Precision.SOURCE])
def test_other_blocks_may_have_an_int8_cache_too(precision: Precision, tmp_path: Path) -> None:
    types = {"norm.weight": Type.F32, ".weight": Type.Q4_1}
    path = write_gguf(tmp_path / "tiny.gguf", seeded("llama"), types=types)

    bundle = export(str(path), precision=precision, cache=CacheType.INT8, out=tmp_path / "b").bundle

    assert bundle.manifest.decoder is not None
    assert bundle.manifest.decoder.cache_type is CacheType.INT8
    assert replay(Decoder(bundle, threads=1)).same_bits


@pytest.mark.slow
def test_blocks_are_searched_with_a_float32_cache(folder: Path, tmp_path: Path) -> None:
    bundle = export(str(folder), max_kl=0.5, cache=CacheType.INT8, out=tmp_path / "b").bundle

    assert bundle.manifest.decoder is not None
    assert bundle.manifest.decoder.cache_type is CacheType.INT8
    assert replay(Decoder(bundle, threads=1)).same_bits


def test_plain_attention_has_none(ortkit: Any, tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "tiny-olmo2", "olmo2")

    with pytest.raises(UnsupportedModelError):
        export(str(folder), cache=CacheType.INT8, out=tmp_path / "b")
    refused: Finished = ortkit("export", folder, "--cache", "int8", "--out", tmp_path / "b")

    assert refused.code == 10
    assert refused.err.endswith(
        "error: `tiny-olmo2` is exported with attention of plain operators, which has no int8 KV cache\n\n"
        "hint: use `--cache float16` for half of the memory, or leave out `--cache`\n"
    )
    assert not (tmp_path / "b").exists()


def test_an_int8_cache_does_not_replace_the_usual_bundle() -> None:
    plan = ExportPlan(Kind.DECODER, Precision.INT4, CacheType.INT8, None, Provider.CPU)

    assert bundle_name("m", plan) == "m-int4-int8-cache"


def test_output_of_the_command_line(ortkit: Any, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "int4"
    finished: Finished = ortkit("export", folder, "--cache", "int8", "--out", out)

    assert finished.code == 0
    assert "  cache    int8 KV cache: a quarter of the memory; new tokens faster, long prompts slower\n" in finished.err
    assert "cache        int8 KV cache, a quarter of the memory of float32\n" in ortkit("inspect", out).out.decode()
    assert ortkit("verify", out).code == 0
    for options, reason in [
        (["--precision", "fp32"], "`fp32` has a float32 KV cache only"),
        (["--provider", "cuda"], "a graph for `cuda` has a float16 KV cache only"),
    ]:
        refused: Finished = ortkit("export", folder, *options, "--cache", "int8", "--out", out)
        assert refused.code == 2
        assert f"error: {reason}\n" in refused.err
