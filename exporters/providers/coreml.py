"""The fixed shapes of graphs for CoreML."""

from __future__ import annotations

from ...runtime.bundle.manifest import Buckets

_TOKENS = (64, 128, 256, 512)
_TEXTS = (1, 8)


def buckets_for(max_length: int) -> Buckets:
    """The shapes that a model is run in: 64, 128, 256, 512 ... tokens up to its limit, and 1 or 8 texts.

    They are few, because CoreML compiles a model for each, with a copy of the weights.
    """
    tokens = [size for size in _TOKENS if size < max_length]
    size = 2 * _TOKENS[-1]
    while size < max_length:
        tokens.append(size)
        size *= 2
    return Buckets((*tokens, max_length), _TEXTS)
