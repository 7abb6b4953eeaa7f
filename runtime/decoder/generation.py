"""The generation loop: prefill of the prompt, then decoding, token by token or with prompt lookup."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from ..errors import BundleError, OutOfMemoryError
from .model_runner import ModelRunner
from .prompt_lookup import PromptLookup
from .prompt_runs import PromptRuns
from .token_choice import FinishReason, Step, TokenChoice


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
    cached_tokens: int
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
        return Usage(self.prompt_tokens, self.new_tokens, self.cached_tokens)

    @property
    def prompt_per_second(self) -> float:
        """Prefill speed in tokens per second, without cached tokens; 0 before the prefill ends."""
        computed = self.prompt_tokens - self.cached_tokens
        return computed / self.prompt_seconds if self.prompt_seconds else 0.0

    @property
    def new_per_second(self) -> float:
        """Decoding speed in tokens per second, after the first token; 0 before the second."""
        return (self.new_tokens - 1) / self.new_seconds if self.new_seconds else 0.0


class Steps(Iterator[Step]):
    """The tokens of one answer, computed lazily; `cancel` ends it from any thread."""

    def __init__(
        self, forward: ModelRunner, prompt: list[int], choice: TokenChoice, *, run_tokens: int, lookup: bool = False
    ) -> None:
        """Continue `prompt`; a prefix of it may be in the KV cache of `runner`.

        `choice` samples the tokens. The prefill runs at most `run_tokens` tokens at a time, which bounds the memory of
        activations.
        """
        self.forward = forward
        self.prompt = prompt
        self.choice = choice
        self._run_tokens = run_tokens
        self.lookup = PromptLookup(prompt) if lookup else None
        self._cancelled = False
        self.logits: NDArray[np.float32] | None = None
        """Logits of the last run (1 + drafted tokens, vocabulary); None before the prefill."""
        self.draft: list[int] = []
        self.accepted = 0
        """Number of drafted tokens that were accepted so far."""
        self._cached = 0
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
            self.choice.finish_reason = FinishReason.CANCELLED
        raise StopIteration

    @property
    def ids(self) -> list[int]:
        """Tokens of the answer so far, including an end-of-sequence token."""
        return self.choice.ids

    @property
    def finish_reason(self) -> FinishReason | None:
        """Why the answer ended; None before its end."""
        return self.choice.finish_reason

    def cancel(self) -> None:
        """End the answer: aborts the current run, and no more tokens follow."""
        self._cancelled = True
        self.forward.stop()

    @property
    def rates(self) -> Rates:
        """The speed so far."""
        return Rates(
            prompt_tokens=len(self.prompt),
            cached_tokens=self._cached,
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
        cache, runs = self.forward.cache, PromptRuns.of(self.forward.cache.facts, self.forward.session.device)
        cache.rewind(runs.reusable(cache.common_prefix(self.prompt), len(self.prompt)))
        self._cached = start = cache.length
        while start < len(self.prompt):
            end = min(start + runs.longest(self._run_tokens), len(self.prompt))
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
        draft = [] if self.lookup is None else self.lookup.draft(self.choice.tokens_left - 1)
        logits = self.forward.run([self.ids[-1], *draft], 1 + len(draft))
        self.draft = draft
        return logits

    def _choose(self, logits: NDArray[np.float32]) -> Step:
        """Sample the next token from its logits (vocabulary,); raises BundleError where they are NaN."""
        step = self.choice.choose(logits)
        if self.lookup is not None:
            self.lookup.add(step.id)
        self._last = perf_counter()
        if len(self.ids) == 1:
            self._first = self._last
        return step
