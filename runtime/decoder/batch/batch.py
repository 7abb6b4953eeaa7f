"""Continuous batching: many answers of one decoder at once, which share each run of its graph."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from queue import SimpleQueue
from typing import NoReturn, Unpack

from ...arguments import checked_integer, takes_keywords
from ...errors import InputError, OrtkitError, ProviderError
from ...session.closing import ClosableModel
from ...text.detokenizer import Detokenizer
from ...text.messages import Messages
from ...text.stop_strings import StopStrings
from ...text.tools import ToolChoice
from ..cache.prefix_store import PrefixStore
from ..generation import Rates
from ..generation_options import GenerationOptions, checked_options
from ..prompt import Prompt, checked_max_tokens
from ..stream import AnswerText, Token, TokenStream
from ..token_choice import FinishReason
from .batch_engine import Engine, Event, TokenSequence
from .batch_memory import divided
from .batched_decoder import BatchedDecoder
from .slots import Slots

Listener = Callable[[Token | Exception], None]
"""A function that gets each token of an answer, or the error that ends it, on the engine's thread."""


@dataclass(frozen=True)
class BatchStats:
    """State of a batch, and its token counts since it began."""

    running: int
    """Sequences in slots."""
    waiting: int
    """Sequences that wait for a slot."""
    slots: int
    context: int
    """Limit of prompt and answer of a sequence together, in tokens."""
    prompt_tokens: int
    """Of all prompts so far, with those that were cached."""
    cached_tokens: int
    """Those of the prompts that were cached."""
    completion_tokens: int
    """Of all answers so far."""
    prefix_bytes: int
    """Bytes of the prefix store."""


class Batch(ClosableModel):
    """Many answers of one decoder at once (continuous batching). Thread-safe.

    One thread runs all sequences: each run of the graph computes the next token of all of them, and takes little longer
    than for one. A sequence begins when a slot is free and ends on its own. Between two of those runs at most 128
    tokens of prompts are prefilled, so running answers do not stall. Prompts that begin alike are prefilled once
    (prefix cache): KV caches of prompts are copied from slot to slot, and from a store of those that left their slots.

        >>> with Batch(decoder, slots=4, context=64) as batch:
        ...     streams = [batch.submit(text, max_tokens=8) for text in ("The quick brown fox", "The lazy dog")]
        ...     [stream.answer().usage.completion_tokens for stream in streams]
        [8, 8]

    The answer to a request depends neither on what else runs nor on what is cached: it has the tokens and
    log-probabilities that it would have alone in the batch, bit for bit. With 4-bit weights they may differ from those
    of `decoder.generate`, whose runs have another number of rows; see `docs/generate.md`. A batch has no prompt lookup:
    `lookup` has no effect.

    A decoder for a GPU is refused. One whose attention consists of plain operators decodes one sequence after another.
    """

    def __init__(
        self,
        decoder: BatchedDecoder,
        *,
        slots: int = 8,
        context: int | None = None,
        prefix_bytes: int | None = None,
        waiting: int | None = None,
    ) -> None:
        """Allocate the KV cache and start the engine.

        `slots` is the number of sequences that run at once, `waiting` that of those that may wait beside them (default:
        any number). `context` limits prompt and answer together, in tokens; default: that of the decoder, or what there
        is memory for (half of the free memory, or what `max_memory` leaves). `prefix_bytes` limits the store of
        prefixes; default: an eighth of the free memory, at most 256 MiB; 0: none. Memory is taken as it is used.

        Raises InputError, ProviderError for a decoder that does not run on the CPU, and OutOfMemoryError, with what
        fits.
        """
        if not isinstance(decoder, BatchedDecoder):
            raise InputError(
                f"`decoder` must be a Decoder, not {type(decoder).__name__}", hint="open one with `Decoder(bundle)`"
            )
        if decoder.session.device != "cpu":
            raise ProviderError(
                f"`{decoder.bundle.path}` is for {decoder.session.provider.value}, and a Batch runs on the CPU only",
                hint="use `generate` or `chat`, or a bundle for the CPU",
            )
        self.bundle = decoder.bundle
        self.session = decoder.session
        self.decoder = decoder
        self.slots = checked_integer(slots, "slots")
        if waiting is not None:
            checked_integer(waiting, "waiting", least=0)
        with nullcontext() if decoder.room is None else decoder.room.growing:
            shares = divided(decoder, self.slots, context, prefix_bytes)
            self.context = shares.context
            """Limit of prompt and answer together, in tokens."""
            self._engine: Engine | None = Engine(
                Slots(
                    self.session,
                    decoder.facts,
                    rows=shares.rows,
                    capacity=shares.context,
                    prefill_session=decoder.prefill_session,
                ),
                PrefixStore(shares.prefix_bytes),
                limit=self.slots,
                waiting=waiting,
                run_tokens=decoder.run_tokens,
            )
            if decoder.room is not None:
                decoder.room.add(self)
        self._stats = self.stats
        self._process = os.getpid()
        # A daemon does not block the interpreter's exit, at which the finalizer ends it.
        thread = threading.Thread(target=self._engine.run, name="ortkit-batch", daemon=True)
        thread.start()
        self._finalizer = weakref.finalize(self, _end, self._engine, thread, self._process)

    def __repr__(self) -> str:
        state = "closed" if self._closed else f"{self.stats.running} running"
        return f"<Batch {str(self.bundle.path)!r}: {self.slots} slots of {self.context} tokens, {state}>"

    @property
    def size(self) -> int:
        """Bytes that KV caches may take."""
        engine = self._engine
        return 0 if engine is None else engine.slots.size + engine.store.limit

    @property
    def stats(self) -> BatchStats:
        """Its state now; after `close` that at the end."""
        engine = self._engine
        if engine is None:
            return self._stats
        running, unfinished = engine.running, engine.unfinished
        return BatchStats(
            running=running,
            waiting=max(0, unfinished - running),
            slots=self.slots,
            context=self.context,
            prompt_tokens=engine.prompt_tokens,
            cached_tokens=engine.cached_tokens,
            completion_tokens=engine.completion_tokens,
            prefix_bytes=engine.store.size,
        )

    @takes_keywords(GenerationOptions)
    def submit(
        self, prompt: Prompt, *, listener: Listener | None = None, **options: Unpack[GenerationOptions]
    ) -> BatchStream:
        """Queue a raw text or token ids, to be continued with the options of `Decoder.stream`.

        With `listener`, the engine calls it with each token, of which the last has a `finish_reason`, or with the error
        that ends the answer (an InputError where the batch is closed), instead of queueing them for iteration. All
        answers wait for it, so it must not block. An answer that its caller cancels sends nothing more.

        Raises what `Decoder.stream` raises, and QueueFullError where `waiting` sequences wait already; before anything
        is queued.

            >>> with Batch(decoder, slots=2, context=64) as batch:
            ...     [token.finish_reason for token in batch.submit("The quick brown fox", max_tokens=2)]
            [None, <FinishReason.LENGTH: 'length'>]
        """
        chosen = checked_options(options, self.decoder.sampling)
        stops = StopStrings(chosen.stop)
        engine = self._running_engine()
        ids = self.decoder.prompt_ids(prompt, self.context)
        room = self.context - len(ids)
        most = room if chosen.max_tokens is None else checked_max_tokens(chosen.max_tokens, len(ids), self.context)
        choice = self.decoder.token_choice(ids, chosen, max_tokens=most)
        sequence = TokenSequence(ids, choice, AnswerText(Detokenizer(self.decoder.vocabulary, ids), stops))
        stream = BatchStream(self, engine, sequence, listener)
        if not engine.submit(sequence):
            raise self._closed_error()
        return stream

    @takes_keywords(GenerationOptions)
    def submit_chat(
        self,
        messages: Messages,
        *,
        tools: Sequence[Mapping[str, object]] | None = None,
        tool_choice: ToolChoice | None = None,
        listener: Listener | None = None,
        **options: Unpack[GenerationOptions],
    ) -> BatchStream:
        """Queue a conversation, to be answered as `Decoder.stream_chat` does; for the rest, see `submit`.

        >>> with Batch(decoder, slots=2, context=64) as batch:
        ...     batch.submit_chat([{"role": "user", "content": "Hello"}], max_tokens=8).answer().usage.cached_tokens
        0
        """
        use = self.decoder.tool_use(tools, tool_choice=tool_choice)
        prompt, options = self.decoder.chat_prompt(messages, use, tools, options)
        return self.submit(prompt, listener=listener, **options)

    def close(self) -> None:
        """End all answers and the engine, and free the KV cache; a second call does nothing."""
        super().close()
        self._finalizer()
        self._stats = self.stats
        self._engine = None

    def check_process(self) -> None:
        """Raise InputError in a process that was forked: it has no engine."""
        if os.getpid() != self._process:
            raise InputError(
                f"the Batch of `{self.bundle.path}` belongs to process {self._process}, which this one was forked from",
                hint="make one in each process",
            )

    def closed_error(self) -> InputError:
        """The error for those who still wait for an answer."""
        return InputError(
            f"the Batch of `{self.bundle.path}` is closed", hint="make another one of its decoder: `Batch(decoder)`"
        )

    def _closed_error(self) -> InputError:
        return self.closed_error()

    def __reduce__(self) -> NoReturn:
        raise TypeError("Batch cannot be pickled: make one in each process, of a decoder that was opened there")

    def _running_engine(self) -> Engine:
        self._check_open()
        self.check_process()
        engine = self._engine
        if engine is None:
            raise self._closed_error()
        if engine.has_ended:
            raise OrtkitError("the engine of the batch was ended by an error", hint="make a new Batch")
        return engine


class BatchStream(TokenStream):
    """An iterator over the tokens of one answer of a batch, which are computed whether they are taken or not.

    `text` is the text of the tokens so far. As a context manager, it ends the answer at the end of the block.

        >>> with Batch(decoder, slots=2, context=64) as batch:
        ...     stream = batch.submit("The quick brown fox", max_tokens=8)
        ...     "".join(token.text for token in stream) == stream.text
        True
    """

    def __init__(self, batch: Batch, engine: Engine, sequence: TokenSequence, listener: Listener | None) -> None:
        self._batch = batch
        """A batch lives as long as one of its answers is computed."""
        self._engine = engine
        self._sequence = sequence
        self._listener = listener
        self._events: SimpleQueue[Event] = SimpleQueue()
        self._taken: list[Token] = []
        self._error: Exception | None = None
        sequence.deliver = self._receive if listener is None else self._notify

    def __next__(self) -> Token:
        self._check_iterable()
        if self.finish_reason is not None:
            raise StopIteration
        if self._error is not None:
            raise self._error
        self._batch.check_process()
        event = self._events.get()
        while self._sequence.cancelled and event is not None and not self._ends(event):
            event = self._events.get()
        if event is None or self._sequence.cancelled:
            self.finish_reason = FinishReason.CANCELLED
            raise StopIteration
        if isinstance(event, Exception):
            self._error = event
            raise event
        self._take(event)
        return event

    def cancel(self) -> None:
        """End the answer within a step, from any thread: no more tokens follow, and its slot is free."""
        if self.finish_reason is None and self._error is None:
            self._engine.cancel(self._sequence)

    def close(self) -> None:
        """End the answer; a second call does nothing."""
        self.cancel()
        if self._listener is None and self._error is None:
            for _ in self:
                pass

    def __repr__(self) -> str:
        state = "running" if self.finish_reason is None else f"finished: {self.finish_reason.value}"
        return f"<BatchStream of {len(self._taken)} tokens, {state}>"

    @property
    def text(self) -> str:
        """The text so far."""
        return "".join(token.text for token in self._taken)

    @property
    def rates(self) -> Rates:
        """The speed so far; the time to the first token includes that of waiting for a slot."""
        rates = self._taken[-1].rates if self._taken else None
        return self._sequence.rates if rates is None else rates

    def _check_iterable(self) -> None:
        if self._listener is not None:
            raise InputError("the tokens of this answer go to its `listener`", hint="submit it without one")

    @staticmethod
    def _ends(event: Token | Exception) -> bool:
        return isinstance(event, Exception) or event.finish_reason is not None

    def _take(self, token: Token) -> None:
        self._taken.append(token)
        self.finish_reason = token.finish_reason

    def _receive(self, event: Event) -> None:
        """Queue an event; on the engine's thread."""
        self._events.put(event)

    def _notify(self, event: Event) -> None:
        """Pass an event to the listener; on the engine's thread."""
        if self._listener is None or self._sequence.cancelled:
            self.finish_reason = FinishReason.CANCELLED
            return
        if event is None:
            self.finish_reason = FinishReason.CANCELLED
            event = self._batch.closed_error()
        if isinstance(event, Exception):
            self._error = event
        else:
            self._take(event)
        self._listener(event)


def _end(engine: Engine, thread: threading.Thread, process: int) -> None:
    """End the engine and wait for it: at `close`, at the end of the batch's life, or at the interpreter's exit."""
    # A forked process has no such thread, and may have its locks as they were held.
    if os.getpid() != process:
        return
    engine.stop()
    # A listener may drop the last reference to a batch, or close it, on the engine's thread.
    if threading.current_thread() is not thread:
        thread.join()
