"""A bundle's folder with its manifest: what an opened bundle and one that is being made have in common."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..errors import BundleError
from .manifest import Manifest


@dataclass(frozen=True)
class BundleFolder:
    """A folder, and the manifest that describes what is in it."""

    path: Path
    manifest: Manifest

    def file(self, name: str) -> Path:
        """The path of a file of the bundle; raises BundleError where it is missing."""
        path = self.path / name
        if not path.exists():
            raise BundleError(f"the bundle `{self.path}` has no `{name}`")
        return path


@dataclass(frozen=True)
class DraftBundle(BundleFolder):
    """A bundle that an export is making: its manifest is not complete, and its files are not hashed."""
