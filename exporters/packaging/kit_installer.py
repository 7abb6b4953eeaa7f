"""The installer that a kit carries: a zip that Python runs, the same to the byte for one edition of ortkit."""

from __future__ import annotations

import ast
import io
import zipfile
from importlib import import_module
from pathlib import Path

from ...runtime.installer.kit_format import BLOCK

_ROOT = __name__.partition(".")[0]
_INSTALLER = f"{_ROOT}.runtime.installer"
_DATE = (1980, 1, 1, 0, 0, 0)
"""The earliest that a zip can state."""
_PADDING = "padding"
_OVERHEAD = 30 + 46 + 2 * len(_PADDING)
"""Bytes that the entry _PADDING takes beside its contents."""


def installer_zip() -> bytes:
    """The zip, stored without compression, padded to whole blocks by a file: Python 3.6 runs no zip with a comment."""
    files = {"__main__.py": Path(__file__).with_name("kit_main.py").read_bytes(), **_sources()}
    size = len(_stored(files)) + _OVERHEAD
    return _stored({**files, _PADDING: b"\n" * (-size % BLOCK)})


def _stored(files: dict[str, bytes]) -> bytes:
    """A zip of these files, the same to the byte for the same files."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        for name, content in sorted(files.items()):
            entry = zipfile.ZipInfo(name, _DATE)
            entry.create_system = 3
            entry.external_attr = 0o100644 << 16
            archive.writestr(entry, content)
    return out.getvalue()


def _sources() -> dict[str, bytes]:
    """Path -> source of the installer and of all of ours that it imports."""
    pending, found = [f"{_INSTALLER}.__main__"], {}
    while pending:
        module = pending.pop()
        if module in found:
            continue
        path = _path_of(module)
        found[module] = path
        parent = module.rpartition(".")[0]
        pending += [parent] if parent else []
        pending += _imports_of(module, path)
    root = _package_folder()
    return {f"{_ROOT}/{path.relative_to(root)}": path.read_bytes() for path in found.values()}


def _package_folder() -> Path:
    return Path(str(import_module(_ROOT).__file__)).parent


def _path_of(module: str) -> Path:
    base = _package_folder().joinpath(*module.split(".")[1:])
    return base / "__init__.py" if base.is_dir() else base.with_suffix(".py")


def _imports_of(module: str, path: Path) -> list[str]:
    """The modules of ours that a module imports, in functions too, but not for type checkers alone."""
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    found = []
    pending: list[ast.AST] = [ast.parse(path.read_bytes())]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.ImportFrom) and node.level:
            base = ".".join([*package.split(".")[: len(package.split(".")) - node.level + 1], *_parts(node.module)])
            # `from . import errors` imports a module, `from .errors import X` a name of one.
            names = [f"{base}.{alias.name}" for alias in node.names]
            found += [name for name in names if _path_of(name).is_file()] or [base]
        pending += ast.iter_child_nodes(node)
    return found


def _parts(module: str | None) -> list[str]:
    return module.split(".") if module else []
