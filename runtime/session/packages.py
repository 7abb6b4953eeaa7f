"""Packages of onnxruntime: which are installed, and what to run where they are not those that a provider needs."""

from __future__ import annotations

import platform
import shlex
import sys
from collections.abc import Iterable, Mapping

from .problem import Problem

PACKAGES = (
    "onnxruntime",
    "onnxruntime-gpu",
    "onnxruntime-openvino",
    "onnxruntime-directml",
    "onnxruntime-migraphx",
    "onnxruntime-rocm",
    "onnxruntime-training",
    "ort-nightly",
    "ort-nightly-gpu",
)
"""Packages that install the same module, `onnxruntime`, each with other providers."""
NVIDIA = {
    "nvidia-cublas": "~=13.0",
    "nvidia-cuda-runtime": "~=13.0",
    "nvidia-cudnn-cu13": "~=9.0",
    "nvidia-curand": "~=10.0",
}
"""Packages with the CUDA libraries that onnxruntime's CUDA provider needs, and their versions.

The extra `cuda` of onnxruntime-gpu leaves out nvidia-cublas.
"""
REQUIREMENTS = {
    "cpu": ("onnxruntime>=1.30",),
    "cuda": ("onnxruntime-gpu>=1.30", *(f"{name}{version}" for name, version in NVIDIA.items())),
    "coreml": ("onnxruntime>=1.31",),
}
"""Provider -> what its extra in pyproject.toml installs."""
_MACHINES = ("x86_64", "aarch64")
"""Kinds of CPU for which there are wheels of onnxruntime-gpu."""


def installed(names: Iterable[str] = PACKAGES) -> dict[str, str]:
    """Those of the packages that are installed, with their versions."""
    # Slow to import, and a CPU bundle does not need it.
    from importlib import metadata  # noqa: PLC0415

    found = {}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def is_from_index(name: str) -> bool:
    """Whether an installed package is a wheel as the package index has them: built for any Linux (`manylinux`)."""
    from importlib import metadata  # noqa: PLC0415 - slow to import, and a CPU bundle does not need it

    try:
        wheel = metadata.distribution(name).read_text("WHEEL") or ""
    except metadata.PackageNotFoundError:
        return False
    return any(line.startswith("Tag:") and "-manylinux" in line for line in wheel.splitlines())


def install_command(provider: str) -> str:
    """The command that installs what a provider needs."""
    return f"pip install {' '.join(map(shlex.quote, REQUIREMENTS[provider]))}"


def conflict(found: Mapping[str, str], provider: str) -> Problem | None:
    """The problem of several packages with the same module: each has overwritten files of those before it."""
    if len(found) < 2:
        return None
    names = [f"`{name}` {version}" for name, version in found.items()]
    return Problem(
        f"{', '.join(names[:-1])} and {names[-1]} are installed over each other: all have the module `onnxruntime`",
        f"run `pip uninstall -y {' '.join(found)}`, then `{install_command(provider)}`",
    )


def cuda_hint(found: Mapping[str, str]) -> str:
    """What to run where the onnxruntime that is installed has no CUDA."""
    if sys.platform != "linux" or platform.machine() not in _MACHINES:
        return (
            "CUDA needs Linux on x86_64 or aarch64; export the model for this machine: `ortkit export MODEL --provider "
            "cpu`"
        )
    uninstall = f"run `pip uninstall -y {' '.join(found)}`, then " if found else "run "
    return f"{uninstall}`{install_command('cuda')}`"
