"""NomicBERT, the encoder of nomic-embed-text, implemented here: its publisher ships it as code beside the weights.

A BERT with rotary positions (Su et al. 2021, arXiv:2104.09864) instead of position vectors, a gated feed-forward part
(SwiGLU, Shazeer 2020, arXiv:2002.05202) and few biases (Nussbaum et al. 2024, arXiv:2402.01613).
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import silu
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput


class NomicBertConfig(PretrainedConfig):  # type: ignore[misc] # transformers has no types
    """config.json of such a checkpoint, which names its sizes as GPT-2 does."""

    model_type = "nomic_bert"
    attribute_map: ClassVar[dict[str, str]] = {
        "hidden_size": "n_embd",
        "num_attention_heads": "n_head",
        "num_hidden_layers": "n_layer",
        "intermediate_size": "n_inner",
        "max_position_embeddings": "n_positions",
    }

    def __init__(
        self,
        *,
        vocab_size: int = 30528,
        n_embd: int = 768,
        n_head: int = 12,
        n_layer: int = 12,
        n_inner: int = 3072,
        n_positions: int = 8192,
        type_vocab_size: int = 2,
        layer_norm_epsilon: float = 1e-12,
        rotary_emb_base: float = 10000,
        qkv_proj_bias: bool = False,
        mlp_fc1_bias: bool = False,
        mlp_fc2_bias: bool = False,
        **others: Any,
    ) -> None:
        self.vocab_size = vocab_size
        self.n_embd = n_embd
        self.n_head = n_head
        self.n_layer = n_layer
        self.n_inner = n_inner
        self.n_positions = n_positions
        self.type_vocab_size = type_vocab_size
        self.layer_norm_epsilon = layer_norm_epsilon
        self.rotary_emb_base = rotary_emb_base
        self.qkv_proj_bias = qkv_proj_bias
        self.mlp_fc1_bias = mlp_fc1_bias
        self.mlp_fc2_bias = mlp_fc2_bias
        super().__init__(**others)


def _rotation(tokens: int, width: int, base: float) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the angles by which the components of a head turn, each (tokens, width)."""
    frequencies = base ** (-torch.arange(0, width, 2) / width)
    angles = torch.arange(tokens)[:, None] * frequencies
    angles = torch.cat([angles, angles], dim=-1)
    return angles.cos(), angles.sin()


def rotate(vectors: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """Turn each head's component i together with component i + half its width."""
    first, second = vectors.chunk(2, dim=-1)
    return vectors * cosines + torch.cat([-second, first], dim=-1) * sines


class NomicBertEmbeddings(nn.Module):
    def __init__(self, config: NomicBertConfig) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocab_size, config.n_embd)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, config.n_embd)

    def forward(self, input_ids: Tensor) -> Tensor:
        embedded: Tensor = self.word_embeddings(input_ids) + self.token_type_embeddings.weight[0]
        return embedded


class NomicBertAttention(nn.Module):
    def __init__(self, config: NomicBertConfig) -> None:
        super().__init__()
        self.heads = config.n_head
        self.Wqkv = nn.Linear(config.n_embd, 3 * config.n_embd, bias=config.qkv_proj_bias)
        self.out_proj = nn.Linear(config.n_embd, config.n_embd, bias=config.qkv_proj_bias)

    def forward(self, hidden: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
        batch, tokens, width = hidden.shape
        qkv = self.Wqkv(hidden).view(batch, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        query, key = rotate(qkv[0], cosines, sines), rotate(qkv[1], cosines, sines)
        scores = query @ key.transpose(2, 3) / math.sqrt(width // self.heads)
        context = (scores.softmax(dim=-1) @ qkv[2]).transpose(1, 2).reshape(batch, tokens, width)
        projected: Tensor = self.out_proj(context)
        return projected


class NomicBertGatedFeedForward(nn.Module):
    def __init__(self, config: NomicBertConfig) -> None:
        super().__init__()
        self.fc11 = nn.Linear(config.n_embd, config.n_inner, bias=config.mlp_fc1_bias)
        self.fc12 = nn.Linear(config.n_embd, config.n_inner, bias=config.mlp_fc1_bias)
        self.fc2 = nn.Linear(config.n_inner, config.n_embd, bias=config.mlp_fc2_bias)

    def forward(self, hidden: Tensor) -> Tensor:
        fed: Tensor = self.fc2(self.fc11(hidden) * silu(self.fc12(hidden)))
        return fed


class NomicBertLayer(nn.Module):
    def __init__(self, config: NomicBertConfig) -> None:
        super().__init__()
        self.attn = NomicBertAttention(config)
        self.mlp = NomicBertGatedFeedForward(config)
        self.norm1 = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.norm2 = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)

    def forward(self, hidden: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
        hidden = self.norm1(self.attn(hidden, cosines, sines) + hidden)
        normalized: Tensor = self.norm2(self.mlp(hidden) + hidden)
        return normalized


class NomicBertEncoder(nn.Module):
    def __init__(self, config: NomicBertConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(NomicBertLayer(config) for _ in range(config.n_layer))

    def forward(self, hidden: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
        for layer in self.layers:
            hidden = layer(hidden, cosines, sines)
        return hidden


class NomicBertModel(PreTrainedModel):  # type: ignore[misc] # transformers has no types
    """The encoder without a head; module names are those of the published weights."""

    config_class = NomicBertConfig
    base_model_prefix = "bert"

    def __init__(self, config: NomicBertConfig) -> None:
        super().__init__(config)
        self.embeddings = NomicBertEmbeddings(config)
        self.emb_ln = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.encoder = NomicBertEncoder(config)
        self.post_init()

    def forward(self, input_ids: Tensor, **_: Any) -> BaseModelOutput:
        """Token vectors, float32 (batch, tokens, width), of token ids, int64 (batch, tokens), without padding."""
        cosines, sines = _rotation(
            input_ids.shape[1], self.config.n_embd // self.config.n_head, self.config.rotary_emb_base
        )
        return BaseModelOutput(last_hidden_state=self.encoder(self.emb_ln(self.embeddings(input_ids)), cosines, sines))
