"""What a decoder's process will take in memory, told from its manifest before anything is opened."""

from __future__ import annotations

import math
from dataclasses import dataclass

from runtime.bundle import GRAPH
from runtime.kv_cache import token_size
from runtime.manifest import DecoderFacts, Manifest, Precision, Provider, WeightBlocks

LENGTHS = (1024, 4096, 8192)
"""Tokens of a prompt with its answer for which it is told."""
PROCESS = 120 << 20
"""Bytes of the interpreter, the libraries, a tokenizer and a session, as measured on Linux."""
WORKING = 13_000
"""Bytes that reading a long prompt takes for each of the square root of a layer's number of weights.

That number grows with the square of a layer's width, and what the tokens of a run take with the width itself. Measured
on layers of Mistral-7B's shape; `benchmarks.memory` compares it with what is measured.
"""


@dataclass(frozen=True)
class AtLength:
    """What is taken for so many tokens, in bytes."""

    tokens: int
    cache: int
    """Keys and values."""
    total: int
    """All of the process."""


@dataclass(frozen=True)
class Footprint:
    """What a decoder takes in memory, in bytes."""

    weights: int
    """As onnxruntime packs them."""
    lengths: tuple[AtLength, ...]


def footprint_of(manifest: Manifest, facts: DecoderFacts) -> Footprint:
    """About what a decoder takes, for a few lengths up to its context."""
    weights = round(graph_size(manifest) * packed_share(manifest.blocks))
    if manifest.precision is Precision.FP16 and manifest.provider is Provider.CPU:
        # Computed in float32, to which its matrices are widened once, when the graph is opened.
        weights *= 2
    numbers = weights / packed_size(manifest.blocks) / facts.layers
    rest = PROCESS + round(WORKING * math.sqrt(numbers))
    lengths = dict.fromkeys(min(length, facts.context_length) for length in LENGTHS)
    sizes = [(tokens, tokens * token_size(facts)) for tokens in lengths]
    return Footprint(weights, tuple(AtLength(tokens, cache, weights + cache + rest) for tokens, cache in sizes))


def graph_size(manifest: Manifest) -> int:
    """Bytes of a graph's files."""
    return sum(record.size for name, record in manifest.files.items() if name.startswith(GRAPH))


def packed_share(blocks: WeightBlocks | None) -> float:
    """Bytes of a packed weight for one of its bytes in the file, where a block has a zero point of a level's size."""
    if blocks is None:
        return 1.0
    levels, scale = blocks.bits / 8, 4 / blocks.block
    zero = 0.0 if blocks.symmetric else levels / blocks.block
    return packed_size(blocks) / (levels + scale + zero)


def packed_size(blocks: WeightBlocks | None) -> float:
    """Bytes of a packed weight: its level, and for each block a scale and what the zero point adds to a product."""
    return 4.0 if blocks is None else blocks.bits / 8 + 8 / blocks.block
