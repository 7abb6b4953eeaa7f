"""Dense layers that a checkpoint has after pooling (sentence-transformers' module `Dense`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...runtime.bundle.manifest import Activation, DenseFacts
from ...runtime.errors import CheckpointError
from ..checkpoint.checkpoint import Checkpoint, check_safetensors
from ..checkpoint.files import WEIGHTS
from ..checkpoint.safetensors_reader import STORED_AS, stored_tensors
from ..checkpoint.sentence_transformers import DenseSettings, modules_of
from .config import dense_shapes


@dataclass(frozen=True)
class DenseLayer:
    """`activation(vector @ weight + bias)`: weight float32 (inputs, outputs), bias float32 (outputs,)."""

    weight: NDArray[np.float32]
    bias: NDArray[np.float32]
    activation: Activation


def dense_layers(checkpoint: Checkpoint, width: int) -> list[DenseLayer]:
    """Read a checkpoint's layers, the first of which takes pooled vectors of `width` components."""
    paths, shapes = modules_of(checkpoint).dense, dense_shapes(checkpoint, width)
    return [_read_dense(checkpoint, path, settings) for path, settings in zip(paths, shapes, strict=True)]


def _read_dense(checkpoint: Checkpoint, path: str, settings: DenseSettings) -> DenseLayer:
    """The weights of a layer; raises CheckpointError where they are not those that its config promises."""
    weights = checkpoint.top / path / WEIGHTS
    if not weights.exists():
        raise CheckpointError(f"the module in `{checkpoint.top / path}` holds no `{WEIGHTS}`")
    check_safetensors(weights)
    tensors = stored_tensors([weights])
    promised: dict[str, tuple[int, ...]] = {"linear.weight": (settings.outputs, settings.inputs)}
    if settings.bias:
        promised["linear.bias"] = (settings.outputs,)
    found = {name: tensor.shape for name, tensor in tensors.items()}
    if found != promised:
        raise CheckpointError(
            f"`{weights}` holds the tensors {described(found)}, and its config.json promises {described(promised)}"
        )
    unknown = next((tensor for tensor in tensors.values() if tensor.dtype not in STORED_AS), None)
    if unknown is not None:
        raise CheckpointError(f"`{unknown.name}` in `{weights}` is stored as {unknown.dtype}, which is not supported")
    arrays = {name: tensor.read() for name, tensor in tensors.items()}
    infinite = next((name for name, array in arrays.items() if not np.isfinite(array).all()), None)
    if infinite is not None:
        raise CheckpointError(f"`{infinite}` in `{weights}` holds numbers that are NaN or infinite")
    weight = np.ascontiguousarray(arrays["linear.weight"].T)
    bias = arrays.get("linear.bias", np.zeros(settings.outputs, np.float32))
    return DenseLayer(weight, bias, settings.activation)


def described(shapes: Mapping[str, tuple[int, ...]]) -> str:
    return ", ".join(f"`{name}` {list(shape)}" for name, shape in sorted(shapes.items())) or "none"


def write_dense(layers: Sequence[DenseLayer], folder: Path) -> tuple[DenseFacts, ...]:
    """Write the layers as files of a bundle; returns what the manifest says of them."""
    facts = []
    for number, layer in enumerate(layers):
        facts.append(DenseFacts(f"dense-{number}.npz", layer.activation))
        np.savez(folder / facts[-1].file, weight=layer.weight, bias=layer.bias)
    return tuple(facts)
