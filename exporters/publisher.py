"""Open a checkpoint with the library it was published for: the reference that certificates compare with.

Nothing is downloaded and no code of a checkpoint runs: `local_files_only`, no `trust_remote_code`, float32, CPU.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from sentence_transformers import CrossEncoder

from exporters.checkpoint import Checkpoint
from exporters.pytorch_model import quiet
from runtime.errors import CheckpointError


def open_cross_encoder(checkpoint: Checkpoint) -> CrossEncoder:
    """The reranker as sentence-transformers builds it; raises CheckpointError when it cannot."""
    model: CrossEncoder = opened(checkpoint, CrossEncoder)
    return model


def opened(checkpoint: Checkpoint, model_class: Callable[..., Any]) -> Any:
    with quiet():
        try:
            return model_class(
                str(checkpoint.folder),
                device="cpu",
                local_files_only=True,
                trust_remote_code=False,
                model_kwargs={"dtype": torch.float32, "use_safetensors": True},
            ).eval()
        # The library raises whatever a damaged file makes of its code.
        except Exception as error:
            raise CheckpointError(f"sentence-transformers cannot open `{checkpoint.folder}`: {error}") from error
