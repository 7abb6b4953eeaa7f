"""The encoders that ortkit implements itself, written once more from their papers, in plain arithmetic.

Nothing is shared with what is tested: no module of ortkit's, no layer of PyTorch's, another way through the formulas.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

Weights = dict[str, Tensor]


def load_weights(folder: Path, dtype: torch.dtype = torch.float64) -> Weights:
    return {name: weight.to(dtype) for name, weight in load_file(folder / "model.safetensors").items()}


def layer_norm(x: Tensor, weights: Weights, name: str) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    scale = (centred.square().mean(-1, keepdim=True) + 1e-12).sqrt()
    return centred / scale * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def linear(x: Tensor, weights: Weights, name: str) -> Tensor:
    return x @ weights[f"{name}.weight"].T + weights.get(f"{name}.bias", 0)


def gelu(x: Tensor) -> Tensor:
    return x * (1 + torch.erf(x / math.sqrt(2))) / 2


# The slopes of 12 heads as the ALiBi authors' code gives them: those of 8 heads, then every other one of 16.
SLOPES = {
    6: [2**-2, 2**-4, 2**-6, 2**-8, 2**-1, 2**-3],
    12: [
        *(2**-1, 2**-2, 2**-3, 2**-4, 2**-5, 2**-6, 2**-7, 2**-8),
        *(2**-0.5, 2**-1.5, 2**-2.5, 2**-3.5),
    ],
}


def jina_bert(weights: Weights, ids: Tensor, heads: int) -> Tensor:
    """Token vectors (tokens, width) of one text's ids (tokens,)."""
    x = weights["embeddings.word_embeddings.weight"][ids] + weights["embeddings.token_type_embeddings.weight"][0]
    x = layer_norm(x, weights, "embeddings.LayerNorm")
    positions = torch.arange(len(ids), dtype=torch.float32)
    size = x.shape[1] // heads
    number = 0
    while f"encoder.layer.{number}.mlp.wo.weight" in weights:
        name = f"encoder.layer.{number}"
        query, key, value = (linear(x, weights, f"{name}.attention.self.{part}") for part in ("query", "key", "value"))
        contexts = []
        # A head at a time, and its scores in float32: those of 8,192 tokens take 268 MB.
        for head, slope in enumerate(SLOPES[heads]):
            own = slice(head * size, (head + 1) * size)
            scores = query[:, own].float() @ key[:, own].float().T / math.sqrt(size)
            scores -= slope * (positions[:, None] - positions[None, :]).abs()
            contexts.append((scores.softmax(-1) @ value[:, own].float()).to(x.dtype))
        context = linear(torch.cat(contexts, -1), weights, f"{name}.attention.output.dense")
        x = layer_norm(x + context, weights, f"{name}.attention.output.LayerNorm")
        gated = linear(x, weights, f"{name}.mlp.gated_layers")
        half = gated.shape[1] // 2
        fed = linear(gelu(gated[:, :half]) * gated[:, half:], weights, f"{name}.mlp.wo")
        x = layer_norm(x + fed, weights, f"{name}.mlp.layernorm")
        number += 1
    return x


def nomic_bert(weights: Weights, ids: Tensor, heads: int, base: float) -> Tensor:
    """Token vectors (tokens, width) of one text's ids (tokens,); rotary positions as products of complex numbers."""
    x = weights["embeddings.word_embeddings.weight"][ids] + weights["embeddings.token_type_embeddings.weight"][0]
    x = layer_norm(x, weights, "emb_ln")
    size = x.shape[1] // heads
    angles = torch.outer(torch.arange(len(ids)), base ** -(torch.arange(size // 2, dtype=torch.float64) * 2 / size))
    turns = torch.polar(torch.ones_like(angles), angles)

    def turned(part: Tensor) -> Tensor:
        return torch.complex(part[:, : size // 2].contiguous(), part[:, size // 2 :].contiguous()) * turns

    number = 0
    while f"encoder.layers.{number}.attn.Wqkv.weight" in weights:
        name = f"encoder.layers.{number}"
        query, key, value = linear(x, weights, f"{name}.attn.Wqkv").chunk(3, -1)
        contexts = []
        for head in range(heads):
            own = slice(head * size, (head + 1) * size)
            scores = (turned(query[:, own]) @ turned(key[:, own]).conj().T).real / math.sqrt(size)
            contexts.append(scores.softmax(-1) @ value[:, own])
        x = layer_norm(x + linear(torch.cat(contexts, -1), weights, f"{name}.attn.out_proj"), weights, f"{name}.norm1")
        up, gate = linear(x, weights, f"{name}.mlp.fc11"), linear(x, weights, f"{name}.mlp.fc12")
        x = layer_norm(
            x + linear(up * gate / (1 + (-gate).exp()), weights, f"{name}.mlp.fc2"), weights, f"{name}.norm2"
        )
        number += 1
    return x
