"""Dense layers that a checkpoint has after pooling (sentence-transformers' module `Dense`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

from exporters.checkpoint import Checkpoint, check_safetensors
from exporters.checkpoint_files import WEIGHTS
from exporters.facts import modules_of
from runtime.errors import CheckpointError, UnsupportedModelError
from runtime.manifest import Activation, DenseFacts

ACTIVATIONS = {
    "torch.nn.modules.activation.Tanh": Activation.TANH,
    "torch.nn.modules.linear.Identity": Activation.IDENTITY,
}


@dataclass(frozen=True)
class DenseLayer:
    """`activation(vector @ weight + bias)`: weight float32 (inputs, outputs), bias float32 (outputs,)."""

    weight: NDArray[np.float32]
    bias: NDArray[np.float32]
    activation: Activation


def dense_layers(checkpoint: Checkpoint, width: int) -> list[DenseLayer]:
    """Read a checkpoint's layers, the first of which takes pooled vectors of `width` components."""
    layers: list[DenseLayer] = []
    for path in modules_of(checkpoint).dense:
        layers.append(read_dense(checkpoint, path))
        if layers[-1].weight.shape[0] != width:
            raise CheckpointError(
                f"the module in `{checkpoint.folder / path}` reads vectors of {layers[-1].weight.shape[0]} components, "
                f"and what comes before gives {width}"
            )
        width = layers[-1].weight.shape[1]
    return layers


def read_dense(checkpoint: Checkpoint, path: str) -> DenseLayer:
    config = checkpoint.read_json(f"{path}/config.json")
    asked = config.get("activation_function") if isinstance(config, dict) else None
    if asked not in ACTIVATIONS:
        raise UnsupportedModelError(
            f"`{checkpoint.name}` has a module `Dense` with the activation `{asked}`, which edgekit does not know",
            hint=f"known are {', '.join(f'`{known}`' for known in ACTIVATIONS)}",
        )
    weights = checkpoint.folder / path / WEIGHTS
    if not weights.exists():
        raise CheckpointError(f"the module in `{checkpoint.folder / path}` holds no `{WEIGHTS}`")
    check_safetensors(weights)
    tensors = load_file(weights)
    if "linear.weight" not in tensors or tensors["linear.weight"].ndim != 2:
        raise CheckpointError(f"`{weights}` holds no matrix `linear.weight`")
    weight = tensors["linear.weight"].T.astype(np.float32)
    bias = tensors.get("linear.bias", np.zeros(weight.shape[1])).astype(np.float32)
    return DenseLayer(np.ascontiguousarray(weight), bias, ACTIVATIONS[asked])


def write_dense(layers: Sequence[DenseLayer], folder: Path) -> tuple[DenseFacts, ...]:
    """Write the layers as files of a bundle; returns what the manifest says of them."""
    facts = []
    for number, layer in enumerate(layers):
        facts.append(DenseFacts(f"dense-{number}.npz", layer.activation))
        np.savez(folder / facts[-1].file, weight=layer.weight, bias=layer.bias)
    return tuple(facts)
