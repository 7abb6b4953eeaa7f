"""The work folder of a decoder's export: what a killed export computed, and the weights of the bundle being made."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from ...runtime.bundle.bundle import GRAPH_DATA, PREFILL_GRAPH
from ...runtime.folder_size import bytes_in
from ..graph.array_store import KeptArrays, remove

_WEIGHTS, _PREFILL, _SCRATCH = "weights", "prefill", "scratch"
EXACT = "exact"
"""Name of the weights that no recipe quantizes."""


class WorkFolder:
    """Array stores below a folder; each is opened, and its bytes are hashed, once.

    Measurements are in files of their own and survive until the export ends. Weights are as large as the bundle, so
    those of one recipe are kept at a time.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._open: dict[Path, KeptArrays] = {}
        shutil.rmtree(path / _SCRATCH, ignore_errors=True)

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return bytes_in(self.path)

    def measurements(self, name: str) -> KeptArrays:
        """Return the store of some measurements."""
        return self._store(self.path / name)

    def weights(self, name: str) -> KeptArrays:
        """Return the store for the weights of a recipe, or for those of `EXACT`."""
        folder = self.path / _WEIGHTS / name
        folder.mkdir(parents=True, exist_ok=True)
        return self._store(folder / GRAPH_DATA)

    def prefill_weights(self) -> KeptArrays:
        """Return the store for the weights of the graph for prompts."""
        folder = self.path / _PREFILL
        folder.mkdir(parents=True, exist_ok=True)
        return self._store(folder / f"{PREFILL_GRAPH}.data")

    def delete_weights_except(self, name: str) -> None:
        """Delete the weights of all other recipes."""
        for folder in (self.path / _WEIGHTS).glob("*"):
            if folder.name != name:
                remove(folder)
                self._open.pop(folder / GRAPH_DATA, None)

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """Make a temporary folder; what a killed export leaves there is deleted when the folder is opened again."""
        (self.path / _SCRATCH).mkdir(exist_ok=True)
        with TemporaryDirectory(dir=self.path / _SCRATCH) as folder:
            yield Path(folder)

    def _store(self, path: Path) -> KeptArrays:
        if path not in self._open:
            self._open[path] = KeptArrays(path)
        return self._open[path]
