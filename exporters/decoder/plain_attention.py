"""Trace attention as plain ONNX operators: slower than GroupQueryAttention, with the model's own position encoding.

Inputs and KV cache are the same. The model gets the position of every token and rotates queries and keys itself, or
encodes positions in another way.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .group_query_attention import DecoderOnnxConfig, DecoderPatcher, Past


class PlainOnnxConfig(DecoderOnnxConfig):
    """Inputs and outputs of a decoder with plain attention, for Optimum: the same as of any decoder."""

    def __init__(self, config: Any, *, context_length: int) -> None:
        super().__init__(config, context_length=context_length)
        self._MODEL_PATCHER = PlainPatcher


class PlainPatcher(DecoderPatcher):
    """While entered, a decoder takes and returns what its graph does, with plain operators as its attention."""

    rotates_inside = False
    positions: Tensor
    """Positions of the new tokens in the sequence, (batch, tokens)."""
    seen: Tensor
    """Positions of all tokens so far, (total length,)."""
    past: Past

    def forward(
        self, input_ids: Tensor, last_positions: Tensor, total_length: Tensor, logit_positions: Tensor, past: Past
    ) -> tuple[Tensor, ...]:
        """Run the model on the graph's inputs and return the graph's outputs."""
        tokens = input_ids.shape[1]
        self.positions = last_positions.long()[:, None] + torch.arange(1 - tokens, 1)
        self.seen = torch.arange(total_length.long())  # type: ignore[call-overload]  # a trace takes a tensor
        self.past, self.present = past, []
        outputs = self.orig_forward(
            input_ids=input_ids, position_ids=self.positions, logits_to_keep=logit_positions, use_cache=False
        )
        return (outputs.logits, *self.present)

    def attend(
        self,
        module: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        _mask: Tensor | None,
        *,
        scaling: float | None = None,
        softcap: float | None = None,
        sliding_window: int | None = None,
        **_: Any,
    ) -> tuple[Tensor, None]:
        """Attention function of transformers: (batch, heads, tokens, size) -> (batch, tokens, heads, size)."""
        keys, values = (
            self._update_cache(buffer, new)
            for buffer, new in zip(self.past[module.layer_idx], (key, value), strict=True)
        )
        batch, heads, tokens, size = query.shape
        # Queries that share a key are consecutive, so that keys need not be repeated.
        grouped = query.reshape(batch, self.sizes.kv_heads, -1, size)
        scores = (grouped @ keys.transpose(-1, -2)).view(batch, heads, tokens, -1)
        scores = scores * (size**-0.5 if scaling is None else scaling)
        if softcap:
            scores = softcap * torch.tanh(scores / softcap)
        distances = (self.positions[..., None] - self.seen)[:, None]
        hidden = distances < 0
        if sliding_window is not None:
            hidden = hidden | (distances >= sliding_window)
        weights = scores.masked_fill(hidden, -torch.inf).softmax(-1).reshape(*grouped.shape[:-1], -1)
        return (weights @ values).view(batch, heads, tokens, size).transpose(1, 2), None

    def _update_cache(self, buffer: Tensor, new: Tensor) -> Tensor:
        """Scatter new keys or values into a cache buffer, and return those of all tokens so far."""
        places = self.positions[:, None, :, None].expand_as(new)
        self.present.append(buffer.scatter(2, places, new))
        return self.present[-1].index_select(2, self.seen)
