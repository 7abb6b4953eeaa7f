"""Checkpoints of any size with seeded weights, in the layout of the Hub: shards with an index, bf16, fp16 or fp32."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
import transformers
from numpy.typing import NDArray

from tests.decoders import CHATML, write_tokenizer
from tests.mistral import PIECES, write_mistral_tokenizer

SHARD = 5 * 10**9
"""Bytes of a shard, as transformers cuts them."""
AT_ONCE = 2**24
"""Numbers that are drawn at a time."""
STORED = {"bfloat16": ("BF16", 2), "float16": ("F16", 2), "float32": ("F32", 4)}
SHARDED, WHOLE = "model-{:05d}-of-{:05d}.safetensors", "model.safetensors"


@dataclass(frozen=True)
class Shape:
    """The sizes of a Mistral."""

    layers: int
    width: int
    inner: int
    heads: int
    kv_heads: int
    vocabulary: int = PIECES
    """Of Mistral's own size by default, and then of its own pieces."""
    window: int | None = 4096
    positions: int = 32768


SHAPES: Mapping[str, Shape] = {
    "0.1B": Shape(12, 768, 2048, 12, 4),
    "0.5B": Shape(24, 1280, 3456, 20, 4),
    "1B": Shape(20, 2048, 5632, 32, 8),
    "3B": Shape(26, 3072, 8192, 24, 8),
    "7B": Shape(32, 4096, 14336, 32, 8),
}
"""Up to that of Mistral-7B."""


@dataclass(frozen=True)
class Tensor:
    """A tensor that is to be written."""

    name: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        return math.prod(self.shape)


def write_seeded(
    folder: Path, shape: Shape, *, dtype: str = "bfloat16", shard: int = SHARD, seed: int = 0, **changes: object
) -> Path:
    """Write a checkpoint, a few megabytes in memory at a time; `changes` are for its config."""
    folder.mkdir(parents=True, exist_ok=True)
    config = transformers.MistralConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.width,
        intermediate_size=shape.inner,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        sliding_window=shape.window,
        max_position_embeddings=shape.positions,
        dtype=dtype,
        architectures=["MistralForCausalLM"],
        **changes,
    )
    config.save_pretrained(folder)
    if shape.vocabulary == PIECES:
        write_mistral_tokenizer(folder)
    else:
        write_small_tokenizer(folder)
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    shards = cut(
        [Tensor(name, tuple(found.shape)) for name, found in model.named_parameters()], STORED[dtype][1], shard
    )
    random = np.random.default_rng(seed)
    names = [WHOLE] if len(shards) == 1 else [SHARDED.format(place + 1, len(shards)) for place in range(len(shards))]
    for name, tensors in zip(names, shards, strict=True):
        write_shard(folder / name, tensors, dtype, random)
    if len(shards) > 1:
        places = {tensor.name: name for name, tensors in zip(names, shards, strict=True) for tensor in tensors}
        total = STORED[dtype][1] * sum(tensor.size for tensors in shards for tensor in tensors)
        index = {"metadata": {"total_size": total}, "weight_map": places}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def write_small_tokenizer(folder: Path) -> None:
    write_tokenizer(folder / "tokenizer.json")
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>", "chat_template": CHATML})
    )
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": 2}))


def cut(tensors: list[Tensor], width: int, shard: int) -> list[list[Tensor]]:
    """Tensors in shards of at most so many bytes, or of one tensor."""
    shards: list[list[Tensor]] = [[]]
    for tensor in tensors:
        if shards[-1] and width * sum(other.size for other in (*shards[-1], tensor)) > shard:
            shards.append([])
        shards[-1].append(tensor)
    return shards


def write_shard(path: Path, tensors: list[Tensor], dtype: str, random: np.random.Generator) -> None:
    stored, width = STORED[dtype]
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for tensor in tensors:
        start, end = end, end + width * tensor.size
        header[tensor.name] = {"dtype": stored, "shape": list(tensor.shape), "data_offsets": [start, end]}
    content = json.dumps(header).encode()
    content += b" " * (-len(content) % 8)
    with path.open("wb") as file:
        file.write(len(content).to_bytes(8, "little"))
        file.write(content)
        for tensor in tensors:
            write_tensor(file, tensor, dtype, random)


def write_tensor(file: BinaryIO, tensor: Tensor, dtype: str, random: np.random.Generator) -> None:
    for part in numbers(tensor, random):
        if dtype == "bfloat16":
            file.write(((part.view(np.uint32) + np.uint32(0x8000)) >> np.uint32(16)).astype(np.uint16).tobytes())
        else:
            file.write(part.astype(dtype).tobytes())


def numbers(tensor: Tensor, random: np.random.Generator) -> Iterator[NDArray[np.float32]]:
    """Weights of norms near 1; of matrices, numbers with which values keep their size."""
    mean, deviation = (1, 0.1) if len(tensor.shape) == 1 else (0, tensor.shape[-1] ** -0.5)
    for first in range(0, tensor.size, AT_ONCE):
        part = random.standard_normal(min(AT_ONCE, tensor.size - first), np.float32)
        yield part * np.float32(deviation) + np.float32(mean)
