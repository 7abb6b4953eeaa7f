"""Run the probe set with PyTorch, to compare a decoder's bundle with, and in the same pass calibration texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...runtime.bundle.manifest import DecoderFacts
from ...runtime.errors import CheckpointError, UnsupportedModelError
from ..certification.probe import probe_texts
from ..checkpoint.safetensors_reader import StoredTensor
from ..graph.array_store import KeptArrays, Made
from ..graph.float16 import max_magnitude
from ..progress import Progress
from .calibration import MomentsObserver
from .layerwise import LayerwiseForward, Observer
from .lazy_model import LazyDecoder

_WINDOW = 512
"""Tokens per window of the probe set; each window is a text of its own."""
MAX_REFERENCE_LOGITS = 2**27
"""Most reference logits in memory: half a gigabyte."""
MAX_PROBE_TOKENS = 2048
_GOLDEN_PROMPT = 24
"""Most tokens of the golden prompt."""
_LOGPROBS, _SQUARES, _LARGEST_STATE = "logprobs ", "squares ", "largest state"
"""Names of arrays in the store: the first two are followed by the window's number and by the weight's name."""


@dataclass(frozen=True)
class DecoderReference:
    """PyTorch's results for the probe set."""

    windows: tuple[tuple[int, ...], ...]
    """Token ids of the probe set, cut in windows."""
    logprobs: tuple[NDArray[np.float32], ...]
    """Log-probabilities of the next token for each window, (tokens, vocabulary)."""
    prompt_text: str
    prompt: tuple[int, ...]
    """The golden prompt, and its ids."""
    largest_state: float = 0.0
    """The largest magnitude of the hidden states."""
    squares: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    """Weight, by its name in the checkpoint -> the sum of its squared inputs on calibration texts."""


class ProbeObserver(Observer):
    """Records log-probabilities and the largest hidden state of the probe set, the first texts of a pass.

    Hidden states are those after a layer and the inputs of linear layers: between the two matmuls of an MLP, states may
    be larger than anywhere else.
    """

    def __init__(self, texts: int) -> None:
        """`texts` is the number of windows of the probe set."""
        self.texts = texts
        self.logprobs: list[NDArray[np.float32]] = []
        self.largest_state = 0.0

    def linear(self, text: int, matrix: StoredTensor, rows: NDArray[np.float32]) -> None:
        del matrix
        self._observe(text, rows)

    def layer(self, text: int, layer: int, states: NDArray[np.float32]) -> None:
        del layer
        self._observe(text, states)

    def _observe(self, text: int, states: NDArray[np.float32]) -> None:
        if text < self.texts:
            self.largest_state = max(self.largest_state, max_magnitude(states))

    def wants_logits(self, text: int) -> bool:
        return text < self.texts

    def logits(self, text: int, logits: NDArray[np.float32]) -> None:
        # Finite weights may still be so large that activations overflow.
        if not np.isfinite(logits).all():
            raise CheckpointError(
                f"PyTorch gives NaN or infinite logits for text {text} of the probe set, so the model is unusable",
                hint="its weights or its config.json are damaged; copy or download them again",
            )
        self.logprobs.append(log_softmax(logits))


def run_reference(
    decoder: LazyDecoder,
    tokenizer: Any,
    facts: DecoderFacts,
    calibration: Sequence[Sequence[int]],
    store: KeptArrays,
    progress: Progress | None = None,
) -> DecoderReference:
    """Run the probe set, and the windows of `calibration` for their squared inputs, in one pass over the weights.

    `tokenizer` is transformers' own. The results are kept in `store`; where they are there already, nothing runs.
    """
    windows = tuple(_probe_windows(tokenizer, facts))
    prompt_text, prompt = golden_prompt(tokenizer, facts)

    def run() -> Made:
        probe = ProbeObserver(len(windows))
        moments = MomentsObserver(len(windows), squares_only=True)
        LayerwiseForward(decoder, [*windows, *calibration], probe, moments).run(progress)
        found = {f"{_LOGPROBS}{number}": array for number, array in enumerate(probe.logprobs)}
        found |= {f"{_SQUARES}{name}": array for name, array in moments.found.items()}
        return Made({**found, _LARGEST_STATE: np.array([probe.largest_state], np.float32)})

    kept = store.keep("probe set", run)
    return DecoderReference(
        windows,
        tuple(kept.array(f"{_LOGPROBS}{number}") for number in range(len(windows))),
        prompt_text,
        tuple(prompt),
        float(kept.array(_LARGEST_STATE)[0]),
        {key.removeprefix(_SQUARES): kept.array(key) for key in kept.arrays if key.startswith(_SQUARES)},
    )


def _probe_windows(tokenizer: Any, facts: DecoderFacts) -> list[tuple[int, ...]]:
    """Tokenize the probe set as one text, cut in windows that fit the context and memory."""
    ids = tokenizer("\n".join(probe_texts().texts))["input_ids"]
    width = min(_WINDOW, facts.context_length)
    most = min(len(ids), MAX_PROBE_TOKENS, max(width, MAX_REFERENCE_LOGITS // facts.vocabulary))
    windows = [tuple(ids[start : min(start + width, most)]) for start in range(0, most, width)]
    return [window for window in windows if len(window) > 1]


def golden_prompt(tokenizer: Any, facts: DecoderFacts) -> tuple[str, list[int]]:
    """Return the beginning of a probe text, short enough to be continued, and its ids."""
    words = probe_texts().texts[0].split()
    most = min(_GOLDEN_PROMPT, facts.context_length // 2)
    for count in range(min(len(words), most), 0, -1):
        text = " ".join(words[:count])
        ids: list[int] = tokenizer(text)["input_ids"]
        if len(ids) <= most:
            return text, ids
    raise UnsupportedModelError(
        f"a context of {facts.context_length} tokens is too short for a word and its continuation"
    )


def log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Log-softmax of logits (tokens, vocabulary), in place."""
    logits -= logits.max(axis=-1, keepdims=True)
    # Row by row: all of them in float64 would take twice the memory again.
    for place, row in enumerate(logits):
        logits[place] -= np.log(np.exp(row, dtype=np.float64).sum())
    return logits
