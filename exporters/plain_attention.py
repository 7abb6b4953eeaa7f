"""Attention that traces as plain operators of ONNX: slower than the grouped one, and as free as the model's own code.

It takes the same cache and the same inputs. The model rotates queries and keys itself, or knows positions by other
means: it is told the position of every token.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from exporters.grouped_attention import DecoderOnnxConfig, DecoderPatcher, Past


class PlainOnnxConfig(DecoderOnnxConfig):
    """Tells Optimum what the graph of a decoder with plain attention reads and gives: the same as of any."""

    def __init__(self, config: Any, *, context_length: int) -> None:
        super().__init__(config, context_length=context_length)
        self._MODEL_PATCHER = PlainPatcher


class PlainPatcher(DecoderPatcher):
    """While it is entered, a decoder reads and gives what its graph does, and its attention is the plain one."""

    rotates_inside = False
    positions: Tensor
    """Of the new tokens in the sequence, (batch, tokens)."""
    seen: Tensor
    """The positions of all tokens so far (total length,)."""
    past: Past

    def forward(
        self, input_ids: Tensor, last_positions: Tensor, total_length: Tensor, logit_positions: Tensor, past: Past
    ) -> tuple[Tensor, ...]:
        """The graph's outputs for its inputs."""
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
        """Attention as transformers asks for it: of (batch, heads, tokens, head size), (batch, tokens, heads, size)."""
        keys, values = (
            self.kept(buffer, new) for buffer, new in zip(self.past[module.layer_idx], (key, value), strict=True)
        )
        batch, heads, tokens, size = query.shape
        # Queries that share a key stand one after another, so that keys need not be repeated.
        grouped = query.reshape(batch, self.sizes.kv_heads, -1, size)
        scores = (grouped @ keys.transpose(-1, -2)).view(batch, heads, tokens, -1)
        scores = scores * (size**-0.5 if scaling is None else scaling)
        if softcap:
            scores = softcap * torch.tanh(scores / softcap)
        distances = (self.positions[..., None] - self.seen)[:, None]
        hidden = distances < 0
        if sliding_window is not None:
            hidden = hidden | (distances >= sliding_window)
        shares = scores.masked_fill(hidden, -torch.inf).softmax(-1).reshape(*grouped.shape[:-1], -1)
        return (shares @ values).view(batch, heads, tokens, size).transpose(1, 2), None

    def kept(self, buffer: Tensor, new: Tensor) -> Tensor:
        """Of all tokens seen so far, from a buffer of the cache that the new ones are written into."""
        places = self.positions[:, None, :, None].expand_as(new)
        self.present.append(buffer.scatter(2, places, new))
        return self.present[-1].index_select(2, self.seen)
