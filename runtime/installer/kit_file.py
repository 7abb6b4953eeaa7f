"""Open a kit, or the layout of a pack or kit: find the parts, and read what it is for. Nothing in it is executed."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from ..errors import BundleError, OrtkitError
from ..pack.blob_store import not_found, opened_file
from ..pack.oci_layout import BUNDLE, Artifact, OciLayout
from .kit_format import FACTS, HEADER_SIZE, KIT, LARGEST_FACTS, WHEELS, KitFacts, Parts, signed_files


@dataclass(frozen=True)
class Kit:
    """An opened kit. Its files are checked against the layout's index while they are copied."""

    path: Path
    parts: Parts
    layout: OciLayout
    files: dict[str, str]
    """What the signature covers: name of a part -> sha256."""
    signature: bytes | None

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Kit:
        """Raises NotFoundError, and BundleError for what is not a kit or damaged."""
        where = Path(path)
        try:
            with opened_file(where) as file:
                header = file.read(HEADER_SIZE)
                parts = Parts.read(header)
                if parts is None:
                    raise BundleError(f"`{where}` is not a kit", hint="`ortkit kit BUNDLE... -o FILE` makes one")
                installer = file.read(parts.installer_size)
                signature = file.read(parts.signature_size)
        except FileNotFoundError as error:
            raise not_found(where, "kit") from error
        except OSError as error:
            raise BundleError(f"`{where}` cannot be read: {error.strerror or error}") from error
        layout = OciLayout.open(where, offset=parts.layout)
        files = signed_files(header, installer, layout.index_sha256)
        return cls(where, parts, layout, files, signature.strip() or None)

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


def open_layout(path: str | os.PathLike[str]) -> OciLayout:
    """Open a pack (`OciLayout.open`), or the layout in a kit, whose signature is not checked here."""
    where = Path(path)
    parts = None if where.is_dir() else _parts_of(where)
    return OciLayout.open(where, offset=0 if parts is None else parts.layout)


def is_kit(path: Path) -> bool:
    """Whether a file begins as a kit does."""
    try:
        return _parts_of(path) is not None
    except OrtkitError:
        return False


def _parts_of(path: Path) -> Parts | None:
    """The parts of a kit; None for another file. Raises NotFoundError, and BundleError for what cannot be read."""
    try:
        with opened_file(path) as file:
            return Parts.read(file.read(HEADER_SIZE))
    except FileNotFoundError as error:
        raise not_found(path, "pack") from error
    except OSError as error:
        raise BundleError(f"`{path}` cannot be read: {error.strerror or error}") from error
