"""Weights whose files do not say that they are PyTorch's, as transformers wants it said, in a copy that says it."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

from ..checkpoint.checkpoint import Checkpoint, weight_files
from ..graph.external_data import need_space

METADATA = "__metadata__"
_SAID = ("pt", "mlx")
"""What transformers takes for PyTorch's, beside a file without any metadata."""


def with_format(checkpoint: Checkpoint, folder: Path) -> Checkpoint:
    """The checkpoint, or a copy of it in `folder` whose weights say their format where its own do not.

    Any tool but transformers may have written a safetensors file, and the format needs no metadata; but transformers,
    and with it sentence-transformers, opens no file that has some and says no format.
    """
    unsaid = [path for path in weight_files(checkpoint.folder) if _says_another(path)]
    if not unsaid:
        return checkpoint
    need_space(folder.parent, sum(path.stat().st_size for path in weight_files(checkpoint.folder)))
    for name in checkpoint.source.files:
        source, target = checkpoint.top / name, folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        (_write_with_format if source in unsaid else shutil.copyfile)(source, target)
    return dataclasses.replace(checkpoint, folder=folder / checkpoint.subfolder)


def _says_another(path: Path) -> bool:
    metadata = _header_of(path)[0].get(METADATA)
    return metadata is not None and metadata.get("format") not in _SAID


def _header_of(path: Path) -> tuple[dict[str, Any], int]:
    """The header of a safetensors file, and where the numbers begin."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        return json.loads(file.read(length)), 8 + length


def _write_with_format(source: Path, target: Path) -> None:
    header, start = _header_of(source)
    header[METADATA] = header[METADATA] | {"format": _SAID[0]}
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    with source.open("rb") as old, target.open("wb") as new:
        new.write(len(encoded).to_bytes(8, "little"))
        new.write(encoded)
        old.seek(start)
        shutil.copyfileobj(old, new, 1 << 24)
