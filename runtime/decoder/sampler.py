"""Sampling: penalties and bias on logits, temperature, top-k, top-p, min-p, and the draw of a token."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from numbers import Real
from typing import SupportsIndex

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError

Sampler = Callable[[NDArray[np.float32]], int]
"""A function from logits, float32 (vocabulary,), to the id of the next token."""
_NUMBERS = ("temperature", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty")
"""The fields of Sampling that are real numbers."""
BLOCK = 512
"""Weights that are summed at a time."""
_SMALLEST = float(np.finfo(np.float32).smallest_subnormal)
_LARGEST = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class Sampling:
    """Sampling parameters; the default is greedy decoding. Raises InputError for a value that is not valid.

    >>> Sampling(temperature=0.7, top_p=0.9, seed=1).top_p
    0.9
    """

    temperature: float = 0.0
    """Divides logits; 0: greedy decoding."""
    top_k: int = 0
    """Keep only the k most probable tokens; 0: all."""
    top_p: float = 1.0
    """Nucleus sampling: keep the most probable tokens whose probabilities add up to at least this."""
    min_p: float = 0.0
    """Keep tokens with at least this probability relative to the most probable token."""
    repetition_penalty: float = 1.0
    """Divides positive and multiplies negative logits of tokens in the prompt or the answer (CTRL); 1: off."""
    presence_penalty: float = 0.0
    """Subtracted from the logit of each token that occurred in the answer."""
    frequency_penalty: float = 0.0
    """Subtracted from the logit of a token for each of its occurrences in the answer."""
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    """Token id -> value to add to its logit; minus infinity excludes the token."""
    seed: int | None = None
    """The same seed gives the same tokens; None: a random seed."""

    def __post_init__(self) -> None:
        """Raise InputError for the first value that is not valid."""
        self._check_types()
        positive = math.inf
        _check("temperature", self.temperature, "0 or more", 0 <= self.temperature < positive)
        _check("top_k", self.top_k, "0 for all tokens, or more", self.top_k >= 0)
        _check("top_p", self.top_p, "above 0 and at most 1", 0 < self.top_p <= 1)
        _check("min_p", self.min_p, "from 0 to 1", 0 <= self.min_p <= 1)
        _check("repetition_penalty", self.repetition_penalty, "above 0", 0 < self.repetition_penalty < positive)
        _check("presence_penalty", self.presence_penalty, "a finite number", abs(self.presence_penalty) < positive)
        _check("frequency_penalty", self.frequency_penalty, "a finite number", abs(self.frequency_penalty) < positive)
        _check("seed", self.seed, "0 or more", self.seed is None or self.seed >= 0)
        for name in ("temperature", "repetition_penalty", "presence_penalty", "frequency_penalty"):
            value = getattr(self, name)
            _check(name, value, "a number in the range of float32", _fits_float32(value))
        for token, bias in self.logit_bias.items():
            if not bias < positive:
                raise InputError(f"`logit_bias` for token {token} must be a number or minus infinity, not {bias}")
            if bias > -positive and not _fits_float32(bias):
                raise InputError(f"`logit_bias` for token {token} must be a number in the range of float32, not {bias}")

    def _check_types(self) -> None:
        for name in _NUMBERS:
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, Real):
                raise InputError(f"`{name}` must be a number, not {type(value).__name__}")
        for name, number in (("top_k", self.top_k), ("seed", self.seed)):
            if number is not None and (isinstance(number, bool) or not isinstance(number, SupportsIndex)):
                raise InputError(f"`{name}` must be an integer, not {type(number).__name__}")
        if not isinstance(self.logit_bias, Mapping):
            raise InputError(f"`logit_bias` must map token ids to numbers, not be {type(self.logit_bias).__name__}")
        for token, bias in self.logit_bias.items():
            if isinstance(token, bool) or not isinstance(token, SupportsIndex):
                raise InputError(f"`logit_bias` must have integers as token ids, not {type(token).__name__}")
            if isinstance(bias, bool) or not isinstance(bias, Real):
                raise InputError(f"`logit_bias` for token {token} must be a number, not {type(bias).__name__}")

    @property
    def changes_logits(self) -> bool:
        """Whether `Penalties` has any effect."""
        return (
            self.repetition_penalty != 1
            or self.presence_penalty != 0
            or self.frequency_penalty != 0
            or bool(self.logit_bias)
        )


def _check(name: str, value: object, allowed: str, is_allowed: bool) -> None:  # noqa: FBT001
    if not is_allowed:
        raise InputError(f"`{name}` must be {allowed}, not {value}")


def _fits_float32(value: float) -> bool:
    """Whether float32, the type of logits, represents this number as neither 0 nor infinity."""
    return value == 0 or _SMALLEST <= abs(value) <= _LARGEST


def make_sampler(
    *, temperature: float = 0.0, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0, seed: int | None = None
) -> Sampler:
    """A sampler that draws one random number per call; raises InputError as `Sampling` does."""
    Sampling(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, seed=seed)
    if temperature == 0:
        return _most_probable
    random = np.random.default_rng(seed).random

    def draw(logits: NDArray[np.float32]) -> int:
        ids, weights = candidates(logits, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
        place = drawn(weights, random())
        return place if ids is None else int(ids[place])

    return draw


def _most_probable(logits: NDArray[np.float32]) -> int:
    return int(logits.argmax())


def candidates(
    logits: NDArray[np.float32], *, temperature: float, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0
) -> tuple[NDArray[np.int64] | None, NDArray[np.float32]]:
    """The remaining token ids, ascending or None for all, and their probabilities relative to the most probable one.

    Filters apply in the order of transformers' logits warpers, each to the tokens that the previous one kept. Ties with
    the k-th token are all kept.
    """
    scores = (logits - logits.max()) / np.float32(temperature)
    ids = None
    if 0 < top_k < len(scores):
        ids = np.flatnonzero(scores >= np.partition(scores, -top_k)[-top_k])
        scores = scores[ids]
    weights = np.exp(scores)
    if top_p < 1:
        kept = _nucleus(weights, top_p)
        ids, weights = kept if ids is None else ids[kept], weights[kept]
    if min_p > 0:
        kept = np.flatnonzero(weights >= min_p)
        ids, weights = kept if ids is None else ids[kept], weights[kept]
    return ids, weights


def _nucleus(weights: NDArray[np.float32], top_p: float) -> NDArray[np.int64]:
    """Positions of the nucleus: the most probable tokens that together reach `top_p` (Holtzman et al. 2020)."""
    total = float(weights.sum())
    # All tokens below this bound together have less than 1 - top_p, so only the others need sorting.
    likely = np.flatnonzero(weights >= np.float32((1 - top_p) * total / len(weights)))
    ascending = likely[weights[likely].argsort(kind="stable")]
    shares = weights[ascending].astype(np.float64) / total
    first = int((1 - shares.sum() + shares.cumsum()).searchsorted(1 - top_p, side="right"))
    return np.sort(ascending[min(first, len(ascending) - 1) :])


def drawn(weights: NDArray[np.float32], share: float) -> int:
    """The first position at which the cumulative sum of the weights exceeds this share of their total."""
    # Sums of blocks first: a cumulative sum over the whole vocabulary would dominate the time.
    whole = len(weights) // BLOCK * BLOCK
    sums = np.append(weights[:whole].reshape(-1, BLOCK).sum(axis=1), weights[whole:].sum()).cumsum(dtype=np.float64)
    sought = share * sums[-1]
    block = min(int(sums.searchsorted(sought, side="right")), len(sums) - 1)
    inside = weights[block * BLOCK : (block + 1) * BLOCK].cumsum(dtype=np.float64)
    place = int(inside.searchsorted(sought - (sums[block - 1] if block else 0), side="right"))
    # Rounding may lead past the end of a block, or to a token of weight 0.
    while place >= len(inside) or weights[block * BLOCK + place] == 0:
        place -= 1
    return block * BLOCK + place


class _Counts:
    """Counts of tokens, in preallocated arrays."""

    def __init__(self, vocabulary: int) -> None:
        self.places: dict[int, int] = {}
        self.all_ids = np.empty(vocabulary, np.int64)
        self.all_counts = np.empty(vocabulary, np.float32)

    def add(self, token: int) -> None:
        place = self.places.get(token)
        if place is None:
            place = self.places[token] = len(self.places)
            self.all_ids[place] = token
            self.all_counts[place] = 0
        self.all_counts[place] += 1

    @property
    def ids(self) -> NDArray[np.int64]:
        return self.all_ids[: len(self.places)]

    @property
    def counts(self) -> NDArray[np.float32]:
        return self.all_counts[: len(self.places)]


class Penalties:
    """Logits processors: bias, repetition, presence and frequency penalty, in this order.

    Order and formulas are those of mlx-lm's `make_logits_processors`. Repetition covers prompt and answer, as in
    transformers; presence and frequency cover the answer, as in OpenAI's API.
    """

    def __init__(self, sampling: Sampling, *, vocabulary: int, prompt: Iterable[int] = ()) -> None:
        """Raises InputError where `logit_bias` has a token outside the vocabulary, or excludes all tokens."""
        for token in sampling.logit_bias:
            if not 0 <= token < vocabulary:
                raise InputError(f"`logit_bias` names token {token}, and the vocabulary has {vocabulary} tokens")
        self.sampling = sampling
        self.biased = np.array(list(sampling.logit_bias), np.int64)
        self.bias = np.array(list(sampling.logit_bias.values()), np.float32)
        if len(self.bias) == vocabulary and np.isneginf(self.bias).all():
            raise InputError("`logit_bias` excludes every token of the vocabulary")
        self.answer = _Counts(vocabulary)
        self.all = _Counts(vocabulary)
        if sampling.repetition_penalty != 1:
            for token in prompt:
                self.all.add(token)

    def add(self, token: int) -> None:
        """Count a token of the answer."""
        self.answer.add(token)
        self.all.add(token)

    def apply(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        """A copy of the logits (vocabulary,) with penalties applied."""
        changed: NDArray[np.float32] = logits.copy()
        changed[self.biased] += self.bias
        penalty = np.float32(self.sampling.repetition_penalty)
        if penalty != 1:
            scores = changed[self.all.ids]
            changed[self.all.ids] = np.where(scores < 0, scores * penalty, scores / penalty)
        if self.sampling.presence_penalty:
            changed[self.answer.ids] -= np.float32(self.sampling.presence_penalty)
        if self.sampling.frequency_penalty:
            changed[self.answer.ids] -= np.float32(self.sampling.frequency_penalty) * self.answer.counts
        return changed
