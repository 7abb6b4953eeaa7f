"""A checkpoint: files on local disk, found complete and safe to read before anything is made of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from ...runtime.bundle.folder import MANIFEST
from ...runtime.bundle.manifest import Source
from ...runtime.errors import CheckpointError, UnsupportedModelError
from .architectures import Architecture, architecture_of, check_architecture, known_architecture
from .catalog import ModelSpec
from .files import (
    MODULES,
    TOKENIZER_CONFIG,
    WEIGHTS,
    WEIGHTS_INDEX,
    card_header,
    check_file,
    check_files,
    files_in,
    is_wanted,
    is_wanted_of_module,
    read_json,
)
from .hashed_file import FileState, HashedFile, changed_meanwhile, hash_file
from .rope_config import with_known_names
from .safetensors_reader import StoredTensor, check_shards, check_sizes, read_headers
from .unsupported import check_no_adapter, check_packed_files, check_tokenizer_code, check_tokenizer_paths, check_unread


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
    subfolder: str = ""
    """Where the model lies in the checkpoint, for one whose modules.json says `0_Transformer` or the like."""
    hashed: Mapping[Path, HashedFile] = field(default_factory=dict, repr=False)
    """The files that an export reads, where they were found, as they were when they were hashed."""

    def read_json(self, name: str) -> Any:
        """The content of a JSON file of the model, None when there is no such file."""
        return self.read_module_json(f"{self.subfolder}/{name}" if self.subfolder else name)

    def read_module_json(self, name: str) -> Any:
        """The same of a file beside modules.json, or in the folder of a module."""
        path = check_file(self.top, name)
        return read_json(path) if path.exists() else None

    @property
    def top(self) -> Path:
        """The folder that was published, which holds modules.json; the model itself may lie in a folder of it."""
        return self.folder.parents[len(Path(self.subfolder).parts) - 1] if self.subfolder else self.folder

    @property
    def architecture(self) -> Architecture:
        """The architecture of a checkpoint; raises UnsupportedModelError if it is not supported."""
        return known_architecture(self.name, self.config)

    @property
    def weights_size(self) -> int:
        """Bytes of all weight files."""
        files = [self.gguf] if self.gguf is not None else weight_files(self.folder)
        return sum(path.stat().st_size for path in files)


def _check_config(config: Any, name: str) -> None:
    """Refuse a config that is not a model's, that needs remote code, or that cannot be exported exactly."""
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise CheckpointError(f"the config.json of `{name}` does not say which `model_type` it is")
    if "auto_map" in config and architecture_of(config) is None:
        raise UnsupportedModelError(
            f"`{name}` brings its own code (`auto_map` in config.json), and ortkit runs no code from a checkpoint",
            hint="without that code the model would be exported as something else and give wrong results",
        )
    check_architecture(name, config)
    check_unread(name, config, encoder=known_architecture(name, config).is_encoder)
    _check_padding(config, name)


def _check_padding(config: Mapping[str, Any], name: str) -> None:
    """Raise CheckpointError for a padding token outside the vocabulary: positions may be counted from it."""
    padding, size = config.get("pad_token_id", 0), config.get("vocab_size")
    counted = known_architecture(name, config).positions_after_padding
    if padding is None and not counted:
        return
    if type(padding) is not int or (type(size) is int and not -size <= padding < size) or (counted and padding < 0):
        raise CheckpointError(
            f"`pad_token_id` in the config.json of `{name}` must be the id of a token, not `{padding}`"
        )


def describe_folder(folder: Path, name: str, source: Source, *, spec: ModelSpec | None = None) -> Checkpoint:
    """Check what a folder in Hugging Face layout says of its weights, which are not read and need not be there."""
    check_files(folder)
    subfolder = _transformer_folder(folder, name)
    folder /= subfolder
    check_no_adapter(name, (path.name for path in (folder.iterdir() if folder.is_dir() else ())))
    if not (folder / "config.json").exists():
        raise CheckpointError(
            f"`{folder}` is not a checkpoint: it has no `config.json`",
            hint="it is a bundle already: see `ortkit inspect`" if (folder / MANIFEST).exists() else None,
        )
    config = read_json(folder / "config.json")
    _check_config(config, name)
    check_packed_files(name, folder)
    tokenizer = check_file(folder, TOKENIZER_CONFIG)
    settings = read_json(tokenizer) if tokenizer.exists() else None
    check_tokenizer_code(name, settings)
    check_tokenizer_paths(name, settings)
    return Checkpoint(name, folder, with_known_names(name, config), source, spec, subfolder=subfolder)


def _transformer_folder(folder: Path, name: str) -> str:
    """The subfolder in which modules.json says that the model lies, empty where it lies beside modules.json.

    Raises UnsupportedModelError for a checkpoint that begins with another module and holds no model of transformers.
    """
    modules = read_json(folder / MODULES) if (folder / MODULES).exists() else None
    first = modules[0] if isinstance(modules, list) and modules else None
    if not isinstance(first, dict):
        return ""
    kind, path = first.get("type"), first.get("path")
    if str(kind).rpartition(".")[2] == "Transformer" and isinstance(path, str):
        return checked_subfolder(folder, path)
    if not (folder / "config.json").exists():
        raise UnsupportedModelError(
            f"`{name}` begins with the module `{kind}`, which ortkit does not support",
            hint="supported: models that begin with the module `Transformer`",
        )
    return ""


def _module_folders(folder: Path) -> frozenset[str]:
    """The folders that modules.json names, whatever they are called."""
    modules = read_json(folder / MODULES) if (folder / MODULES).exists() else None
    paths = (module.get("path") for module in modules if isinstance(module, dict)) if isinstance(modules, list) else ()
    return frozenset(checked_subfolder(folder, path) for path in paths if isinstance(path, str))


def checked_subfolder(folder: Path, path: str) -> str:
    """The path of a module within a checkpoint, normalized; raises CheckpointError for one that leads out of it."""
    pure = PurePosixPath(path)
    if pure.is_absolute() or ".." in pure.parts or "\\" in path or "\0" in path:
        raise CheckpointError(f"`{folder / MODULES}` has a module at `{path}`, which is not a folder of the checkpoint")
    if len(pure.parts) > 1:
        # Files are seen to be no links, of bounded size, and hashed, in the folders at the top.
        raise UnsupportedModelError(
            f"`{folder / MODULES}` has a module at `{path}`, a folder within a folder, where ortkit reads nothing",
            hint="sentence-transformers saves each module in a folder beside `modules.json`; save the model again",
        )
    return "" if str(pure) == "." else str(pure)


def states_in(folder: Path) -> dict[str, FileState]:
    """The states of a folder's files by their paths in it, to see later whether one was changed."""
    return {name: FileState.of(folder / name) for name in files_in(folder) if (folder / name).is_file()}


def add_weights(
    description: Checkpoint, known: Mapping[str, HashedFile], before: Mapping[str, FileState]
) -> Checkpoint:
    """Check the weights of a checkpoint that was described, and hash its files; nothing is executed or unpickled.

    `known` are the files that were hashed already, and `before` the states of files before they were read for the
    description. Raises CheckpointError for weights that are damaged or missing, and for a file that was changed since.
    """
    top = description.top
    check_files(top)
    check_weights(description)
    modules = _module_folders(top)
    hashed = {}
    for name in sorted(files_in(top)):
        path = top / name
        if not (is_wanted(name) or is_wanted_of_module(name, modules)) or not path.is_file():
            continue
        found = known.get(name)
        hashed[name] = found if found is not None and found.is_current(path) else hash_file(path)
        if name in before and not before[name].same_content(hashed[name].state):
            raise changed_meanwhile(path)
    return with_hashes(description, hashed)


def with_hashes(description: Checkpoint, hashed: Mapping[str, HashedFile]) -> Checkpoint:
    """A checkpoint with the hashes of its files, by their paths in `top`."""
    files = {name: file.sha256 for name, file in hashed.items()}
    return dataclasses.replace(
        description,
        source=dataclasses.replace(description.source, files=files),
        hashed={description.top / name: file for name, file in hashed.items()},
    )


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that hold the weights; raises CheckpointError when there are none."""
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if (folder / WEIGHTS_INDEX).exists():
        paths = [folder / shard for shard in shards_of(folder)]
        for path in paths:
            if path.parent != folder or not path.is_file():
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


def check_weights(checkpoint: Checkpoint) -> None:
    """Read the headers only: whole files, an index that fits them, and the sizes that config.json promises."""
    files = weight_files(checkpoint.folder)
    shards: dict[str, dict[str, StoredTensor]] = {path.name: read_headers(path) for path in files}
    if not (checkpoint.folder / WEIGHTS).exists():
        check_shards(read_json(checkpoint.folder / WEIGHTS_INDEX)["weight_map"], shards)
    headers = [header for found in shards.values() for header in found.values()]
    check_sizes(checkpoint.name, checkpoint.config, headers)


def check_safetensors(path: Path) -> None:
    """Read the header only; raises CheckpointError for a file that is damaged."""
    read_headers(path)


def license_of(folder: Path) -> str | None:
    """The license that the model card states in its header, None where there is none."""
    try:
        header = yaml.safe_load(card_header(folder) or "")
    # ValueError: dates and numbers that there are not. RecursionError: more levels than are read.
    except (yaml.YAMLError, ValueError, RecursionError):
        return None
    found = header.get("license") if isinstance(header, dict) else None
    return found if isinstance(found, str) else None
