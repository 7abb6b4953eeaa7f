"""Run a decoder's graph on new tokens: updates the KV cache in place and returns logits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..bundle.graph_io import (
    INPUT_IDS,
    LAST_POSITIONS,
    LOGIT_POSITIONS,
    LOGITS,
    TOTAL_LENGTH,
    decoder_inputs,
    decoder_outputs,
)
from ..bundle.manifest import CacheType, DecoderFacts
from ..errors import BundleError, InputError
from ..session.cpu import needs_even_rows
from ..session.onnxruntime_import import load_onnxruntime
from ..session.session import FLOATS, Session
from .cache.cache_memory import memory_of
from .cache.kv_cache import Bound, KVCache, Written

_INT64, _INT32 = "tensor(int64)", "tensor(int32)"
_GRAPH_TYPES: Mapping[CacheType, str] = {
    CacheType.FLOAT32: FLOATS,
    CacheType.FLOAT16: "tensor(float16)",
    CacheType.INT8: "tensor(int8)",
}
"""onnxruntime's names for the types of the KV cache."""
_KEPT_TOKENS = 16
"""Bindings for up to this many new tokens are kept: answers reuse a few, prompts have one each."""
_HOST = "Cpu"
"""onnxruntime's name for the process's memory."""


@dataclass(frozen=True)
class HostInput:
    """An input in the process's memory; the run reads the array that is bound."""

    array: NDArray[Any]
    value: Any

    @classmethod
    def of(cls, array: NDArray[Any]) -> HostInput:
        return cls(array, load_onnxruntime().OrtValue.ortvalue_from_numpy(array))

    def write(self, content: object) -> None:
        self.array[...] = content


@dataclass(frozen=True)
class DeviceInput:
    """An input in the memory of a device. An array bound to such an input would be copied once, and stay as it was."""

    array: NDArray[Any]
    """What is written next."""
    value: Any

    @classmethod
    def of(cls, array: NDArray[Any], session: Session) -> DeviceInput:
        return cls(array, session.value(array))

    def write(self, content: object) -> None:
        self.array[...] = content
        self.value.update_inplace(self.array)


def _inputs_on_device(session: Session) -> frozenset[str]:
    """Return the names of the graph's inputs that the session wants on its device, empty for the CPU.

    Kernels want some inputs in the process's memory on any device, such as the total length of an attention.
    """
    if session.device == "cpu":
        return frozenset()
    graph = session.session
    found = zip(graph.get_inputs(), graph.get_input_memory_infos(), strict=True)
    return frozenset(value.name for value, memory in found if memory.name != _HOST)


def check_interface(session: Session, facts: DecoderFacts) -> None:
    """Raise BundleError where a graph's inputs or outputs are not those of its manifest."""
    cached = _GRAPH_TYPES[facts.cache_type]
    found = session.session.get_inputs()[-1].type
    if found != cached:
        raise BundleError(
            f"the graph `{session.path}` has a KV cache of type `{found}`, and the manifest says "
            f"{facts.cache_type.value}"
        )
    types = {INPUT_IDS: _INT64, LAST_POSITIONS: _INT32, TOTAL_LENGTH: _INT32, LOGIT_POSITIONS: _INT64, LOGITS: FLOATS}
    inputs, outputs = session.session.get_inputs(), session.session.get_outputs()
    names = decoder_outputs(facts.layers)
    given = [value.name for value in outputs]
    if given != list(names):
        raise BundleError(f"the graph `{session.path}` has the outputs {given}, and a decoder has {list(names)}")
    sizes = {LOGITS: (1, None, facts.vocabulary)}
    cache = (1, facts.kv_heads, None, facts.head_size)
    for value in (*inputs, *outputs):
        wanted = types.get(value.name, cached)
        if value.type != wanted:
            raise BundleError(f"`{value.name}` of the graph `{session.path}` must be `{wanted}`, not `{value.type}`")
        shape = sizes.get(value.name, None if value.name in types else cache)
        if shape is not None and not _agrees(value.shape, shape):
            raise BundleError(
                f"`{value.name}` of the graph `{session.path}` has the shape {value.shape}, which is not that of the "
                "manifest's decoder"
            )


def _agrees(found: Sequence[object], wanted: Sequence[int | None]) -> bool:
    """Whether a graph's shape, in which names and None are any size, matches."""
    return len(found) == len(wanted) and all(
        own == size for own, size in zip(found, wanted, strict=True) if isinstance(own, int) and size is not None
    )


class ModelRunner:
    """Runs a decoder's graph for one answer; `stop` ends a run from another thread.

    Where there is a graph for prompts, prompts go through it, whatever their number of tokens, and generated tokens
    through the other, so an answer does not depend on how its prompt is split.
    """

    def __init__(self, session: Session, cache: KVCache, prefill_session: Session | None = None) -> None:
        self.session = session
        self.prefill_session = prefill_session or session
        self.cache = cache
        self._turn: int | None = None
        self.options = load_onnxruntime().RunOptions()

    def run(self, ids: Sequence[int], positions: int = 1, *, session: Session | None = None) -> NDArray[np.float32]:
        """Run on new tokens: logits (positions, vocabulary) after each of the last `positions` of them.

        `session` has another graph than the one that decodes.
        The next run overwrites the array. Raises BundleError where the run fails or was stopped, and OutOfMemoryError;
        the tokens are not cached then. Raises InputError if another answer has begun to use the cache since the first
        run.
        """
        cache, session = self.cache, session or self.session
        if self._turn is None:
            cache.turn += 1
            self._turn = cache.turn
            cache.move_to(memory_of(session))
        self._check_turn()
        length = cache.length + len(ids)
        cache.reserve(length)
        bound = cache.bindings.get((len(ids), positions))
        # Another decoder of the same bundle may use the cache with a session of its own.
        if bound is None or bound.session is not session.session:
            bound = self._bind(session, len(ids), positions)
        bound.input_ids.write(ids)
        bound.last_positions.write(length - 1)
        bound.total_length.write(length)
        try:
            session.session.run_with_iobinding(bound.binding, self.options)
        # onnxruntime's exceptions share no base class but Exception.
        except Exception as error:
            raise session.failure("run", error, needed=cache.size) from error
        self._check_turn()
        cache.ids.extend(ids)
        logits: NDArray[np.float32] = bound.logits[0]
        return logits

    def prefill(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """Prefill tokens of a prompt: logits (1, vocabulary) after the last one.

        On the CPU, an odd number of tokens is padded with one row (`needs_even_rows`), which is then dropped from the
        cache. KV cache and logits do not depend on how a prompt is split into runs then; on a GPU they do.
        """
        session = self.prefill_session
        if not needs_even_rows(session.device):
            return self.run(ids, session=session)
        if len(ids) % 2 == 0:
            return self.run(ids, 2, session=session)[1:]
        logits = self.run([*ids, ids[-1]], 2, session=session)[:1]
        self.cache.rewind(self.cache.length - 1)
        return logits

    def _check_turn(self) -> None:
        """Raise InputError if the cache holds what another answer wrote since."""
        if self._turn != self.cache.turn:
            raise InputError(
                "another answer has used this KV cache since, so this one cannot continue",
                hint="give each answer a cache of its own, or finish one before the next begins",
            )

    def stop(self) -> None:
        """Make the current run, and all later ones, fail at their next operator."""
        self.options.terminate = True

    def _bind(self, session: Session, tokens: int, positions: int) -> Bound:
        """Bind the graph to the cache's buffers, past and present to the same one, and to new buffers for the rest.

        Logits are in the process's memory on any device: each run copies them there.
        """
        facts, on_device = self.cache.facts, _inputs_on_device(session)

        def written(name: str, array: NDArray[Any]) -> Written:
            return DeviceInput.of(array, session) if name in on_device else HostInput.of(array)

        bound = Bound(
            session=session.session,
            binding=session.session.io_binding(),
            input_ids=written(INPUT_IDS, np.zeros((1, tokens), np.int64)),
            last_positions=written(LAST_POSITIONS, np.zeros(1, np.int32)),
            total_length=written(TOTAL_LENGTH, np.zeros((), np.int32)),
            logits=np.zeros((1, positions, facts.vocabulary), np.float32),
        )
        wanted = written(LOGIT_POSITIONS, np.arange(tokens - positions, tokens, dtype=np.int64))
        inputs = (bound.input_ids, bound.last_positions, bound.total_length, wanted)
        caches = list(map(self.cache.memory.value, self.cache.buffers))
        logits = HostInput.of(bound.logits).value
        for name, value in zip(decoder_inputs(facts.layers), [*(one.value for one in inputs), *caches], strict=True):
            bound.binding.bind_ortvalue_input(name, value)
        for name, value in zip(decoder_outputs(facts.layers), [logits, *caches], strict=True):
            bound.binding.bind_ortvalue_output(name, value)
        if tokens <= _KEPT_TOKENS:
            self.cache.bindings[tokens, positions] = bound
        return bound
