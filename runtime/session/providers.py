"""Execution providers: the names that onnxruntime has for them, and which ones this onnxruntime was built with."""

from __future__ import annotations

from collections.abc import Sequence

from ..bundle.manifest import Provider
from .onnxruntime_import import load_onnxruntime

ORT_NAMES = {
    Provider.CPU: "CPUExecutionProvider",
    Provider.CUDA: "CUDAExecutionProvider",
    Provider.COREML: "CoreMLExecutionProvider",
}


def available_providers() -> list[Provider]:
    """Supported providers that this onnxruntime was built with; only opening a session shows whether one works."""
    built = load_onnxruntime().get_available_providers()
    return [provider for provider, name in ORT_NAMES.items() if name in built]


def named(providers: Sequence[Provider]) -> str:
    return ", ".join(f"`{provider.value}`" for provider in providers)
