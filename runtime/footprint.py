"""What a decoder's process will take in memory, told from its manifest before anything is opened."""

from __future__ import annotations

from dataclasses import dataclass

from runtime.bundle import GRAPH
from runtime.kv_cache import token_size
from runtime.manifest import DecoderFacts, Manifest, WeightBlocks

LENGTHS = (1024, 4096, 8192)
"""Tokens of a prompt with its answer for which it is told."""
PROCESS = 80 << 20
"""Bytes of the interpreter, the libraries and a session, as measured on Linux."""
WORKING = 0.05
"""Of the weights, what reading a long prompt takes at most: `benchmarks.memory` compares it with what is measured."""


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
    files = sum(record.size for name, record in manifest.files.items() if name.startswith(GRAPH))
    weights = round(files * packed_share(manifest.blocks))
    rest = PROCESS + round(weights * WORKING)
    lengths = dict.fromkeys(min(length, facts.context_length) for length in LENGTHS)
    sizes = [(tokens, tokens * token_size(facts)) for tokens in lengths]
    return Footprint(weights, tuple(AtLength(tokens, cache, weights + cache + rest) for tokens, cache in sizes))


def packed_share(blocks: WeightBlocks | None) -> float:
    """Bytes of a packed weight for one of its bytes in the file.

    In the file a block has its levels, a scale of four bytes and a zero point of a level's size; packed, four bytes of
    what the zero point adds to a product stand in its place, and in a symmetric block too.
    """
    if blocks is None or not blocks.block:
        return 1.0
    levels, scale = blocks.bits / 8, 4 / blocks.block
    zero = 0.0 if blocks.symmetric else levels / blocks.block
    return (levels + 2 * scale) / (levels + scale + zero)
