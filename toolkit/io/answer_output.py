"""Answers of a decoder: streamed text, JSON, and token counts and speed."""

from __future__ import annotations

import dataclasses
import shutil
import sys
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any, BinaryIO

import click

from ...runtime.errors import InputError
from ..console.interrupts import cancelling_at_interrupt
from ..console.progress import prefill_progress, rated
from ..console.terminal import without_controls
from ..console.word_wrap import WordWrap
from .prompts import as_messages
from .writers import object_to_json

if TYPE_CHECKING:
    from ...runtime.decoder.cache.kv_cache import KVCache
    from ...runtime.decoder.decoder import Decoder
    from ...runtime.decoder.generation import Rates
    from ...runtime.decoder.grammar import Grammar
    from ...runtime.decoder.stream import Answer, Stream, Token
    from .answer_options import AnswerOptions
    from .prompts import Prompt


@dataclass(frozen=True)
class Generator:
    """A decoder with the prompt format, options and KV cache of its answers."""

    decoder: Decoder
    chat: bool
    """Whether prompts go through the chat template, or are continued as raw text."""
    system: str | None
    options: AnswerOptions
    top_logprobs: int
    cache: KVCache
    """Shared by all answers: a common beginning of their prompts is prefilled once."""
    grammar: Grammar | None = None
    """What answers follow."""

    def start(self, prompt: Prompt, options: AnswerOptions | None = None, *, response_format: Any = None) -> Stream:
        """Start an answer, by default with the options and the grammar of all.

        Raises InputError as `Decoder.stream` does.
        """
        given = vars(options or self.options) | {"top_logprobs": self.top_logprobs}
        given |= {"grammar": self.grammar} if response_format is None else {"response_format": response_format}
        if self.chat:
            return self.decoder.stream_chat(as_messages(prompt, self.system), cache=self.cache, **given)
        if not isinstance(prompt, str):
            raise InputError("`messages` need a chat template, and none is used here", hint="use `prompt` instead")
        return self.decoder.stream(prompt, cache=self.cache, **given)


@dataclass(frozen=True)
class GenerationStats:
    """Token counts and speed of all answers of a run."""

    answers: int = 0
    prefilled: int = 0
    """Tokens of the prompts that were not cached."""
    cached: int = 0
    generated: int = 0
    first_token_seconds: float = 0.0
    """Of the first answer."""
    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0

    def with_answer(self, rates: Rates) -> GenerationStats:
        """These and one more answer; one that was interrupted before its first token does not count."""
        if rates.new_tokens == 0:
            return self
        return GenerationStats(
            answers=self.answers + 1,
            prefilled=self.prefilled + rates.prompt_tokens - rates.cached_tokens,
            cached=self.cached + rates.cached_tokens,
            generated=self.generated + rates.new_tokens,
            first_token_seconds=self.first_token_seconds if self.answers else rates.first_token_seconds,
            prefill_seconds=self.prefill_seconds + rates.prompt_seconds,
            decode_seconds=self.decode_seconds + rates.new_seconds,
        )

    def __str__(self) -> str:
        prompt = f"prompt: {_tokens(self.prefilled + self.cached)}"
        if self.cached:
            prompt += f" ({self.cached} cached)"
        # The first token of each answer comes from the prefill.
        parts = [
            f"{prompt}{_speed(self.prefilled, self.prefill_seconds)}",
            f"generated {_tokens(self.generated)}{_speed(self.generated - self.answers, self.decode_seconds)}",
        ]
        if self.answers > 1:
            parts.insert(0, f"{self.answers} answers")
        else:
            parts.append(f"first token {self.first_token_seconds:.2f} s")
        return "; ".join(parts)

    def print(self, *, requested: bool) -> None:
        """Print them to stderr, if requested or on a terminal."""
        if self.answers and (requested or sys.stderr.isatty()):
            click.echo(str(self), err=True)


def _tokens(count: int) -> str:
    return f"{count} token" if count == 1 else f"{count} tokens"


def _speed(tokens: int, seconds: float) -> str:
    return f", {rated(tokens / seconds)} tok/s" if tokens > 0 and seconds > 0 else ""


def prompt_progress(stream: Stream) -> tuple[int, int]:
    """Tokens of a stream's prompt in the KV cache, and all of them."""
    total = len(stream.steps.prompt)
    return min(stream.steps.forward.cache.length, total), total


def write_text(stream: Stream, file: BinaryIO, *, wrap: bool = False) -> None:
    """Write an answer as it is generated, and end its last line; Ctrl-C ends the answer.

    On a terminal, the progress of the prefill is shown, control characters are replaced, and words wrap if asked.
    """
    on_terminal = file is sys.stdout.buffer and sys.stdout.isatty()
    wrapped = WordWrap(shutil.get_terminal_size().columns).push if wrap and on_terminal else str

    def shown(text: str) -> str:
        return wrapped(without_controls(text)) if on_terminal else text

    ended = written = False
    try:
        with cancelling_at_interrupt(stream):
            with prefill_progress(lambda: prompt_progress(stream)):
                first = next(stream, None)
            for token in chain([first] if first is not None else [], stream):
                if token.text:
                    file.write(shown(token.text).encode("utf-8"))
                    file.flush()
                    ended, written = token.text.endswith("\n"), True
    except BaseException as error:
        # An error message on the same terminal begins on a line of its own.
        if written and not ended and not isinstance(error, OSError):
            file.write(b"\n")
            file.flush()
        raise
    if not ended:
        file.write(b"\n")
        file.flush()


def write_token_lines(stream: Stream, file: BinaryIO, *, decoder: Decoder) -> None:
    """Write one JSON object per token as it is generated, then one with the finish reason, usage and rates."""
    with cancelling_at_interrupt(stream):
        for token in stream:
            file.write(object_to_json(_token_fields(token, stream, decoder)) + b"\n")
            file.flush()
    file.write(object_to_json(_end_fields(stream)) + b"\n")
    file.flush()


def complete_answer(stream: Stream) -> Answer:
    """The whole answer; Ctrl-C ends it."""
    with cancelling_at_interrupt(stream):
        return stream.answer()


def answer_fields(answer: Answer, stream: Stream, decoder: Decoder, *, tokens: bool) -> dict[str, Any]:
    """The JSON fields of an answer, with `tokens` if asked."""
    each = {"tokens": [_token_fields(token, stream, decoder) for token in answer.tokens]} if tokens else {}
    return {"text": answer.text} | each | _end_fields(stream)


def _end_fields(stream: Stream) -> dict[str, Any]:
    rates = stream.rates
    reason = stream.finish_reason.value if stream.finish_reason is not None else None
    return {
        "finish_reason": reason,
        "usage": dataclasses.asdict(stream.usage),
        "rates": {
            "prompt_seconds": round(rates.prompt_seconds, 6),
            "first_token_seconds": round(rates.first_token_seconds, 6),
            "new_seconds": round(rates.new_seconds, 6),
            "prompt_per_second": round(rates.prompt_per_second, 2),
            "new_per_second": round(rates.new_per_second, 2),
        },
    }


def _token_fields(token: Token, stream: Stream, decoder: Decoder) -> dict[str, Any]:
    fields: dict[str, Any] = {"id": token.id, "text": token.text, "logprob": round(token.logprob, 6)}
    if token.top_logprobs:
        fields["top_logprobs"] = [
            {"id": one.id, "text": _text_of(one.id, stream, decoder), "logprob": round(one.logprob, 6)}
            for one in token.top_logprobs
        ]
    return fields


def _text_of(id_: int, stream: Stream, decoder: Decoder) -> str:
    """The text of a single token, with U+FFFD for a part of a character; special tokens by name."""
    from ...runtime.text.detokenizer import Detokenizer, first_text

    if id_ in decoder.vocabulary.special:
        return str(decoder.tokenizer.id_to_token(id_))
    detokenizer = Detokenizer(decoder.vocabulary, first_text(decoder.vocabulary, stream.steps.prompt))
    detokenizer.end()
    return detokenizer.push(id_) + detokenizer.end()
