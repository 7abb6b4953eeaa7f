"""Constants of a graph that are read from the checkpoint when they are asked for, and never kept."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ..checkpoint.safetensors_reader import StoredTensor


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
