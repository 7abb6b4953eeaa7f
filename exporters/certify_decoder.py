"""A decoder's bundle against PyTorch: the probabilities of the next token, and the text that the best of them make."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exporters.certify import certificate_of
from exporters.counts import counted
from exporters.layer_errors import layer_errors
from exporters.layerwise import Layerwise, Observer
from exporters.probe import probe_texts
from exporters.weightless import WeightlessDecoder
from runtime.bundle import GRAPH, Bundle
from runtime.decoder import Decoder
from runtime.errors import CheckpointError, EdgekitError, UnsupportedModelError
from runtime.forward import ModelRunner
from runtime.manifest import Certificate, DecoderFacts, GoldenAnswer, Precision
from runtime.replay import golden_answer

WINDOW = 512
"""Tokens of the probe set that are read at once, each window on its own."""
LARGEST_REFERENCE = 2**27
"""Logits that are held to compare with: half a gigabyte."""
MOST_TOKENS = 2048
STATE_TOKENS = 256
"""Whose hidden states are compared after each layer."""
GOLDEN_PROMPT = 24
GOLDEN_TOKENS = 64
LARGEST_KL = {
    Precision.FP32: 1e-5,
    Precision.FP16: 0.001,
    Precision.INT8: 0.1,
    Precision.INT4: 1.0,
    Precision.SOURCE: 0.1,
}
"""Of the probe set, in nats a token: above it, an export is not what it claims to be, and no bundle is written."""
LOWEST_TOP = 0.998
"""The same for how often PyTorch's most probable token is a float32 bundle's too."""


@dataclass(frozen=True)
class DecoderReference:
    """What PyTorch gives for the probe set."""

    windows: tuple[tuple[int, ...], ...]
    """The ids of the probe set's texts, cut in windows."""
    logprobs: tuple[NDArray[np.float32], ...]
    """Of each window, the logarithms of the probabilities of the next token: (tokens, vocabulary)."""
    states: tuple[NDArray[np.float32], ...]
    """Hidden states after each layer, (tokens, width), of the first tokens of the first window."""
    text: str
    prompt: tuple[int, ...]
    """What is continued, and its ids."""
    decoder: WeightlessDecoder = field(repr=False)
    """What is asked how it continues it, when a bundle has."""


@dataclass(frozen=True)
class DecoderAgreement:
    """How alike the next token's probabilities are."""

    kl: float
    """Kullback-Leibler divergence from PyTorch's, the mean over the tokens, in nats."""
    kl_max: float
    """That of the token at which it is largest."""
    top: float
    """How often the most probable token is the same."""
    perplexity: float
    perplexity_ratio: float
    """To PyTorch's: 1 where the bundle expects the text as much."""


class ProbeReading(Observer):
    """Reads the probe set with PyTorch; among other texts, it is the first ones."""

    def __init__(self, decoder: WeightlessDecoder, tokenizer: Any, facts: DecoderFacts) -> None:
        """`tokenizer` is transformers' own."""
        self.decoder = decoder
        self.windows = tuple(probe_windows(tokenizer, facts))
        text, prompt = golden_prompt(tokenizer, facts)
        self.golden = text, tuple(prompt)
        self.logprobs: list[NDArray[np.float32]] = []
        self.states: list[NDArray[np.float32]] = []

    def layer(self, text: int, layer: int, states: NDArray[np.float32]) -> None:
        del layer
        if text == 0:
            self.states.append(states[:STATE_TOKENS].copy())

    def reads_logits(self, text: int) -> bool:
        return text < len(self.windows)

    def logits(self, text: int, logits: NDArray[np.float32]) -> None:
        # Weights that are all numbers may still be so large that what is computed with them is none.
        if not np.isfinite(logits).all():
            raise CheckpointError(
                f"PyTorch gives NaN or infinite logits for text {text} of the probe set, so the model is of no use",
                hint="its weights or its config.json are damaged; copy or download them again",
            )
        self.logprobs.append(logprobs_of(logits))

    def reference(self) -> DecoderReference:
        return DecoderReference(self.windows, tuple(self.logprobs), tuple(self.states), *self.golden, self.decoder)


def probe_windows(tokenizer: Any, facts: DecoderFacts) -> list[tuple[int, ...]]:
    """The probe set as one text, cut in windows that the model can read and that fit in memory."""
    ids = tokenizer("\n".join(probe_texts().texts))["input_ids"]
    width = min(WINDOW, facts.context_length)
    most = min(len(ids), MOST_TOKENS, max(width, LARGEST_REFERENCE // facts.vocabulary))
    windows = [tuple(ids[start : min(start + width, most)]) for start in range(0, most, width)]
    return [window for window in windows if len(window) > 1]


def golden_prompt(tokenizer: Any, facts: DecoderFacts) -> tuple[str, list[int]]:
    """The beginning of a probe text that is short enough to be continued, and its ids."""
    words = probe_texts().texts[0].split()
    most = min(GOLDEN_PROMPT, facts.context_length // 2)
    for count in range(min(len(words), most), 0, -1):
        text = " ".join(words[:count])
        ids: list[int] = tokenizer(text)["input_ids"]
        if len(ids) <= most:
            return text, ids
    raise UnsupportedModelError(
        f"a context of {facts.context_length} tokens has no room for a word and what follows it"
    )


class Choices(Observer):
    """The token that PyTorch finds most probable after each one of a single text."""

    def __init__(self) -> None:
        self.found: list[int] = []

    def reads_logits(self, text: int) -> bool:
        del text
        return True

    def logits(self, text: int, logits: NDArray[np.float32]) -> None:
        del text
        self.found = logits.argmax(axis=-1).tolist()


def followed(decoder: WeightlessDecoder, prompt: Sequence[int], answer: Sequence[int]) -> tuple[int, ...]:
    """The tokens that PyTorch continues a prompt with, as far as an answer has the same, and the first that it has not.

    In one reading of both, since what comes after an equal beginning is what would be chosen after PyTorch's own.
    """
    choices = Choices()
    Layerwise(decoder, [[*prompt, *answer[:-1]]], choices).run()
    chosen = choices.found[len(prompt) - 1 :]
    return tuple(chosen[: common(chosen, answer) + 1])


def logprobs_of(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Logits (tokens, vocabulary) as the logarithms of probabilities, written over them."""
    logits -= logits.max(axis=-1, keepdims=True)
    # Row by row, since all of them in float64 would take twice as much again.
    for place, row in enumerate(logits):
        logits[place] -= np.log(np.exp(row, dtype=np.float64).sum())
    return logits


def bundle_logprobs(decoder: Decoder, windows: Iterable[Sequence[int]]) -> Iterable[NDArray[np.float32]]:
    """What a bundle gives where `reference_decoder` has `logprobs`; each is written over by the next."""
    cache = decoder.new_cache()
    for window in windows:
        cache.rewind(0)
        yield logprobs_of(ModelRunner(decoder.session, cache).run(window, len(window)))


def agreement_with(decoder: Decoder, reference: DecoderReference) -> DecoderAgreement:
    """Compare a bundle with PyTorch on the probe set."""
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
        # Never negative but by what float32 rounds away; NaN stays NaN, which `max` would make 0 of.
        kl=0.0 if mean < 0 else mean,
        kl_max=float(np.max(divergences)),
        top=float(np.mean(same)),
        perplexity=float(np.exp(surprise)),
        perplexity_ratio=float(np.exp(surprise - expected_surprise)),
    )


def certify_decoder(bundle: Bundle, reference: DecoderReference, *, max_kl: float | None = None) -> Certificate:
    """Compare a bundle with its reference.

    Raises EdgekitError where it is further from it than `max_kl`, or so far that something must be wrong.
    """
    decoder = Decoder(bundle)
    found = checked_agreement(decoder, reference, max_kl=max_kl)
    count = min(GOLDEN_TOKENS, decoder.facts.context_length - len(reference.prompt))
    answer, logprobs = golden_answer(decoder, reference.prompt, count)
    # One at a time: a session holds all weights of the bundle, and PyTorch a layer of its own in float32.
    del decoder
    expected = followed(reference.decoder, reference.prompt, answer)
    golden = GoldenAnswer(reference.text, reference.prompt, expected, answer, logprobs)
    figures = {
        "kl_mean": found.kl,
        "kl_max": found.kl_max,
        "top1_agreement": found.top,
        "perplexity": found.perplexity,
        "perplexity_ratio": found.perplexity_ratio,
        "greedy_tokens_equal": float(common(answer, expected)),
    }
    tokens = sum(map(len, reference.windows))
    certificate = certificate_of(probe_texts(), tokens, figures, (), (golden,))
    errors = layer_errors(bundle.path / GRAPH, reference.windows[0][: len(reference.states[0])], reference.states)
    return dataclasses.replace(certificate, layer_errors=errors)


def checked_agreement(
    decoder: Decoder, reference: DecoderReference, *, max_kl: float | None = None
) -> DecoderAgreement:
    """What `agreement_with` finds; raises EdgekitError where it is too little."""
    manifest = decoder.bundle.manifest
    found = agreement_with(decoder, reference)
    largest = min(LARGEST_KL[manifest.precision], max_kl or np.inf)
    # Written so that NaN fails too.
    if not found.kl <= largest:
        raise EdgekitError(
            f"the exported `{manifest.name}` does not predict as PyTorch does: KL divergence {found.kl:.5f} on "
            f"average over the probe set, and {manifest.precision.value} must stay within {largest:g}",
            hint=hint_of(manifest.precision),
        )
    if manifest.precision is Precision.FP32 and not found.top >= LOWEST_TOP:
        raise EdgekitError(
            f"the exported `{manifest.name}` does not predict as PyTorch does: its most probable token is PyTorch's "
            f"for {found.top:.2%} of the probe set, and fp32 must reach {LOWEST_TOP:.1%}",
            hint=hint_of(manifest.precision),
        )
    return found


def common(first: Sequence[int], second: Sequence[int]) -> int:
    """How many tokens two answers have in common before they part."""
    count = min(len(first), len(second))
    return next((place for place in range(count) if first[place] != second[place]), count)


def hint_of(precision: Precision) -> str:
    finer = {Precision.INT4: "`--precision int8` or `fp32`", Precision.INT8: "`--precision fp32`"}
    finer[Precision.SOURCE] = "`--precision int8` or `fp32`"
    finer[Precision.FP16] = "`--precision fp32`"
    return f"no bundle was written; try {finer[precision]}" if precision in finer else "no bundle was written"
