"""What graphs for CUDA cannot have, asked before a model's weights are downloaded where its config says it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...runtime.errors import UnsupportedModelError
from ..checkpoint.architectures import Architecture

_HEAD_SIZE_MULTIPLE = 16
"""GroupQueryAttention needs the head size, and its rotated part, to be a multiple of this."""
_DERIVED_HEAD_SIZE = frozenset({"granite", "llama", "mistral", "phi3", "qwen2", "smollm3"})
"""Architectures whose heads share the hidden size, unless `head_dim` says otherwise."""


def check_attention(name: str, architecture: Architecture, config: Mapping[str, Any]) -> None:
    """Raise UnsupportedModelError for a decoder whose config.json says that its attention needs plain operators."""
    size = _head_size(architecture.name, config)
    share = config.get("partial_rotary_factor")
    rotated = share if isinstance(share, float) and 0 < share < 1 else 1.0
    fits = size is None or not (size % _HEAD_SIZE_MULTIPLE or int(size * rotated) % _HEAD_SIZE_MULTIPLE)
    if architecture.plain_attention or not fits:
        raise plain_attention_refused(name, architecture, size)


def plain_attention_refused(name: str, architecture: Architecture, head_size: int | None) -> UnsupportedModelError:
    """The error for a decoder whose attention needs plain operators."""
    form = f"`{architecture.name}`"
    if not architecture.plain_attention and head_size is not None:
        form += f" with heads of {head_size}"
    return UnsupportedModelError(
        f"`{name}` is not exported for `cuda`: onnxruntime's fused attention does not support {form}, and attention in "
        "plain operators is for the CPU only",
        hint="use `--provider cpu`",
    )


def _head_size(architecture: str, config: Mapping[str, Any]) -> int | None:
    """The head size that a config.json states; None where it leaves it to the architecture, or is not valid."""
    stated = config.get("head_dim")
    if stated is None and architecture in _DERIVED_HEAD_SIZE:
        width, heads = config.get("hidden_size"), config.get("num_attention_heads")
        stated = width // heads if type(width) is int and type(heads) is int and heads > 0 else None
    return stated if type(stated) is int else None
