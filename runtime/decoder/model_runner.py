"""Run a decoder's graph on new tokens: updates the KV cache in place and returns logits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
from ..session.onnxruntime_import import load_onnxruntime
from ..session.session import FLOATS, Session, failure
from .kv_cache import Bound, KVCache

_INT64, _INT32 = "tensor(int64)", "tensor(int32)"
GRAPH_TYPES: Mapping[CacheType, str] = {CacheType.FLOAT32: FLOATS, CacheType.FLOAT16: "tensor(float16)"}
"""onnxruntime's names for the types of the KV cache."""
_KEPT_TOKENS = 16
"""Bindings for up to this many new tokens are kept: answers reuse a few, prompts have one each."""


def check_interface(session: Session, facts: DecoderFacts) -> None:
    """Raise BundleError where a graph's inputs or outputs are not those of its manifest."""
    cached = GRAPH_TYPES[facts.cache_type]
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
    """Runs a decoder's graph for one answer; `stop` ends a run from another thread."""

    def __init__(self, session: Session, cache: KVCache) -> None:
        self.session = session
        self.cache = cache
        self._turn: int | None = None
        self.options = load_onnxruntime().RunOptions()

    def run(self, ids: Sequence[int], positions: int = 1) -> NDArray[np.float32]:
        """Run on new tokens: logits (positions, vocabulary) after each of the last `positions` of them.

        The next run overwrites the array. Raises BundleError where the run fails or was stopped; the tokens are not
        cached then. Raises InputError if another answer has begun to use the cache since the first run.
        """
        cache = self.cache
        if self._turn is None:
            cache.turn += 1
            self._turn = cache.turn
        self._check_turn()
        length = cache.length + len(ids)
        cache.reserve(length)
        bound = cache.bindings.get((len(ids), positions))
        # Another decoder of the same bundle may use the cache with a session of its own.
        if bound is None or bound.session is not self.session.session:
            bound = self._bind(len(ids), positions)
        bound.input_ids[0] = ids
        bound.last_positions[0] = length - 1
        bound.total_length[()] = length
        try:
            self.session.session.run_with_iobinding(bound.binding, self.options)
        # onnxruntime's exceptions share no base class but Exception.
        except Exception as error:
            raise failure(self.session.path, "run", error, needed=cache.size) from error
        self._check_turn()
        cache.ids.extend(ids)
        logits: NDArray[np.float32] = bound.logits[0]
        return logits

    def prefill(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """Prefill tokens of a prompt: logits (1, vocabulary) after the last one.

        An odd number of tokens is padded with one row, which is then dropped from the cache: onnxruntime's 4-bit
        kernels (MatMulNBits, group size 64 and 128) compute the last row of an odd number like a single row, with other
        bits. With an even number in every run, KV cache and logits do not depend on how a prompt is split into runs.
        """
        if len(ids) % 2 == 0:
            return self.run(ids, 2)[1:]
        logits = self.run([*ids, ids[-1]], 2)[:1]
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

    def _bind(self, tokens: int, positions: int) -> Bound:
        """Bind the graph to the cache's buffers, past and present to the same one, and to new buffers for the rest."""
        value_of = load_onnxruntime().OrtValue.ortvalue_from_numpy
        facts = self.cache.facts
        bound = Bound(
            session=self.session.session,
            binding=self.session.session.io_binding(),
            input_ids=np.zeros((1, tokens), np.int64),
            last_positions=np.zeros(1, np.int32),
            total_length=np.zeros((), np.int32),
            logits=np.zeros((1, positions, facts.vocabulary), np.float32),
        )
        inputs: list[NDArray[Any]] = [bound.input_ids, bound.last_positions, bound.total_length]
        inputs.append(np.arange(tokens - positions, tokens))
        caches = list(map(value_of, self.cache.buffers))
        for name, value in zip(decoder_inputs(facts.layers), [*map(value_of, inputs), *caches], strict=True):
            bound.binding.bind_ortvalue_input(name, value)
        for name, value in zip(decoder_outputs(facts.layers), [value_of(bound.logits), *caches], strict=True):
            bound.binding.bind_ortvalue_output(name, value)
        if tokens <= _KEPT_TOKENS:
            self.cache.bindings[tokens, positions] = bound
        return bound
