"""Where providers keep what they compile from a bundle's graph, so that the next opening is faster."""

from __future__ import annotations

import platform
from pathlib import Path

from ..bundle.folder import BundleFolder
from ..cache_folder import cache_folder
from .onnxruntime_import import onnxruntime_version

COMPILED, CHECKED = "compiled", "checked"
"""Folders in the cache: what providers compile, and records of golden texts that were compared (`first_use.py`)."""
_CHARACTERS = 16
"""Characters of the sha256 that name a bundle's folder."""


def model_cache_of(bundle: BundleFolder) -> Path | None:
    """The folder for what is compiled from a bundle; None where nothing is kept.

    Named by the bundle's digest and by the versions of onnxruntime and macOS, because CoreML's provider does not notice
    that a graph was replaced.
    """
    root = cache_folder()
    if root is None:
        return None
    digest = bundle.digest[:_CHARACTERS]
    system = platform.mac_ver()[0] or platform.release()
    return root / COMPILED / f"{digest}-onnxruntime-{onnxruntime_version()}-{system}"
