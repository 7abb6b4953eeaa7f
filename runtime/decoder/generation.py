"""An answer token by token: the prompt through the graph, then one token after another."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from enum import StrEnum
from time import perf_counter
from typing import SupportsIndex

import numpy as np
from numpy.typing import NDArray

from ..errors import BundleError, InputError
from .model_runner import ModelRunner
from .prompt_lookup import PromptLookup
from .sampler import Penalties, Sampler, Sampling, make_sampler


class FinishReason(StrEnum):
    """Why an answer ended."""

    STOP = "stop"
    """The model ended it, or a stop string did."""
    LENGTH = "length"
    """It has `max_tokens` tokens, or as many as fit."""
    CANCELLED = "cancelled"
    """The caller cancelled it; OpenAI's API has no word for this."""


@dataclass(frozen=True)
class TokenLogprob:
    """A token that could have been chosen, and the logarithm of its probability."""

    id: int
    logprob: float


@dataclass(frozen=True)
class Step:
    """A token that was chosen."""

    id: int
    logprob: float
    """The logarithm of the probability that the model gave it, whatever penalties and temperature made of it."""
    top_logprobs: tuple[TokenLogprob, ...]
    """The most probable tokens, most probable first, as many as were asked for."""


@dataclass(frozen=True)
class Usage:
    """Token counts of an answer, as in OpenAI's API."""

    prompt_tokens: int
    completion_tokens: int
    """The end-of-sequence token, which has no text, included."""
    cached_tokens: int
    """Tokens of the prompt that were in the KV cache already; a part of `prompt_tokens`."""

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True)
class Rates:
    """How fast an answer came, or has come so far."""

    prompt_tokens: int
    reused_tokens: int
    """Tokens of the prompt that the cache held already."""
    new_tokens: int
    prompt_seconds: float
    """Until the rest of the prompt was read."""
    first_token_seconds: float
    """Until the first token was chosen."""
    new_seconds: float
    """From the first token to the last."""

    @property
    def usage(self) -> Usage:
        """The token counts."""
        return Usage(self.prompt_tokens, self.new_tokens, self.reused_tokens)

    @property
    def prompt_per_second(self) -> float:
        """Tokens of the prompt that were read in a second; 0 before all are."""
        read = self.prompt_tokens - self.reused_tokens
        return read / self.prompt_seconds if self.prompt_seconds else 0.0

    @property
    def new_per_second(self) -> float:
        """Tokens a second after the first one; 0 before the second."""
        return (self.new_tokens - 1) / self.new_seconds if self.new_seconds else 0.0


class Steps(Iterator[Step]):
    """The tokens of one answer, each computed when it is asked for; `cancel` ends it at any moment from any thread."""

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
        """Continue `prompt`, of which the cache of `forward` may hold a beginning already.

        `sampler` chooses the tokens, by default one that does as `sampling` says. It may change the logits it gets.
        At most `run_tokens` of it go through the graph in one run, which bounds the memory of what is computed.
        """
        vocabulary = forward.cache.facts.vocabulary
        self.forward = forward
        self.prompt = prompt
        self.max_tokens = max_tokens
        self.eos_ids = frozenset(eos_ids)
        self.run_tokens = run_tokens
        self.top = top_logprobs
        self.finish_reason: FinishReason | None = None
        self.ids: list[int] = []
        """The tokens of the answer so far, the one that ended it included."""
        self.own_sampler = sampler is not None
        self.sampler = sampler or make_sampler(
            temperature=sampling.temperature,
            top_k=sampling.top_k,
            top_p=sampling.top_p,
            min_p=sampling.min_p,
            seed=sampling.seed,
        )
        self.penalties = Penalties(sampling, vocabulary=vocabulary, prompt=prompt) if sampling.changes_logits else None
        self.lookup = PromptLookup(prompt) if lookup else None
        self.cancelled = False
        self.scratch = np.empty(vocabulary, np.float32)
        self.logits: NDArray[np.float32] | None = None
        """After the token before the draft and after each drafted one (1 + drafted, vocabulary); None before any."""
        self.draft: list[int] = []
        self.right = 0
        """How many tokens of the draft were chosen so far."""
        self.reused = 0
        self.started = self.read = self.first = self.last = 0.0

    def __next__(self) -> Step:
        if self.finish_reason is None and not self.cancelled:
            try:
                return self.choose(self.next_logits())
            except BundleError:
                # A run that was stopped fails like any other.
                if not self.cancelled:
                    raise
        if self.finish_reason is None:
            self.finish_reason = FinishReason.CANCELLED
        raise StopIteration

    def cancel(self) -> None:
        """End the answer: what the graph computes now is given up, and no token comes any more."""
        self.cancelled = True
        self.forward.stop()

    @property
    def rates(self) -> Rates:
        """How fast the answer has come so far."""
        return Rates(
            prompt_tokens=len(self.prompt),
            reused_tokens=self.reused,
            new_tokens=len(self.ids),
            prompt_seconds=max(0.0, self.read - self.started),
            first_token_seconds=max(0.0, self.first - self.started),
            new_seconds=self.last - self.first,
        )

    def next_logits(self) -> NDArray[np.float32]:
        """The logits of the next token (vocabulary,)."""
        if self.logits is None:
            self.logits = self.read_prompt()
        elif self.right < len(self.draft) and self.ids[-1] == self.draft[self.right]:
            self.right += 1
        else:
            self.logits = self.read_answer()
        row: NDArray[np.float32] = self.logits[self.right]
        return row

    def read_prompt(self) -> NDArray[np.float32]:
        """Read what the cache does not hold: the logits after the prompt (1, vocabulary)."""
        self.started = perf_counter()
        cache = self.forward.cache
        # Where all tokens are there, the last is read again for its logits.
        cache.rewind(min(cache.common_prefix(self.prompt), len(self.prompt) - 1))
        self.reused = start = cache.length
        while start < len(self.prompt):
            end = min(start + self.run_tokens, len(self.prompt))
            logits = self.forward.prefill(self.prompt[start:end])
            start = end
        self.read = perf_counter()
        return logits

    def read_answer(self) -> NDArray[np.float32]:
        """Forget what was wrong in the draft, and read the last token, with another draft behind it where that pays."""
        cache = self.forward.cache
        cache.rewind(cache.length - len(self.draft) + self.right)
        # Where the run fails, the cache holds no draft, and another call goes on from here.
        self.draft, self.right = [], 0
        # The token after a draft is chosen too, so the last of the answer need not be drafted. Where it is the only one
        # left, it is drafted all the same: without, a run would have one row where a longer answer's has several.
        draft = [] if self.lookup is None else self.lookup.draft(self.max_tokens - len(self.ids) - 1)
        logits = self.forward.run([self.ids[-1], *draft], 1 + len(draft))
        self.draft = draft
        return logits

    def choose(self, logits: NDArray[np.float32]) -> Step:
        """Choose the next token from its logits (vocabulary,); raises BundleError where they are no numbers."""
        highest = float(logits.max())
        np.subtract(logits, np.float32(highest), out=self.scratch)
        np.exp(self.scratch, out=self.scratch)
        normalizer = highest + math.log(self.scratch.sum()) if math.isfinite(highest) else math.nan
        if math.isnan(normalizer):
            raise BundleError(
                f"`{self.forward.session.path}` gave logits that are no numbers at token {len(self.ids)} of the answer",
                hint="run `ortkit verify` on the bundle, and export it again if it fails",
            )
        token = self.sample(logits if self.penalties is None else self.penalties.apply(logits))
        top = self.most_probable(logits, normalizer) if self.top else ()
        self.ids.append(token)
        if self.penalties is not None:
            self.penalties.add(token)
        if self.lookup is not None:
            self.lookup.add(token)
        self.last = perf_counter()
        if len(self.ids) == 1:
            self.first = self.last
        if token in self.eos_ids:
            self.finish_reason = FinishReason.STOP
        elif len(self.ids) == self.max_tokens:
            self.finish_reason = FinishReason.LENGTH
        return Step(token, float(logits[token]) - normalizer, top)

    def sample(self, logits: NDArray[np.float32]) -> int:
        """The token that the sampler chooses; raises InputError for one of the caller's that returns no token id."""
        if not self.own_sampler:
            return self.sampler(logits)
        chosen: object = self.sampler(logits.copy())
        if not isinstance(chosen, SupportsIndex):
            raise InputError(f"`sampler` must return the id of a token, not {type(chosen).__name__}")
        token = chosen.__index__()
        if not 0 <= token < len(logits):
            raise InputError(f"`sampler` returned token {token}, and the vocabulary has {len(logits)} tokens")
        return token

    def most_probable(self, logits: NDArray[np.float32], normalizer: float) -> tuple[TokenLogprob, ...]:
        ids = np.argpartition(logits, -self.top)[-self.top :]
        ids = ids[np.argsort(-logits[ids], kind="stable")]
        return tuple(TokenLogprob(int(id_), float(logits[id_]) - normalizer) for id_ in ids)
