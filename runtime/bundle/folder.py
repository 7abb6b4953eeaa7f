"""A bundle's folder and its manifest: the base of an opened bundle and of one that an export is writing."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from ..errors import BundleError
from .manifest import Manifest, Provider

MANIFEST = "manifest.json"
SBOM_FILE = "sbom.cdx.json"
"""A file of a pack beside those of a bundle; `ortkit inspect --sbom` prints it."""


@dataclass(frozen=True)
class BundleFolder:
    """A folder with its manifest. Models open a `Bundle`, and during an export a `DraftBundle`."""

    path: Path
    manifest: Manifest

    @property
    def provider(self) -> Provider:
        """The execution provider that runs the graph."""
        return self.manifest.provider

    @property
    def digest(self) -> str:
        """The sha256 of `manifest.json`, which lists the sha256 of every other file: it identifies the whole bundle.

        `sha256sum manifest.json` prints the same.
        """
        with self.file(MANIFEST).open("rb") as manifest:
            return hashlib.file_digest(manifest, "sha256").hexdigest()

    def file(self, name: str) -> Path:
        """The path of a file of the bundle; raises BundleError where it is missing."""
        path = self.path / name
        if not path.exists():
            raise BundleError(f"the bundle `{self.path}` has no `{name}`")
        return path


@dataclass(frozen=True)
class DraftBundle(BundleFolder):
    """A bundle that an export is writing: its manifest is incomplete, and its files are not hashed."""

    @property
    def provider(self) -> Provider:
        """The CPU, which runs the graphs of all providers: the machine of the export need not have another one."""
        return Provider.CPU
