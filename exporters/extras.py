"""The optional dependencies of the export stage and of the Hub's commands, and how to install them."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import shlex
import sys
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

from ..runtime.errors import MissingPartError
from ..runtime.version import __version__

_EXTRAS = {
    "hub": "the commands for the Hub and the catalog are",
    "export": "the export stage is",
    "sign": "what signs bundles is",
    "serve": "the server is",
}
"""Name of an extra -> what needs it."""
_PACKAGING = 25
"""The first version whose environment markers have `extras`."""
_ROOT = Path(__file__).resolve().parents[1]
"""The source folder; where ortkit was installed from a wheel, the package's own folder."""


def need(extra: str, *names: str) -> None:
    """Raise MissingPartError with the command that installs the extra if one of its modules is missing."""
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        where = "on the machine that exports, " if extra == "export" else ""
        raise MissingPartError(
            f"{_EXTRAS[extra]} not installed here: {', '.join(f'`{name}`' for name in missing)} cannot be imported",
            hint=f"{where}{install_hint(extra)}",
        )


def need_packaging() -> None:
    """Raise MissingPartError where `packaging` is missing, or too old to evaluate the markers of `pylock.toml`."""
    try:
        found = importlib.metadata.version("packaging")
    except importlib.metadata.PackageNotFoundError:
        found = None
    if found is None or int(found.partition(".")[0]) < _PACKAGING:
        problem = "is not installed" if found is None else f"{found} is too old"
        raise MissingPartError(
            f"`packaging` {problem}, which selects the wheels",
            hint=f"run `{_pip_install(f'packaging>={_PACKAGING}')}`",
        )


def install_hint(extra: str) -> str:
    """How to install ortkit with an extra: from its source folder or wheel, since no package index has it."""
    extras = f"{_onnxruntime_extra()},{extra}" if extra == "export" else extra
    found = _installed_from()
    if found is not None:
        return f"run `{_pip_install(f'{found}[{extras}]')}`"
    wheel = f"ortkit-{__version__}-py3-none-any.whl"
    return (
        f"install ortkit's wheel again, with the extra `{extra}`: `{_pip_install(f'./{wheel}[{extras}]')}` in the "
        "folder that holds it"
    )


def _pip_install(requirement: str) -> str:
    return f"{shlex.quote(sys.executable)} -m pip install {shlex.quote(requirement)}"


def _installed_from() -> Path | None:
    """The source folder or wheel that ortkit was installed from (PEP 610), None where it is not there any more."""
    if (_ROOT / "pyproject.toml").is_file():
        return _ROOT
    try:
        origin = json.loads(importlib.metadata.distribution("ortkit").read_text("direct_url.json") or "{}")
    except importlib.metadata.PackageNotFoundError:
        return None
    url = urlsplit(origin.get("url", ""))
    path = Path(url2pathname(url.path))
    return path if url.scheme == "file" and path.exists() else None


def _onnxruntime_extra() -> str:
    """`cuda` where onnxruntime-gpu is installed, which the extra `cpu` would break."""
    try:
        importlib.metadata.distribution("onnxruntime-gpu")
    except importlib.metadata.PackageNotFoundError:
        return "cpu"
    return "cuda"
