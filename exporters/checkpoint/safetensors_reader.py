"""Read safetensors files lazily: headers first, each tensor when it is asked for; nothing is kept or mapped.

Mapped pages of a whole checkpoint would count as this process's memory.

A config.json may promise a million layers or 10^12 tokens; what it promises is seen here against what the files hold,
before anything of that size is made.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from ...runtime.errors import CheckpointError, UnsupportedModelError
from ..printable import printable

FLOATS = frozenset({"F64", "F32", "F16", "BF16"})
_INTEGERS = frozenset({"I64", "I32", "I16", "I8", "U64", "U32", "U16", "U8", "BOOL"})
"""Such as positions and masks, which models compute for themselves."""
_FOREIGN = frozenset({"tf", "flax", "jax"})
"""Formats whose tensors have other names and are laid out otherwise than PyTorch's."""
LAYERS = ("num_hidden_layers", "n_layers", "n_layer", "num_layers")
_WIDTHS = ("hidden_size", "dim", "n_embd", "d_model", "vocab_size")
POSITIONS = ("max_position_embeddings", "n_positions", "max_seq_len")
LONGEST = 2**22
"""Tokens for which tables of positions are made: more than any published model reads."""
STORED_AS: Mapping[str, type[np.generic]] = {"F32": np.float32, "F16": np.float16, "BF16": np.uint16}
"""The types of weights that are read, by safetensors' names; numpy has no bfloat16."""
READ_AS: Mapping[str, type[np.generic]] = {**STORED_AS, "F64": np.float64}
"""Those, and one that transformers rounds to float32 when it loads an encoder."""
NUMBERS_AT_ONCE = 2**24
"""Numbers that are compared or looked at at a time."""


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies in a safetensors file."""

    path: Path
    name: str
    """As the file has it."""
    dtype: str
    """As the file has it, one of STORED_AS."""
    shape: tuple[int, ...]
    start: int
    """Its first byte in the file."""

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return self.size * np.dtype(STORED_AS[self.dtype]).itemsize

    def read(self) -> NDArray[np.float32]:
        """The numbers as float32, which each of the types fits in exactly."""
        return self.flat(0, self.size).reshape(self.shape)

    def flat(self, first: int, count: int) -> NDArray[np.float32]:
        """Some of the numbers in their order in the file; raises CheckpointError when it ends before they do."""
        kind = np.dtype(READ_AS[self.dtype])
        found = np.fromfile(self.path, kind, count, offset=self.start + first * kind.itemsize)
        if len(found) != count:
            raise CheckpointError(
                f"the weights `{self.path}` are damaged: they end within `{self.name}`",
                hint="copy or download the file again",
            )
        if self.dtype != "BF16":
            with np.errstate(over="ignore"):
                return self.finite(found.astype(np.float32, copy=False))
        # The upper half of a float32.
        widened = found.astype(np.uint32)
        np.left_shift(widened, 16, out=widened)
        return self.finite(widened.view(np.float32))

    def finite(self, found: NDArray[np.float32]) -> NDArray[np.float32]:
        """The same; raises CheckpointError for NaN and infinite numbers."""
        # NaN is the least and the greatest of any numbers that it is among.
        if len(found) and not (np.isfinite(found.min()) and np.isfinite(found.max())):
            raise CheckpointError(
                f"the weights `{self.path}` are damaged: `{self.name}` holds NaN or infinite numbers",
                hint="copy or download the file again; where it is as published, the model is of no use",
            )
        return found

    def equals(self, other: StoredTensor) -> bool:
        """Whether both hold the same numbers in the same shape, compared some at a time."""
        if self == other:
            return True
        if self.shape != other.shape:
            return False
        places = range(0, self.size, NUMBERS_AT_ONCE)
        counts = [(first, min(NUMBERS_AT_ONCE, self.size - first)) for first in places]
        return all(np.array_equal(self.flat(*part), other.flat(*part)) for part in counts)

    def check_finite(self) -> None:
        """Read all of it, some at a time; raises CheckpointError for NaN and infinite numbers."""
        for first in range(0, self.size, NUMBERS_AT_ONCE):
            self.flat(first, min(NUMBERS_AT_ONCE, self.size - first))


def read_headers(path: Path) -> dict[str, StoredTensor]:
    """Name -> place of each tensor of a file, which is seen to be whole.

    The library compares the header with the file's length and each tensor's shape with its place. Raises
    CheckpointError for a damaged file and for a type that only quantized models have.
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
    if stated in _FOREIGN:
        raise UnsupportedModelError(
            f"the weights `{path.name}` are stored for `{stated}` and not for PyTorch",
            hint="load them with transformers and save them with `save_pretrained` as PyTorch's",
        )
    entries.pop("__metadata__", None)
    found = {
        name: StoredTensor(
            path, name, entry["dtype"], tuple(entry["shape"]), 8 + length + int(entry["data_offsets"][0])
        )
        for name, entry in entries.items()
    }
    for name, header in found.items():
        if header.dtype not in FLOATS | _INTEGERS:
            raise UnsupportedModelError(
                f"`{name}` in the weights `{path.name}` is of the type `{header.dtype}`, which only code for quantized "
                "models reads",
                hint="export the model in 16 or 32 bits that it was made from; `--precision` quantizes it",
            )
    return found


def check_shards(index: Mapping[str, Any], shards: Mapping[str, Mapping[str, StoredTensor]]) -> None:
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


def check_sizes(name: str, config: Mapping[str, Any], headers: Sequence[StoredTensor]) -> None:
    """Raise CheckpointError for a config whose layers, width or vocabulary its tensors do not have."""
    dimensions = {size for header in headers for size in header.shape}
    for key in (*LAYERS, *_WIDTHS, *POSITIONS):
        if key not in config or (config[key] is None and key in POSITIONS):
            continue
        value = config[key]
        if type(value) is not int or value < 1:
            raise CheckpointError(
                f"`{key}` in the config.json of `{name}` must be a positive integer, not `{printable(value)}`"
            )
        if key in LAYERS and value > len(headers):
            raise CheckpointError(
                f"the config.json of `{name}` promises {value} layers (`{key}`), and its weights are "
                f"{len(headers)} tensors"
            )
        if key in _WIDTHS and value not in dimensions:
            raise CheckpointError(
                f"the config.json of `{name}` has `{key}` set to {value}, and none of its tensors is of that size"
            )
        if key in POSITIONS and value > LONGEST:
            raise UnsupportedModelError(
                f"`{name}` has `{key}` set to {value}, and ortkit exports models of at most {LONGEST} positions"
            )


def stored_tensors(files: Sequence[Path]) -> dict[str, StoredTensor]:
    """Name -> tensor of everything in some safetensors files; raises CheckpointError for types that are not read."""
    found: dict[str, StoredTensor] = {}
    for path in files:
        for name, tensor in read_headers(path).items():
            if name in found:
                raise CheckpointError(f"`{name}` is in `{found[name].path.name}` and in `{path.name}`")
            found[name] = tensor
    return found


def write_tensors(
    path: Path, shapes: Mapping[str, tuple[int, ...]], content: Callable[[str], NDArray[np.float32]]
) -> None:
    """Write a safetensors file of float32 tensors of these shapes, each made when it is its turn."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [start, end]}
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    with path.open("wb") as file:
        file.write(len(encoded).to_bytes(8, "little"))
        file.write(encoded)
        for name, shape in shapes.items():
            array = content(name)
            if array.shape != shape or array.dtype != np.float32:
                raise ValueError(f"`{name}` is {array.dtype} {array.shape} instead of float32 {shape}")
            array.tofile(file)
