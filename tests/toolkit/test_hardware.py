"""What only the hardware shows: bundles of real models, exported, verified and measured. See tests/hardware.py."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from benchmarks.texts import held_out_texts
from ortkit import Decoder, Embedder, OutOfMemoryError, Precision, Provider
from ortkit.exporters import Origin, export
from ortkit.runtime.encoder.pooling import cosines
from tests.assets import DECODER, MODEL
from tests.commands import Finished

Ortkit = Callable[..., Finished]


def exported(tmp_path: Path, model: str, provider: Provider, precision: Precision) -> Path:
    out = tmp_path / f"{provider.value}-{precision.value}"
    export(model, provider=provider, precision=precision, out=out, origin=Origin.WHEEL, offline=True)
    return out


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("model", "precision"),
    [(MODEL, Precision.FP16), (MODEL, Precision.FP32), (DECODER, Precision.INT4), (DECODER, Precision.FP16)],
)
def test_golden_outputs_on_cuda(ortkit: Ortkit, tmp_path: Path, model: str, precision: Precision) -> None:
    """`ortkit verify` replays the certificate on CUDA within the stated tolerance and the child's memory limit."""
    bundle = exported(tmp_path, model, Provider.CUDA, precision)

    finished = ortkit("verify", bundle, "--json")
    (found,) = json.loads(finished.out)

    assert (finished.code, found["ok"], found["provider"]) == (0, True, "cuda"), found["error"]


@pytest.mark.gpu
def test_embeddings_on_cuda_are_those_of_the_cpu(tmp_path: Path) -> None:
    """500 held-out texts have cosine 0.999 or more on CUDA in fp16 to those on the CPU in fp32."""
    texts = held_out_texts(500)
    on_cuda = Embedder(exported(tmp_path, MODEL, Provider.CUDA, Precision.FP16)).embed(texts)
    on_cpu = Embedder(exported(tmp_path, MODEL, Provider.CPU, Precision.FP32)).embed(texts)

    assert cosines(np.asarray(on_cuda), np.asarray(on_cpu)).min() >= 0.999


@pytest.mark.gpu
def test_an_answer_that_fills_the_gpu(tmp_path: Path) -> None:
    """A decoder whose KV cache outgrows `max_memory` raises OutOfMemoryError, and then answers a shorter prompt."""
    bundle = exported(tmp_path, DECODER, Provider.CUDA, Precision.INT4)
    size = sum(path.stat().st_size for path in bundle.glob("model.onnx*"))
    decoder = Decoder(bundle, max_memory=size + (96 << 20))

    with pytest.raises(OutOfMemoryError):
        decoder.generate(list(range(2, 6000)), max_tokens=4)
    assert decoder.generate("The pump", max_tokens=4).usage.completion_tokens == 4


@pytest.mark.gpu
def test_bench_compares_a_gpu_with_the_cpu(ortkit: Ortkit, tmp_path: Path) -> None:
    """`ortkit bench` measures one model for the CPU and for CUDA, with the GPU memory that it took."""
    bundles = [
        exported(tmp_path, MODEL, Provider.CUDA, Precision.FP16),
        exported(tmp_path, MODEL, Provider.CPU, Precision.FP32),
    ]

    on_cuda, on_cpu = json.loads(ortkit("bench", *bundles, "--seconds", "1", "--json").out)

    assert (on_cuda["provider"], on_cpu["provider"]) == ("cuda", "cpu")
    assert on_cuda["gpu_memory"] > 40 << 20
    assert on_cpu["gpu_memory"] is None
    assert on_cuda["speed"] > on_cpu["speed"]


@pytest.mark.gpu
def test_providers_lists_the_gpu(ortkit: Ortkit) -> None:
    """`ortkit providers` finds the driver, the GPU and every library, and says that CUDA is available."""
    found = json.loads(ortkit("providers", "--json").out)

    assert found["providers"][1] == {"provider": "cuda", "built_in": True, "problem": None, "hint": None}
    assert found["cuda"]["driver"] is not None
    assert found["cuda"]["gpus"][0]["memory"] > 1 << 30
    assert all(library["error"] is None for library in found["cuda"]["libraries"])


@pytest.mark.coreml
@pytest.mark.parametrize("precision", [Precision.FP32, Precision.FP16])
def test_golden_outputs_on_coreml(ortkit: Ortkit, tmp_path: Path, precision: Precision) -> None:
    """`ortkit verify` replays the certificate on CoreML within the stated tolerance, fp16 on this macOS too."""
    bundle = exported(tmp_path, MODEL, Provider.COREML, precision)

    finished = ortkit("verify", bundle, "--json")
    (found,) = json.loads(finished.out)

    assert (finished.code, found["ok"], found["provider"]) == (0, True, "coreml"), found["error"]


@pytest.mark.coreml
def test_bench_compares_coreml_with_the_cpu(ortkit: Ortkit, tmp_path: Path) -> None:
    """`ortkit bench` measures one model for the CPU and for CoreML; which is faster differs by Mac, so it only says."""
    bundles = [
        exported(tmp_path, MODEL, Provider.COREML, Precision.FP32),
        exported(tmp_path, MODEL, Provider.CPU, Precision.INT8),
    ]

    on_coreml, on_cpu = json.loads(ortkit("bench", *bundles, "--seconds", "1", "--json").out)

    assert (on_coreml["provider"], on_cpu["provider"]) == ("coreml", "cpu")
    assert on_coreml["error"] is on_cpu["error"] is None
