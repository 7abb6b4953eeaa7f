"""Certify a decoder's bundle: next-token probabilities compared with PyTorch's, and golden tokens for `verify`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ...runtime.bundle.folder import DraftBundle
from ...runtime.bundle.manifest import Certificate, GoldenAnswer, Manifest, Precision, PrefillChoice, Provider
from ...runtime.decoder.decoder import Decoder
from ...runtime.decoder.golden import golden_answer, logprobs_after_prefill
from ...runtime.decoder.model_runner import ModelRunner
from ...runtime.errors import OrtkitError
from ..certification.certificate import certificate_of
from ..certification.probe import probe_texts
from ..progress import counted
from .reference import DecoderReference, log_softmax

_GREEDY_TOKENS, _PROSE_TOKENS = 32, 32
"""Golden tokens: generated greedily, and of the probe text. Of its own answer a model is sure; prose shows more.

With SmolLM2 `source` on an emulated Cortex-A76, log-probabilities of prose differ from those on x86 by 0.088 on average
with sound kernels, and by 0.188 with KleidiAI's, whose scales are by row; those of greedy tokens by 0.030 and 0.065.
"""
_ROWS = 16
"""Tokens whose probabilities are compared at a time: 3 MB for each array with 50,000 tokens."""
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


Logprobs = Callable[[Decoder, Iterable[Sequence[int]]], Iterable[NDArray[np.float32]]]
"""A bundle's log-probabilities (tokens, vocabulary) of the next token, for each window."""


def bundle_logprobs(decoder: Decoder, windows: Iterable[Sequence[int]]) -> Iterable[NDArray[np.float32]]:
    """Yield a bundle's log-probabilities for each window; each array is overwritten by the next."""
    cache = decoder.new_cache()
    for window in windows:
        cache.rewind(0)
        yield log_softmax(ModelRunner(decoder.session, cache).run(window, len(window)))


def prefilled_logprobs(decoder: Decoder, windows: Iterable[Sequence[int]]) -> Iterable[NDArray[np.float32]]:
    """Yield the same where the first half of each window is a prompt, and the second half an answer to it.

    The prompt goes through the 8-bit graph, the rest through the one that decodes, with the KV cache of the prompt.
    """
    cache = decoder.new_cache()
    for window in windows:
        cache.rewind(0)
        runner, half = decoder.runner(cache), (len(window) + 1) // 2
        prompt = runner.run(window[:half], half, session=runner.prefill_session).copy()
        rest = runner.run(window[half:], len(window) - half)
        yield log_softmax(np.concatenate([prompt, rest]))


def agreement_with(decoder: Decoder, reference: DecoderReference, logprobs: Logprobs | None = None) -> DecoderAgreement:
    """Compare a bundle's next-token probabilities with PyTorch's on the probe set."""
    divergences, same, surprises, expected_surprises = [], [], [], []
    found = (logprobs or bundle_logprobs)(decoder, counted(reference.windows, "texts"))
    for window, expected, here in zip(reference.windows, reference.logprobs, found, strict=True):
        for start in range(0, len(window), _ROWS):
            these, those = expected[start : start + _ROWS], here[start : start + _ROWS]
            # In float32, which is exact for the difference of close numbers, and several times as fast as in float64.
            divergences.append((np.exp(these) * (these - those)).sum(axis=1, dtype=np.float64))
            same.append(these.argmax(axis=1) == those.argmax(axis=1))
        places = np.arange(len(window) - 1), np.array(window[1:])
        surprises.append(-here[places])
        expected_surprises.append(-expected[places])
    surprise, expected_surprise = (
        float(np.concatenate(rows).mean(dtype=np.float64)) for rows in (surprises, expected_surprises)
    )
    divergence = np.concatenate(divergences)
    mean = float(divergence.mean())
    return DecoderAgreement(
        # Negative only by float32 rounding; NaN stays NaN, which `max` would turn into 0.
        kl=0.0 if mean < 0 else mean,
        kl_max=float(divergence.max()),
        top=float(np.concatenate(same).mean()),
        perplexity=float(np.exp(surprise)),
        perplexity_ratio=float(np.exp(surprise - expected_surprise)),
    )


def certify_decoder(bundle: DraftBundle, reference: DecoderReference, *, max_kl: float | None = None) -> Certificate:
    """Compare a bundle with its reference, and generate the golden tokens that `verify` compares with.

    Raises OrtkitError where the KL divergence exceeds `max_kl` or the threshold of the precision.
    """
    decoder = Decoder(bundle, prefill=PrefillChoice.NONE)
    found = checked_agreement(decoder, reference, max_kl=max_kl)
    room = decoder.facts.context_length - len(reference.prompt)
    prose = reference.windows[0][len(reference.prompt) :][: min(_PROSE_TOKENS, room)]
    given = (None, prose) if prose else (None,)
    # How PyTorch continues the prompt would take another pass over the checkpoint; the top-1 agreement says as much.
    golden = tuple(
        GoldenAnswer(reference.prompt_text, reference.prompt, reference=(), output=output, logprobs=logprobs)
        for tokens in given
        for output, logprobs in [golden_answer(decoder, reference.prompt, min(_GREEDY_TOKENS, room), given=tokens)]
    )
    figures = {
        "kl_mean": found.kl,
        "kl_max": found.kl_max,
        "top1_agreement": found.top,
        "perplexity": found.perplexity,
        "perplexity_ratio": found.perplexity_ratio,
    }
    if bundle.manifest.prefill is not None:
        int8 = Decoder(bundle, prefill=PrefillChoice.INT8)
        figures |= prefill_figures(int8, reference, max_kl=max_kl)
        golden = tuple(replace(answer, prefilled=logprobs_after_prefill(int8, answer)) for answer in golden)
    return certificate_of(probe_texts(), sum(map(len, reference.windows)), figures, (), golden)


def prefill_figures(decoder: Decoder, reference: DecoderReference, *, max_kl: float | None = None) -> dict[str, float]:
    """Compare the path of prompts through the 8-bit graph, and of answers after them, with PyTorch.

    Raises OrtkitError where the KL divergence exceeds the threshold of the bundle, which holds for this path too.
    """
    manifest = decoder.bundle.manifest
    found = agreement_with(decoder, reference, prefilled_logprobs)
    subject = f"with its 8-bit graph for prompts the exported `{manifest.name}`"
    _check_kl(found, manifest, max_kl, subject=subject, hint="no bundle was written; leave out `--prefill`")
    return {"prefill_kl_mean": found.kl, "prefill_top1_agreement": found.top}


def _check_kl(found: DecoderAgreement, manifest: Manifest, max_kl: float | None, *, subject: str, hint: str) -> None:
    """Raise OrtkitError where the KL divergence exceeds the threshold of the bundle."""
    largest = min(MAX_KL[manifest.precision], max_kl or np.inf)
    # Written so that NaN fails too.
    if not found.kl <= largest:
        raise OrtkitError(
            f"{subject} differs from PyTorch: KL divergence {found.kl:.5f} on average over the probe set, and "
            f"{manifest.precision.value} must stay within {largest:g}",
            hint=hint,
        )


def checked_agreement(
    decoder: Decoder, reference: DecoderReference, *, max_kl: float | None = None
) -> DecoderAgreement:
    """Return `agreement_with`; raises OrtkitError where a threshold is not met."""
    manifest = decoder.bundle.manifest
    found = agreement_with(decoder, reference)
    _check_kl(found, manifest, max_kl, subject=f"the exported `{manifest.name}`", hint=_hint_of(manifest))
    if manifest.precision is Precision.FP32 and not found.top >= MIN_TOP1_AGREEMENT:
        raise OrtkitError(
            f"the exported `{manifest.name}` differs from PyTorch: its most probable token is PyTorch's "
            f"for {found.top:.2%} of the probe set, and fp32 must reach {MIN_TOP1_AGREEMENT:.1%}",
            hint=_hint_of(manifest),
        )
    return found


def _hint_of(manifest: Manifest) -> str:
    finest = "fp32" if manifest.provider is Provider.CPU else "fp16"
    finer = {Precision.INT4: f"`--precision int8` or `{finest}`", Precision.INT8: f"`--precision {finest}`"}
    finer[Precision.SOURCE] = "`--precision int8` or `fp32`"
    finer[Precision.FP16] = "`--provider cpu`"
    found = finer.get(manifest.precision)
    return f"no bundle was written; try {found}" if found is not None else "no bundle was written"
