"""Estimate of a decoder's memory, from its manifest, before anything is opened."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..bundle.bundle import GRAPH
from ..bundle.manifest import CacheType, DecoderFacts, Manifest, Precision, Provider, WeightBlocks
from .cache.kv_cache import token_size
from .prefill_choice import prefill_size

_LENGTHS = (1024, 4096, 8192)
"""Tokens, prompt and answer together, to estimate the memory for."""
PROCESS = 140 << 20
"""Bytes of the interpreter, libraries, tokenizer, session and the activations of one run.

With it the estimate is within 3% of what `benchmarks.memory` measures: SmolLM2-135M in 4 bits takes 264 MiB after 1,000
tokens, 397 after 4,000 and 583 after 8,000 (two threads, Linux), and the estimate is 270, 406 and 586.
"""
_WORKING = 26
"""Bytes that a run takes for each of its tokens and each unit of a layer's width, which is taken to be the square root
of a layer's number of weights. Measured on layers of Mistral-7B's shape."""
_LARGEST_RUN, SMALLEST_RUN = 512, 64
"""Tokens of a prompt in one run: more would not be faster, and fewer slower."""
_LOGITS = 8
"""Rows of logits: those of a run, of a short draft, and copies for sampling."""
_RUN_BYTES = 64 << 20
"""Bytes that one run should take at most."""


@dataclass(frozen=True)
class AtLength:
    """Memory for so many tokens, in bytes."""

    tokens: int
    cache: int
    """The KV cache."""
    total: int
    """The whole process; on a GPU only weights and cache, since what a run takes there has not been measured."""


@dataclass(frozen=True)
class Footprint:
    """Memory of a decoder, in bytes."""

    weights: int
    """As onnxruntime packs them, of all graphs."""
    lengths: tuple[AtLength, ...]
    prefill_weights: int = 0
    """Those of the 8-bit graph for prompts, included in `weights`; 0 without one. They are not read with `none`."""


def footprint_of(manifest: Manifest, facts: DecoderFacts) -> Footprint:
    """Estimate the memory of a decoder for a few lengths up to its context: weights, KV cache and PROCESS."""
    prefill = prefill_size(manifest)
    weights = _weights_size(manifest) + prefill
    process = PROCESS if manifest.provider is Provider.CPU else 0
    lengths = []
    for tokens in dict.fromkeys(min(length, facts.context_length) for length in _LENGTHS):
        cache = tokens * token_size(facts)
        lengths.append(AtLength(tokens, cache, weights + cache + process))
    return Footprint(weights, tuple(lengths), prefill)


def run_tokens(manifest: Manifest, facts: DecoderFacts) -> int:
    """Tokens of a prompt in one run of the graph, so that its activations are bounded."""
    # There each run dequantizes all weights again, whatever its number of tokens.
    if manifest.provider is Provider.CUDA:
        return _LARGEST_RUN
    # Its attention computes the scores of a whole run at once, a float32 for each head and token of the cache: 75 MB
    # for 512 tokens of SmolLM2 after 4,000.
    if facts.cache_type is CacheType.INT8:
        return SMALLEST_RUN
    # The manifest of a draft bundle lists no files yet.
    most = _RUN_BYTES / (_WORKING * max(1.0, _size_of_layers(manifest, facts)))
    return int(min(_LARGEST_RUN, max(SMALLEST_RUN, 2 ** math.floor(math.log2(most)))))


def run_size(manifest: Manifest, facts: DecoderFacts, tokens: int) -> int:
    """Bytes that a run of so many tokens takes: activations, and the logits of a few positions.

    For small models it is up to a third more than _WORKING says (SmolLM2-135M: 36 MiB for 512 tokens instead of 28).
    """
    return round(1.5 * _WORKING * max(1.0, _size_of_layers(manifest, facts)) * tokens) + _LOGITS * 4 * facts.vocabulary


def _weights_size(manifest: Manifest) -> int:
    """Bytes of the weights as onnxruntime packs them."""
    if manifest.provider is Provider.CUDA:
        return graph_size(manifest)
    # A CPU converts float16 weights, of bundles that were exported before schema 7, to float32 when it opens the graph.
    widened = manifest.precision is Precision.FP16
    return round(graph_size(manifest) * (2 if widened else packed_share(manifest.blocks)))


def _size_of_layers(manifest: Manifest, facts: DecoderFacts) -> float:
    """The square root of the number of weights of a layer, with its share of the embedding table."""
    return math.sqrt(_weights_size(manifest) / _packed_size(manifest.blocks) / facts.layers)


def graph_size(manifest: Manifest) -> int:
    """Bytes of a graph's files."""
    return sum(record.size for name, record in manifest.files.items() if name.startswith(GRAPH))


def packed_share(blocks: WeightBlocks | None) -> float:
    """Bytes of packed weights for each of their bytes in the file."""
    if blocks is None:
        return 1.0
    levels, scale = blocks.bits / 8, 4 / blocks.block
    zero = 0.0 if blocks.symmetric else levels / blocks.block
    return _packed_size(blocks) / (levels + scale + zero)


def _packed_size(blocks: WeightBlocks | None) -> float:
    """Bytes of a packed weight: its quantized value and, for each block, a float32 scale and zero-point sum."""
    return 4.0 if blocks is None else blocks.bits / 8 + 8 / blocks.block
