from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import onnxruntime
import pytest

from ortkit import Bundle, OutOfMemoryError
from ortkit.runtime.bundle.golden_vector import pack_vector, unpack_vector
from ortkit.runtime.session.cpu_class import this_cpu_class
from ortkit.toolkit.commands.bench_worker import measure, texts
from tests.commands import Finished
from tests.tiny_bundles import rehash, write_embedder, write_reranker

Ortkit = Callable[..., Finished]
SECONDS = "0.01"


@pytest.fixture(scope="module")
def embedder(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_embedder(tmp_path_factory.mktemp("bench") / "embedder")


def test_bundles_of_each_kind_in_one_table(
    ortkit: Ortkit, embedder: Bundle, decoder_bundle: Bundle, tmp_path: Path
) -> None:
    reranker = write_reranker(tmp_path / "reranker")

    finished = ortkit("bench", embedder.path, reranker.path, decoder_bundle.path, "--seconds", SECONDS)
    header, *rows = finished.out.decode().splitlines()

    assert finished.code == 0
    assert header.split("  ")[0] == "bundle"
    assert [row.split()[:3] for row in rows] == [
        [str(embedder.path), "cpu", "fp32"],
        [str(reranker.path), "cpu", "fp32"],
        [str(decoder_bundle.path), "cpu", "fp32"],
    ]
    assert [unit in row for unit, row in zip(["texts/s", "pairs/s", "tokens/s"], rows, strict=True)] == [True] * 3
    assert finished.err.splitlines() == [
        f"CPU: {this_cpu_class().description}",
        *(f"measuring {path}" for path in (embedder.path, reranker.path, decoder_bundle.path)),
    ]


def test_figures_as_json(ortkit: Ortkit, embedder: Bundle) -> None:
    (found,) = json.loads(ortkit("bench", embedder.path, "--seconds", SECONDS, "--json").out)

    assert found["bundle"] == str(embedder.path)
    assert found["cpu_class"] == this_cpu_class().value
    assert (found["kind"], found["precision"], found["provider"]) == ("embedder", "fp32", "cpu")
    assert found["onnxruntime"] == onnxruntime.__version__
    assert found["unit"] == "texts/s"
    assert found["prompt_speed"] is found["gpu_memory"] is found["error"] is None
    # One text alone takes no longer than 64 of them.
    assert 0 < found["latency"] < 64 / found["speed"]
    # Python and its libraries take tens of megabytes.
    assert 20 << 20 < found["memory"] < 4 << 30
    assert found["opening"] > 0


def test_each_bundle_has_a_process_of_its_own(
    ortkit: Ortkit, embedder: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = []
    run = subprocess.run

    def recorded(command: list[str], **settings: object) -> object:
        started.append(json.loads(command[-1])["path"])
        return run(command, **settings)

    monkeypatch.setattr("subprocess.run", recorded)
    ortkit("bench", embedder.path, embedder.path, "--seconds", SECONDS)

    assert started == [str(embedder.path)] * 2


def test_a_bundle_that_cannot_run_does_not_stop_the_others(ortkit: Ortkit, embedder: Bundle, tmp_path: Path) -> None:
    for_cuda = tmp_path / "for-cuda"
    shutil.copytree(embedder.path, for_cuda)
    rehash(for_cuda, lambda manifest: manifest.update(provider="coreml"))

    finished = ortkit("bench", for_cuda, embedder.path, "no-such-bundle", "--seconds", SECONDS, "--json")
    broken, whole, missing = json.loads(finished.out)

    assert finished.code == 1
    assert broken["error"]["exit_code"] == 7
    assert "names the provider `coreml`" in broken["error"]["message"]
    assert missing["error"]["exit_code"] == 5
    assert whole["error"] is None
    assert whole["speed"] > 0
    assert finished.err.count("error: ") == 2
    assert ortkit("bench", for_cuda, "--seconds", SECONDS).code == 7


def test_a_bundle_that_was_changed_is_not_run(ortkit: Ortkit, embedder: Bundle, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(embedder.path, copy)
    content = bytearray((copy / "model.onnx").read_bytes())
    content[len(content) // 2] ^= 1
    (copy / "model.onnx").write_bytes(content)

    finished = ortkit("bench", copy, "--seconds", SECONDS)

    assert (finished.code, finished.out) == (7, b"")
    assert "was changed" in finished.err


def test_a_process_that_dies(ortkit: Ortkit, embedder: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ortkit.toolkit.commands.bench_worker._CHILD", "import os; os.abort()")

    finished = ortkit("bench", embedder.path)

    assert finished.code == 7
    assert finished.err.splitlines()[2:] == [
        f"error: `{embedder.path}` ended the process that measured it (SIGABRT)",
        "",
        "hint: `ortkit verify` checks it on this machine",
    ]


def test_the_figures_are_of_what_was_run(decoder_bundle: Bundle, embedder: Bundle) -> None:
    """With the clock of the runs: so many texts and tokens in so much time."""
    decoder = measure(str(decoder_bundle.path), seconds=0.01, max_memory=None)

    assert decoder.unit == "tokens/s"
    assert decoder.prompt_speed is not None
    # The first token comes after the prefill, of 128 tokens.
    assert decoder.latency >= 128 / decoder.prompt_speed
    assert decoder.speed > 0
    assert measure(str(embedder.path), seconds=0.01, max_memory=None).unit == "texts/s"


def test_a_limit_on_memory_is_observed(embedder: Bundle, decoder_bundle: Bundle) -> None:
    """On the CPU it is that of the process, which has taken more already."""
    for bundle in (embedder, decoder_bundle):
        with pytest.raises(OutOfMemoryError, match="and `max_memory` is 1 MiB"):
            measure(str(bundle.path), seconds=0.01, max_memory=1 << 20)


def test_wrong_outputs_have_no_speed(ortkit: Ortkit, embedder: Bundle, tmp_path: Path) -> None:
    """The shortest golden text is compared first."""
    wrong = tmp_path / "wrong"
    shutil.copytree(embedder.path, wrong)

    def change(manifest: dict) -> None:
        golden = min(manifest["certificate"]["golden"], key=lambda one: len(one["text"]))
        other = pack_vector(-unpack_vector(golden["output"]))
        golden.update(output=other, reference=other)

    rehash(wrong, change)

    finished = ortkit("bench", wrong, embedder.path, "--seconds", SECONDS)
    _, failed, whole = finished.out.decode().splitlines()

    assert finished.code == 7
    assert failed.split(None, 1) == [str(wrong), "failed, see `ortkit verify`"]
    assert whole.split()[:2] == [str(embedder.path), "cpu"]
    assert "error: on this machine the bundle has cosine -1.0000 to PyTorch where 1.0000 was certified" in finished.err
    assert f"hint: `ortkit verify {wrong}` compares all golden outputs" in finished.err


def test_the_texts_differ_in_length_and_content() -> None:
    made = texts()

    assert len(made) == len(set(made)) == 64
    assert {len(text.split(". ")) for text in made} == set(range(1, 13))
