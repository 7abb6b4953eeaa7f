"""The errors for weights that do not fit the config.json of their checkpoint, for all kinds of models."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from ...runtime.errors import CheckpointError
from ..checkpoint.safetensors_reader import StoredTensor


def missing_weights(folder: Path, count: int, example: str) -> CheckpointError:
    """The error for `count` weights that the model needs and the checkpoint does not have."""
    return CheckpointError(
        f"`{folder}` lacks {count} of the weights that its config.json promises, such as `{example}`"
    )


def unexpected_weights(folder: Path, names: Collection[str]) -> CheckpointError:
    """The error for tensors that the model would leave out."""
    return CheckpointError(
        f"`{folder}` holds {len(names)} weights that its config.json says nothing of, such as `{min(names)}`",
        hint="without them the model would be another one",
    )


def check_tensor(folder: Path, tensor: StoredTensor, promised: tuple[int, ...], types: Collection[str]) -> None:
    """Raise CheckpointError for a tensor of another shape than `promised`, or of a type that is not supported."""
    if tensor.shape != promised:
        raise CheckpointError(
            f"in `{folder}`, `{tensor.name}` has the shape {tensor.shape}, and its config.json promises {promised}"
        )
    if tensor.dtype not in types:
        raise CheckpointError(
            f"in `{folder}`, `{tensor.name}` is of the type `{tensor.dtype}`",
            hint=f"supported: {', '.join(f'`{known}`' for known in types)}",
        )
