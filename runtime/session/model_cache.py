"""Where providers keep what they compile from a bundle's graph, so that the next opening is faster."""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path

from ..bundle.bundle import MANIFEST, sha256_of
from ..bundle.folder import BundleFolder
from .onnxruntime_import import onnxruntime_version

_CHARACTERS = 16
"""Characters of the sha256 that name a bundle's folder."""


def cache_folder() -> Path | None:
    """The folder for caches: ORTKIT_CACHE, or the user's; None where ORTKIT_CACHE is empty: nothing is kept."""
    named = os.environ.get("ORTKIT_CACHE")
    if named is not None:
        return Path(named).absolute() if named else None
    home = Path.home()
    if sys.platform == "darwin":
        return home / "Library" / "Caches" / "ortkit"
    return Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache") / "ortkit"


def model_cache_of(bundle: BundleFolder) -> Path | None:
    """Make the folder for what is compiled from a bundle; None where it cannot be written: it is compiled each time.

    Named by the bundle's digest and by the versions of onnxruntime and macOS, because CoreML's provider does not notice
    that a graph was replaced.
    """
    root = cache_folder()
    if root is None:
        return None
    digest = sha256_of(bundle.path / MANIFEST)[:_CHARACTERS]
    system = platform.mac_ver()[0] or platform.release()
    folder = root / "compiled" / f"{digest}-onnxruntime-{onnxruntime_version()}-{system}"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError:
        return None
    return folder if os.access(folder, os.W_OK | os.X_OK) else None
