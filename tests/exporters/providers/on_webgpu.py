"""Run a bundle's golden texts with onnxruntime's WebGPU plugin: `python -m tests.exporters.providers.on_webgpu BUNDLE`.

Prints the providers, and the cosine similarity of each short text's embedding to PyTorch's, as JSON. The bundle is one
for CUDA; the plugin stands in for that provider, as one more entry of the runtime's providers. A process of its own,
because a plugin stays registered, and its threads run until the process ends.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np

# Vulkan drivers in software count as CPUs, which the plugin uses only if it is told to (0.4.0).
os.environ.setdefault("ORT_WEBGPU_EP_ALLOW_SOFTWARE_ADAPTER", "1")
FLASH = 32
"""Tokens from which on the plugin's MultiHeadAttention (0.4.0) is wrong on Mesa's software driver, in float32 too."""


def webgpu() -> Any:
    """The entry for the plugin, which must get every node."""
    import onnxruntime_ep_webgpu as package

    from ortkit.runtime.session.providers import PluginProvider
    from ortkit.runtime.session.request import NO_FALLBACK, RECORD_ASSIGNMENT, Request

    return PluginProvider(
        package.get_ep_name(),
        lambda _ort, _config: Request(entries={NO_FALLBACK: "1", RECORD_ASSIGNMENT: "1"}),
        library=package.get_library_path,
        package="onnxruntime-ep-webgpu",
    )


def main(path: Path) -> None:
    from ortkit import Embedder, Provider
    from ortkit.runtime.bundle.golden_vector import unpack_vector
    from ortkit.runtime.session.providers import PROVIDERS

    PROVIDERS[Provider.CUDA] = webgpu()
    with Embedder(path) as embedder:
        certificate = embedder.bundle.manifest.certificate
        assert certificate is not None
        lengths = embedder.count_tokens(one.text for one in certificate.golden)
        golden = [one for one, length in zip(certificate.golden, lengths, strict=True) if length < FLASH]
        found = embedder.embed([one.text for one in golden])
        expected = np.stack([unpack_vector(one.reference) for one in golden])
        print(json.dumps({"providers": embedder.session.session.get_providers(), "cosines": cosines(found, expected)}))


def cosines(found: np.ndarray, expected: np.ndarray) -> list[float]:
    """Of the rows."""
    lengths = np.linalg.norm(found, axis=1) * np.linalg.norm(expected, axis=1)
    return [float(one) for one in (found * expected).sum(axis=1) / lengths]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
