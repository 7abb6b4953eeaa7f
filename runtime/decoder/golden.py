"""Answers of a decoder beside those of its certificate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ..bundle.manifest import Certificate, GoldenAnswer
from ..errors import BundleError
from ..session.tolerance import DisagreementError, as_disagreement, hint_for, tolerance_of
from .generation import Steps
from .model_runner import ModelRunner
from .token_choice import TokenChoice

if TYPE_CHECKING:
    from .decoder import Decoder

_LARGEST_DIFFERENCE = 2.0
"""Largest difference of a single log-probability; the largest measured with any kernel is 0.8."""
_LEAST_GREEDY = 0.5
"""Lowest share of the tokens of the first golden answer, which was generated greedily, that are the most probable here.

Their log-probabilities alone would not show that the certificate is of another model, or that another token has most of
the probability here. Kernels that round differently decide near-ties otherwise, so not all need to be.
"""


class Agreement(NamedTuple):
    """How close golden answers are to the certified ones."""

    tokens: int
    mean: float
    """Mean difference of the tokens' log-probabilities."""
    same_bits: bool


class _Difference(NamedTuple):
    """How far log-probabilities are from the certified ones."""

    tokens: int
    mean: float
    most: float
    limit: float
    """Largest mean."""

    @classmethod
    def of(cls, distances: Sequence[float], decoder: Decoder) -> _Difference:
        limit = tolerance_of(decoder.bundle).logprobs
        return cls(len(distances), float(np.mean(distances)), float(np.max(distances)), limit)

    @property
    def is_small(self) -> bool:
        """False for NaN too."""
        return self.mean <= self.limit and self.most <= _LARGEST_DIFFERENCE

    def message(self, path: str = "") -> str:
        return (
            f"on this machine the log-probabilities of {self.tokens} certified tokens{path} differ by {self.mean:.4f} "
            f"on average and {self.most:.4f} at most; the limits are {self.limit:g} and {_LARGEST_DIFFERENCE:g}"
        )


def golden_answers(certificate: Certificate) -> list[GoldenAnswer]:
    """The answers that can be compared; those of old certificates may have no tokens."""
    return [answer for answer in certificate.answers if answer.output]


def compare_answers(decoder: Decoder, answers: Sequence[GoldenAnswer]) -> Agreement:
    """Run the golden answers, and compare the log-probabilities of their tokens with the certified ones.

    The golden tokens are fed in (teacher forcing): sampled again, they would diverge at the first near-tie.
    Certificates before schema 5 have no log-probabilities; their tokens were the most probable ones, and are compared
    with the most probable ones here. Raises DisagreementError where they differ by more than the tolerance, and
    BundleError for answers that are not the model's.
    """
    distances, prefilled = list[float](), list[float]()
    same, greedy = True, list[bool]()
    for answer in answers:
        ids = decoder.encode(answer.text)
        if tuple(ids) != answer.prompt:
            raise BundleError(
                "on this machine a golden text has other tokens than certified: "
                f"{ids[:8]}... instead of {list(answer.prompt[:8])}..."
            )
        _check_answer(decoder, answer)
        with as_disagreement():
            steps = list(answer_steps(decoder, answer.prompt, len(answer.output), given=answer.output))
        found = [step.logprob for step in steps]
        most_probable = [step.top_logprobs[0] for step in steps]
        expected = answer.logprobs or tuple(top.logprob for top in most_probable)
        distances += [abs(here - there) for here, there in zip(found, expected, strict=True)]
        same &= tuple(found) == tuple(expected)
        greedy = greedy or [top.id == golden for top, golden in zip(most_probable, answer.output, strict=True)]
        if decoder.prefill_session is not None and answer.prefilled:
            through = logprobs_after_prefill(decoder, answer)
            prefilled += [abs(here - there) for here, there in zip(through, answer.prefilled, strict=True)]
            same &= through == answer.prefilled
    difference = _Difference.of(distances, decoder)
    if not (difference.is_small and np.mean(greedy) >= _LEAST_GREEDY):
        raise DisagreementError(
            f"{difference.message()}; {sum(greedy)} of {len(greedy)} greedy tokens are the most probable ones, and "
            f"{_LEAST_GREEDY:.0%} must be",
            hint=hint_for(decoder.bundle),
        )
    if prefilled and not (through_graph := _Difference.of(prefilled, decoder)).is_small:
        raise DisagreementError(
            through_graph.message(", after a prompt through the 8-bit graph,"),
            # The graph that decodes is within the limits.
            hint="run prompts through the other graph: `ortkit generate --prefill none`",
        )
    return Agreement(len(distances), difference.mean, same)


def _check_answer(decoder: Decoder, answer: GoldenAnswer) -> None:
    """Raise BundleError for a golden answer that the model cannot produce."""
    vocabulary, room = decoder.facts.vocabulary, decoder.facts.context_length - len(answer.prompt)
    largest = max((*answer.prompt, *answer.output))
    counts = {len(answer.logprobs), len(answer.prefilled)}
    if largest >= vocabulary or len(answer.output) > room or not counts <= {0, len(answer.output)}:
        raise BundleError(
            f"the certificate of `{decoder.bundle.path}` has an answer that its model cannot produce: "
            f"{len(answer.output)} tokens where {room} fit, {len(answer.logprobs)} log-probabilities, largest token id "
            f"{largest} of {vocabulary}"
        )


def golden_answer(
    decoder: Decoder, prompt: Sequence[int], count: int, *, given: Sequence[int] | None = None
) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Decode `count` tokens, past any end-of-sequence token: their ids and log-probabilities.

    They are the most probable ones, or those that are `given`, at most as many.
    """
    steps = list(answer_steps(decoder, prompt, count if given is None else len(given), given=given))
    return tuple(step.id for step in steps), tuple(step.logprob for step in steps)


def logprobs_after_prefill(decoder: Decoder, answer: GoldenAnswer) -> tuple[float, ...]:
    """The log-probabilities of a golden answer's tokens after its prompt went through the 8-bit graph."""
    with as_disagreement():
        steps = list(answer_steps(decoder, answer.prompt, len(answer.output), given=answer.output, prefilled=True))
    return tuple(step.logprob for step in steps)


def answer_steps(
    decoder: Decoder, prompt: Sequence[int], count: int, *, given: Sequence[int] | None = None, prefilled: bool = False
) -> Steps:
    """An answer as users get it, with prompt lookup; `given` forces its tokens (teacher forcing).

    The graph that decodes reads the prompt too, unless it is `prefilled` by the 8-bit graph.
    """
    tokens = iter(given or ())
    choice = TokenChoice(
        decoder.facts.vocabulary,
        max_tokens=count,
        sampler=None if given is None else lambda _: next(tokens),
        top_logprobs=1,
        graph=decoder.session.path,
    )
    cache = decoder.new_cache()
    forward = decoder.runner(cache) if prefilled else ModelRunner(decoder.session, cache)
    return Steps(forward, list(prompt), choice, run_tokens=decoder.run_tokens, lookup=True)
