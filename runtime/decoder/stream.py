"""An answer as text: a stream of tokens, or all of it at once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from ..text.detokenizer import Detokenizer
from .generation import FinishReason, Rates, Steps, TokenLogprob, Usage
from ..text.stop_strings import StopStrings


@dataclass(frozen=True)
class Token:
    """A token of an answer, with the text that became certain with it."""

    id: int
    text: str
    """The text that it completed; empty within a character, and while a stop string may have begun."""
    logprob: float
    """The logarithm of the probability that the model gave it, whatever penalties and temperature made of it."""
    top_logprobs: tuple[TokenLogprob, ...] = ()
    """The most probable tokens in its place, most probable first, as many as were asked for."""
    finish_reason: FinishReason | None = None
    """Why the answer ends with it; None where it goes on."""
    rates: Rates | None = None
    """How fast the answer has come up to it."""


@dataclass(frozen=True)
class Answer:
    """A whole answer, as `generate` and `chat` return it."""

    text: str
    """Without the prompt, and without special tokens and stop strings."""
    tokens: tuple[Token, ...] = field(repr=False)
    """With log-probabilities; their texts joined are `text`."""
    finish_reason: FinishReason
    """`stop`, `length` or, where it was cancelled, `cancelled`."""
    rates: Rates = field(repr=False)
    """How fast it came."""

    @property
    def usage(self) -> Usage:
        """The token counts: `prompt_tokens`, `completion_tokens` and `cached_tokens`."""
        return self.rates.usage


class Stream(Iterator[Token]):
    """The tokens of one answer, each computed when it is asked for; `cancel` ends it at any moment from any thread.

    `text` is at any moment what the tokens so far have as their `text`. As a context manager, a stream ends with its
    block.
    """

    def __init__(self, steps: Steps, detokenizer: Detokenizer, stops: StopStrings) -> None:
        self.steps = steps
        self._detokenizer = detokenizer
        self._stops = stops
        self._pieces: list[str] = []
        self._stopped_by_string = False
        self.finish_reason: FinishReason | None = None
        """Why the answer ended; None while it has not."""

    def __next__(self) -> Token:
        if self.finish_reason is not None:
            raise StopIteration
        step = next(self.steps, None)
        if step is None:
            # Cancelled: text that was held back for a stop string goes with the token that would have completed it.
            self.finish_reason = self.steps.finish_reason
            raise StopIteration
        text, self._stopped_by_string = self._stops.push(self._detokenizer.push(step.id))
        if not self._stopped_by_string and self.steps.finish_reason is not None:
            rest, self._stopped_by_string = self._stops.push(self._detokenizer.end())
            text += rest if self._stopped_by_string else rest + self._stops.end()
        self.finish_reason = FinishReason.STOP if self._stopped_by_string else self.steps.finish_reason
        self._pieces.append(text)
        return Token(step.id, text, step.logprob, step.top_logprobs, self.finish_reason, self.steps.rates)

    def cancel(self) -> None:
        """End the answer: what the graph computes now is given up, and no token comes any more."""
        self.steps.cancel()

    def close(self) -> None:
        """End the answer here, as the caller will not ask for more."""
        self.cancel()
        for _ in self:
            pass

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "running" if self.finish_reason is None else f"finished: {self.finish_reason.value}"
        return f"<Stream of {len(self._pieces)} tokens, {state}>"

    @property
    def text(self) -> str:
        """The text of the answer so far."""
        return "".join(self._pieces)

    @property
    def usage(self) -> Usage:
        """The token counts so far."""
        return self.rates.usage

    @property
    def rates(self) -> Rates:
        """How fast the answer has come so far."""
        return self.steps.rates

    def answer(self) -> Answer:
        """Compute the tokens that are still to come, and return them with the whole text."""
        tokens = tuple(self)
        return Answer(self.text, tokens, self.finish_reason or FinishReason.CANCELLED, self.rates)
