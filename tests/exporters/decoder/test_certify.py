from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from ortkit import CheckpointError, Decoder, OrtkitError
from ortkit.exporters.decoder.certify import agreement_with, bundle_logprobs, checked_agreement
from ortkit.exporters.decoder.layerwise import LayerwiseForward, Observer
from ortkit.exporters.decoder.lazy_model import open_decoder
from ortkit.exporters.decoder.reference import DecoderReference, ProbeObserver
from tests.decoders import write_decoder
from tests.exporters.decoder_checkpoints import opened, write_checkpoint

WINDOWS = ((5, 9, 7, 200, 31, 40), (100, 8, 8))


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Decoder:
    bundle, _ = write_decoder(tmp_path_factory.mktemp("decoder") / "b")
    return Decoder(bundle, threads=1)


@pytest.fixture
def reference(decoder: Decoder) -> DecoderReference:
    """What the bundle itself gives."""
    found = tuple(logprobs.copy() for logprobs in bundle_logprobs(decoder, WINDOWS))
    return DecoderReference(WINDOWS, found, "", ())


def test_a_bundle_agrees_with_itself(decoder: Decoder, reference: DecoderReference) -> None:
    found = checked_agreement(decoder, reference)

    assert (found.kl, found.top, found.perplexity_ratio) == (0, 1, 1)


@pytest.mark.parametrize("place", [(0, 0, 0), (1, 2, 319)])
def test_nan_in_the_reference_fails(decoder: Decoder, reference: DecoderReference, place: tuple[int, int, int]) -> None:
    window, token, entry = place
    reference.logprobs[window][token, entry] = np.nan

    assert np.isnan(agreement_with(decoder, reference).kl)
    with pytest.raises(OrtkitError, match=r"differs from PyTorch: KL divergence nan on average"):
        checked_agreement(decoder, reference)


def test_nan_in_the_bundle_fails(
    decoder: Decoder, reference: DecoderReference, monkeypatch: pytest.MonkeyPatch
) -> None:
    def damaged(_decoder: Decoder, _windows: object) -> Iterator[np.ndarray]:
        for logprobs in reference.logprobs:
            yield np.full_like(logprobs, np.nan)

    monkeypatch.setattr("ortkit.exporters.decoder.certify.bundle_logprobs", damaged)
    for max_kl in (None, 1.0, float("inf")):
        with pytest.raises(OrtkitError, match=r"KL divergence nan"):
            checked_agreement(decoder, reference, max_kl=max_kl)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan_logits_of_pytorch_are_refused(tmp_path: Path, value: float) -> None:
    checkpoint = opened(write_checkpoint(tmp_path / "tiny"))
    probe = ProbeObserver(2)
    logits = np.zeros((3, checkpoint.config["vocab_size"]), np.float32)
    logits[2, 5] = value

    with pytest.raises(CheckpointError) as caught:
        probe.logits(1, logits)
    assert caught.value.message == (
        "PyTorch gives NaN or infinite logits for text 1 of the probe set, so the model is unusable"
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "name",
    [
        "model.layers.1.self_attn.k_proj.weight",
        "model.layers.0.mlp.down_proj.weight",
        "model.layers.1.input_layernorm.weight",
        "model.norm.weight",
        "model.embed_tokens.weight",
        "lm_head.weight",
    ],
)
def test_weights_with_nan_are_refused(tmp_path: Path, name: str, dtype: torch.dtype) -> None:
    """In one row of one tensor, such as the vector of a token that no probe text holds."""
    path = write_checkpoint(tmp_path / "tiny", "llama") / "model.safetensors"
    weights = {key: weight.to(dtype) for key, weight in load_file(path).items()}
    weights[name].view(-1)[-1] = torch.nan
    save_file(weights, path, metadata={"format": "pt"})

    with pytest.raises(CheckpointError) as caught:
        LayerwiseForward(open_decoder(opened(tmp_path / "tiny")), WINDOWS, Observer()).run()
    assert caught.value.message == f"the weights `{path}` are damaged: `{name}` holds NaN or infinite numbers"
    assert caught.value.exit_code == 7
