"""The KV cache of a batch: buffers with a row for each sequence, and the runs of the graph on them.

Buffers are (rows, kv_heads, capacity, head_size), so one row, and the first rows together, are contiguous: they are
bound as views. GroupQueryAttention takes any number of sequences with one new token each, and several new tokens of one
sequence alone (onnxruntime 1.32, CPU); a graph is exported with a free batch axis, so the same graph does both.

The bits of a row depend neither on the other rows, because each run has an even number of rows (`ModelRunner.prefill`),
nor on how a prompt is split into runs (`PromptRuns`). An odd number of decoding rows is padded with an idle row, which
writes behind what it holds. There is no prompt lookup here: the attention sums the single token of a row in another
order than several of a draft, so an answer would depend on when others leave it alone.

Where attention consists of plain operators, its sums have as many terms as the longest sequence of the run has tokens.
Sequences are decoded one by one there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...bundle.graph_io import INPUT_IDS, decoder_inputs, decoder_outputs
from ...bundle.manifest import DecoderFacts
from ...session.session import Session
from ..cache.cache_memory import zeros
from ..cache.kv_cache import Bound, cache_dtype, token_size
from ..cache.prefix_store import Ids, SavedPrefix, common_prefix
from ..model_runner import HostInput
from ..prompt_runs import PromptRuns

_HUGE_PAGE = 2 << 20
"""Bytes of a huge page on x86-64, and on most ARM systems."""
_NO_IDS: Ids = np.zeros(0, np.int64)


class Row:
    """What one row of the buffers holds: the tokens of a prompt, and of its answer."""

    def __init__(self, index: int) -> None:
        self.index = index
        """Where the row is now."""
        self.prompt = _NO_IDS
        """The ids of a prompt; the row may hold only the first of them."""
        self.length = 0
        """Number of cached tokens."""
        self.used = 0
        """When it was used last, as a count of sequences; 0: never."""

    @property
    def reusable(self) -> Ids:
        """The cached tokens of the prompt.

        Those of an answer are none of them: attention summed them one at a time, and in a prompt it sums several, with
        other bits.
        """
        return self.prompt[: self.length]

    def keep(self, prompt: Ids, length: int) -> None:
        """Hold the first tokens of this prompt, and no others."""
        self.prompt, self.length = prompt, length


class Slots:
    """The buffers of a batch, and the runs of the graph on them. Not thread-safe."""

    def __init__(
        self,
        session: Session,
        facts: DecoderFacts,
        *,
        rows: int,
        capacity: int,
        prefill_session: Session | None = None,
    ) -> None:
        """Allocate buffers for `rows` sequences of `capacity` tokens each; raises OutOfMemoryError.

        Prompts go through the graph of `prefill_session`, by default that of `session`, which decodes.
        """
        self.session = session
        self._prefill_session = prefill_session or session
        self.facts = facts
        self.capacity = capacity
        self.together = decodes_together(session, facts)
        """Whether one run decodes all sequences."""
        self.prompt_runs = PromptRuns.of(facts, session.device)
        self.rows = [Row(index) for index in range(rows)]
        shape = (rows, facts.kv_heads, capacity, facts.head_size)
        dtype = cache_dtype(facts)
        # They make decoding 4% faster. Where the tokens of each head begin on a page of their own, the first ones
        # would take all of the memory at once.
        huge = capacity * facts.head_size * dtype.itemsize < _HUGE_PAGE
        self.buffers = [zeros(shape, dtype, huge_pages=huge) for _ in range(2 * facts.layers)]
        self._decoding: dict[int, Bound] = {}
        """Bindings of runs that decode the first rows, by their number."""
        self._alone: dict[int, Bound] = {}
        """Those of runs that decode one row, by its index."""
        self._values: dict[int, list[Any]] = {}
        """The OrtValues of one row's part of each buffer, by its index."""

    @property
    def size(self) -> int:
        """Bytes of the buffers."""
        return len(self.rows) * self.capacity * token_size(self.facts)

    def prefill(self, row: Row, count: int, options: Any) -> NDArray[np.float32]:
        """Run the next `count` tokens of a row's prompt: the logits (vocabulary,) after the last of them.

        The number is even, or the tokens are the prompt's last; then a row of padding follows them. Raises BundleError
        and OutOfMemoryError; the row holds what it held then.
        """
        end = row.length + count
        ids = row.prompt[row.length : end]
        padding = count % 2
        if padding:
            ids = np.append(ids, ids[-1])
        bound = self._bind(self._row_values(row), rows=1, tokens=len(ids), positions=2, session=self._prefill_session)
        bound.input_ids.write(ids)
        bound.last_positions.write(end + padding - 1)
        bound.total_length.write(end + padding)
        self._run(bound, options)
        row.length = end
        logits: NDArray[np.float32] = bound.logits[0, 1 - padding]
        return logits

    def decode(self, tokens: Sequence[int], options: Any) -> NDArray[np.float32]:
        """Run one new token in each of the first rows: the logits (rows, vocabulary) after them.

        A row's token is written behind those that it holds, and counts only once the caller increments its length. The
        next run overwrites the array. Raises BundleError and OutOfMemoryError.
        """
        count = len(tokens)
        if count not in self._decoding:
            self._decoding[count] = self._bind(self._values_of(slice(0, count)), rows=count, tokens=1, positions=1)
        bound = self._decoding[count]
        lengths = [row.length for row in self.rows[:count]]
        bound.input_ids.write(np.reshape(tokens, (count, 1)))
        bound.last_positions.write(lengths)
        bound.total_length.write(max(lengths) + 1)
        self._run(bound, options)
        logits: NDArray[np.float32] = bound.logits[:, 0]
        return logits

    def decode_alone(self, row: Row, token: int, options: Any) -> NDArray[np.float32]:
        """Run one new token of one row, as `decode` does: the logits (vocabulary,) after it."""
        bound = self._alone.get(row.index)
        if bound is None:
            bound = self._alone[row.index] = self._bind(self._row_values(row), rows=1, tokens=1, positions=1)
        bound.input_ids.write(token)
        bound.last_positions.write(row.length)
        bound.total_length.write(row.length + 1)
        self._run(bound, options)
        logits: NDArray[np.float32] = bound.logits[0, 0]
        return logits

    def copy(self, source: Row, target: Row, length: int) -> None:
        """Let a row take the first `length` tokens of its prompt, beyond those that it holds, from another row."""
        _check_same(source.reusable, target.prompt, length)
        new = slice(target.length, length)
        for buffer in self.buffers:
            buffer[target.index, :, new] = buffer[source.index, :, new]
        target.length = length

    def restore(self, saved: SavedPrefix, target: Row, length: int) -> None:
        """Let a row take them from an entry of the prefix store."""
        _check_same(saved.ids, target.prompt, length)
        new = slice(target.length, length)
        for buffer, content in zip(self.buffers, saved.contents, strict=True):
            buffer[target.index, :, new] = content[:, new]
        target.length = length

    def saved(self, row: Row) -> SavedPrefix:
        """A copy of the cached tokens of a row's prompt; raises MemoryError."""
        ids = row.reusable
        return SavedPrefix(ids, (buffer[row.index, :, : len(ids)] for buffer in self.buffers))

    def swap(self, one: Row, other: Row) -> None:
        """Exchange the places of two rows."""
        for buffer in self.buffers:
            first, second = buffer[one.index], buffer[other.index]
            held = first[:, : one.length].copy()
            first[:, : other.length] = second[:, : other.length]
            second[:, : one.length] = held
        one.index, other.index = other.index, one.index
        self.rows[one.index], self.rows[other.index] = one, other

    def _run(self, bound: Bound, options: Any) -> None:
        try:
            bound.session.run_with_iobinding(bound.binding, options)
        # onnxruntime's exceptions share no base class but Exception.
        except Exception as error:
            raise self.session.failure("run", error, needed=self.size) from error

    def _row_values(self, row: Row) -> list[Any]:
        if row.index not in self._values:
            self._values[row.index] = self._values_of(slice(row.index, row.index + 1))
        return self._values[row.index]

    def _values_of(self, rows: slice) -> list[Any]:
        """OrtValues of these rows of each buffer, which they are views of."""
        return [HostInput.of(buffer[rows]).value for buffer in self.buffers]

    def _bind(
        self, caches: Sequence[Any], *, rows: int, tokens: int, positions: int, session: Session | None = None
    ) -> Bound:
        """Bind the graph to these parts of the buffers, past and present to the same ones, and to new arrays."""
        facts, opened = self.facts, (session or self.session).session
        bound = Bound(
            session=opened,
            binding=opened.io_binding(),
            input_ids=HostInput.of(np.zeros((rows, tokens), np.int64)),
            last_positions=HostInput.of(np.zeros(rows, np.int32)),
            total_length=HostInput.of(np.zeros((), np.int32)),
            logits=np.zeros((rows, positions, facts.vocabulary), np.float32),
        )
        wanted = HostInput.of(np.arange(tokens - positions, tokens, dtype=np.int64))
        inputs = [bound.input_ids, bound.last_positions, bound.total_length, wanted]
        for name, value in zip(decoder_inputs(facts.layers), [*(one.value for one in inputs), *caches], strict=True):
            bound.binding.bind_ortvalue_input(name, value)
        outputs = [HostInput.of(bound.logits).value, *caches]
        for name, value in zip(decoder_outputs(facts.layers), outputs, strict=True):
            bound.binding.bind_ortvalue_output(name, value)
        return bound


def decodes_together(session: Session, facts: DecoderFacts) -> bool:
    """Whether the graph decodes several sequences in one run, with the bits that each would have alone."""
    batch = next(value.shape[0] for value in session.session.get_inputs() if value.name == INPUT_IDS)
    return not facts.plain_attention and not isinstance(batch, int)


def _check_same(source: Ids, target: Ids, length: int) -> None:
    """Raise RuntimeError where a prompt would get the cached tokens of another."""
    if common_prefix(source, target[:length]) != length:
        raise RuntimeError(f"the first {length} tokens of two prompts are not the same")
