"""Open a kit: find its parts, check its signature, and read what it is for. Nothing in it is executed."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from ..bundle.oci_layout import BUNDLE, Artifact, OciLayout
from ..errors import BundleError, NotFoundError
from .kit_format import FACTS, HEADER_SIZE, KIT, LARGEST_FACTS, WHEELS, KitFacts, Parts, signed_files


@dataclass(frozen=True)
class Kit:
    """An opened kit. Its files are checked against the layout's index while they are copied."""

    path: Path
    layout: OciLayout
    files: dict[str, str]
    """What the signature covers: name of a part -> sha256."""
    signature: bytes | None

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Kit:
        """Raises NotFoundError, and BundleError for what is not a kit or damaged."""
        where = Path(path)
        try:
            with where.open("rb") as file:
                header = file.read(HEADER_SIZE)
                parts = Parts.read(header)
                if parts is None:
                    raise BundleError(f"`{where}` is not a kit", hint="`ortkit kit BUNDLE... -o FILE` makes one")
                installer = file.read(parts.installer_size)
                signature = file.read(parts.signature_size)
        except FileNotFoundError as error:
            raise NotFoundError(f"there is no kit at `{where}`") from error
        except OSError as error:
            raise BundleError(f"`{where}` cannot be read: {error.strerror or error}") from error
        layout = OciLayout.open(where, offset=parts.layout)
        return cls(where, layout, signed_files(header, installer, layout.index_sha256), signature.strip() or None)

    @property
    def digest(self) -> str:
        """Identifies what is installed: a kit that leaves out files has the same one as the whole kit."""
        return self.layout.index_sha256

    def facts(self) -> KitFacts:
        """Call it after the signature was checked."""
        artifact = self._only(KIT)
        if set(artifact.layers) != {FACTS}:
            raise BundleError(f"the kit `{self.path}` has no `{FACTS}`")
        return KitFacts.from_json(self.layout.read(artifact.layers[FACTS], LARGEST_FACTS), str(self.path))

    @property
    def wheels(self) -> Artifact:
        return self._only(WHEELS)

    @property
    def bundles(self) -> dict[str, Artifact]:
        """Name -> bundle."""
        return {artifact.name: artifact for artifact in self.layout.artifacts if artifact.kind == BUNDLE}

    def _only(self, kind: str) -> Artifact:
        found = [artifact for artifact in self.layout.artifacts if artifact.kind == kind]
        if len(found) != 1:
            raise BundleError(f"the kit `{self.path}` has {len(found)} artifacts of the kind `{kind}` instead of 1")
        return found[0]

    def close(self) -> None:
        self.layout.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()
