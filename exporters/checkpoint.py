"""A checkpoint: files on local disk, found complete and safe to read before anything is made of them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from safetensors import SafetensorError, safe_open

from exporters.architectures import Architecture, architecture_of, check_architecture, known_architecture
from exporters.catalog import ModelSpec
from exporters.rope_parameters import with_known_names
from runtime.bundle import MANIFEST, TOKENIZER, sha256_of
from runtime.errors import CheckpointError, UnsupportedModelError
from runtime.manifest import Source

if TYPE_CHECKING:
    from exporters.stored_tensors import StoredTensor

WEIGHTS = "model.safetensors"
WEIGHTS_INDEX = "model.safetensors.index.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
WANTED = (
    "config.json",
    WEIGHTS,
    WEIGHTS_INDEX,
    "model-*-of-*.safetensors",
    "tokenizer.json",
    TOKENIZER_CONFIG,
    "special_tokens_map.json",
    "generation_config.json",
    "chat_template.jinja",
    "vocab.txt",
    "modules.json",
    "[0-9]*_*/config.json",
    "[0-9]*_*/model.safetensors",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
    "LICENSE*",
    "README.md",
)
"""What an export reads: no pickles, no other formats' copies of the weights."""


@dataclass(frozen=True)
class Checkpoint:
    """A model as it was published: its folder, what its config.json says, and where it came from.

    `config` has the names that the pinned transformers reads, which the file need not have.
    """

    name: str
    folder: Path
    config: dict[str, Any]
    source: Source
    spec: ModelSpec | None
    """The entry of the catalog, for a model that has one."""
    gguf: Path | None = None
    """The GGUF file that the model comes in. Until it is described, `folder` is that file's and `config` is empty."""
    block_types: frozenset[str] = frozenset()
    """The types of the blocks in which the GGUF file holds its matrices; none where it is not quantized."""
    tensors: Mapping[str, StoredTensor] | None = None
    """The weights, where they are in no safetensors files."""

    def read_json(self, name: str) -> Any:
        """The content of a JSON file of the checkpoint, None when there is no such file."""
        path = self.folder / name
        return read_json(path) if path.exists() else None

    @property
    def architecture(self) -> Architecture:
        """What edgekit knows about models of this kind; raises UnsupportedModelError where it is nothing."""
        return known_architecture(self.name, self.config)

    @property
    def weights_size(self) -> int:
        """Bytes of all weight files."""
        files = [self.gguf] if self.gguf is not None else weight_files(self.folder)
        return sum(path.stat().st_size for path in files)


Accept = Callable[[Checkpoint], object]
"""Is given a checkpoint whose weights may not be there yet, and raises for what is not to be exported."""


def accept_any(_checkpoint: Checkpoint) -> None:
    """Have nothing against any model."""


def is_wanted(name: str) -> bool:
    """Whether an export reads a file of this path; `*` stands for anything within one folder."""
    parts = name.split("/")
    return any(
        len(parts) == len(pattern.split("/"))
        and all(fnmatchcase(part, piece) for part, piece in zip(parts, pattern.split("/"), strict=True))
        for pattern in WANTED
    )


def describes_weights(name: str) -> bool:
    """Whether a file that an export reads tells, in a few kilobytes, what the weights are and what for."""
    return name.endswith(".json") and name != TOKENIZER


def check_config(config: Any, name: str) -> None:
    """Refuse what is no model's config, what needs code that edgekit has not, and what it would not export exactly."""
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise CheckpointError(f"the config.json of `{name}` does not say which `model_type` it is")
    if "auto_map" in config and architecture_of(config) is None:
        raise UnsupportedModelError(
            f"`{name}` brings its own code (`auto_map` in config.json), and edgekit runs no code from a checkpoint",
            hint="without that code the model would be exported as something else and give wrong results",
        )
    check_architecture(name, config)


def open_without_weights(
    folder: Path, name: str, source: Source, *, spec: ModelSpec | None = None, accept: Accept = accept_any
) -> Checkpoint:
    """Check what a folder in Hugging Face layout says of its weights, which are not read and need not be there."""
    if not (folder / "config.json").exists():
        raise CheckpointError(
            f"`{folder}` is no checkpoint: it holds no `config.json`",
            hint="it is a bundle already: see `edgekit inspect`" if (folder / MANIFEST).exists() else None,
        )
    config = read_json(folder / "config.json")
    check_config(config, name)
    checkpoint = Checkpoint(name, folder, with_known_names(name, config), source, spec)
    accept(checkpoint)
    return checkpoint


def open_checkpoint(
    folder: Path, name: str, source: Source, *, spec: ModelSpec | None = None, accept: Accept = accept_any
) -> Checkpoint:
    """Check a folder in Hugging Face layout and describe it; nothing in it is executed or unpickled."""
    checkpoint = open_without_weights(folder, name, source, spec=spec, accept=accept)
    for path in weight_files(folder):
        check_safetensors(path)
    paths = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    files = {name: sha256_of(path) for name, path in paths.items() if is_wanted(name)}
    return dataclasses.replace(checkpoint, source=dataclasses.replace(source, files=files))


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that hold the weights; raises CheckpointError when there are none."""
    if (folder / WEIGHTS).exists():
        return [folder / WEIGHTS]
    if (folder / WEIGHTS_INDEX).exists():
        paths = [folder / shard for shard in shards_of(folder)]
        for path in paths:
            if path.parent != folder or not path.exists():
                raise CheckpointError(f"the weights `{path.name}` that `{WEIGHTS_INDEX}` names are missing")
        return paths
    pickled = next(folder.glob("*.bin"), None)
    if pickled is not None:
        raise CheckpointError(
            f"`{folder}` has its weights in `{pickled.name}` only, a pickle, which can run code when it is loaded",
            hint="convert it to `model.safetensors` where you trust it",
        )
    raise CheckpointError(f"`{folder}` holds no weights: no `{WEIGHTS}`")


def shards_of(folder: Path) -> list[str]:
    """The files that an index of weights names; raises CheckpointError when it names none."""
    index = read_json(folder / WEIGHTS_INDEX)
    shards = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(shards, dict) or not all(isinstance(shard, str) for shard in shards.values()):
        raise CheckpointError(f"`{folder / WEIGHTS_INDEX}` has no `weight_map`")
    return sorted(set(shards.values()))


def check_safetensors(path: Path) -> None:
    """Read the header only; the library compares it with the file's length and each tensor's shape with its place."""
    try:
        with safe_open(str(path), framework="numpy") as file:
            file.keys()
    except SafetensorError as error:
        raise CheckpointError(
            f"the weights `{path}` are damaged: {error}", hint="copy or download the file again"
        ) from error


def read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"`{path}` is no JSON: {error}") from error


def licence_of(folder: Path) -> str | None:
    """The licence that the model card states in its header, None where there is none."""
    card = folder / "README.md"
    text = card.read_text(encoding="utf-8", errors="replace") if card.exists() else ""
    if not text.startswith("---\n"):
        return None
    try:
        header = yaml.safe_load(text[4:].partition("\n---")[0])
    except yaml.YAMLError:
        return None
    licence = header.get("license") if isinstance(header, dict) else None
    return licence if isinstance(licence, str) else None
