"""Open the layout of a pack or of a kit, whichever a file is."""

from __future__ import annotations

import os
from pathlib import Path

from ..bundle.blob_store import opened_file
from ..bundle.oci_layout import OciLayout
from ..errors import BundleError, NotFoundError
from .kit_format import HEADER_SIZE, Parts


def open_layout(path: str | os.PathLike[str]) -> OciLayout:
    """Open a pack (`OciLayout.open`), or the layout in a kit, whose signature is not checked here."""
    where = Path(path)
    if where.is_dir():
        return OciLayout.open(where)
    try:
        with opened_file(where) as file:
            parts = Parts.read(file.read(HEADER_SIZE))
    except FileNotFoundError as error:
        raise NotFoundError(f"there is no pack at `{where}`") from error
    except OSError as error:
        raise BundleError(f"`{where}` cannot be read: {error.strerror or error}") from error
    return OciLayout.open(where, offset=0 if parts is None else parts.layout)
