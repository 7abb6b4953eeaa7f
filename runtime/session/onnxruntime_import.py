"""Import onnxruntime on first use, and check its version."""

from __future__ import annotations

import re
from typing import Any

from ..bundle.folder import BundleFolder, DraftBundle
from ..errors import BundleError, MissingPartError, OutOfMemoryError
from .memory import SPARE, smallest_limit
from .packages import installed

ONNXRUNTIME = "onnxruntime"
"""Its key in a manifest's `requires` and `made_with`."""
OLDEST_ONNXRUNTIME = "1.30"
"""The first version that runs every graph that ortkit exports: before 1.23 a decoder's graph does not open, 1.23 and
1.24 give wrong tokens, 1.25 to 1.29 crash (1.20 to 1.32 tried)."""
OLDEST_COREML = "1.31"
"""The version whose rules for CoreML graphs are checked at export (`exporters/encoder/coreml_partition.py`): older ones
leave nodes to the CPU, such as the Gather of float16 embeddings."""
_INSTALL = "pip install '{}>={}'"


def load_onnxruntime() -> Any:
    """Import onnxruntime on first use; raises MissingPartError where it is missing or too old."""
    try:
        import onnxruntime  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise MissingPartError(
            "onnxruntime is not installed",
            hint=f"install one of the two, never both: `{_INSTALL.format(ONNXRUNTIME, OLDEST_ONNXRUNTIME)}` or "
            f"`{_INSTALL.format('onnxruntime-gpu', OLDEST_ONNXRUNTIME)}`",
        ) from error
    # Both a library that the loader could not map and a C++ exception in onnxruntime's initialization raise this.
    except ImportError as error:
        free = smallest_limit()
        if free is not None and free.left < SPARE:
            raise OutOfMemoryError(
                f"there is too little memory to load onnxruntime: {free.described}",
                hint="free memory or raise the limit",
            ) from error
        raise MissingPartError(
            f"onnxruntime cannot be loaded: {error}",
            hint="install it again, in a version for this Python and this system: "
            f"`{_INSTALL.format(ONNXRUNTIME, OLDEST_ONNXRUNTIME)}`",
        ) from error
    # What uninstalling one of two packages with this module leaves: some of its files.
    if not hasattr(onnxruntime, "InferenceSession") or not hasattr(onnxruntime, "__version__"):
        packages = list(installed()) or [ONNXRUNTIME]
        install = _INSTALL.format(packages[0], OLDEST_ONNXRUNTIME)
        raise MissingPartError(
            "the installation of onnxruntime is incomplete: another package with the same module was removed or "
            "overwritten",
            hint=f"run `pip uninstall -y {' '.join(packages)}`, then `{install}`",
        )
    if _release(onnxruntime.__version__) < _release(OLDEST_ONNXRUNTIME):
        raise MissingPartError(
            f"onnxruntime {onnxruntime.__version__} is installed, and ortkit needs {OLDEST_ONNXRUNTIME} or newer",
            hint=f"run `{_INSTALL.format(_package(), OLDEST_ONNXRUNTIME)}`; "
            "versions before it crash or give wrong tokens",
        )
    return onnxruntime


def check_requirements(bundle: BundleFolder) -> None:
    """Raise BundleError where the bundle requires a newer onnxruntime; not for one that an export runs on the CPU."""
    if isinstance(bundle, DraftBundle):
        return
    needed, here = bundle.manifest.requires.get(ONNXRUNTIME), onnxruntime_version()
    if needed is not None and _release(here) < _release(needed):
        raise BundleError(
            f"the bundle `{bundle.path}` needs onnxruntime {needed} or newer, and {here} is installed",
            hint=f"run `{_INSTALL.format(_package(), needed)}`",
        )


def _package() -> str:
    """The package of onnxruntime that is installed: another one would overwrite it."""
    return next(iter(installed()), ONNXRUNTIME)


def _release(version: str) -> tuple[int, ...]:
    """The leading numbers of a version: (1, 30, 0) for `1.30.0rc1`, () where there are none."""
    return tuple(map(int, re.findall(r"\d+", re.split(r"[^\d.]", version, maxsplit=1)[0])))


def onnxruntime_version() -> str:
    return str(load_onnxruntime().__version__)
