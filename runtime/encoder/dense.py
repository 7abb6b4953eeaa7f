"""Dense layers after pooling, and their activation functions, in numpy; texts do not affect each other."""

from __future__ import annotations

import math
import re
import struct
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..bundle.manifest import Activation, DenseFacts
from ..errors import BundleError

_LARGEST = 1 << 30
"""Bytes of a layer's file: 16,384 x 16,384 weights."""
_START = b"\x93NUMPY\x01\x00"
"""Magic string and version of an .npy file (numpy.lib.format); the size of the header follows in two bytes."""
_HEADER = re.compile(r"\{'descr': '([^']*)', 'fortran_order': (False|True), 'shape': \((\d+),(?: (\d+))?\), \} *\n")
FLOAT32 = "<f4"
Floats = NDArray[np.float32]
_SELU_SCALE, _SELU_ALPHA = 1.0507009873554805, 1.6732632423543772
"""Klambauer et al. 2017 (arXiv:1706.02515), to the digits that PyTorch has."""
_error_function = np.vectorize(math.erf, otypes=[np.float64])


def _sigmoid(values: Floats) -> Floats:
    with np.errstate(over="ignore"):
        return np.asarray(1 / (1 + np.exp(-values.astype(np.float64))), np.float32)


def _gelu(values: Floats) -> Floats:
    wide = values.astype(np.float64)
    return np.asarray(wide * 0.5 * (1 + _error_function(wide / math.sqrt(2))), np.float32)


def _elu(values: Floats) -> Floats:
    return np.asarray(np.where(values > 0, values, np.expm1(np.minimum(values, np.float32(0)))))


def _selu(values: Floats) -> Floats:
    return np.asarray(np.float32(_SELU_SCALE) * np.where(values > 0, values, np.float32(_SELU_ALPHA) * _elu(values)))


def _softplus(values: Floats) -> Floats:
    return np.asarray(np.logaddexp(np.float32(0), values))


FUNCTIONS: dict[Activation, Callable[[Floats], Floats]] = {
    Activation.IDENTITY: lambda values: values,
    Activation.TANH: np.tanh,
    Activation.ELU: _elu,
    Activation.GELU: _gelu,
    Activation.HARDSWISH: lambda values: values * np.clip(values + 3, 0, 6) / np.float32(6),
    Activation.HARDTANH: lambda values: np.clip(values, -1, 1),
    Activation.LEAKY_RELU: lambda values: np.where(values > 0, values, np.float32(0.01) * values),
    Activation.MISH: lambda values: values * np.tanh(_softplus(values)),
    Activation.RELU: lambda values: np.maximum(values, np.float32(0)),
    Activation.RELU6: lambda values: np.clip(values, 0, 6),
    Activation.SELU: _selu,
    Activation.SIGMOID: _sigmoid,
    Activation.SILU: lambda values: values * _sigmoid(values),
    Activation.SOFTPLUS: _softplus,
    Activation.SOFTSIGN: lambda values: values / (1 + np.abs(values)),
}


class Dense:
    """`activation(vector @ weight + bias)`."""

    def __init__(self, path: Path, facts: DenseFacts) -> None:
        """Read `weight`, float32 (inputs, outputs), and `bias`, float32 (outputs,), from .npz; raises BundleError."""
        self.path = path
        self.weight, self.bias = _read_arrays(path)
        if self.weight.ndim != 2 or self.bias.shape != self.weight.shape[1:]:
            raise BundleError(
                f"the shapes of weight {self.weight.shape} and bias {self.bias.shape} in `{path}` do not match"
            )
        if not (np.isfinite(self.weight).all() and np.isfinite(self.bias).all()):
            raise BundleError(f"`{path}` has weights that are not finite numbers")
        self.activation = facts.activation

    def apply(self, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        """Transform (texts, inputs) into (texts, outputs)."""
        # Row by row: with more rows, a matmul may sum in another order.
        outputs = np.empty((len(vectors), len(self.bias)), np.float32)
        for vector, output in zip(vectors, outputs, strict=True):
            np.matmul(vector, self.weight, out=output)
        outputs += self.bias
        return FUNCTIONS[self.activation](outputs)


def _read_arrays(path: Path) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Read `weight` and `bias` from an .npz file; never allocates more than the size of the file."""
    try:
        if path.stat().st_size > _LARGEST:
            raise BundleError(f"`{path}` has more than {_LARGEST} bytes, the limit for a dense layer")
        with zipfile.ZipFile(path) as archive:
            return _read_array(archive, "weight.npy"), _read_array(archive, "bias.npy")
    # zipfile raises these for files that are not archives, encrypted, or compressed with an unsupported method.
    except (
        OSError,
        EOFError,
        ValueError,
        KeyError,
        OverflowError,
        RuntimeError,
        NotImplementedError,
        struct.error,
        zipfile.BadZipFile,
    ) as error:
        raise BundleError(f"`{path}` does not hold the arrays `weight` and `bias`: {error}") from error


def _read_array(archive: zipfile.ZipFile, name: str) -> NDArray[np.float32]:
    entry = archive.getinfo(name)
    if entry.compress_type != zipfile.ZIP_STORED:
        raise ValueError(f"`{name}` is compressed")
    with archive.open(entry) as file:
        if file.read(len(_START)) != _START:
            raise ValueError(f"`{name}` is not an .npy file of version 1.0")
        (size,) = struct.unpack("<H", file.read(2))
        found = _HEADER.fullmatch(file.read(size).decode("latin-1"))
        if found is None:
            raise ValueError(f"`{name}` is not an array of one or two dimensions")
        kind, transposed, *lengths = found.groups()
        if kind != FLOAT32:
            raise ValueError(f"`{name}` has the type `{kind}`, not float32 (`{FLOAT32}`)")
        shape = [int(length) for length in lengths if length is not None]
        count = math.prod(shape)
        content = file.read()
    if len(content) != 4 * count:
        raise ValueError(f"`{name}` has {len(content)} bytes of data instead of {4 * count}")
    return np.frombuffer(content, np.float32).reshape(shape, order="F" if transposed == "True" else "C")


def width_before(layers: Sequence[Dense], dimension: int) -> int:
    """The input size of dense layers that output `dimension` components.

    Raises BundleError where the sizes of two layers do not match.
    """
    width = dimension
    for layer in reversed(layers):
        inputs, outputs = layer.weight.shape
        if outputs != width:
            raise BundleError(f"`{layer.path}` outputs {outputs} components, and the next layer expects {width}")
        width = inputs
    return width
