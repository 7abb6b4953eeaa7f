"""What an LLM's bundle gives with float32 matmuls: the reference for the 4- and 8-bit kernels of other processors.

`python -m tests.cross.exact BUNDLE OUT`, on this processor; OUT is a file of numpy's.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from ortkit import Decoder
from ortkit.runtime.decoder.model_runner import ModelRunner

EXACT = "mlas.qnbit.force_fp32"
"""onnxruntime's entry with which weights are unpacked, and activations are not rounded."""
TEXT = """The water in a river is seldom clean enough to drink. Let it stand for an hour, so that the mud sinks to the
bottom, and pour it through a cloth. Then boil it for three minutes; above two thousand metres, where water boils at a
lower temperature, for five. Chlorine works as well, although it needs half an hour and does not kill every parasite."""
"""Prose, whose tokens are not as sure as those of a model's own answer: errors of a kernel show."""
PLACES = 64
"""How many tokens of it are read, in one run: an even number, as always."""


def log_probabilities(decoder: Decoder) -> NDArray[np.float64]:
    """Of the whole vocabulary after each of the first tokens of the text (PLACES, vocabulary)."""
    ids = decoder.encode(TEXT)[:PLACES]
    if len(ids) != PLACES:
        raise SystemExit(f"the text has {len(ids)} tokens, and {PLACES} are needed")
    logits = ModelRunner(decoder.session, decoder.new_cache()).run(ids, PLACES).astype(np.float64)
    logits -= logits.max(axis=1, keepdims=True)
    normalized: NDArray[np.float64] = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    return normalized


def give_entry(name: str, value: str) -> None:
    """Have onnxruntime open each session of this process with this entry too."""

    class Options(onnxruntime.SessionOptions):
        def __init__(self) -> None:
            super().__init__()
            self.add_session_config_entry(name, value)

    onnxruntime.SessionOptions = Options


def leave_out_entry(name: str) -> None:
    """Have onnxruntime open each session of this process without this entry, whatever the runtime asks."""

    class Options(onnxruntime.SessionOptions):
        def add_session_config_entry(self, key: str, value: str) -> None:
            if key != name:
                super().add_session_config_entry(key, value)

    onnxruntime.SessionOptions = Options


if __name__ == "__main__":
    give_entry(EXACT, "1")
    np.save(sys.argv[2], log_probabilities(Decoder(Path(sys.argv[1]), threads=1)).astype(np.float32))
