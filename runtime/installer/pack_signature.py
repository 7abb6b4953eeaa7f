"""Where the signature of a pack or of a kit is: beside a pack, and in the file of a kit."""

from __future__ import annotations

from pathlib import Path

from .kit_format import HEADER_SIZE, Parts


def is_kit(path: Path) -> bool:
    """Whether a file begins as a kit does."""
    try:
        with path.open("rb") as file:
            return Parts.read(file.read(HEADER_SIZE)) is not None
    except OSError:
        return False


def signature_beside(path: Path) -> Path:
    """The signature of a pack: `NAME.sig` beside it."""
    return path.with_name(f"{path.name}.sig")
