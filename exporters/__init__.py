"""ortkit's export stage: a checkpoint in, a certified bundle out."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from .extras import need

NEEDED = (
    *("filelock", "gguf", "huggingface_hub", "onnx", "onnx_ir", "onnxscript", "optimum", "safetensors", "scipy"),
    *("sentence_transformers", "torch", "transformers", "yaml"),
)

if TYPE_CHECKING:
    from .checkpoint.catalog import ModelSpec, load_catalog
    from .export_stage import export
    from .pipeline import Exported
    from .progress import Progress
    from .sources import Origin

# Imported on first use: reading the catalog must not cost the seconds that torch takes to load. None of these names is
# that of a module here, or what `from ortkit.exporters import` gives would depend on what was imported before.
_HOMES = {
    "Exported": "ortkit.exporters.pipeline",
    "ModelSpec": "ortkit.exporters.checkpoint.catalog",
    "Origin": "ortkit.exporters.sources",
    "Progress": "ortkit.exporters.progress",
    "export": "ortkit.exporters.export_stage",
    "load_catalog": "ortkit.exporters.checkpoint.catalog",
}

_WITH_TORCH = ("Exported", "Origin", "export")
"""What is part of the export stage; the catalog is read without it."""

__all__ = ["Exported", "ModelSpec", "Origin", "Progress", "export", "load_catalog"]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module `{__name__}` has no attribute `{name}`")
    if name in _WITH_TORCH:
        need("export", *NEEDED)
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value
