"""The headers of safetensors files, compared with the index of shards and with the sizes in config.json.

A config.json may promise a million layers or 10^12 tokens; what it promises is seen here against what the files hold,
before anything of that size is made.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from runtime.errors import CheckpointError, UnsupportedModelError

FLOATS = frozenset({"F64", "F32", "F16", "BF16"})
INTEGERS = frozenset({"I64", "I32", "I16", "I8", "U64", "U32", "U16", "U8", "BOOL"})
"""Such as positions and masks, which models compute for themselves."""
FOREIGN = frozenset({"tf", "flax", "jax"})
"""Formats whose tensors have other names and are laid out otherwise than PyTorch's."""
LAYERS = ("num_hidden_layers", "n_layers", "n_layer", "num_layers")
WIDTHS = ("hidden_size", "dim", "n_embd", "d_model", "vocab_size")
POSITIONS = ("max_position_embeddings", "n_positions", "max_seq_len")
LONGEST = 2**22
"""Tokens for which tables of positions are made: more than any published model reads."""


@dataclass(frozen=True)
class Header:
    """What a safetensors file says of one of its tensors."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    """Its first byte in the file."""

    @property
    def size(self) -> int:
        return math.prod(self.shape)


def read_headers(path: Path) -> dict[str, Header]:
    """Name -> header of each tensor of a file, which is seen to be whole.

    The library compares the header with the file's length and each tensor's shape with its place. Raises
    CheckpointError for a damaged file and for a type of numbers that is none of plain weights.
    """
    try:
        with safe_open(str(path), framework="numpy") as file:
            stated = (file.metadata() or {}).get("format")
        with path.open("rb") as content:
            length = int.from_bytes(content.read(8), "little")
            entries: dict[str, Any] = json.loads(content.read(length))
    except (SafetensorError, ValueError) as error:
        raise CheckpointError(
            f"the weights `{path}` are damaged: {error}", hint="copy or download the file again"
        ) from error
    if stated in FOREIGN:
        raise UnsupportedModelError(
            f"the weights `{path.name}` are stored for `{stated}` and not for PyTorch",
            hint="load them with transformers and save them with `save_pretrained` as PyTorch's",
        )
    entries.pop("__metadata__", None)
    found = {
        name: Header(entry["dtype"], tuple(entry["shape"]), 8 + length + int(entry["data_offsets"][0]))
        for name, entry in entries.items()
    }
    for name, header in found.items():
        if header.dtype not in FLOATS | INTEGERS:
            raise UnsupportedModelError(
                f"`{name}` in the weights `{path.name}` is of the type `{header.dtype}`, which only code for quantized "
                "models reads",
                hint="export the model in 16 or 32 bits that it was made from; `--precision` quantizes it",
            )
    return found


def check_shards(index: Mapping[str, Any], shards: Mapping[str, Mapping[str, Header]]) -> None:
    """Raise CheckpointError where the index of shards, and the shards by name, do not fit together."""
    places: dict[str, str] = {}
    for shard, headers in shards.items():
        for name in headers:
            if name in places:
                raise CheckpointError(
                    f"the weights are damaged: `{name}` is in `{places[name]}` and in `{shard}`",
                    hint="copy or download the files again",
                )
            places[name] = shard
    for name, shard in index.items():
        if places.get(name) != shard:
            found = f"it is in `{places[name]}`" if name in places else "no shard holds it"
            raise CheckpointError(
                f"the weights are damaged: their index has `{name}` in `{shard}`, and {found}",
                hint="copy or download the files again",
            )


def check_sizes(name: str, config: Mapping[str, Any], headers: Sequence[Header]) -> None:
    """Raise CheckpointError for a config whose layers, width or vocabulary its tensors do not have."""
    dimensions = {size for header in headers for size in header.shape}
    for key in (*LAYERS, *WIDTHS, *POSITIONS):
        if key not in config or (config[key] is None and key in POSITIONS):
            continue
        value = config[key]
        if type(value) is not int or value < 1:
            raise CheckpointError(
                f"`{key}` in the config.json of `{name}` must be a positive integer, not `{shown(value)}`"
            )
        if key in LAYERS and value > len(headers):
            raise CheckpointError(
                f"the config.json of `{name}` promises {value} layers (`{key}`), and its weights are "
                f"{len(headers)} tensors"
            )
        if key in WIDTHS and value not in dimensions:
            raise CheckpointError(
                f"the config.json of `{name}` has `{key}` set to {value}, and none of its tensors is of that size"
            )
        if key in POSITIONS and value > LONGEST:
            raise UnsupportedModelError(
                f"`{name}` has `{key}` set to {value}, and edgekit exports models of at most {LONGEST} positions"
            )


def shown(value: object) -> str:
    """A value for a message: its beginning, where it is long."""
    text = str(value)
    return text if len(text) <= 80 else f"{text[:80]}..."
