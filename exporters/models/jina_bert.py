"""JinaBERT, the encoder of jina-embeddings-v2, implemented here: its publisher ships it as code beside the weights.

A BERT with three differences (Günther et al. 2023, arXiv:2310.19923): no position vectors but a bias on the attention
scores that falls linearly with the distance of two tokens, in both directions (ALiBi, Press et al. 2022,
arXiv:2108.12409); a gated feed-forward part (GEGLU, Shazeer 2020, arXiv:2002.05202); texts of up to 8,192 tokens.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu
from transformers import BertConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput


def alibi_slopes(heads: int) -> list[float]:
    """How fast each head's bias falls with distance.

    For a power of two the slopes are a geometric series that ends at 2^-8. For any other count, the series of the next
    lower power of two, and then every other slope of the next higher one's (the authors' own rule).
    """
    lower = 2 ** math.floor(math.log2(heads))
    slopes = [2 ** (-8 * (index + 1) / lower) for index in range(lower)]
    if lower == heads:
        return slopes
    return slopes + alibi_slopes(2 * lower)[::2][: heads - lower]


def alibi_bias(tokens: int, heads: int) -> Tensor:
    """What is added to the scores, float32 (heads, tokens, tokens): minus the distance, times the head's slope."""
    positions = torch.arange(tokens)
    distances = (positions[None, :] - positions[:, None]).abs()
    return -torch.tensor(alibi_slopes(heads))[:, None, None] * distances


class JinaBertEmbeddings(nn.Module):
    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, input_ids: Tensor) -> Tensor:
        normalized: Tensor = self.LayerNorm(self.word_embeddings(input_ids) + self.token_type_embeddings.weight[0])
        return normalized


class JinaBertSelfAttention(nn.Module):
    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.heads = config.num_attention_heads
        self.query = nn.Linear(config.hidden_size, config.hidden_size)
        self.key = nn.Linear(config.hidden_size, config.hidden_size)
        self.value = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, hidden: Tensor, bias: Tensor) -> Tensor:
        batch, tokens, width = hidden.shape

        def split(vectors: Tensor) -> Tensor:
            return vectors.view(batch, tokens, self.heads, width // self.heads).transpose(1, 2)

        query, key, value = split(self.query(hidden)), split(self.key(hidden)), split(self.value(hidden))
        scores = query @ key.transpose(2, 3) / math.sqrt(width // self.heads) + bias
        return (scores.softmax(dim=-1) @ value).transpose(1, 2).reshape(batch, tokens, width)


class JinaBertSelfOutput(nn.Module):
    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, context: Tensor, hidden: Tensor) -> Tensor:
        normalized: Tensor = self.LayerNorm(self.dense(context) + hidden)
        return normalized


class JinaBertAttention(nn.Module):
    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.self = JinaBertSelfAttention(config)
        self.output = JinaBertSelfOutput(config)

    def forward(self, hidden: Tensor, bias: Tensor) -> Tensor:
        attended: Tensor = self.output(self.self(hidden, bias), hidden)
        return attended


class JinaBertGatedFeedForward(nn.Module):
    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.gated_layers = nn.Linear(config.hidden_size, 2 * config.intermediate_size, bias=False)
        self.wo = nn.Linear(config.intermediate_size, config.hidden_size)
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, hidden: Tensor) -> Tensor:
        gate, up = self.gated_layers(hidden).chunk(2, dim=-1)
        normalized: Tensor = self.layernorm(self.wo(gelu(gate) * up) + hidden)
        return normalized


class JinaBertLayer(nn.Module):
    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.attention = JinaBertAttention(config)
        self.mlp = JinaBertGatedFeedForward(config)

    def forward(self, hidden: Tensor, bias: Tensor) -> Tensor:
        fed: Tensor = self.mlp(self.attention(hidden, bias))
        return fed


class JinaBertEncoder(nn.Module):
    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.layer = nn.ModuleList(JinaBertLayer(config) for _ in range(config.num_hidden_layers))

    def forward(self, hidden: Tensor, bias: Tensor) -> Tensor:
        for layer in self.layer:
            hidden = layer(hidden, bias)
        return hidden


class JinaBertModel(PreTrainedModel):  # type: ignore[misc] # transformers has no types
    """The encoder without a head; module names are those of the published weights."""

    config_class = BertConfig
    base_model_prefix = "bert"

    def __init__(self, config: BertConfig) -> None:
        super().__init__(config)
        self.embeddings = JinaBertEmbeddings(config)
        self.encoder = JinaBertEncoder(config)
        self.post_init()

    def forward(self, input_ids: Tensor, **_: Any) -> BaseModelOutput:
        """Token vectors, float32 (batch, tokens, width), of token ids, int64 (batch, tokens), without padding."""
        bias = alibi_bias(input_ids.shape[1], self.config.num_attention_heads)
        return BaseModelOutput(last_hidden_state=self.encoder(self.embeddings(input_ids), bias))
