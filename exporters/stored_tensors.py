"""A checkpoint's tensors, each read from its safetensors file when it is asked for, and never kept.

The files are read, not mapped: mapped pages of a whole checkpoint would count as this process's memory.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from exporters.headers import read_headers
from runtime.errors import CheckpointError

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
        """The same; raises CheckpointError where one of the numbers is none."""
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
        """Read all of it, some at a time; raises CheckpointError where one of the numbers is none."""
        for first in range(0, self.size, NUMBERS_AT_ONCE):
            self.flat(first, min(NUMBERS_AT_ONCE, self.size - first))


def stored_tensors(files: Sequence[Path]) -> dict[str, StoredTensor]:
    """Name -> tensor of everything in some safetensors files; raises CheckpointError for types that are not read."""
    found: dict[str, StoredTensor] = {}
    for path in files:
        for name, header in read_headers(path).items():
            if name in found:
                raise CheckpointError(f"`{name}` is in `{found[name].path.name}` and in `{path.name}`")
            found[name] = StoredTensor(path, name, header.dtype, header.shape, header.start)
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


class StreamedTensor(ir.LazyTensor):
    """A float32 constant of a graph that is read from the checkpoint whenever its content is asked for.

    It consists of matrices (outputs, inputs) one after another, as checkpoints have them, and is either
    (outputs, inputs) itself or, as products read them, (inputs, outputs).
    """

    def __init__(self, parts: Sequence[StoredTensor], *, transposed: bool, name: str | None = None) -> None:
        self.parts = tuple(parts)
        self.transposed = transposed
        shape = (sum(part.shape[0] for part in parts), *parts[0].shape[1:])
        super().__init__(
            lambda: ir.tensor(self.array()),
            ir.DataType.FLOAT,
            ir.Shape(shape[::-1] if transposed else shape),
            name=name,
        )

    def array(self) -> NDArray[np.float32]:
        """The content; (inputs, outputs) is a view of (outputs, inputs) in memory."""
        found = self.parts[0].read() if len(self.parts) == 1 else self.joined()
        return found.T if self.transposed else found

    def joined(self) -> NDArray[np.float32]:
        """The parts one after another, read one at a time."""
        count = sum(part.shape[0] for part in self.parts)
        found = np.empty((count, *self.parts[0].shape[1:]), np.float32)
        first = 0
        for part in self.parts:
            found[first : first + part.shape[0]] = part.read()
            first += part.shape[0]
        return found

    def is_transpose_of(self, other: StreamedTensor) -> bool:
        """Whether this holds the numbers of another one the other way round."""
        return (
            self.transposed != other.transposed
            and len(self.parts) == len(other.parts)
            and all(own.equals(part) for own, part in zip(self.parts, other.parts, strict=True))
        )


def side_by_side(matrices: Sequence[ir.TensorProtocol]) -> NDArray[np.float32] | StreamedTensor:
    """Matrices (inputs, outputs) of the same inputs as one; read when it is asked for, where all of them are."""
    streamed = [matrix for matrix in matrices if isinstance(matrix, StreamedTensor) and matrix.transposed]
    if len(streamed) == len(matrices):
        return StreamedTensor([part for matrix in streamed for part in matrix.parts], transposed=True)
    return np.concatenate([np.asarray(matrix.numpy(), np.float32) for matrix in matrices], axis=1)
