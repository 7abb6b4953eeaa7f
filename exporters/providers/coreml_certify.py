"""A bundle for CoreML on the CPU: one partition, and the same results with padding as without it, in every bucket."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...runtime.bundle.bundle import GRAPH
from ...runtime.bundle.manifest import Buckets, Precision
from ...runtime.encoder.base import Encoder
from ...runtime.encoder.buckets import PADDED_TOKENS, Bucket, pad_to
from ...runtime.errors import OutOfMemoryError, UnsupportedModelError
from ...runtime.session.memory import mebibytes, smallest_limit
from .coreml_partition import check_one_partition, folded

Row = Mapping[str, NDArray[np.int64]]
"""The inputs of one text without padding, each (1, tokens)."""

_LARGEST_DIFFERENCE = {Precision.FP32: 1e-5, Precision.FP16: 1e-2}
"""Of an output with padding from the same without it, as a part of the largest output of the text, or of 1 if larger.

float16 has a precision of 1e-3, and a batch of another shape is rounded elsewhere.
"""
_COPIES = 3
"""Buffers of attention scores that a layer has at once: the product, with the bias added, and their softmax."""


def check_buckets(encoder: Encoder, rows: Sequence[Row]) -> None:
    """Raise UnsupportedModelError where CoreML would not run the whole graph, or padding changes a result.

    `rows` are texts of the probe set. In each bucket the longest that fit are run, and each alone without padding.
    """
    manifest = encoder.bundle.manifest
    buckets = manifest.buckets
    if buckets is None:
        raise ValueError("a bundle for CoreML has buckets")
    path = encoder.bundle.file(GRAPH)
    check_one_partition(path, name=manifest.name, texts=buckets.texts[-1], tokens=buckets.tokens[0])
    check_scores_fit(score_bytes(path, buckets.tokens[-1]), manifest.name, buckets.tokens[-1])
    longest_first = sorted(rows, key=_tokens, reverse=True)
    alone: dict[int, NDArray[np.float32]] = {}
    for texts, tokens in _compared(buckets):
        fitting = [place for place, row in enumerate(longest_first) if _tokens(row) <= tokens][:texts]
        for place in fitting:
            if place not in alone:
                alone[place] = _outputs(encoder, (1, _tokens(longest_first[place])), [longest_first[place]])[0]
        found = _outputs(encoder, (texts, tokens), [longest_first[place] for place in fitting])
        for place, padded in zip(fitting, found, strict=True):
            _check(encoder, (texts, tokens), padded, alone[place])


def _compared(buckets: Buckets) -> list[Bucket]:
    """The buckets that are compared: those in which texts run by default; one text in the longest ones."""
    return [
        (texts, tokens)
        for tokens in buckets.tokens
        for texts in buckets.texts
        if texts == 1 or texts * tokens <= PADDED_TOKENS
    ]


def score_bytes(path: Path, tokens: int) -> int:
    """Bytes of the attention scores of a layer for one text of so many tokens; 0 for a graph without attention."""
    sizes = [0]
    for node in folded(path, texts=1, tokens=tokens).graph:
        if node.op_type == "Softmax" and node.outputs[0].shape is not None:
            shape = [size if isinstance(size, int) else 1 for size in node.outputs[0].shape]
            sizes.append(math.prod(shape) * np.dtype(np.float32).itemsize)
    return max(sizes)


def check_scores_fit(scores: int, name: str, tokens: int) -> None:
    """Raise OutOfMemoryError where the largest bucket cannot be compared: attention takes the square of its tokens."""
    limit = smallest_limit()
    if limit is not None and limit.left < _COPIES * scores:
        raise OutOfMemoryError(
            f"a text in the bucket of {tokens} tokens, in which `{name}` is compared too, takes at least "
            f"{mebibytes(_COPIES * scores)}, and {limit.described}",
            hint="export it on a machine with more memory, or use `--provider cpu`",
        )


def _outputs(encoder: Encoder, bucket: Bucket, rows: Sequence[Row]) -> list[NDArray[np.float32]]:
    """What the graph gives for texts padded to a bucket: token embeddings without those of padding, or logits."""
    padded = pad_to(bucket, rows)
    found = encoder.session.run(padded.feeds)[: len(rows)]
    if found.ndim == 2:
        return list(found)
    return [text[:length] for text, length in zip(found, padded.lengths, strict=True)]


def _check(encoder: Encoder, bucket: Bucket, padded: NDArray[np.float32], alone: NDArray[np.float32]) -> None:
    manifest = encoder.bundle.manifest
    difference = float(np.abs(padded - alone).max()) / max(1.0, float(np.abs(alone).max()))
    allowed = _LARGEST_DIFFERENCE[manifest.precision]
    # Written so that NaN fails too.
    if not difference <= allowed:
        raise UnsupportedModelError(
            f"padding to {bucket[1]} tokens changes what the graph of `{manifest.name}` for CoreML gives, by "
            f"{difference:.2g} of the largest value; at most {allowed:g} is rounding",
            hint="use `--provider cpu`",
        )


def _tokens(row: Row) -> int:
    return len(next(iter(row.values()))[0])
