"""The choice of an answer's tokens from logits, apart from the graph that computes them."""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol, SupportsIndex

import numpy as np
from numpy.typing import NDArray

from ..errors import BundleError, InputError
from .sampler import Penalties, Sampler, Sampling, make_sampler


class FinishReason(StrEnum):
    """Why an answer ended: `stop`, `length` or `cancelled`."""

    STOP = "stop"
    """An end-of-sequence token, a stop string, or the end of a grammar."""
    LENGTH = "length"
    """`max_tokens`, or no more fits in the context or the memory."""
    CANCELLED = "cancelled"
    """Cancelled by the caller; not part of OpenAI's API."""


@dataclass(frozen=True)
class TokenLogprob:
    """A candidate token and its log-probability (natural logarithm)."""

    id: int
    logprob: float


@dataclass(frozen=True)
class Step:
    """A generated token, without text."""

    id: int
    logprob: float
    """Log-probability under the model, before penalties, temperature and grammar."""
    top_logprobs: tuple[TokenLogprob, ...]
    """The `top_logprobs` most probable tokens, most probable first."""


class Constraint(Protocol):
    """What the next tokens of one answer may be; it follows the answer, token by token."""

    @property
    def is_finished(self) -> bool:
        """Whether the answer is complete and nothing may follow."""

    def mask(self, logits: NDArray[np.float32]) -> None:
        """Set the logits (vocabulary,) of the tokens that may not be next to minus infinity, in place."""

    def accept(self, token: int) -> None:
        """Advance by the next token of the answer; raises InputError for one that may not be next."""


class TokenChoice:
    """The sampler, the penalties, the constraint and the limits of one answer, and its tokens so far."""

    def __init__(
        self,
        vocabulary: int,
        *,
        max_tokens: int,
        prompt: Iterable[int] = (),
        eos_ids: Collection[int] = (),
        sampling: Sampling | None = None,
        sampler: Sampler | None = None,
        top_logprobs: int = 0,
        constraint: Constraint | None = None,
        graph: str | os.PathLike[str] = "the graph",
    ) -> None:
        """The answer to `prompt`, of `max_tokens` tokens at most.

        `sampler` replaces the default sampler, which follows `sampling` (default: greedy decoding); it gets a copy of
        the logits. `graph` names what computed them in the message about logits that are not finite.
        """
        sampling = sampling or Sampling()
        self._max_tokens = max_tokens
        self._eos_ids = frozenset(eos_ids)
        self._top = top_logprobs
        self._constraint = constraint
        self._graph = graph
        self.finish_reason: FinishReason | None = None
        """Why the answer ended; None before its end."""
        self.ids: list[int] = []
        """Tokens of the answer so far, including an end-of-sequence token."""
        self._own_sampler = sampler is not None
        self._sampler = sampler or make_sampler(
            temperature=sampling.temperature,
            top_k=sampling.top_k,
            top_p=sampling.top_p,
            min_p=sampling.min_p,
            seed=sampling.seed,
        )
        self._penalties = Penalties(sampling, vocabulary=vocabulary, prompt=prompt) if sampling.changes_logits else None
        self._scratch = np.empty(vocabulary, np.float32)

    @property
    def tokens_left(self) -> int:
        """How many more tokens the answer may have."""
        return self._max_tokens - len(self.ids)

    def choose(self, logits: NDArray[np.float32]) -> Step:
        """Sample the next token from its logits (vocabulary,), which stay as they are, and add it to the answer.

        Raises BundleError where the logits are NaN, and InputError where no token that is allowed has a finite logit.
        """
        normalizer = self._normalizer(logits)
        token = self._sample(self._allowed(logits))
        top = self._most_probable(logits, normalizer) if self._top else ()
        self._add(token)
        return Step(token, float(logits[token]) - normalizer, top)

    def _normalizer(self, logits: NDArray[np.float32]) -> float:
        """The logarithm of the sum of the exponentials of the logits."""
        highest = float(logits.max())
        np.subtract(logits, np.float32(highest), out=self._scratch)
        np.exp(self._scratch, out=self._scratch)
        normalizer = highest + math.log(self._scratch.sum()) if math.isfinite(highest) else math.nan
        if math.isnan(normalizer):
            raise BundleError(
                f"`{self._graph}` gives logits that are not finite numbers at token {len(self.ids)} of the answer",
                hint="run `ortkit verify` on the bundle, and export it again if it fails",
            )
        return normalizer

    def _allowed(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        """The logits after bias and penalties, with those of the tokens that the constraint excludes masked."""
        changed = logits if self._penalties is None else self._penalties.apply(logits)
        if self._constraint is None:
            return changed
        if changed is logits:
            # The model's own are reported.
            changed = logits.copy()
        self._constraint.mask(changed)
        if np.isneginf(changed.max()):
            raise InputError(
                f"`logit_bias` excludes every token that the grammar allows at token {len(self.ids)} of the answer",
                hint="leave out `logit_bias`",
            )
        return changed

    def _sample(self, logits: NDArray[np.float32]) -> int:
        """The sampled token; raises InputError where the caller's sampler returns no token id."""
        if not self._own_sampler:
            return self._sampler(logits)
        chosen: object = self._sampler(logits.copy())
        if not isinstance(chosen, SupportsIndex):
            raise InputError(f"`sampler` must return the id of a token, not {type(chosen).__name__}")
        token = chosen.__index__()
        if not 0 <= token < len(logits):
            raise InputError(f"`sampler` returned token {token}, and the vocabulary has {len(logits)} tokens")
        if self._constraint is not None and np.isneginf(logits[token]):
            raise InputError(f"`sampler` returned token {token}, which the grammar does not allow")
        return token

    def _add(self, token: int) -> None:
        """Append a token to the answer, and end the answer where it must."""
        if self._constraint is not None:
            self._constraint.accept(token)
        self.ids.append(token)
        if self._penalties is not None:
            self._penalties.add(token)
        if token in self._eos_ids or (self._constraint is not None and self._constraint.is_finished):
            self.finish_reason = FinishReason.STOP
        elif self.tokens_left == 0:
            self.finish_reason = FinishReason.LENGTH

    def _most_probable(self, logits: NDArray[np.float32], normalizer: float) -> tuple[TokenLogprob, ...]:
        ids = np.argpartition(logits, -self._top)[-self._top :]
        ids = ids[np.argsort(-logits[ids], kind="stable")]
        return tuple(TokenLogprob(int(id_), float(logits[id_]) - normalizer) for id_ in ids)
