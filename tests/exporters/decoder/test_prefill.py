"""The 8-bit graph for prompts of an export."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Type

from ortkit import Bundle, BundleError, Decoder, OrtkitError, Precision
from ortkit.exporters import export
from ortkit.exporters.certification.probe import probe_texts
from ortkit.exporters.decoder import prefill
from ortkit.exporters.models.loading import load_tokenizer
from ortkit.exporters.quantization.gptq import QuantizedWeight
from ortkit.runtime.bundle.bundle import PREFILL_GRAPH
from ortkit.runtime.bundle.manifest import CacheType, PrefillChoice
from ortkit.runtime.replay import replay
from tests.exporters.decoder_checkpoints import opened, write_checkpoint
from tests.exporters.decoders import loaded, logits_of
from tests.exporters.gguf_files import seeded, write_gguf
from tests.marks import slow_but
from tests.tiny_bundles import rehash


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("decoder") / "tiny-llama")


@pytest.fixture(scope="module")
def int4(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return export(str(folder), out=tmp_path_factory.mktemp("b") / "int4", prefill="int8").bundle


def divergence(expected: np.ndarray, found: np.ndarray) -> float:
    """The mean KL divergence of next-token probabilities from logits, by PyTorch."""
    those, these = (torch.from_numpy(logits).double().log_softmax(-1) for logits in (expected, found))
    return float(torch.nn.functional.kl_div(these, those, log_target=True, reduction="batchmean"))


def prompt_logits(bundle: Bundle, ids: np.ndarray) -> np.ndarray:
    """What the 8-bit graph gives for a prompt."""
    decoder = Decoder(bundle, threads=1, prefill="int8")
    runner = decoder.runner(decoder.new_cache())
    assert runner.prefill_session is not runner.session
    return runner.run(ids.tolist(), len(ids), session=runner.prefill_session).copy()


def path_logits(bundle: Bundle, ids: np.ndarray) -> np.ndarray:
    """The first half as a prompt, token after token of the second half as an answer."""
    decoder = Decoder(bundle, threads=1, prefill="int8")
    runner = decoder.runner(decoder.new_cache())
    half = (len(ids) + 1) // 2
    prompt = runner.run(ids[:half].tolist(), half, session=runner.prefill_session).copy()
    return np.concatenate([prompt, *(runner.run([token]).copy() for token in ids[half:].tolist())])


def test_the_certificate_measures_prompts_and_answers_after_them(int4: Bundle, folder: Path) -> None:
    certificate = int4.manifest.certificate
    assert certificate is not None
    assert int4.manifest.prefill is not None
    ids = np.array(load_tokenizer(opened(folder))("\n".join(probe_texts().texts))["input_ids"])
    windows = [ids[start : start + 512] for start in range(0, certificate.probe_size, 512)]
    windows[-1] = windows[-1][: certificate.probe_size - 512 * (len(windows) - 1)]
    model = loaded(folder)
    found = [divergence(logits_of(model, window), path_logits(int4, window)) for window in windows]

    expected = np.average(found, weights=list(map(len, windows)))
    print(f"prefill: {expected}")
    # Several rows have other kernels than one.
    assert certificate.figures["prefill_kl_mean"] == pytest.approx(expected, rel=0.02)
    assert 0 < certificate.figures["prefill_top1_agreement"] <= 1


def test_the_decoders_own_files_are_those_of_an_export_without_it(int4: Bundle, folder: Path, tmp_path: Path) -> None:
    without = export(str(folder), out=tmp_path / "without").bundle
    assert set(int4.manifest.files) - set(without.manifest.files) == {PREFILL_GRAPH, f"{PREFILL_GRAPH}.data"}
    for name, record in without.manifest.files.items():
        assert int4.manifest.files[name] == record
    assert without.manifest.prefill is None


@pytest.mark.parametrize("family", slow_but(["gemma2"], ["gemma2", "gpt2", "mistral", "qwen2"]))
def test_8_bit_prompts_are_close_to_pytorch(family: str, tmp_path: Path) -> None:
    """Biases, head norms, caps, plain attention; with weights of 8 bits elsewhere, what is left is this graph's."""
    folder = write_checkpoint(tmp_path / "tiny", family)
    bundle = export(str(folder), precision=Precision.INT8, prefill="int8", out=tmp_path / "b").bundle
    ids = np.array(load_tokenizer(opened(folder))("\n".join(probe_texts().texts))["input_ids"][:80])
    found = divergence(logits_of(loaded(folder), ids), prompt_logits(bundle, ids))
    print(f"{family}: {found}")
    assert 0 < found < 0.01


@pytest.mark.parametrize("cache", slow_but([CacheType.INT8], list(CacheType)))
def test_blocks_of_a_gguf_file_can_have_one(cache: CacheType, tmp_path: Path) -> None:
    """The output projection keeps the file's blocks in both graphs."""
    types = {"ffn_up.weight": Type.Q8_0, "norm.weight": Type.F32, ".weight": Type.Q4_1}
    file = write_gguf(tmp_path / "tiny.Q4_1.gguf", seeded("llama"), types=types)
    bundle = export(str(file), out=tmp_path / "b", prefill="int8", cache=cache).bundle
    assert bundle.manifest.precision is Precision.SOURCE
    assert bundle.manifest.certificate is not None
    assert bundle.manifest.certificate.figures["prefill_kl_mean"] < 0.02


def test_a_path_beyond_the_threshold_is_refused(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With weights of zeros nothing is left of the layers."""
    monkeypatch.setattr(
        prefill,
        "quantize_weight",
        lambda weight: QuantizedWeight(np.zeros(weight.shape, np.int8), np.ones(weight.shape[1], np.float32)),
    )
    with pytest.raises(OrtkitError, match=r"with its 8-bit graph for prompts .* must stay within 0\.01") as raised:
        export(str(folder), precision="int8", prefill="int8", max_kl=0.01, out=tmp_path / "b")
    assert raised.value.exit_code == 1
    assert raised.value.hint == "no bundle was written; leave out `--prefill`"
    assert not (tmp_path / "b").exists()


def test_golden_tokens_are_certified_after_the_8_bit_graph_too(int4: Bundle) -> None:
    certificate = int4.manifest.certificate
    assert certificate is not None
    for answer in certificate.answers:
        assert len(answer.prefilled) == len(answer.output)
        assert answer.prefilled != answer.logprobs
    for choice in PrefillChoice.INT8, PrefillChoice.NONE:
        assert replay(Decoder(int4, prefill=choice)).same_bits


def test_a_graph_for_prompts_that_computes_otherwise_is_found(int4: Bundle, tmp_path: Path) -> None:
    """Its file has the right hash: the kernels of a machine, or who made the manifest, are at fault."""
    path = tmp_path / "b"
    shutil.copytree(int4.path, path)
    data = path / f"{PREFILL_GRAPH}.data"
    data.write_bytes(bytes(data.stat().st_size))
    rehash(path)

    assert replay(Decoder(path, prefill="none")).same_bits
    with pytest.raises(BundleError, match=r"certified tokens, after a prompt through the 8-bit graph, differ by"):
        replay(Decoder(path, prefill="int8"))
