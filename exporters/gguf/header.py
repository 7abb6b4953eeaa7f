"""A GGUF file's header: metadata and the places of its tensors, read without trusting any size that it states.

The format is that of ggml's docs/gguf.md. Nothing is allocated by a number in the file before that many bytes were
read, and every tensor lies within the file, apart from the others.
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from ...runtime.errors import CheckpointError, NotFoundError, UnsupportedModelError
from ..printable import printable

_MAGIC = b"GGUF"
_OLDER = {b"lmgg": "GGML", b"fmgg": "GGMF", b"tjgg": "GGJT", b"algg": "GGLA"}
"""Magic bytes of llama.cpp's older formats."""
_VERSIONS = (2, 3)
LARGEST_HEADER = 2**28
"""Bytes; that of a model with 262,144 tokens takes a tenth."""
MOST_ENTRIES = 2**16
"""Of metadata, or tensors."""
MOST_ELEMENTS = 2**22
"""Of all arrays together: Gemma 3's tokens, types, scores and merges are 1.5 million."""
LONGEST_STRING = 2**26
"""Bytes; the largest are whole files, such as `tokenizer.huggingface.json`."""
LONGEST_NAME = 2**10
_MOST_DIMENSIONS = 4
_LARGEST_ALIGNMENT = 2**20
_PLAIN = ("F32", "F16", "BF16")
"""Tensor types that are not quantized."""
TYPES: Mapping[int, tuple[str, int, int]] = {
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    16: ("IQ2_XXS", 256, 66),
    17: ("IQ2_XS", 256, 74),
    18: ("IQ3_XXS", 256, 98),
    19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18),
    21: ("IQ3_S", 256, 110),
    22: ("IQ2_S", 256, 82),
    23: ("IQ4_XS", 256, 136),
    29: ("IQ1_M", 256, 56),
    30: ("BF16", 1, 2),
    34: ("TQ1_0", 256, 54),
    35: ("TQ2_0", 256, 66),
    39: ("MXFP4", 32, 17),
}
"""ggml's number of a tensor type -> its name, and the weights and bytes per block."""
_SCALARS: Mapping[int, str] = {
    0: "u1",
    1: "i1",
    2: "<u2",
    3: "<i2",
    4: "<u4",
    5: "<i4",
    6: "<f4",
    7: "?",
    10: "<u8",
    11: "<i8",
    12: "<f8",
}
"""GGUF's number of a value type -> numpy's name for it."""
_STRING, _ARRAY = 8, 9


@dataclass(frozen=True)
class GgufTensor:
    """Type, shape and place of a tensor in a GGUF file."""

    path: Path
    name: str
    type: str
    """One of TYPES."""
    shape: tuple[int, ...]
    """From the outermost to the innermost: (outputs, inputs)."""
    start: int
    nbytes: int

    @property
    def in_blocks(self) -> bool:
        return self.type not in _PLAIN

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    def bytes(self) -> NDArray[np.uint8]:
        """The bytes of each row: (..., bytes)."""
        found = np.fromfile(self.path, np.uint8, self.nbytes, offset=self.start)
        if len(found) != self.nbytes:
            raise _damaged(self.path, f"ends within the tensor `{shown(self.name)}`")
        return found.reshape(*self.shape[:-1], -1)


@dataclass(frozen=True)
class GgufHeader:
    """Everything before the weights of a GGUF file."""

    path: Path
    fields: Mapping[str, Any] = field(repr=False)
    """The metadata: int, float, bool, str, or a list of one of these."""
    tensors: tuple[GgufTensor, ...] = field(repr=False)


def read_header(path: Path) -> GgufHeader:
    """Read the metadata of a GGUF file and the places of its tensors.

    Raises NotFoundError, CheckpointError for a file that is not GGUF, cut short or damaged, and UnsupportedModelError
    for a version, a byte order or a type of weights that is not supported.
    """
    if not path.is_file():
        raise NotFoundError(f"there is no file `{path}`")
    with path.open("rb") as file:
        reader = _HeaderReader(path, file)
        reader.read_version()
        tensors, entries = (reader.count(what) for what in ("tensors", "metadata entries"))
        for _ in range(entries):
            reader.read_entry()
        described = [reader.read_tensor() for _ in range(tensors)]
        return GgufHeader(path, reader.fields, _placed(reader, described))


class Metadata:
    """Typed access to the metadata of a GGUF file.

    Everything that is read is read here: a value of another type is a CheckpointError that names its key, and what is
    not there is None.
    """

    def __init__(self, name: str, fields: Mapping[str, Any]) -> None:
        """`name` is the file's, for messages."""
        self.name = name
        self.fields = fields

    def text(self, key: str, longest: int = LONGEST_STRING) -> str | None:
        found = self.of_type(key, (str,), "a string")
        if found is not None and len(found) > longest:
            raise CheckpointError(
                f"`{self.name}` has a string of {len(found)} characters as `{key}`, and at most {longest} are read"
            )
        return found  # type: ignore[no-any-return]

    def flag(self, key: str) -> bool | None:
        return self.of_type(key, (bool,), "a bool")  # type: ignore[no-any-return]

    def integer(self, key: str, least: int, most: int) -> int | None:
        found = self.of_type(key, (int,), "an integer")
        if found is not None and not least <= found <= most:
            raise self.wrong(key, f"from {least} to {most}")
        return found  # type: ignore[no-any-return]

    def number(self, key: str) -> float | None:
        """Return a number above 0."""
        found = self.of_type(key, (int, float), "a number")
        if found is not None and not 0 < found < math.inf:
            raise self.wrong(key, "a finite number above 0")
        return None if found is None else float(found)

    def texts(self, key: str) -> list[str]:
        return self.list_of(key, (str,), "strings")

    def integers(self, key: str) -> list[int]:
        return self.list_of(key, (int,), "integers")

    def numbers(self, key: str) -> list[float]:
        found: list[float] = self.list_of(key, (int, float), "numbers")
        if not all(map(math.isfinite, found)):
            raise CheckpointError(f"`{self.name}` has a number in `{key}` that is not finite")
        return found

    def list_of(self, key: str, types: tuple[type, ...], what: str) -> list[Any]:
        found: list[Any] = self.of_type(key, (list,), f"an array of {what}") or []
        # A file states one type for all elements.
        if found and type(found[0]) not in types:
            raise self.wrong(key, f"an array of {what}")
        return found

    def of_type(self, key: str, types: tuple[type, ...], what: str) -> Any:
        found = self.fields.get(key)
        # A bool is not an integer here.
        if found is not None and type(found) not in types:
            raise self.wrong(key, what)
        return found

    def wrong(self, key: str, what: str) -> CheckpointError:
        found = self.fields[key]
        kind = "" if isinstance(found, list) else f" ({type(found).__name__})"
        return CheckpointError(f"`{self.name}` has `{shown(key)}` set to `{shown(found)}`{kind}; it must be {what}")


class _HeaderReader:
    """Reads the parts of a header in order, within limits."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.path = path
        self.file = file
        self.size = os.fstat(file.fileno()).st_size
        self.place = 0
        self.part = "its first bytes"
        """What is being read, for messages."""
        self.elements = 0
        """Of all arrays so far."""
        self.fields: dict[str, Any] = {}

    def take(self, count: int) -> bytes:
        """Return the next bytes; raises CheckpointError at the end of the file or at the limit of a header."""
        if count > self.size - self.place:
            raise _damaged(self.path, f"ends within {self.part}")
        if self.place + count > LARGEST_HEADER:
            raise _damaged(self.path, f"has more than {LARGEST_HEADER >> 20} MiB before its weights")
        found = self.file.read(count)
        if len(found) != count:
            raise _damaged(self.path, f"ends within {self.part}")
        self.place += count
        return found

    def number(self, code: str) -> int:
        found: int = struct.unpack(f"<{code}", self.take(struct.calcsize(f"<{code}")))[0]
        return found

    def read_version(self) -> None:
        magic = self.file.read(len(_MAGIC))
        if magic in _OLDER:
            raise UnsupportedModelError(
                f"`{self.path}` is in the format {_OLDER[magic]}, which came before GGUF",
                hint="convert the original checkpoint with today's llama.cpp, or export that checkpoint",
            )
        if magic != _MAGIC:
            raise CheckpointError(f"`{self.path}` is not a GGUF file: it does not begin with `GGUF`")
        self.place = len(_MAGIC)
        version = self.number("I")
        swapped = int.from_bytes(version.to_bytes(4, "little"), "big")
        if version > MOST_ENTRIES and swapped <= MOST_ENTRIES:
            raise UnsupportedModelError(
                f"`{self.path}` is a big-endian GGUF file, and only little-endian ones are supported",
                hint="convert it with gguf's `gguf_convert_endian.py FILE little`",
            )
        if version not in _VERSIONS:
            raise UnsupportedModelError(
                f"`{self.path}` is a GGUF file of version {version}; supported: 2 and 3",
                hint="convert the original checkpoint with today's llama.cpp"
                if version < min(_VERSIONS)
                else "update ortkit, or export the Hub's checkpoint instead",
            )

    def count(self, what: str) -> int:
        self.part = f"the number of {what}"
        found = self.number("Q")
        if found > MOST_ENTRIES:
            raise _damaged(self.path, f"states {found} {what}, and at most {MOST_ENTRIES} are supported")
        return found

    def string(self, longest: int = LONGEST_STRING) -> str:
        length = self.number("Q")
        if length > self.size - self.place:
            raise _damaged(self.path, f"ends within {self.part}, a string of {length} bytes")
        if length > longest:
            raise _damaged(self.path, f"has a string of {length} bytes as {self.part}, and at most {longest} are read")
        try:
            return self.take(length).decode("utf-8")
        except UnicodeDecodeError as error:
            raise _damaged(self.path, f"has bytes that are not UTF-8 in {self.part}") from error

    def read_entry(self) -> None:
        self.part = f"the name of metadata entry {len(self.fields) + 1}"
        name = self.string(LONGEST_NAME)
        if name in self.fields:
            raise _damaged(self.path, f"has the metadata `{shown(name)}` twice")
        self.part = f"the metadata `{shown(name)}`"
        kind = self.number("I")
        self.fields[name] = self.array() if kind == _ARRAY else self.value(kind)

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.string()
        return self.scalars(kind, 1)[0]

    def scalars(self, kind: int, count: int) -> list[Any]:
        if kind not in _SCALARS:
            raise _damaged(self.path, f"has a value of the unknown type {kind} as {self.part}")
        dtype = np.dtype(_SCALARS[kind])
        values: list[Any] = np.frombuffer(self.take(count * dtype.itemsize), dtype).tolist()
        return values

    def array(self) -> list[Any]:
        kind, count = self.number("I"), self.number("Q")
        if kind == _ARRAY:
            raise _damaged(self.path, f"has an array of arrays as {self.part}, which no model's metadata has")
        # A string takes 8 bytes at least, for its length.
        least = 8 if kind == _STRING else 1
        if count * least > self.size - self.place:
            raise _damaged(self.path, f"ends within {self.part}, an array of {count} elements")
        self.elements += count
        if self.elements > MOST_ELEMENTS:
            raise _damaged(
                self.path, f"has an array of {count} elements as {self.part}, and at most {MOST_ELEMENTS} are read"
            )
        if kind == _STRING:
            return [self.string() for _ in range(count)]
        return self.scalars(kind, count)

    def read_tensor(self) -> _Described:
        self.part = "the description of a tensor"
        name = self.string(LONGEST_NAME)
        self.part = f"the description of the tensor `{shown(name)}`"
        dimensions = self.number("I")
        if not 0 < dimensions <= _MOST_DIMENSIONS:
            raise _damaged(self.path, f"states {dimensions} dimensions for the tensor `{shown(name)}`")
        sizes = struct.unpack(f"<{dimensions}Q", self.take(8 * dimensions))
        return _Described(name, tuple(reversed(sizes)), self.number("I"), self.number("Q"))


@dataclass(frozen=True)
class _Described:
    """A tensor's entry in the header."""

    name: str
    shape: tuple[int, ...]
    type: int
    offset: int
    """Relative to the first tensor."""


def _placed(reader: _HeaderReader, described: list[_Described]) -> tuple[GgufTensor, ...]:
    """Return the tensors; raises CheckpointError for one that is outside the file or overlaps another."""
    alignment = _alignment_of(reader)
    first = -(-reader.place // alignment) * alignment
    tensors = [_tensor_at(reader, one, first, alignment) for one in described]
    names = {tensor.name for tensor in tensors}
    if len(names) != len(tensors):
        twice = next(name for name in names if sum(tensor.name == name for tensor in tensors) > 1)
        raise _damaged(reader.path, f"has the tensor `{shown(twice)}` twice")
    in_order = sorted(tensors, key=lambda tensor: tensor.start)
    for before, after in pairwise(in_order):
        if after.start < before.start + before.nbytes:
            raise _damaged(
                reader.path, f"has the tensors `{shown(before.name)}` and `{shown(after.name)}` in the same bytes"
            )
    return tuple(tensors)


def _alignment_of(reader: _HeaderReader) -> int:
    found = reader.fields.get("general.alignment", 32)
    if type(found) is not int or not 0 < found <= _LARGEST_ALIGNMENT or found & (found - 1):
        raise _damaged(reader.path, f"states `general.alignment` {shown(found)}, which must be a power of two")
    return found


def _tensor_at(reader: _HeaderReader, described: _Described, first: int, alignment: int) -> GgufTensor:
    path, name = reader.path, shown(described.name)
    if described.type not in TYPES:
        raise UnsupportedModelError(
            f"`{path.name}` has the tensor `{name}` in ggml's type {described.type}, which is not supported",
            hint="export the Hub's checkpoint instead",
        )
    kind, block, size = TYPES[described.type]
    count = math.prod(described.shape)
    if count == 0 or described.shape[-1] % block:
        raise _damaged(
            path, f"states the shape {list(described.shape)} for the tensor `{name}`, which {kind} does not have"
        )
    if described.offset % alignment:
        raise _damaged(path, f"has the tensor `{name}` at {described.offset}, which is not a multiple of {alignment}")
    start, nbytes = first + described.offset, count // block * size
    if start + nbytes > reader.size:
        raise _damaged(path, f"ends within the tensor `{name}`, which takes {nbytes} bytes from {start} on")
    return GgufTensor(path, described.name, kind, described.shape, start, nbytes)


def _damaged(path: Path, how: str) -> CheckpointError:
    return CheckpointError(
        f"`{path}` is cut short or damaged: it has {path.stat().st_size} bytes and {how}",
        hint="copy or download the file again",
    )


def shown(value: object) -> str:
    """A file's value in a message."""
    return printable(f"a list of {len(value)}" if isinstance(value, list) else value)
