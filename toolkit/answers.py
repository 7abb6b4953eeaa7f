"""Answers of a decoder: as text while they come, as JSON, and how fast they came."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO

import click

from runtime.errors import InputError
from toolkit.interrupts import ending_at_interrupt
from toolkit.progress import rated
from toolkit.prompts import as_messages
from toolkit.terminal import without_controls
from toolkit.writers import object_to_json

if TYPE_CHECKING:
    from runtime.decoder import Decoder
    from runtime.kv_cache import KVCache
    from runtime.steps import Rates
    from runtime.stream import Answer, Stream, Token
    from toolkit.options import AnswerOptions
    from toolkit.prompts import Asked


@dataclass(frozen=True)
class Answering:
    """A decoder with all that its answers need to be begun."""

    decoder: Decoder
    chat: bool
    """Whether what is asked is put into the model's chat template, or continued as it is."""
    system: str | None
    options: AnswerOptions
    top_logprobs: int
    cache: KVCache
    """One for all answers, so that what their prompts begin with is read once."""

    def begin(self, asked: Asked, options: AnswerOptions | None = None) -> Stream:
        """The answer, of which nothing is computed yet; raises InputError as `Decoder.stream` does.

        `options` are those of this answer, where they are not those of all.
        """
        given = vars(options or self.options) | {"top_logprobs": self.top_logprobs}
        if self.chat:
            return self.decoder.stream_chat(as_messages(asked, self.system), cache=self.cache, **given)
        if not isinstance(asked, str):
            raise InputError(
                "`messages` need a chat template, and none is used here", hint="give a text in `prompt` instead"
            )
        return self.decoder.stream(asked, cache=self.cache, **given)


@dataclass(frozen=True)
class Totals:
    """How fast answers came, all of them together."""

    answers: int = 0
    read: int = 0
    reused: int = 0
    written: int = 0
    first_seconds: float = 0.0
    """Until the first token of the first answer."""
    reading_seconds: float = 0.0
    writing_seconds: float = 0.0

    def with_answer(self, rates: Rates) -> Totals:
        """These and one more answer; one that was interrupted before its first token says nothing of rates."""
        if rates.new_tokens == 0:
            return self
        return Totals(
            answers=self.answers + 1,
            read=self.read + rates.prompt_tokens - rates.reused_tokens,
            reused=self.reused + rates.reused_tokens,
            written=self.written + rates.new_tokens,
            first_seconds=self.first_seconds if self.answers else rates.first_token_seconds,
            reading_seconds=self.reading_seconds + rates.prompt_seconds,
            writing_seconds=self.writing_seconds + rates.new_seconds,
        )

    def __str__(self) -> str:
        # The first token of each answer comes with its prompt.
        parts = [
            f"read {counted(self.read, 'token')}{speed(self.read, self.reading_seconds)}",
            f"wrote {self.written}{speed(self.written - self.answers, self.writing_seconds)}",
        ]
        if self.reused:
            parts[0] += f", {self.reused} more were known"
        if self.answers > 1:
            parts.insert(0, counted(self.answers, "answer"))
        else:
            parts.append(f"first after {self.first_seconds:.2f} s")
        return "; ".join(parts)

    def tell(self, *, asked: bool) -> None:
        """Print them to stderr, when they are asked for or a person looks."""
        if self.answers and (asked or sys.stderr.isatty()):
            click.echo(str(self), err=True)


def counted(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def speed(tokens: int, seconds: float) -> str:
    return f" at {rated(tokens / seconds)}/s" if tokens > 0 and seconds > 0 else ""


def write_text(stream: Stream, file: BinaryIO) -> None:
    """Write an answer as it comes, and end its last line; Ctrl-C ends the answer."""
    shown: Callable[[str], str] = without_controls if file is sys.stdout.buffer and sys.stdout.isatty() else str
    ended = written = False
    try:
        with ending_at_interrupt(stream):
            for text in (token.text for token in stream if token.text):
                file.write(shown(text).encode("utf-8"))
                file.flush()
                ended, written = text.endswith("\n"), True
    except BaseException as error:
        # An error begins on a line of its own, where it is told on the terminal that has the text.
        if written and not ended and not isinstance(error, OSError):
            file.write(b"\n")
            file.flush()
        raise
    if not ended:
        file.write(b"\n")
        file.flush()


def write_pieces(stream: Stream, file: BinaryIO, *, decoder: Decoder) -> None:
    """Write an object a line for each token as it comes, and one that says how the answer ended."""
    with ending_at_interrupt(stream):
        for token in stream:
            file.write(object_to_json(token_fields(token, stream, decoder)) + b"\n")
            file.flush()
    file.write(object_to_json(end_fields(stream)) + b"\n")
    file.flush()


def whole(stream: Stream) -> Answer:
    """All of an answer; Ctrl-C ends it."""
    with ending_at_interrupt(stream):
        return stream.answer()


def answer_fields(answer: Answer, stream: Stream, decoder: Decoder, *, tokens: bool) -> dict[str, Any]:
    """What is written of an answer; with `tokens` also what it is made of."""
    each = {"tokens": [token_fields(token, stream, decoder) for token in answer.tokens]} if tokens else {}
    return {"text": answer.text} | each | end_fields(stream)


def end_fields(stream: Stream) -> dict[str, Any]:
    rates = stream.rates
    seconds = {name: round(value, 6) for name, value in dataclasses.asdict(rates).items()}
    speeds = {
        "prompt_per_second": round(rates.prompt_per_second, 2),
        "new_per_second": round(rates.new_per_second, 2),
    }
    reason = stream.finish_reason.value if stream.finish_reason is not None else None
    return {"finish_reason": reason, "rates": seconds | speeds}


def token_fields(token: Token, stream: Stream, decoder: Decoder) -> dict[str, Any]:
    fields: dict[str, Any] = {"id": token.id, "text": token.text, "logprob": round(token.logprob, 6)}
    if token.top_logprobs:
        fields["top_logprobs"] = [
            {"id": one.id, "text": text_of(one.id, stream, decoder), "logprob": round(one.logprob, 6)}
            for one in token.top_logprobs
        ]
    return fields


def text_of(id_: int, stream: Stream, decoder: Decoder) -> str:
    """The text of a token that stands within a text, with U+FFFD for a part of a character; special ones by name."""
    from runtime.detokenizer import Detokenizer, first_text

    if id_ in decoder.vocabulary.special:
        return str(decoder.tokenizer.id_to_token(id_))
    detokenizer = Detokenizer(decoder.vocabulary, first_text(decoder.vocabulary, stream.steps.prompt))
    detokenizer.end()
    return detokenizer.push(id_) + detokenizer.end()
