from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ortkit import Decoder, OrtkitError, Precision, UnsupportedModelError
from ortkit.exporters import export
from ortkit.exporters.checkpoint.architectures import architecture_of
from ortkit.exporters.decoder.lazy_model import open_decoder
from ortkit.exporters.decoder.plain_attention import PlainPatcher
from ortkit.exporters.decoder.tracing import trace
from ortkit.runtime.bundle.manifest import Kind
from ortkit.runtime.decoder.model_runner import ModelRunner
from tests.commands import Finished
from tests.exporters.decoder_checkpoints import write_checkpoint
from tests.exporters.decoders import (
    PLAIN_FAMILIES,
    GraphRun,
    exported,
    loaded,
    logits_of,
    tiny_config,
    tiny_decoder,
    token_ids,
    traced,
    write_decoder,
)
from tests.marks import slow_but

TOKENS = 90
CLOSE = 1e-4


@pytest.mark.parametrize("family", slow_but(["gemma", "gpt2", "gpt_neox"], sorted(PLAIN_FAMILIES)))
def test_every_family_gives_the_logits_of_pytorch(family: str, tmp_path: Path) -> None:
    ids = token_ids(TOKENS)
    model, graph = exported(tmp_path, family)
    expected = logits_of(model, ids)
    assert "GroupQueryAttention" not in {node.op_type for node in graph.graph}

    whole, chunks, single, few = (GraphRun(graph) for _ in range(4))

    assert np.abs(whole(ids) - expected).max() < CLOSE
    assert np.abs(np.concatenate([chunks(part) for part in np.split(ids, [50, 51])]) - expected).max() < CLOSE
    assert np.abs(np.concatenate([single(part) for part in np.split(ids, TOKENS)]) - expected).max() < CLOSE
    assert np.abs(few(ids, [TOKENS - 1, 7]) - expected[[TOKENS - 1, 7]]).max() < CLOSE


@pytest.mark.parametrize(
    ("family", "without"),
    [
        ("exaone4", {"layer_types": ["full_attention", "full_attention"]}),
        ("gpt_neox", {"rotary_pct": 1.0}),
        ("phi", {"partial_rotary_factor": 1.0}),
        ("starcoder2", {"sliding_window": None}),
    ],
)
def test_the_logits_show_what_the_families_are_tested_for(family: str, without: dict) -> None:
    ids = token_ids(TOKENS)

    with_it, without_it = (logits_of(tiny_decoder(family, **changes), ids) for changes in ({}, without))

    assert np.abs(with_it - without_it).max() > 100 * CLOSE


def test_a_soft_cap_and_heads_of_any_size(tmp_path: Path) -> None:
    """Gemma 2 has a form of its own, but not for such heads."""
    checkpoint = write_decoder(tmp_path / "checkpoint", "gemma2", head_dim=24)
    ids = token_ids(TOKENS)

    with pytest.raises(UnsupportedModelError, match="multiples of 16 only"):
        traced(checkpoint, tmp_path)

    graph = traced(checkpoint, tmp_path, plain=True)
    assert np.abs(GraphRun(graph)(ids) - logits_of(loaded(checkpoint.folder), ids)).max() < CLOSE


def test_tracing_leaves_the_model_as_it_was(tmp_path: Path) -> None:
    decoder = open_decoder(write_decoder(tmp_path / "checkpoint", "gpt_neox"))
    model = decoder.model
    ids = token_ids(TOKENS)

    trace(decoder, tmp_path, plain=True)

    with decoder.with_weights(model):
        assert np.array_equal(logits_of(model, ids), logits_of(loaded(tmp_path / "checkpoint"), ids))
        generated = model.generate(torch.from_numpy(ids)[None], max_new_tokens=3, do_sample=False)
    assert generated.shape == (1, TOKENS + 3)


def test_an_export_says_that_it_is_slower(tmp_path: Path, ortkit: Callable[..., Finished]) -> None:
    folder = write_checkpoint(tmp_path / "tiny-gpt2", "gpt2")

    finished = ortkit("export", folder, "--out", tmp_path / "b")

    assert finished.code == 0
    assert "  slower   plain attention operators: no fused operator supports `gpt2` with heads of 16\n" in finished.err
    assert "  int4     9 matmuls" in finished.err
    shown = ortkit("inspect", tmp_path / "b").out.decode()
    assert "plain operators: exact, slower than the fused operator" in shown
    answer = ortkit("generate", tmp_path / "b", "Where", "--max-tokens", "4", "--raw")
    assert answer.code == 0


def test_a_known_family_with_heads_that_the_fused_one_does_not_take(tmp_path: Path) -> None:
    """As OpenLLaMA 3B's, of 100 numbers."""
    folder = write_checkpoint(tmp_path / "tiny-llama", "llama", head_dim=20)
    bundle = export(str(folder), precision=Precision.FP32, out=tmp_path / "b").bundle
    decoder = Decoder(bundle)
    ids = token_ids(TOKENS)

    found = ModelRunner(decoder.session, decoder.new_cache()).run(ids.tolist(), TOKENS)

    assert np.abs(found - logits_of(loaded(folder), ids)).max() < CLOSE
    assert bundle.manifest.decoder is not None
    assert bundle.manifest.decoder.plain_attention


def test_a_grown_cache_goes_on_as_pytorch_does(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "tiny-phi", "phi")
    bundle = export(str(folder), precision=Precision.FP32, out=tmp_path / "b").bundle
    decoder = Decoder(bundle)
    ids = token_ids(300)
    expected = logits_of(loaded(folder), ids)

    forward = ModelRunner(decoder.session, decoder.new_cache())
    found = [forward.run(part.tolist(), len(part)).copy() for part in np.split(ids, [200, 201, 280])]

    assert forward.cache.capacity > 256
    assert np.abs(np.concatenate(found) - expected).max() < CLOSE
    assert bundle.manifest.decoder is not None
    assert bundle.manifest.decoder.plain_attention


@pytest.mark.parametrize(
    "changes",
    [
        {"num_local_experts": 4},
        {"layer_types": ["full_attention", "linear_attention"]},
        {"architectures": ["GPTNeoXModel"]},
        {"model_type": "bloom", "architectures": ["BloomForCausalLM"]},
        {"model_type": "no_such_thing"},
    ],
)
def test_what_a_trace_would_get_wrong_is_refused_before_weights_are_read(changes: dict) -> None:
    config = tiny_config("gpt_neox").to_dict() | {"architectures": ["GPTNeoXForCausalLM"]}
    known = architecture_of(config)
    assert known is not None
    assert (known.kinds, known.plain_attention) == ((Kind.DECODER,), True)

    assert architecture_of(config | changes) is None


def test_code_that_does_not_trace_is_refused(tmp_path: Path) -> None:
    decoder = open_decoder(write_decoder(tmp_path / "checkpoint", "gpt_neox"))
    decoder.model.gpt_neox = None

    with pytest.raises(UnsupportedModelError) as caught:
        trace(decoder, tmp_path, plain=True)
    assert caught.value.exit_code == 10
    assert caught.value.message == "`GPTNeoXForCausalLM` cannot be traced: 'NoneType' object is not callable"
    assert caught.value.hint == (
        "ortkit has no support of its own for this architecture, and its code cannot be traced as it is"
    )


def test_a_graph_that_does_not_run_is_refused(tmp_path: Path) -> None:
    """Cohere's code traces to a Reshape that no text fits."""
    folder = write_checkpoint(tmp_path / "tiny-cohere", "olmo2", model_type="cohere")

    with pytest.raises(UnsupportedModelError) as caught:
        export(str(folder), out=tmp_path / "b")
    assert caught.value.message == "`tiny-cohere` traces to a graph that onnxruntime cannot run"
    assert caught.value.hint == "ortkit has no support of its own for `cohere`"
    assert not (tmp_path / "b").exists()


def test_a_graph_that_is_not_pytorchs_is_refused_in_any_precision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    attend = PlainPatcher.attend

    def attend_to_few(*arguments: Any, **settings: Any) -> Any:
        return attend(*arguments, **settings | {"sliding_window": 3})

    monkeypatch.setattr(PlainPatcher, "attend", attend_to_few)
    folder = write_checkpoint(tmp_path / "tiny-olmo2", "olmo2")

    with pytest.raises(OrtkitError, match=r"differs from PyTorch: .*and fp32 must stay within 1e-05"):
        export(str(folder), precision=Precision.INT4, out=tmp_path / "b")
    assert not (tmp_path / "b").exists()
