"""What a decoder's process will take in memory, told from its manifest before anything is opened."""

from __future__ import annotations

import math
from dataclasses import dataclass

from runtime.bundle import GRAPH
from runtime.kv_cache import token_size
from runtime.manifest import DecoderFacts, Manifest, WeightBlocks

LENGTHS = (1024, 4096, 8192)
"""Tokens of a prompt with its answer for which it is told."""
PROCESS = 120 << 20
"""Bytes of the interpreter, the libraries, a tokenizer and a session, as measured on Linux."""
WORKING = 26
"""Bytes that reading takes for each token of a run and each of the square root of a layer's number of weights.

That number grows with the square of a layer's width, and what a token takes with the width itself. Measured on layers
of Mistral-7B's shape; `benchmarks.memory` compares it with what is measured.
"""
WIDTHS = 3.6
"""That square root for each of a layer's width, in Mistral-7B; others have 3.3 to 4."""
LARGEST_RUN, SMALLEST_RUN = 512, 64
"""Tokens of a prompt in one run: more would not be faster, and fewer slower."""
RUN_BYTES = 64 << 20
"""What one run should take."""


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
    weights = weights_size(manifest)
    size = size_of_layers(manifest, facts)
    heads = size / WIDTHS / facts.head_size
    run = run_tokens(manifest, facts)
    lengths = []
    for tokens in dict.fromkeys(min(length, facts.context_length) for length in LENGTHS):
        cache = tokens * token_size(facts)
        scores = 4 * heads * min(run, tokens) * tokens
        lengths.append(AtLength(tokens, cache, weights + cache + PROCESS + round(WORKING * run * size + scores)))
    return Footprint(weights, tuple(lengths))


def run_tokens(manifest: Manifest, facts: DecoderFacts) -> int:
    """How many tokens of a prompt go through the graph in one run, so that what that takes is bounded."""
    # The manifest of a bundle that is being made lists no files yet.
    most = RUN_BYTES / (WORKING * max(1.0, size_of_layers(manifest, facts)))
    return int(min(LARGEST_RUN, max(SMALLEST_RUN, 2 ** math.floor(math.log2(most)))))


def weights_size(manifest: Manifest) -> int:
    """Bytes of the weights as onnxruntime packs them."""
    return round(graph_size(manifest) * packed_share(manifest.blocks))


def size_of_layers(manifest: Manifest, facts: DecoderFacts) -> float:
    """The square root of a layer's number of weights, the word vectors counted as parts of all layers."""
    return math.sqrt(weights_size(manifest) / packed_size(manifest.blocks) / facts.layers)


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
