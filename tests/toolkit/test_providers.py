from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import onnxruntime
import pytest

from ortkit import Bundle, Provider
from ortkit.runtime.session.cpu_class import cpu_features, this_cpu_class
from ortkit.runtime.session.providers import PROVIDERS
from tests.commands import Finished
from tests.fake_providers import CPU, FakeDriver, FakeOnnxruntime, use
from tests.tiny_bundles import rehash, write_embedder

Ortkit = Callable[..., Finished]


@pytest.fixture
def embedder(tmp_path: Path) -> Bundle:
    return write_embedder(tmp_path / "embedder")


@pytest.fixture
def for_cuda(embedder: Bundle) -> Bundle:
    rehash(embedder.path, lambda manifest: manifest.update(provider="cuda", layout="texts_first"))
    return embedder


def labelled(out: bytes, label: str) -> list[str]:
    return [line[13:] for line in out.decode().splitlines() if line[:13].strip() == label]


def test_this_machine(ortkit: Ortkit) -> None:
    """The CPU is always there; the rest is what the machine of the test has."""
    finished = ortkit("providers", "--json")
    found = json.loads(finished.out)

    assert finished.code == 0
    assert found["onnxruntime"] == onnxruntime.__version__
    assert found["cpu_class"] == this_cpu_class().value
    assert found["cpu_features"] == list(cpu_features())
    assert [state["provider"] for state in found["providers"]] == ["cpu", "cuda", "coreml"]
    assert found["providers"][0] == {"provider": "cpu", "built_in": True, "problem": None, "hint": None}
    assert found["cores"]["host"] >= 1
    assert "bundle" not in found


def test_a_machine_with_cuda(ortkit: Ortkit, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, FakeOnnxruntime())

    finished = ortkit("providers")

    assert finished.code == 0
    assert labelled(finished.out, "cuda") == ["available"]
    assert labelled(finished.out, "coreml") == ["not available"]
    assert labelled(finished.out, "packages") == [
        (
            "onnxruntime-gpu 1.31.1, nvidia-cublas 13.1, nvidia-cuda-runtime 13.1, nvidia-cudnn-cu13 13.1, "
            "nvidia-curand 13.1"
        )
    ]
    assert labelled(finished.out, "CUDA") == ["onnxruntime is built for 13.0"]
    assert labelled(finished.out, "driver") == ["supports CUDA 13.0"]
    assert labelled(finished.out, "GPU") == ["NVIDIA L4, compute capability 8.9, 23,552 MiB"]
    assert labelled(finished.out, "library") == [
        "libcudart.so.13: loads (nvidia-cuda-runtime)",
        "libcublasLt.so.13: loads (nvidia-cublas)",
        "libcublas.so.13: loads (nvidia-cublas)",
        "libcurand.so.10: loads (nvidia-curand)",
        "libcudnn.so.9: loads (nvidia-cudnn-cu13, for MultiHeadAttention)",
    ]


def test_a_machine_that_lacks_a_library(ortkit: Ortkit, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, FakeOnnxruntime(), FakeDriver(missing=["libcublas.so.13"]))

    found = json.loads(ortkit("providers", "--json").out)

    assert found["providers"][1] == {
        "provider": "cuda",
        "built_in": True,
        "problem": "`cuda` is not available: the library `libcublas.so.13` cannot be loaded: libcublas.so.13: "
        "cannot open shared object file: No such file or directory",
        "hint": "run `pip install 'nvidia-cublas~=13.0'`",
    }
    assert found["cuda"]["gpus"] == [{"name": "NVIDIA L4", "capability": [8, 9], "memory": 23 << 30}]
    assert [library["error"] is None for library in found["cuda"]["libraries"]] == [True, True, False, True, True]
    assert found["cuda"]["architectures"] == ["7.5", "8.0", "8.6", "8.9", "9.0", "12.0"]


def test_a_machine_without_a_driver(ortkit: Ortkit, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is known of the rest is still shown."""
    use(monkeypatch, FakeOnnxruntime(), FakeDriver(missing=["libcuda.so.1", "libcublas.so.13"]))

    out = ortkit("providers").out

    assert labelled(out, "driver") == [
        "none: there is no NVIDIA driver: libcuda.so.1: cannot open shared object file: No such file or directory"
    ]
    assert labelled(out, "GPU") == []
    assert len(labelled(out, "library")) == 5


def test_without_onnxruntime(ortkit: Ortkit, monkeypatch: pytest.MonkeyPatch) -> None:
    from ortkit import MissingPartError

    def missing() -> object:
        raise MissingPartError("onnxruntime is not installed", hint="install it")

    monkeypatch.setattr("ortkit.runtime.session.machine.load_onnxruntime", missing)

    finished = ortkit("providers", "--json")
    found = json.loads(finished.out)

    assert finished.code == 0
    assert found["onnxruntime"] is None
    assert [state["problem"] for state in found["providers"]] == ["onnxruntime is not installed"] * 3


def test_a_bundle_that_runs_here(ortkit: Ortkit, embedder: Bundle) -> None:
    finished = ortkit("providers", embedder.path)

    assert finished.code == 0
    assert finished.err == ""
    assert labelled(finished.out, "bundle") == [f"{embedder.path}: embedder, fp32, for cpu"]
    assert labelled(finished.out, "runs here") == [
        "nothing is in the way; `ortkit verify` opens it and compares its outputs"
    ]


def test_a_bundle_for_cuda_on_a_machine_without(
    ortkit: Ortkit, for_cuda: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(
        monkeypatch,
        FakeOnnxruntime(available=[CPU], cuda_version=""),
        packages={"onnxruntime": "1.31.1"},
    )

    shown, printed, used = (
        ortkit("providers", for_cuda.path),
        ortkit("providers", for_cuda.path, "--json"),
        ortkit("embed", for_cuda.path, "the fox"),
    )

    error = (
        "error: `cuda` is not available: `onnxruntime` 1.31.1 is built without CUDA\n\nhint: run `pip uninstall -y "
        "onnxruntime`, then `pip install 'onnxruntime-gpu>=1.30' 'nvidia-cublas~=13.0' 'nvidia-cuda-runtime~=13.0' "
        "'nvidia-cudnn-cu13~=9.0' 'nvidia-curand~=10.0'`\n"
    )
    assert (shown.code, printed.code, used.code) == (8, 8, 8)
    assert shown.err == used.err == error
    assert labelled(shown.out, "runs here") == ["no"]
    assert labelled(shown.out, "needs") == [
        "onnxruntime",
        "a GPU of compute capability 7.5, 8.0, 8.6, 8.9, 9.0, 12.0, or newer of the same major version",
        "0 MiB of GPU memory for the weights, and more for each call",
    ]
    assert printed.err == ""
    assert json.loads(printed.out)["bundle"]["runs"] is False
    assert json.loads(printed.out)["bundle"]["error"]["exit_code"] == 8


def test_verify_where_the_provider_is_missing(ortkit: Ortkit, for_cuda: Bundle) -> None:
    """In the process of its own that opens the graph; with the machine that runs this test."""
    if PROVIDERS[Provider.CUDA].problem(onnxruntime) is None:
        pytest.skip("this machine has CUDA")

    finished = ortkit("verify", for_cuda.path)

    assert finished.code == 8
    assert finished.err.startswith("error: `cuda` is not available: ")
    assert "\nhint: " in finished.err
    assert finished.out.decode().splitlines()[-1] == f"failed: {for_cuda.path}"


def test_a_bundle_that_does_not_fit_on_the_gpu(
    ortkit: Ortkit, for_cuda: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, FakeOnnxruntime(), FakeDriver(free=1))

    finished = ortkit("providers", for_cuda.path)

    assert finished.code == 9
    assert finished.err == (
        f"error: the weights of `{for_cuda.path}` take at least 0 MiB, and 0 MiB are free on the GPU\n\n"
        "hint: close what else uses the GPU, or take a bundle of fewer bits\n"
    )


def test_a_folder_that_is_not_a_bundle(ortkit: Ortkit, tmp_path: Path) -> None:
    finished = ortkit("providers", tmp_path)

    assert finished.code == 7
    assert "is not a bundle" in finished.err


def test_a_limit_for_a_bundle_on_the_cpu(ortkit: Ortkit, embedder: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """It limits the process; the size may come from the environment."""
    free = ortkit("embed", embedder.path, "the fox")
    limited = ortkit("embed", embedder.path, "the fox", "--max-memory", "64G")
    monkeypatch.setenv("ORTKIT_MAX_MEMORY", "1M")
    refused = ortkit("embed", embedder.path, "the fox")
    overridden = ortkit("embed", embedder.path, "the fox", "--max-memory", "64G")
    monkeypatch.setenv("ORTKIT_MAX_MEMORY", "much")
    wrong = ortkit("embed", embedder.path, "the fox")

    assert free.out == limited.out == overridden.out
    assert (free.code, limited.code, overridden.code, refused.code, wrong.code) == (0, 0, 0, 9, 2)
    assert refused.err.startswith(f"error: opening `{embedder.path}` takes this process to about ")
    assert "MiB, and `max_memory` is 1 MiB\n\nhint: raise `max_memory` (`--max-memory " in refused.err
    assert refused.err.endswith(
        "M`, ORTKIT_MAX_MEMORY), or take a bundle of fewer bits: `ortkit export MODEL --precision int8`\n"
    )
    assert wrong.err == "error: `ORTKIT_MAX_MEMORY` must be a size such as 500M or 4G, not `much`\n"


@pytest.mark.parametrize("size", ["0", "-1", "2X", "much", "1e9", "9999999999T", "1.5.2G", "٣G"])
def test_a_limit_that_is_not_a_size(ortkit: Ortkit, embedder: Bundle, size: str) -> None:
    finished = ortkit("embed", embedder.path, "the fox", f"--max-memory={size}")

    assert finished.code == 2
    assert f"'{size}' is not a size such as 500M or 4G" in finished.err


@pytest.mark.parametrize(
    ("size", "limit"),
    [("9000000", 9_000_000), ("500M", 500 << 20), ("1.5GiB", 3 << 29), ("2gb", 2 << 30), ("9000k", 9000 << 10)],
)
def test_sizes(ortkit: Ortkit, for_cuda: Bundle, monkeypatch: pytest.MonkeyPatch, size: str, limit: int) -> None:
    """They reach onnxruntime in bytes."""
    module = FakeOnnxruntime()
    use(monkeypatch, module)

    ortkit("embed", for_cuda.path, "the fox", "--max-memory", size)

    assert [opened.providers[0][1]["gpu_mem_limit"] for opened in module.opened] == [str(limit)]
