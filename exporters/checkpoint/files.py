"""The files of a checkpoint: which are read, how large they may be, and that none of them is a link to elsewhere."""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Collection
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from ...runtime.errors import CheckpointError
from ...runtime.sizes import megabytes
from .unsupported import DESCRIPTIONS

WEIGHTS = "model.safetensors"
WEIGHTS_INDEX = "model.safetensors.index.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
MODULES = "modules.json"
TRANSFORMER_SETTINGS = tuple(
    f"sentence_{name}_config.json"
    for name in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
"""Where sentence-transformers keeps the settings of its module `Transformer`, in the order in which it looks."""
MODEL_SETTINGS = "config_sentence_transformers.json"
_OF_A_MODEL = (
    "config.json",
    WEIGHTS,
    WEIGHTS_INDEX,
    "model-*-of-*.safetensors",
    "tokenizer.json",
    TOKENIZER_CONFIG,
    "special_tokens_map.json",
    "added_tokens.json",
    "generation_config.json",
    "chat_template.jinja",
    "vocab.txt",
    *TRANSFORMER_SETTINGS,
    *DESCRIPTIONS,
)
"""Of a model, at the top of a checkpoint or in the folder of a module."""
_WANTED = (
    *_OF_A_MODEL,
    MODULES,
    *(f"[0-9]*_*/{name}" for name in _OF_A_MODEL),
    MODEL_SETTINGS,
    "LICENSE*",
    "README.md",
)
"""What an export reads: no pickles, no other formats' copies of the weights."""
_READ_BY_LIBRARIES = (
    "added_tokens.json",
    "merges.txt",
    "modules.json",
    "tokenizer.json",
    "special_tokens_map.json",
    "vocab.*",
    "*config*.json",
    "*.jinja",
    "*.model",
    "*.tiktoken",
)
"""What transformers and sentence-transformers read beside the weights, in the folder and in those of modules."""
LICENSE = "LICENSE*"
_LARGE_TEXTS = ("tokenizer.json", "vocab.*", "merges.txt", "*.model", "*.tiktoken", "*.index.json", "added_tokens.json")
_SMALL = 16 * 2**20
LARGE = 512 * 2**20
_WITHOUT_LIMIT = 1 << 62
_BLOB = re.compile(r".*/models--[^/]+/blobs/(?:[0-9a-f]{40}|[0-9a-f]{64})")
"""A file in a cache of the Hub, to which the names in its snapshots are links."""
_CARD_HEADER = 64 * 1024


def is_wanted(name: str) -> bool:
    """Whether an export reads a file of this path; `*` stands for anything within one folder."""
    parts = name.split("/")
    return any(
        len(parts) == len(pattern.split("/"))
        and all(fnmatchcase(part, piece) for part, piece in zip(parts, pattern.split("/"), strict=True))
        for pattern in _WANTED
    )


def is_wanted_of_module(name: str, folders: Collection[str]) -> bool:
    """Whether an export reads a file of this path, where these are the folders of the modules."""
    folder, _, last = name.rpartition("/")
    return folder in folders and any(fnmatchcase(last, pattern) for pattern in _OF_A_MODEL)


def describes_weights(name: str) -> bool:
    """Whether a file that an export reads tells, in a few kilobytes, what the weights are and what for."""
    return name.endswith(".json") and name != "tokenizer.json"


def size_limit(name: str) -> int:
    """Bytes that a file of this name may have, which is far above what any has that was published."""
    last = name.rpartition("/")[2]
    if last.endswith((".safetensors", ".gguf")):
        return _WITHOUT_LIMIT
    return LARGE if any(fnmatchcase(last, pattern) for pattern in _LARGE_TEXTS) else _SMALL


def _is_read(name: str) -> bool:
    """Whether an export, or a library that it loads the checkpoint with, reads what is in a file of this path."""
    last = name.rpartition("/")[2]
    by_libraries = any(fnmatchcase(last, pattern) for pattern in _READ_BY_LIBRARIES)
    return (by_libraries or is_wanted(name)) and not last.endswith(".safetensors")


def files_in(folder: Path) -> list[str]:
    """The paths of the files in a folder and in the folders there, in order; nothing that is hidden."""
    found = []
    for entry in sorted(folder.glob("*")) + sorted(folder.glob("*/*")):
        name = entry.relative_to(folder).as_posix()
        if not entry.is_dir() and not name.startswith("."):
            found.append(name)
    return found


def check_files(folder: Path) -> None:
    """Raise CheckpointError for a file of a checkpoint that is a link out of it, too large, or not a file at all.

    Weights may be links to anywhere: they are read as numbers, and nothing else can come of them.
    """
    for name in files_in(folder):
        if _is_read(name):
            check_file(folder, name)


def check_file(folder: Path, name: str) -> Path:
    """The path of one file, if it may be read; raises CheckpointError if not. A file that is missing may."""
    path = folder / name
    target = Path(os.path.realpath(path))
    if not target.is_relative_to(os.path.realpath(folder)) and _BLOB.fullmatch(str(target)) is None:
        raise CheckpointError(
            f"`{name}` of `{folder}` is a link to `{target}`, outside of the checkpoint",
            hint="where the links are yours, copy what they lead to: `cp -rL`",
        )
    try:
        found = target.stat()
    except (FileNotFoundError, NotADirectoryError):
        return path
    if not stat.S_ISREG(found.st_mode):
        raise CheckpointError(f"`{name}` of `{folder}` is not a file")
    if found.st_size > size_limit(name):
        raise CheckpointError(
            f"`{name}` of `{folder}` has {megabytes(found.st_size)}, and such a file may have "
            f"{megabytes(size_limit(name))}"
        )
    return path


def read_json(path: Path) -> Any:
    """The content of a JSON file; raises CheckpointError for what is not JSON, or larger or deeper than any is."""
    if path.stat().st_size > size_limit(path.name):
        raise CheckpointError(
            f"`{path}` has {megabytes(path.stat().st_size)}, and such a file may have "
            f"{megabytes(size_limit(path.name))}"
        )
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"`{path}` is not valid JSON: {error}") from error
    except RecursionError as error:
        raise CheckpointError(f"`{path}` has more levels than JSON is read with") from error


def license_files(folder: Path) -> list[Path]:
    """The files that hold a checkpoint's terms."""
    return [check_file(folder, path.name) for path in sorted(folder.glob(LICENSE)) if not path.is_dir()]


def card_header(folder: Path) -> str | None:
    """The YAML that a model card begins with, None where there is none."""
    card = folder / "README.md"
    if not card.is_file():
        return None
    with check_file(folder, card.name).open(encoding="utf-8", errors="replace") as file:
        text = file.read(_CARD_HEADER)
    return text[4:].partition("\n---")[0] if text.startswith("---\n") else None
