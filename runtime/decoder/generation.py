"""The generation loop: prefill of the prompt, then decoding, token by token or with prompt lookup."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from enum import StrEnum
from time import perf_counter
from typing import SupportsIndex

import numpy as np
from numpy.typing import NDArray

from ..errors import BundleError, InputError, OutOfMemoryError
from .model_runner import ModelRunner
from .prompt_lookup import PromptLookup
from .sampler import Penalties, Sampler, Sampling, make_sampler


class FinishReason(StrEnum):
    """Why an answer ended: `stop`, `length` or `cancelled`."""

    STOP = "stop"
    """An end-of-sequence token or a stop string."""
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
    """Log-probability under the model, before penalties and temperature."""
    top_logprobs: tuple[TokenLogprob, ...]
    """The `top_logprobs` most probable tokens, most probable first."""


@dataclass(frozen=True)
class Usage:
    """Token counts of an answer, as in OpenAI's API."""

    prompt_tokens: int
    completion_tokens: int
    """Including the end-of-sequence token, which has no text."""
    cached_tokens: int
    """Tokens of the prompt that were in the KV cache; included in `prompt_tokens`."""

    @property
    def total_tokens(self) -> int:
        """Tokens of prompt and answer."""
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True)
class Rates:
    """Speed of an answer, or of the answer so far; times in seconds."""

    prompt_tokens: int
    reused_tokens: int
    """Tokens of the prompt that were in the KV cache."""
    new_tokens: int
    prompt_seconds: float
    """Time of the prefill."""
    first_token_seconds: float
    """Time to first token (TTFT)."""
    new_seconds: float
    """From the first token to the last."""

    @property
    def usage(self) -> Usage:
        """The token counts."""
        return Usage(self.prompt_tokens, self.new_tokens, self.reused_tokens)

    @property
    def prompt_per_second(self) -> float:
        """Prefill speed in tokens per second, without cached tokens; 0 before the prefill ends."""
        computed = self.prompt_tokens - self.reused_tokens
        return computed / self.prompt_seconds if self.prompt_seconds else 0.0

    @property
    def new_per_second(self) -> float:
        """Decoding speed in tokens per second, after the first token; 0 before the second."""
        return (self.new_tokens - 1) / self.new_seconds if self.new_seconds else 0.0


class Steps(Iterator[Step]):
    """The tokens of one answer, computed lazily; `cancel` ends it from any thread."""

    def __init__(
        self,
        forward: ModelRunner,
        prompt: list[int],
        *,
        max_tokens: int,
        eos_ids: Collection[int],
        sampling: Sampling,
        run_tokens: int,
        sampler: Sampler | None = None,
        top_logprobs: int = 0,
        lookup: bool = False,
    ) -> None:
        """Continue `prompt`; a prefix of it may be in the KV cache of `runner`.

        `sampler` replaces the default sampler, which follows `sampling`; it gets a copy of the logits. The prefill runs
        at most `run_tokens` tokens at a time, which bounds the memory of activations.
        """
        vocabulary = forward.cache.facts.vocabulary
        self.forward = forward
        self.prompt = prompt
        self._max_tokens = max_tokens
        self._eos_ids = frozenset(eos_ids)
        self._run_tokens = run_tokens
        self._top = top_logprobs
        self.finish_reason: FinishReason | None = None
        self.ids: list[int] = []
        """Tokens of the answer so far, including an end-of-sequence token."""
        self._own_sampler = sampler is not None
        self.sampler = sampler or make_sampler(
            temperature=sampling.temperature,
            top_k=sampling.top_k,
            top_p=sampling.top_p,
            min_p=sampling.min_p,
            seed=sampling.seed,
        )
        self._penalties = Penalties(sampling, vocabulary=vocabulary, prompt=prompt) if sampling.changes_logits else None
        self.lookup = PromptLookup(prompt) if lookup else None
        self._cancelled = False
        self._scratch = np.empty(vocabulary, np.float32)
        self.logits: NDArray[np.float32] | None = None
        """Logits of the last run (1 + drafted tokens, vocabulary); None before the prefill."""
        self.draft: list[int] = []
        self.accepted = 0
        """Number of drafted tokens that were accepted so far."""
        self._reused = 0
        self._started = self._read = self._first = self._last = 0.0

    def __next__(self) -> Step:
        if self.finish_reason is None and not self._cancelled:
            try:
                return self._choose(self._next_logits())
            except BundleError:
                # A cancelled run raises too.
                if not self._cancelled:
                    raise
            except OutOfMemoryError as error:
                if not self._cancelled:
                    if self.ids:
                        count = f"{len(self.ids)} token{'s' if len(self.ids) > 1 else ''}"
                        error.message = f"{error.message.rstrip()}; the answer so far, {count}, is kept"
                    raise
        if self.finish_reason is None:
            self.finish_reason = FinishReason.CANCELLED
        raise StopIteration

    def cancel(self) -> None:
        """End the answer: aborts the current run, and no more tokens follow."""
        self._cancelled = True
        self.forward.stop()

    @property
    def rates(self) -> Rates:
        """The speed so far."""
        return Rates(
            prompt_tokens=len(self.prompt),
            reused_tokens=self._reused,
            new_tokens=len(self.ids),
            prompt_seconds=max(0.0, self._read - self._started),
            first_token_seconds=max(0.0, self._first - self._started),
            new_seconds=self._last - self._first,
        )

    def _next_logits(self) -> NDArray[np.float32]:
        """The logits of the next token (vocabulary,)."""
        if self.logits is None:
            self.logits = self.prefill()
        elif self.accepted < len(self.draft) and self.ids[-1] == self.draft[self.accepted]:
            self.accepted += 1
        else:
            self.logits = self._decode()
        row: NDArray[np.float32] = self.logits[self.accepted]
        return row

    def prefill(self) -> NDArray[np.float32]:
        """Compute what is not cached: the logits after the prompt (1, vocabulary)."""
        self._started = perf_counter()
        cache = self.forward.cache
        # Where all tokens are cached, the last one runs again for its logits.
        cache.rewind(min(cache.common_prefix(self.prompt), len(self.prompt) - 1))
        self._reused = start = cache.length
        while start < len(self.prompt):
            end = min(start + self._run_tokens, len(self.prompt))
            logits = self.forward.prefill(self.prompt[start:end])
            start = end
        self._read = perf_counter()
        return logits

    def _decode(self) -> NDArray[np.float32]:
        """Drop the rejected tokens of the draft, and run the last token, with another draft where that pays."""
        cache = self.forward.cache
        cache.rewind(cache.length - len(self.draft) + self.accepted)
        # Where the run fails, the cache has no draft, and the next call continues from here.
        self.draft, self.accepted = [], 0
        # The token after a draft is sampled too, so the last token of the answer need not be drafted. Where it is the
        # only one left, it is: otherwise the run would have one row here, and several in a longer answer.
        draft = [] if self.lookup is None else self.lookup.draft(self._max_tokens - len(self.ids) - 1)
        logits = self.forward.run([self.ids[-1], *draft], 1 + len(draft))
        self.draft = draft
        return logits

    def _choose(self, logits: NDArray[np.float32]) -> Step:
        """Sample the next token from its logits (vocabulary,); raises BundleError where they are NaN."""
        highest = float(logits.max())
        np.subtract(logits, np.float32(highest), out=self._scratch)
        np.exp(self._scratch, out=self._scratch)
        normalizer = highest + math.log(self._scratch.sum()) if math.isfinite(highest) else math.nan
        if math.isnan(normalizer):
            raise BundleError(
                f"`{self.forward.session.path}` gives logits that are not finite numbers at token {len(self.ids)} of "
                "the answer",
                hint="run `ortkit verify` on the bundle, and export it again if it fails",
            )
        token = self._sample(logits if self._penalties is None else self._penalties.apply(logits))
        top = self._most_probable(logits, normalizer) if self._top else ()
        self.ids.append(token)
        if self._penalties is not None:
            self._penalties.add(token)
        if self.lookup is not None:
            self.lookup.add(token)
        self._last = perf_counter()
        if len(self.ids) == 1:
            self._first = self._last
        if token in self._eos_ids:
            self.finish_reason = FinishReason.STOP
        elif len(self.ids) == self._max_tokens:
            self.finish_reason = FinishReason.LENGTH
        return Step(token, float(logits[token]) - normalizer, top)

    def _sample(self, logits: NDArray[np.float32]) -> int:
        """The sampled token; raises InputError where the caller's sampler returns no token id."""
        if not self._own_sampler:
            return self.sampler(logits)
        chosen: object = self.sampler(logits.copy())
        if not isinstance(chosen, SupportsIndex):
            raise InputError(f"`sampler` must return the id of a token, not {type(chosen).__name__}")
        token = chosen.__index__()
        if not 0 <= token < len(logits):
            raise InputError(f"`sampler` returned token {token}, and the vocabulary has {len(logits)} tokens")
        return token

    def _most_probable(self, logits: NDArray[np.float32], normalizer: float) -> tuple[TokenLogprob, ...]:
        ids = np.argpartition(logits, -self._top)[-self._top :]
        ids = ids[np.argsort(-logits[ids], kind="stable")]
        return tuple(TokenLogprob(int(id_), float(logits[id_]) - normalizer) for id_ in ids)
