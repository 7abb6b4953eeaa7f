"""Answers as text: a stream of tokens, or the whole answer."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from ..errors import OutOfMemoryError
from ..text.detokenizer import Detokenizer
from ..text.stop_strings import StopStrings
from ..text.tools import ToolCall
from .generation import Rates, Steps, Usage
from .token_choice import FinishReason, Step, TokenLogprob


@dataclass(frozen=True)
class Token:
    """A token of an answer, with the text that became final with it."""

    id: int
    text: str
    """Final text; empty inside a multi-token character, and while a stop string may have started."""
    logprob: float
    """Log-probability under the model, before penalties and temperature."""
    top_logprobs: tuple[TokenLogprob, ...] = ()
    """The `top_logprobs` most probable tokens at this position, most probable first."""
    finish_reason: FinishReason | None = None
    """Set for the last token; None otherwise."""
    rates: Rates | None = None
    """The speed up to this token."""


@dataclass(frozen=True)
class Answer:
    """A complete answer, as returned by `generate` and `chat`."""

    text: str
    """Without the prompt, special tokens and stop strings."""
    tokens: tuple[Token, ...] = field(repr=False)
    """With log-probabilities; their texts joined give `text`."""
    finish_reason: FinishReason
    """`stop`, `length` or `cancelled`."""
    rates: Rates = field(repr=False)
    """Speed: prefill, time to first token, decoding."""
    tool_calls: tuple[ToolCall, ...] = field(default=(), repr=False)
    """Calls of tools; `text` is what stands beside them."""

    @property
    def usage(self) -> Usage:
        """The token counts: `prompt_tokens`, `completion_tokens` and `cached_tokens`."""
        return self.rates.usage


class AnswerText:
    """The text of an answer, as its tokens come: detokenized, and ended by a stop string."""

    def __init__(self, detokenizer: Detokenizer, stops: StopStrings) -> None:
        self._detokenizer = detokenizer
        self.stops = stops
        self._pieces: list[str] = []

    def __len__(self) -> int:
        """Return the number of tokens."""
        return len(self._pieces)

    def __str__(self) -> str:
        """Return the text so far."""
        return "".join(self._pieces)

    def push(self, step: Step, finish_reason: FinishReason | None, rates: Rates) -> Token:
        """The next token, which ends the answer for this reason, with the text that is final now."""
        text, stopped = self.stops.push(self._detokenizer.push(step.id))
        if not stopped and finish_reason is not None:
            rest, stopped = self.stops.push(self._detokenizer.end())
            text += rest if stopped else rest + self.stops.end()
        self._pieces.append(text)
        reason = FinishReason.STOP if stopped else finish_reason
        return Token(step.id, text, step.logprob, step.top_logprobs, reason, rates)


class TokenStream(Iterator[Token]):
    """An iterator over the tokens of one answer; `cancel` ends it from any thread.

    As a context manager, it ends the answer at the end of the block.
    """

    finish_reason: FinishReason | None = None
    """Why the answer ended; None before its end."""

    @abstractmethod
    def cancel(self) -> None:
        """End the answer: no more tokens follow."""

    @property
    @abstractmethod
    def text(self) -> str:
        """The text so far."""

    @property
    @abstractmethod
    def rates(self) -> Rates:
        """The speed so far."""

    @property
    def usage(self) -> Usage:
        """The token counts so far."""
        return self.rates.usage

    def close(self) -> None:
        """End the answer; a second call does nothing."""
        self.cancel()
        for _ in self:
            pass

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def answer(self) -> Answer:
        """Take the tokens up to the end, and return the complete answer with those that were not taken before.

        Where memory runs out in the middle, the OutOfMemoryError has the answer so far, of finish reason `length`.
        """
        tokens: list[Token] = []
        try:
            for token in self:
                tokens.append(token)  # noqa: PERF402 - those that came before an error are kept
        except OutOfMemoryError as error:
            if self.usage.completion_tokens:
                error.answer = Answer(self.text, tuple(tokens), FinishReason.LENGTH, self.rates)
            raise
        return Answer(self.text, tuple(tokens), self.finish_reason or FinishReason.CANCELLED, self.rates)


class Stream(TokenStream):
    """An iterator over the tokens of one answer, computed lazily; `cancel` ends it from any thread.

    `text` is the text of the tokens so far. As a context manager, it ends the answer at the end of the block.
    """

    def __init__(self, steps: Steps, detokenizer: Detokenizer, stops: StopStrings) -> None:
        self.steps = steps
        self._text = AnswerText(detokenizer, stops)

    def __next__(self) -> Token:
        if self.finish_reason is not None:
            raise StopIteration
        step = next(self.steps, None)
        if step is None:
            # Cancelled: text held back for a stop string is dropped.
            self.finish_reason = self.steps.finish_reason
            raise StopIteration
        token = self._text.push(step, self.steps.finish_reason, self.steps.rates)
        self.finish_reason = token.finish_reason
        return token

    def cancel(self) -> None:
        """End the answer: aborts the current run, and no more tokens follow."""
        self.steps.cancel()

    def __repr__(self) -> str:
        state = "running" if self.finish_reason is None else f"finished: {self.finish_reason.value}"
        return f"<Stream of {len(self._text)} tokens, {state}>"

    @property
    def text(self) -> str:
        """The text so far."""
        return str(self._text)

    @property
    def rates(self) -> Rates:
        """The speed so far."""
        return self.steps.rates
