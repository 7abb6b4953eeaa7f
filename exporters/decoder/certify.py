"""Certify a decoder's bundle against PyTorch: next-token probabilities and greedy generation."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..certification.certificate import certificate_of
from .layer_errors import layer_errors
from .layerwise import LayerwiseForward, Observer
from ..certification.probe import probe_texts
from ..progress import counted
from .lazy_model import LazyDecoder
from ...runtime.bundle.bundle import GRAPH, Bundle
from ...runtime.decoder.decoder import Decoder
from ...runtime.errors import CheckpointError, OrtkitError, UnsupportedModelError
from ...runtime.decoder.model_runner import ModelRunner
from ...runtime.bundle.manifest import Certificate, DecoderFacts, GoldenAnswer, Precision
from ...runtime.replay import golden_answer

_WINDOW = 512
"""Tokens per window of the probe set; each window is a text of its own."""
MAX_REFERENCE_LOGITS = 2**27
"""Most reference logits in memory: half a gigabyte."""
MAX_PROBE_TOKENS = 2048
_STATE_TOKENS = 256
"""Tokens whose hidden states are compared after each layer."""
_GOLDEN_PROMPT = 24
_GOLDEN_TOKENS = 64
MAX_KL = {
    Precision.FP32: 1e-5,
    Precision.FP16: 0.001,
    Precision.INT8: 0.1,
    Precision.INT4: 1.0,
    Precision.SOURCE: 0.1,
}
"""Thresholds of the mean KL divergence on the probe set, in nats per token; above, no bundle is written."""
MIN_TOP1_AGREEMENT = 0.998
"""Threshold of the top-1 agreement of a float32 bundle with PyTorch."""


@dataclass(frozen=True)
class DecoderReference:
    """PyTorch's results for the probe set."""

    windows: tuple[tuple[int, ...], ...]
    """Token ids of the probe set, cut in windows."""
    logprobs: tuple[NDArray[np.float32], ...]
    """Log-probabilities of the next token for each window, (tokens, vocabulary)."""
    states: tuple[NDArray[np.float32], ...]
    """Hidden states after each layer, (tokens, width), of the first tokens of the first window."""
    text: str
    prompt: tuple[int, ...]
    """The golden prompt, and its ids."""
    decoder: LazyDecoder = field(repr=False)
    """The model, for the greedy continuation of the golden prompt."""


@dataclass(frozen=True)
class DecoderAgreement:
    """Agreement of next-token probabilities with PyTorch."""

    kl: float
    """KL divergence from PyTorch, mean over the tokens, in nats."""
    kl_max: float
    """The largest of any token."""
    top: float
    """Share of tokens with the same most probable next token (top-1 agreement)."""
    perplexity: float
    perplexity_ratio: float
    """Perplexity divided by PyTorch's."""


class ProbeObserver(Observer):
    """Records log-probabilities and hidden states of the probe set, the first texts of a pass."""

    def __init__(self, decoder: LazyDecoder, tokenizer: Any, facts: DecoderFacts) -> None:
        """`tokenizer` is transformers' own."""
        self.decoder = decoder
        self.windows = tuple(_probe_windows(tokenizer, facts))
        text, prompt = golden_prompt(tokenizer, facts)
        self.golden = text, tuple(prompt)
        self.logprobs: list[NDArray[np.float32]] = []
        self.states: list[NDArray[np.float32]] = []

    def layer(self, text: int, layer: int, states: NDArray[np.float32]) -> None:
        del layer
        if text == 0:
            self.states.append(states[:_STATE_TOKENS].copy())

    def wants_logits(self, text: int) -> bool:
        return text < len(self.windows)

    def logits(self, text: int, logits: NDArray[np.float32]) -> None:
        # Finite weights may still be so large that activations overflow.
        if not np.isfinite(logits).all():
            raise CheckpointError(
                f"PyTorch gives NaN or infinite logits for text {text} of the probe set, so the model is unusable",
                hint="its weights or its config.json are damaged; copy or download them again",
            )
        self.logprobs.append(_log_softmax(logits))

    def reference(self) -> DecoderReference:
        return DecoderReference(self.windows, tuple(self.logprobs), tuple(self.states), *self.golden, self.decoder)


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


class _GreedyTokens(Observer):
    """Records PyTorch's most probable next token at each position of a single text."""

    def __init__(self) -> None:
        self.found: list[int] = []

    def wants_logits(self, text: int) -> bool:
        del text
        return True

    def logits(self, text: int, logits: NDArray[np.float32]) -> None:
        del text
        self.found = logits.argmax(axis=-1).tolist()


def _greedy_continuation(decoder: LazyDecoder, prompt: Sequence[int], answer: Sequence[int]) -> tuple[int, ...]:
    """Return PyTorch's greedy continuation of a prompt as far as it agrees with an answer, and its first other token.

    One forward pass over prompt and answer suffices: up to the first difference both are the same text.
    """
    choices = _GreedyTokens()
    LayerwiseForward(decoder, [[*prompt, *answer[:-1]]], choices).run()
    chosen = choices.found[len(prompt) - 1 :]
    return tuple(chosen[: _common_prefix(chosen, answer) + 1])


def _log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Log-softmax of logits (tokens, vocabulary), in place."""
    logits -= logits.max(axis=-1, keepdims=True)
    # Row by row: all of them in float64 would take twice the memory again.
    for place, row in enumerate(logits):
        logits[place] -= np.log(np.exp(row, dtype=np.float64).sum())
    return logits


def bundle_logprobs(decoder: Decoder, windows: Iterable[Sequence[int]]) -> Iterable[NDArray[np.float32]]:
    """Yield a bundle's log-probabilities for each window; each array is overwritten by the next."""
    cache = decoder.new_cache()
    for window in windows:
        cache.rewind(0)
        yield _log_softmax(ModelRunner(decoder.session, cache).run(window, len(window)))


def agreement_with(decoder: Decoder, reference: DecoderReference) -> DecoderAgreement:
    """Compare a bundle's next-token probabilities with PyTorch's on the probe set."""
    divergences, same, surprises, expected_surprises = [], [], [], []
    found = bundle_logprobs(decoder, counted(reference.windows, "texts"))
    for window, expected, here in zip(reference.windows, reference.logprobs, found, strict=True):
        for row, other in zip(expected, here, strict=True):
            divergences.append(float(np.exp(row, dtype=np.float64) @ (row.astype(np.float64) - other)))
            same.append(int(row.argmax()) == int(other.argmax()))
        places = np.arange(len(window) - 1), np.array(window[1:])
        surprises.append(-here[places])
        expected_surprises.append(-expected[places])
    surprise, expected_surprise = (
        float(np.concatenate(rows).mean(dtype=np.float64)) for rows in (surprises, expected_surprises)
    )
    mean = float(np.mean(divergences))
    return DecoderAgreement(
        # Negative only by float32 rounding; NaN stays NaN, which `max` would turn into 0.
        kl=0.0 if mean < 0 else mean,
        kl_max=float(np.max(divergences)),
        top=float(np.mean(same)),
        perplexity=float(np.exp(surprise)),
        perplexity_ratio=float(np.exp(surprise - expected_surprise)),
    )


def certify_decoder(bundle: Bundle, reference: DecoderReference, *, max_kl: float | None = None) -> Certificate:
    """Compare a bundle with its reference.

    Raises OrtkitError where the KL divergence exceeds `max_kl` or the threshold of the precision.
    """
    decoder = Decoder(bundle)
    found = checked_agreement(decoder, reference, max_kl=max_kl)
    count = min(_GOLDEN_TOKENS, decoder.facts.context_length - len(reference.prompt))
    answer, logprobs = golden_answer(decoder, reference.prompt, count)
    # One at a time: a session holds all weights, and PyTorch a float32 layer.
    del decoder
    expected = _greedy_continuation(reference.decoder, reference.prompt, answer)
    golden = GoldenAnswer(reference.text, reference.prompt, expected, answer, logprobs)
    figures = {
        "kl_mean": found.kl,
        "kl_max": found.kl_max,
        "top1_agreement": found.top,
        "perplexity": found.perplexity,
        "perplexity_ratio": found.perplexity_ratio,
        "greedy_tokens_equal": float(_common_prefix(answer, expected)),
    }
    tokens = sum(map(len, reference.windows))
    certificate = certificate_of(probe_texts(), tokens, figures, (), (golden,))
    errors = layer_errors(bundle.path / GRAPH, reference.windows[0][: len(reference.states[0])], reference.states)
    return dataclasses.replace(certificate, layer_errors=errors)


def checked_agreement(
    decoder: Decoder, reference: DecoderReference, *, max_kl: float | None = None
) -> DecoderAgreement:
    """Return `agreement_with`; raises OrtkitError where a threshold is not met."""
    manifest = decoder.bundle.manifest
    found = agreement_with(decoder, reference)
    largest = min(MAX_KL[manifest.precision], max_kl or np.inf)
    # Written so that NaN fails too.
    if not found.kl <= largest:
        raise OrtkitError(
            f"the exported `{manifest.name}` differs from PyTorch: KL divergence {found.kl:.5f} on "
            f"average over the probe set, and {manifest.precision.value} must stay within {largest:g}",
            hint=_hint_of(manifest.precision),
        )
    if manifest.precision is Precision.FP32 and not found.top >= MIN_TOP1_AGREEMENT:
        raise OrtkitError(
            f"the exported `{manifest.name}` differs from PyTorch: its most probable token is PyTorch's "
            f"for {found.top:.2%} of the probe set, and fp32 must reach {MIN_TOP1_AGREEMENT:.1%}",
            hint=_hint_of(manifest.precision),
        )
    return found


def _common_prefix(first: Sequence[int], second: Sequence[int]) -> int:
    """Length of the common prefix of two answers."""
    count = min(len(first), len(second))
    return next((place for place in range(count) if first[place] != second[place]), count)


def _hint_of(precision: Precision) -> str:
    finer = {Precision.INT4: "`--precision int8` or `fp32`", Precision.INT8: "`--precision fp32`"}
    finer[Precision.SOURCE] = "`--precision int8` or `fp32`"
    finer[Precision.FP16] = "`--precision fp32`"
    return f"no bundle was written; try {finer[precision]}" if precision in finer else "no bundle was written"
