from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from gguf import GGMLQuantizationType as Type
from safetensors.numpy import load_file, save_file

from ortkit import Bundle, Decoder, InputError, Precision, UnsupportedModelError
from ortkit.exporters import export
from ortkit.exporters.decoder.float16 import convert_cache_to_float16, convert_to_float16
from ortkit.exporters.decoder.passes import share_embedding
from ortkit.exporters.decoder.tracing import rebuild
from ortkit.exporters.export_stage import bundle_name
from ortkit.exporters.graph.float16 import Float16Tensor, to_float16
from ortkit.exporters.graph.passes import tidy
from ortkit.exporters.graph.streamed_tensor import StreamedTensor
from ortkit.exporters.options import ExportPlan
from ortkit.runtime.bundle.folder import DraftBundle
from ortkit.runtime.bundle.manifest import CacheType, Kind, Provider
from ortkit.runtime.decoder.cache.kv_cache import token_size
from ortkit.runtime.decoder.model_runner import ModelRunner
from ortkit.runtime.replay import replay
from tests.commands import Finished
from tests.exporters.decoder_checkpoints import write_checkpoint
from tests.exporters.decoders import (
    FAMILIES,
    GraphRun,
    exported,
    loaded,
    logits_of,
    token_ids,
    traced,
    write_decoder,
)
from tests.exporters.gguf_files import seeded, write_gguf
from tests.marks import slow_but

TOKENS = 90


def in_float16(graph: ir.Model) -> ir.Model:
    half = graph.clone()
    share_embedding(half.graph)
    convert_to_float16(half.graph)
    tidy(half)
    return half


def with_half_cache(graph: ir.Model) -> ir.Model:
    half = graph.clone()
    convert_cache_to_float16(half.graph)
    tidy(half)
    return half


def run_in_parts(graph: ir.Model, ids: np.ndarray) -> np.ndarray:
    """The logits of tokens that are read at once up to the last few, which come one by one."""
    run = GraphRun(graph, capacity=len(ids))
    return np.concatenate([run(part) for part in np.split(ids, [len(ids) - 4, len(ids) - 3, len(ids) - 2])])


def off(found: np.ndarray, expected: np.ndarray) -> float:
    """The root mean square of the difference."""
    return float(np.sqrt(np.square(found.astype(np.float64) - expected).mean()))


def on_cpu(bundle: Bundle) -> Decoder:
    """A decoder of a bundle for any provider; the CPU runs its graph, as it does for the certificate."""
    return Decoder(DraftBundle(bundle.path, bundle.manifest), threads=1)


@pytest.mark.parametrize("family", slow_but(["gemma3_text", "llama", "phi3, partly rotated"], sorted(FAMILIES)))
def test_every_family_is_as_close_to_pytorch_as_pytorchs_own_float16(family: str, tmp_path: Path) -> None:
    """PyTorch rounds after every operator. Rounding at the same places gives errors of the same size, and no other."""
    ids = token_ids(TOKENS)
    model, graph = exported(tmp_path, family)
    expected = logits_of(model, ids)
    own = off(logits_of(copy.deepcopy(model).half(), ids), expected)

    half, cache = (run_in_parts(changed, ids) for changed in (in_float16(graph), with_half_cache(graph)))

    assert 0 < off(half, expected) < 1.5 * own
    assert 0 < off(cache, expected) < own
    assert half.dtype == cache.dtype == np.float32


@pytest.mark.parametrize("family", ["gemma", "gpt2", "gpt_neox"])
def test_plain_attention_may_have_a_float16_cache(family: str, tmp_path: Path) -> None:
    ids = token_ids(TOKENS)
    model, graph = exported(tmp_path, family)
    expected = logits_of(model, ids)

    found = run_in_parts(with_half_cache(graph), ids)

    assert 0 < off(found, expected) < off(logits_of(model.half(), ids), expected)


@pytest.mark.parametrize("family", ["llama", "llama, tied"])
def test_all_that_is_large_is_float16_and_still_in_the_checkpoint(family: str, tmp_path: Path) -> None:
    _, graph = exported(tmp_path, family)
    large = sum(value.const_value.nbytes for value in graph.graph.initializers.values() if is_large(value))

    half = in_float16(graph).graph

    weights = [value.const_value for value in half.initializers.values() if is_large(value)]
    assert all(isinstance(weight, Float16Tensor) for weight in weights)
    shared = 320 * 64 * 4 if "tied" in family else 0
    assert sum(weight.nbytes for weight in weights) == (large - shared) // 2
    assert {value.dtype for value in half.inputs[4:]} == {value.dtype for value in half.outputs[1:]}
    assert (half.inputs[-1].dtype, half.outputs[0].dtype) == (ir.DataType.FLOAT16, ir.DataType.FLOAT)
    assert [node.op_type for node in half if node.op_type == "Cast"] == ["Cast"], "that of the logits"


def is_large(value: ir.Value) -> bool:
    assert value.const_value is not None
    return value.const_value.nbytes >= 1024


def test_values_beyond_float16() -> None:
    kept = np.array([65504, -65504, 1e-7, 0, np.inf, -np.inf], np.float32)
    assert np.array_equal(to_float16(ir.tensor(kept)), kept.astype(np.float16))

    for number in (65505, -65519, 70000, -3e38):
        with pytest.raises(UnsupportedModelError) as caught:
            to_float16(ir.tensor(np.array([1, number, -np.inf], np.float32), name="w"))
        assert caught.value.message == (
            f"`w` has a weight of magnitude {abs(np.float32(number)):g}; the largest float16 is 65504"
        )


def test_a_weight_beyond_float16_is_refused_by_its_name(tmp_path: Path, ortkit: Any) -> None:
    folder = write_checkpoint(tmp_path / "tiny-llama")
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.1.self_attn.k_proj.weight"][3, 4] = -70000
    save_file(weights, folder / "model.safetensors")

    finished: Finished = ortkit("export", folder, "--provider", "cuda", "--precision", "fp16", "--out", tmp_path / "b")

    assert finished.code == 10
    assert finished.err.endswith(
        "error: `model.layers.1.self_attn.k_proj.weight` has a weight of magnitude 70000; the largest float16 "
        "is 65504\n\nhint: use `--provider cpu`\n"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["tiny-llama"]


@pytest.mark.parametrize("precision", [Precision.FP16, Precision.INT4])
def test_hidden_states_beyond_float16_are_refused(tmp_path: Path, precision: Precision) -> None:
    """On a CPU such a graph would predict as PyTorch does, and on a GPU nothing."""
    folder = write_checkpoint(tmp_path / "tiny-granite", "granite", embedding_multiplier=1e6)

    with pytest.raises(UnsupportedModelError) as caught:
        export(str(folder), precision=precision, provider=Provider.CUDA, out=tmp_path / "b")
    assert caught.value.message.startswith("hidden states of `tiny-granite` reach ")
    assert caught.value.message.endswith(" on the probe set; the largest float16 is 65504")
    assert caught.value.hint == "use `--provider cpu`"
    assert caught.value.exit_code == 10
    assert not (tmp_path / "b").exists()


def test_a_graph_inside_the_graph_is_refused(tmp_path: Path) -> None:
    _, graph = exported(tmp_path, "llama, tied")
    node = next(node for node in graph.graph if node.op_type == "Sigmoid")
    node.op_type = "If"
    node.attributes["then_branch"] = ir.AttrGraph("then_branch", ir.Graph([], [], nodes=[]))

    with pytest.raises(UnsupportedModelError) as caught:
        convert_to_float16(graph.graph)
    assert caught.value.message == "the graph has `If`, whose subgraphs cannot be converted to float16"
    assert caught.value.hint == "use `--provider cpu`"


def test_a_cache_that_is_used_otherwise_is_refused(tmp_path: Path) -> None:
    graph = traced(write_decoder(tmp_path / "checkpoint", "gpt2"), tmp_path, plain=True)
    rebuild(graph)
    next(node for node in graph.graph if node.op_type == "ScatterElements").op_type = "Other"

    with pytest.raises(UnsupportedModelError) as caught:
        convert_cache_to_float16(graph.graph)
    assert caught.value.message == ("the model's attention uses its KV cache in a way that does not support float16")
    assert caught.value.hint == "export without `--cache float16`"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("decoder") / "tiny-llama")


@pytest.fixture(scope="module")
def fp16(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    out = tmp_path_factory.mktemp("b") / "fp16"
    return export(str(folder), precision=Precision.FP16, provider=Provider.CUDA, out=out).bundle


@pytest.fixture(scope="module")
def half_cache(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return export(str(folder), cache=CacheType.FLOAT16, out=tmp_path_factory.mktemp("b") / "int4").bundle


def test_an_fp16_bundle_predicts_as_pytorch_does(fp16: Bundle, folder: Path) -> None:
    ids = token_ids(300)
    certificate, facts = fp16.manifest.certificate, fp16.manifest.decoder
    assert certificate is not None
    assert facts is not None
    print(certificate.figures)

    assert facts.cache_type is CacheType.FLOAT16
    assert certificate.figures["kl_mean"] < 1e-4
    decoder = on_cpu(fp16)
    forward = ModelRunner(decoder.session, decoder.new_cache())
    found = np.concatenate([forward.run(part.tolist(), len(part)).copy() for part in np.split(ids, [200, 201, 280])])
    assert forward.cache.buffers[0].dtype == np.float16
    assert forward.cache.capacity > 256, "grown"
    model = loaded(folder)
    expected = logits_of(model, ids)
    assert off(found, expected) < 1.5 * off(logits_of(model.half(), ids), expected)
    assert replay(decoder).same_bits


def test_fp16_halves_the_size(fp16: Bundle, folder: Path) -> None:
    data = fp16.manifest.files["model.onnx.data"].size
    parameters = sum(array.size for array in load_file(folder / "model.safetensors").values())

    # Tied embeddings once, and pages of 4 KiB. The rotary tables are 512 x 16 numbers more.
    assert 2 * parameters < data < 2 * (parameters + 2 * 512 * 8) + 4096 * 16


def test_what_a_float16_cache_costs_and_saves(half_cache: Bundle, folder: Path, tmp_path: Path) -> None:
    plain = export(str(folder), out=tmp_path / "int4").bundle
    facts, other = half_cache.manifest.decoder, plain.manifest.decoder
    assert facts is not None
    assert other is not None
    certificate, expected = half_cache.manifest.certificate, plain.manifest.certificate
    assert certificate is not None
    assert expected is not None

    assert half_cache.manifest.blocks == plain.manifest.blocks
    assert 2 * token_size(facts) == token_size(other)
    assert certificate.figures["kl_mean"] != expected.figures["kl_mean"], "it is certified with the cache that it has"
    assert certificate.figures["kl_mean"] == pytest.approx(expected.figures["kl_mean"], rel=0.01)
    decoder = Decoder(half_cache, threads=1)
    cache = decoder.prefill("The quick brown fox")
    assert {buffer.dtype for buffer in cache.buffers} == {np.dtype(np.float16)}
    assert cache.size == sum(buffer.nbytes for buffer in cache.buffers) == cache.capacity * token_size(facts)
    assert replay(decoder).same_bits
    decoder.save_cache(tmp_path / "saved", cache)
    found = decoder.load_cache(tmp_path / "saved")
    assert all(
        np.array_equal(one[:, :, : cache.length], two[:, :, : cache.length])
        for one, two in zip(found.buffers, cache.buffers, strict=True)
    )
    with pytest.raises(InputError, match="was saved with another bundle"):
        Decoder(plain, threads=1).load_cache(tmp_path / "saved")


@pytest.mark.parametrize("precision", [Precision.INT8, Precision.SOURCE])
def test_other_blocks_may_have_a_float16_cache_too(precision: Precision, tmp_path: Path) -> None:
    types = {"norm.weight": Type.F32, ".weight": Type.Q4_1}
    path = write_gguf(tmp_path / "tiny.gguf", seeded("llama"), types=types)

    bundle = export(str(path), precision=precision, cache=CacheType.FLOAT16, out=tmp_path / "b").bundle

    assert bundle.manifest.decoder is not None
    assert bundle.manifest.decoder.cache_type is CacheType.FLOAT16
    assert replay(Decoder(bundle, threads=1)).same_bits


def test_decoders_with_plain_attention_have_it_too(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "tiny-olmo2", "olmo2")

    decoder = Decoder(export(str(folder), out=tmp_path / "b", cache=CacheType.FLOAT16).bundle, threads=1)

    assert decoder.facts.plain_attention
    assert decoder.prefill("The quick").buffers[0].dtype == np.float16
    assert replay(decoder).same_bits


def test_output_of_the_command_line(ortkit: Any, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "fp16"
    finished: Finished = ortkit("export", folder, "--provider", "cuda", "--precision", "fp16", "--out", out)

    assert finished.code == 0
    assert "tiny-llama, fp16\n" in finished.err
    assert " s round to float16\n" in finished.err
    assert "  provider cuda, certified on cpu\n" in finished.err
    assert "slower" not in finished.err
    shown = ortkit("inspect", out).out.decode()
    assert "precision    fp16, for the provider cuda\n" in shown
    assert "KV cache 0 MiB for 512 tokens\n" in shown
    assert re.search(
        r"\ntotal        about \d MiB for 512, of GPU memory; the provider's libraries and the prefill of a prompt "
        r"take more\n",
        shown,
    )
    assert "cache        float16 KV cache, half the memory of float32\n" in shown


def test_fp16_is_not_a_precision_of_the_cpu(ortkit: Any, folder: Path, tmp_path: Path) -> None:
    refused: Finished = ortkit("export", folder, "--precision", "fp16", "--out", tmp_path / "b")

    assert refused.code == 2
    assert refused.err.endswith(
        "error: decoders are not exported to `fp16`: a CPU computes it in float32, slower than `int4`, and the bundle "
        "is larger\n\nhint: add `--provider cuda` for a GPU, or use `--precision int4`\n"
    )


def test_a_cache_in_half_does_not_replace_the_usual_bundle() -> None:
    def name(precision: Precision, cache: CacheType, provider: Provider = Provider.CPU) -> str:
        return bundle_name("m", ExportPlan(Kind.DECODER, precision, cache, None, provider))

    assert name(Precision.INT4, CacheType.FLOAT16) == "m-int4-float16-cache"
    assert name(Precision.INT4, CacheType.FLOAT32) == "m-int4"
    assert name(Precision.INT4, CacheType.FLOAT16, Provider.CUDA) == "m-int4-cuda"
    assert name(Precision.FP16, CacheType.FLOAT16, Provider.CUDA) == "m-fp16-cuda"


def test_command_line_shows_the_cache_type(ortkit: Any, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "int4"
    finished: Finished = ortkit("export", folder, "--cache", "float16", "--out", out)

    assert finished.code == 0
    assert "  cache    float16 KV cache: half the memory, slower on a CPU\n" in finished.err
    shown = ortkit("inspect", out).out.decode()
    assert "cache        float16 KV cache, half the memory of float32\n" in shown
    assert ortkit("verify", out).code == 0
    refused: Finished = ortkit("export", folder, "--precision", "fp32", "--cache", "float16", "--out", out)
    assert refused.code == 2
    assert refused.err.endswith(
        "error: `fp32` has a float32 KV cache only\n\nhint: leave out `--cache`, or choose one of "
        "`int4`, `int8`, `source`\n"
    )


def test_streamed_matrices_are_read_once_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing keeps what was read: the largest matrix is what a conversion needs."""
    _, graph = exported(tmp_path, "llama, tied")
    half = in_float16(graph)
    read: list[str] = []
    array = StreamedTensor.array

    def counted(tensor: StreamedTensor) -> np.ndarray:
        read.append(tensor.name or "")
        return array(tensor)

    monkeypatch.setattr(StreamedTensor, "array", counted)
    for value in half.graph.initializers.values():
        assert value.const_value is not None
        if is_large(value):
            value.const_value.numpy()
            value.const_value.numpy()

    assert len(read) == 2 * len(set(read)) > 0
