"""The graphs for CUDA on a provider that is not the CPU and really computes, on a machine without a GPU.

Needs `pip install onnxruntime-ep-webgpu` and a Vulkan driver, which may be Mesa's in software: Debian's
mesa-vulkan-drivers 25.0 (in Debian 12 from its backports; 22.3 is too old for the plugin) and libvulkan1.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from ortkit import Precision, Provider
from ortkit.exporters import export

pytestmark = [
    pytest.mark.webgpu,
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("onnxruntime_ep_webgpu") is None,
        reason="webgpu: onnxruntime-ep-webgpu is not installed",
    ),
]


@pytest.mark.parametrize(("precision", "threshold"), [(Precision.FP32, 1 - 1e-6), (Precision.FP16, 0.9999)])
def test_a_graph_for_cuda_gives_what_pytorch_gives(
    precision: Precision, threshold: float, tiny_checkpoint_base: Path, tmp_path: Path
) -> None:
    bundle = export(str(tiny_checkpoint_base), precision=precision, provider=Provider.CUDA, out=tmp_path / "b").bundle
    command = [sys.executable, "-m", "tests.exporters.providers.on_webgpu", str(bundle.path)]

    finished = subprocess.run(command, capture_output=True, text=True, check=False, timeout=500)

    assert finished.returncode == 0, finished.stderr
    shown = json.loads(finished.stdout.splitlines()[-1])
    assert shown["providers"][0] == "WebGpuExecutionProvider"
    assert len(shown["cosines"]) >= 3
    assert threshold <= min(shown["cosines"]) < 1.00001
