"""Names of the inputs and outputs of a bundle's graph."""

from __future__ import annotations

INPUT_IDS = "input_ids"
TOKEN_TYPE_IDS = "token_type_ids"  # noqa: S105
"""Encoders: int64 (batch, tokens). Batches are not padded, so there is no attention mask; but see `BIAS`."""
POSITIONS = "positions"
"""Encoders for CUDA: int64 (tokens,), 0 ... tokens - 1."""
BIAS = "bias"
"""Encoders for CoreML, whose batches are padded: float32 (batch, 1, 1, tokens), added to the attention scores.

0 for tokens of the text, and -10,000 for padding.
"""

LAST_POSITIONS = "last_positions"
TOTAL_LENGTH = "total_length"
LOGIT_POSITIONS = "logit_positions"
LOGITS = "logits"
"""Decoders, beside `input_ids`: see `decoder_inputs` and `decoder_outputs`."""


def decoder_inputs(layers: int) -> tuple[str, ...]:
    """The inputs of a decoder's graph, in order.

    - `input_ids`, int64 (1, tokens): the new tokens
    - `last_positions`, int32 (1,): the position of the last new token in the sequence
    - `total_length`, int32 (): number of cached and new tokens
    - `logit_positions`, int64 (positions,): the new tokens to compute logits for
    - `past.{layer}.key` and `.value`, in the cache's type (1, kv_heads, capacity, head_size)
    """
    return (INPUT_IDS, LAST_POSITIONS, TOTAL_LENGTH, LOGIT_POSITIONS, *cache_names("past", layers))


def decoder_outputs(layers: int) -> tuple[str, ...]:
    """The outputs, in order: `logits`, float32 (1, positions, vocabulary), and the KV cache as `present.*`."""
    return (LOGITS, *cache_names("present", layers))


def cache_names(prefix: str, layers: int) -> list[str]:
    """Names of the KV cache of all layers, in the order of the graph's inputs and outputs."""
    return [f"{prefix}.{layer}.{part}" for layer in range(layers) for part in ("key", "value")]
