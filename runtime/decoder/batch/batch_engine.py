"""The engine of a batch: one thread that prefills and decodes all sequences (continuous batching).

A sequence takes a slot when one is free, and leaves it at its end; others go on meanwhile. Between two runs that decode
all sequences, a part of one prompt is prefilled, or several short ones, so that no answer stalls behind long prompts.
"""

from __future__ import annotations

import copy
import threading
from collections import deque
from collections.abc import Callable
from queue import Empty, SimpleQueue
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from ...errors import OrtkitError, QueueFullError
from ...session.onnxruntime_import import load_onnxruntime
from ..cache.kv_cache import token_size
from ..cache.prefix_store import Ids, PrefixStore, common_prefix
from ..generation import Rates
from ..stream import AnswerText, Token
from ..token_choice import FinishReason, TokenChoice
from .slots import Row, Slots

Event = Token | Exception | None
"""What a sequence delivers: a token, the error that ends it, or None where it was cancelled."""
_CHUNK_BESIDE_ANSWERS = 128
"""Tokens of prompts between two runs that decode."""
_SHORTEST_SAVED = 32
"""Tokens of a prompt from which on its KV cache is saved when another prompt takes its slot."""
_SHORT = 32
"""Tokens up to which an idle row costs next to nothing."""


class TokenSequence:
    """One request: its prompt, the choice of its tokens and their text. The engine's thread alone advances it."""

    def __init__(self, prompt: list[int], choice: TokenChoice, text: AnswerText) -> None:
        self.prompt: Ids = np.array(prompt, np.int64)
        self.choice = choice
        self.text = text
        self.deliver: Callable[[Event], None] = _nobody
        """Gets the tokens and the end."""
        self.finish_reason: FinishReason | None = None
        self.cancelled = False
        self.options = load_onnxruntime().RunOptions()
        """Those of the runs of its prompt, which `cancel` ends."""
        self.cached = 0
        """Tokens of the prompt that were in the KV cache."""
        self.order = 0
        """The prompts in slots are prefilled in this order."""
        self.is_prefilled = False
        self._submitted = perf_counter()
        self.started = self.read = self._first = self._last = 0.0

    @property
    def rates(self) -> Rates:
        """The speed so far; the time to the first token begins with the request."""
        return Rates(
            prompt_tokens=len(self.prompt),
            cached_tokens=self.cached,
            new_tokens=len(self.choice.ids),
            prompt_seconds=max(0.0, self.read - self.started),
            first_token_seconds=max(0.0, self._first - self._submitted),
            new_seconds=self._last - self._first,
        )

    def next_token(self, logits: NDArray[np.float32]) -> Token:
        """Choose the next token; raises as `TokenChoice.choose` does."""
        step = self.choice.choose(logits)
        self._last = perf_counter()
        if len(self.choice.ids) == 1:
            self._first = self._last
        token = self.text.push(step, self.choice.finish_reason, self.rates)
        self.finish_reason = token.finish_reason
        return token


class Engine:
    """Runs the sequences of a batch; `run` is the body of its thread, and `submit`, `cancel` and `stop` are for others.

    Everything but the inbox and the counts belongs to the engine's thread.
    """

    def __init__(self, slots: Slots, store: PrefixStore, *, limit: int, waiting: int | None, run_tokens: int) -> None:
        """At most `limit` sequences run at a time, and at most `waiting` (None: any number) wait beside them."""
        self.slots = slots
        self.store = store
        self.limit = limit
        self.unfinished = 0
        """Number of sequences that run or wait."""
        self.prompt_tokens = self.completion_tokens = self.cached_tokens = 0
        """Tokens of the prompts that were prefilled or cached, of the answers, and those of the prompts that were
        cached."""
        self._most_unfinished = None if waiting is None else limit + waiting
        self._run_tokens = run_tokens
        self._counting = threading.Lock()
        self._inbox: SimpleQueue[TokenSequence | None] = SimpleQueue()
        self._waiting: deque[TokenSequence] = deque()
        self._running: dict[TokenSequence, Row] = {}
        self._options = load_onnxruntime().RunOptions()
        self._stopping = False
        self.has_ended = False
        """Whether the thread takes no more requests."""
        self._prefilled = 0
        """Tokens of all prompts that were prefilled."""
        self._uses = 0

    @property
    def running(self) -> int:
        """Number of sequences in slots."""
        return len(self._running)

    def submit(self, sequence: TokenSequence) -> bool:
        """Queue a sequence, from any thread; raises QueueFullError. False where the engine has ended."""
        with self._counting:
            if self.has_ended:
                return False
            if self._most_unfinished is not None and self.unfinished >= self._most_unfinished:
                raise QueueFullError(
                    f"{self.unfinished} requests are running or waiting, and there is room for {self._most_unfinished}",
                    hint="send the request again later",
                )
            self.unfinished += 1
            self._inbox.put(sequence)
        return True

    def cancel(self, sequence: TokenSequence) -> None:
        """End a sequence within a step; from any thread, at any time."""
        sequence.cancelled = True
        sequence.options.terminate = True
        self._inbox.put(None)

    def stop(self) -> None:
        """End all sequences, and then the thread; from any thread, and from a finalizer: nothing here takes a lock."""
        self._stopping = True
        self._options.terminate = True
        for sequence in list(self._running):
            sequence.options.terminate = True
        self._inbox.put(None)

    def run(self) -> None:
        """Run until `stop`."""
        error: Exception | None = None
        try:
            while self._take_requests():
                self._fill_slots()
                self._prefill()
                self._decode()
        # A bug; nobody may wait for an answer that does not come.
        except BaseException as found:  # noqa: BLE001
            error = _deliverable(found)
        # From here on nothing is queued.
        with self._counting:
            self.has_ended = True
        for sequence in [*self._running, *self._waiting, *self._rest_of_inbox()]:
            self._end(sequence, error)

    def _take_requests(self) -> bool:
        """Take new requests, and wait for one where there is nothing to do; False where the engine is to stop."""
        idle = not self._running and not self._waiting
        while not self._stopping:
            try:
                sequence = self._inbox.get(block=idle)
            except Empty:
                break
            idle = False
            if sequence is not None:
                self._waiting.append(sequence)
        for sequence in [one for one in (*self._running, *self._waiting) if one.cancelled]:
            self._end(sequence)
        return not self._stopping

    def _rest_of_inbox(self) -> list[TokenSequence]:
        rest = []
        while not self._inbox.empty():
            sequence = self._inbox.get()
            if sequence is not None:
                rest.append(sequence)
        return rest

    def _end(self, sequence: TokenSequence, error: Exception | None = None) -> None:
        """End a sequence before its last token: it was cancelled, or there was an error."""
        self._leave(sequence)
        if error is None:
            sequence.finish_reason = sequence.choice.finish_reason = FinishReason.CANCELLED
        self._deliver_last(sequence, error)

    def _deliver_last(self, sequence: TokenSequence, event: Event) -> None:
        """Deliver the last event of a sequence."""
        try:
            sequence.deliver(event)
        # A listener's; the answer has ended, so there is nobody else to tell.
        except BaseException as raised:  # noqa: BLE001
            parts = (type(raised), raised, raised.__traceback__, threading.current_thread())
            threading.excepthook(threading.ExceptHookArgs(parts))
        sequence.deliver = _nobody

    def _leave(self, sequence: TokenSequence) -> None:
        """Free the slot of a sequence, or its place in the queue."""
        row = self._running.pop(sequence, None)
        if row is not None:
            row.length = min(row.length, self.slots.prompt_runs.whole(len(row.prompt)))
            self._uses += 1
            row.used = self._uses
        elif sequence in self._waiting:
            self._waiting.remove(sequence)
        with self._counting:
            self.unfinished -= 1

    def _fill_slots(self) -> None:
        """Give waiting sequences free slots, in the order in which they came."""
        while self._waiting and len(self._running) < self.limit:
            sequence = self._waiting.popleft()
            row = self._free_row(sequence.prompt)
            self._running[sequence] = row
            sequence.cached = row.length
            # As in fair queueing, by virtual finish time: a short prompt overtakes a long one, unless as many tokens
            # were prefilled meanwhile as the long one has.
            sequence.order = self._prefilled + len(sequence.prompt) - row.length

    def _free_row(self, prompt: Ids) -> Row:
        """Take a free row: one whose tokens the prompt begins with, or the one that was not used for longest."""
        taken = set(self._running.values())
        free = [row for row in self.slots.rows if row not in taken]
        continued = [row for row in free if 0 < row.length == common_prefix(row.reusable, prompt)]
        if continued:
            row = max(continued, key=lambda one: one.length)
        else:
            row = min(free, key=lambda one: (one.used if one.length else 0, one.index))
        common = common_prefix(row.reusable, prompt)
        if common < row.length:
            self._save(row)
        row.keep(prompt, self.slots.prompt_runs.reusable(common, len(prompt)))
        return row

    def _save(self, row: Row) -> None:
        """Save the tokens of a row, which another sequence takes, in the prefix store."""
        ids = row.reusable
        if len(ids) < _SHORTEST_SAVED or self.store.holds(ids):
            return
        if not self.store.makes_room(ids.nbytes + len(ids) * token_size(self.slots.facts)):
            return
        # Without memory for it, the tokens are prefilled again some time.
        try:
            self.store.add(self.slots.saved(row))
        except MemoryError:
            self.store.clear()

    def _prefill(self) -> None:
        """Run the next part of one prompt, or several short prompts that take no longer together."""
        left = _CHUNK_BESIDE_ANSWERS
        while (sequences := [sequence for sequence in self._running if not sequence.is_prefilled]) and left > 0:
            sequence = min(sequences, key=lambda one: one.order)
            row = self._running[sequence]
            self._reuse(sequence, row)
            count = self._chunk(len(sequence.prompt) - row.length, beside_answers=len(sequences) < len(self._running))
            # The first run may be of any length.
            if left < _CHUNK_BESIDE_ANSWERS and count > left:
                return
            left -= count
            self._prefill_next(sequence, row, count)

    def _prefill_next(self, sequence: TokenSequence, row: Row, count: int) -> None:
        """Run the next `count` tokens of a prompt."""
        if not sequence.started:
            sequence.started = perf_counter()
        try:
            logits = self.slots.prefill(row, count, sequence.options)
        except (OrtkitError, MemoryError) as error:
            # A cancelled run fails too.
            self._end(sequence, None if sequence.cancelled or self._stopping else error)
            return
        self._prefilled += count
        if row.length == len(sequence.prompt):
            sequence.read = perf_counter()
            sequence.is_prefilled = True
            self.prompt_tokens += row.length
            self.cached_tokens += sequence.cached
            self._choose(sequence, logits)

    def _reuse(self, sequence: TokenSequence, row: Row) -> None:
        """Copy more of a prompt from another row or the prefix store, where it is by now."""
        prompt, reusable = sequence.prompt, self.slots.prompt_runs.reusable
        # A prompt that is alike and came at the same time has been prefilled since this one got its slot.
        length, source = max(
            ((common_prefix(one.reusable, prompt), one) for one in self.slots.rows if one is not row),
            key=lambda found: found[0],
            default=(0, row),
        )
        length = reusable(length, len(prompt))
        saved_length, saved = self.store.longest(prompt)
        saved_length = reusable(saved_length, len(prompt))
        found = max(length, saved_length) - row.length
        if found <= 0:
            return
        if saved is not None and saved_length > length:
            self.slots.restore(saved, row, saved_length)
            self.store.touch(saved)
        else:
            self.slots.copy(source, row, length)
        sequence.cached += found

    def _chunk(self, left: int, *, beside_answers: bool) -> int:
        """Tokens of the next run of a prompt that has so many left: even, or all of them."""
        most = self.slots.prompt_runs.longest(self._run_tokens)
        if self.slots.prompt_runs.in_chunks:
            return min(left, most)
        if beside_answers:
            most = min(most, _CHUNK_BESIDE_ANSWERS)
        # In equal parts: a short rest would cost a run of its own.
        parts = -(-left // most)
        return min(left, -(-left // (2 * parts)) * 2)

    def _decode(self) -> None:
        """Run the last token of each sequence that is prefilled, and choose the next ones."""
        decoding = [sequence for sequence in self._running if sequence.is_prefilled]
        if not decoding:
            return
        if not self.slots.together:
            for sequence in decoding:
                self._decode_alone(sequence)
            return
        self._close_ranks()
        rows = {self._running[sequence].index: sequence for sequence in decoding}
        count = max(rows) + 1
        tokens = [rows[index].choice.ids[-1] if index in rows else 0 for index in range(count + count % 2)]
        try:
            logits = self.slots.decode(tokens, self._options)
        except (OrtkitError, MemoryError) as error:
            for sequence in decoding:
                self._end(sequence, None if sequence.cancelled or self._stopping else _own(error))
            return
        for index, sequence in rows.items():
            self._running[sequence].length += 1
            self._choose(sequence, logits[index])

    def _decode_alone(self, sequence: TokenSequence) -> None:
        row = self._running[sequence]
        try:
            logits = self.slots.decode_alone(row, sequence.choice.ids[-1], sequence.options)
        except (OrtkitError, MemoryError) as error:
            self._end(sequence, None if sequence.cancelled or self._stopping else error)
            return
        row.length += 1
        self._choose(sequence, logits)

    def _choose(self, sequence: TokenSequence, logits: NDArray[np.float32]) -> None:
        """Choose a sequence's next token, and end it where it is the last."""
        if sequence.cancelled:
            self._end(sequence)
            return
        try:
            token = sequence.next_token(logits)
            self.completion_tokens += 1
            if token.finish_reason is None:
                sequence.deliver(token)
                return
        # A sampler and a listener of the caller's may raise anything, and a grammar panic: that is for their answer
        # alone.
        except BaseException as error:  # noqa: BLE001
            self._end(sequence, _deliverable(error))
            return
        # The slot is free when the last token is seen.
        self._leave(sequence)
        self._deliver_last(sequence, token)

    def _close_ranks(self) -> None:
        """Move the rows of all sequences to the front, and an idle row among them out of the way if it is long.

        An idle row takes part in the runs, at the cost of attention over what it holds.
        """
        rows, taken = self.slots.rows, set(self._running.values())
        count = len(taken) + len(taken) % 2
        for row in [row for row in rows[count:] if row in taken]:
            self.slots.swap(row, next(free for free in rows if free not in taken))
        for row in [row for row in rows[:count] if row not in taken and row.length > _SHORT]:
            shorter = min(rows[count:], key=lambda one: one.length, default=row)
            if shorter.length <= _SHORT:
                self.slots.swap(row, shorter)
            else:
                self._save(row)
                row.length = 0


def _nobody(_event: Event) -> None:
    """Before a sequence is submitted, and after its end."""


def _deliverable(error: BaseException) -> Exception:
    """The error for those who wait for an answer: their thread must not end at another's SystemExit or panic."""
    if isinstance(error, Exception):
        return error
    found = OrtkitError(f"the answer was ended by {type(error).__name__}: {error}")
    found.__cause__ = error
    return found


def _own(error: OrtkitError | MemoryError) -> OrtkitError | MemoryError:
    """A copy of an error for one of several answers: each is raised on a thread of its own, with its traceback."""
    own = copy.copy(error)
    own.__cause__ = error
    return own
