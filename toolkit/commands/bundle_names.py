"""Bundles by name: `NAME` is the folder `bundles/NAME`, or the one in the folder that ORTKIT_BUNDLES names."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import click

from ...runtime.bundle.folder import MANIFEST
from ...runtime.errors import NotFoundError
from ...runtime.output_path import bundles_folder
from ..console.help import close_names

Function = TypeVar("Function", bound=Callable[..., Any])


def bundle_folders() -> Iterator[Path]:
    """The folders that may be bundles, sorted by name, without the hidden ones of unfinished exports."""
    folder = bundles_folder()
    try:
        found = sorted(folder.iterdir())
    except OSError:
        return
    for path in found:
        if path.is_dir() and not path.name.startswith("."):
            yield path


def resolve_bundle(name: str) -> str:
    """The path of a bundle that is given by its path or by its name; a bundle at this path takes precedence.

    Raises NotFoundError for a name that is neither, with the close matches, or where ORTKIT_BUNDLES names no folder.
    Anything else is returned as it is: opening it raises the error, after those of the other arguments.
    """
    plain = name.rstrip(os.sep)
    # `Path.exists` raises OSError for a name that is too long.
    if not plain or os.sep in plain or os.path.exists(Path(plain, MANIFEST)):  # noqa: PTH110
        return name
    folders = {path.name: path for path in bundle_folders()}
    if plain in folders:
        return str(folders[plain])
    if os.path.lexists(name):
        return name
    close = close_names(plain, folders)
    hint = missing_folder()
    if close:
        hint = f"did you mean {' or '.join(f'`{other}`' for other in close)}? `ortkit list` shows all"
    if hint is None:
        return name
    raise NotFoundError(f"there is no bundle `{name}`, neither at this path nor in `{bundles_folder()}`", hint=hint)


def missing_folder() -> str | None:
    """What is wrong with the folder that ORTKIT_BUNDLES names; None where it is a folder, or not set."""
    folder = bundles_folder()
    if "ORTKIT_BUNDLES" not in os.environ or folder.is_dir():
        return None
    return f"ORTKIT_BUNDLES names `{folder}`, which is {'not a folder' if folder.exists() else 'not there'}"


class BundleType(click.ParamType):  # type: ignore[type-arg]  # generic from click 8.2 on
    """The path of a bundle, or its name."""

    name = "bundle"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:  # noqa: ARG002
        return resolve_bundle(os.fspath(value))


def bundle_argument(**settings: Any) -> Callable[[Function], Function]:
    return click.argument("bundle", type=BundleType(), **settings)
