from __future__ import annotations

import dataclasses
import errno
import mmap
import os
import sys
from pathlib import Path

import numpy as np
import pytest

from ortkit import InputError, OutOfMemoryError
from ortkit.runtime.bundle.manifest import CacheType, DecoderFacts, GenerationDefaults
from ortkit.runtime.decoder.cache.cache_memory import LARGE, zeros
from ortkit.runtime.decoder.cache.kv_cache import FIRST_CAPACITY, SPARE, KVCache, token_size

FACTS = DecoderFacts(
    context_length=5000,
    sliding_window=None,
    layers=3,
    kv_heads=2,
    head_size=8,
    vocabulary=10,
    bos_id=None,
    add_bos=False,
    eos_ids=(),
    chat=None,
    generation=GenerationDefaults(),
)
TOKEN = 3 * 2 * 2 * 8 * 4


def filled(tokens: int, facts: DecoderFacts = FACTS) -> KVCache:
    cache = KVCache(facts)
    cache.reserve(tokens)
    cache.ids = list(range(tokens))
    for place, buffer in enumerate(cache.buffers):
        buffer[:, :, :tokens] = np.random.default_rng(place).normal(size=(1, 2, tokens, 8))
    return cache


def test_no_memory_is_allocated_before_it_is_needed() -> None:
    cache = KVCache(FACTS)

    assert (cache.size, cache.capacity, cache.length, cache.buffers) == (0, 0, 0, [])


def test_buffers_double_and_keep_their_content() -> None:
    cache = filled(200)
    before = [buffer[:, :, :200].copy() for buffer in cache.buffers]
    assert cache.capacity == FIRST_CAPACITY
    assert token_size(FACTS) == TOKEN

    cache.reserve(FIRST_CAPACITY + 1)

    assert cache.capacity == 2 * FIRST_CAPACITY
    assert cache.size == sum(buffer.nbytes for buffer in cache.buffers) == 2 * FIRST_CAPACITY * TOKEN
    for buffer, old in zip(cache.buffers, before, strict=True):
        assert buffer.shape == (1, 2, 2 * FIRST_CAPACITY, 8)
        assert buffer.flags.c_contiguous
        assert np.array_equal(buffer[:, :, :200], old)


@pytest.mark.parametrize(("kind", "dtype", "share"), [(CacheType.FLOAT16, np.float16, 2), (CacheType.INT8, np.int8, 4)])
def test_smaller_types_take_fewer_bytes(kind: CacheType, dtype: type[np.generic], share: int) -> None:
    facts = dataclasses.replace(FACTS, cache_type=kind)
    cache = filled(200, facts)
    before = [buffer[:, :, :200].copy() for buffer in cache.buffers]
    assert share * token_size(facts) == TOKEN

    cache.reserve(FIRST_CAPACITY + 1)

    assert cache.size == sum(buffer.nbytes for buffer in cache.buffers) == 2 * FIRST_CAPACITY * TOKEN // share
    for buffer, old in zip(cache.buffers, before, strict=True):
        assert buffer.dtype == dtype
        assert np.array_equal(buffer[:, :, :200], old)
    assert KVCache(facts, available=lambda: SPARE + 1200 * TOKEN).largest_that_fits() == 1200 * share


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_outgrown_buffers_are_freed() -> None:
    """The buffers of Mistral-7B: 256 KiB for each token of all layers together."""
    cache = KVCache(dataclasses.replace(FACTS, layers=32, kv_heads=8, head_size=128))
    before = resident()
    cache.reserve(FIRST_CAPACITY)
    for buffer in cache.buffers:
        buffer[:] = 1
    cache.ids = [0] * FIRST_CAPACITY

    cache.reserve(2 * FIRST_CAPACITY)

    assert cache.size == 2 * FIRST_CAPACITY << 18
    assert resident() - before < FIRST_CAPACITY * (1 << 18) + (8 << 20), "the tokens that it holds, once"


def resident() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:")) * 1024


def test_buffers_end_at_the_limit() -> None:
    cache = KVCache(FACTS)

    cache.reserve(4999)

    assert cache.capacity == 5000
    with pytest.raises(InputError) as caught:
        cache.reserve(5001)
    assert caught.value.message == "the cache has a limit of 5000 tokens, and 5001 were requested"


def test_too_many_tokens_are_refused_before_allocation() -> None:
    cache = KVCache(FACTS, available=lambda: SPARE + 1500 * TOKEN + 1)

    with pytest.raises(OutOfMemoryError) as caught:
        cache.reserve(4000)

    assert caught.value.message == ("the KV cache of 4000 tokens takes 1 MiB, and there is memory for 1500 tokens")
    assert caught.value.hint == "free memory, or ask for at most 1500 tokens (`max_tokens`)"
    assert caught.value.exit_code == 9
    assert cache.buffers == []
    cache.reserve(1400)
    assert cache.capacity == 1500, "where memory is short, not all that doubling would take"


def test_where_nothing_fits() -> None:
    with pytest.raises(OutOfMemoryError) as caught:
        KVCache(FACTS, available=lambda: 1000).reserve(1)

    assert caught.value.message.endswith("there is memory for 0 tokens")
    assert caught.value.hint == "free memory or raise the limit on it, or run on a machine that has more"


def test_without_a_known_limit_nothing_is_refused() -> None:
    cache = KVCache(FACTS, available=lambda: None)

    assert cache.largest_that_fits() == 5000
    cache.reserve(5000)


def test_its_own_buffers_count_as_free_when_it_grows() -> None:
    cache = KVCache(FACTS, available=lambda: SPARE + 100 * TOKEN)
    cache.reserve(50)
    assert cache.capacity == 100

    assert cache.largest_that_fits() == 200


def test_allocated_capacity_fits_however_little_is_free() -> None:
    cache = KVCache(FACTS, available=lambda: SPARE + 1000 * TOKEN)
    cache.reserve(100)
    assert cache.capacity == FIRST_CAPACITY

    cache.available = lambda: 0

    assert cache.largest_that_fits() == FIRST_CAPACITY
    cache.reserve(FIRST_CAPACITY)
    with pytest.raises(OutOfMemoryError, match=f"there is memory for {FIRST_CAPACITY} tokens"):
        cache.reserve(FIRST_CAPACITY + 1)


class Pages(mmap.mmap):
    """Memory of a system that refuses the advice, and after some buffers everything."""

    left = 1000

    def __new__(cls, *arguments: object, **options: object) -> Pages:  # noqa: PYI034 - Self came with Python 3.11
        if not cls.left:
            raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
        cls.left -= 1
        return super().__new__(cls, *arguments, **options)

    def madvise(self, *_: object) -> None:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))


@pytest.mark.skipif(not hasattr(mmap, "MADV_HUGEPAGE"), reason="needs huge pages")
def test_a_system_that_refuses_large_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ortkit.runtime.decoder.cache.cache_memory.mmap.mmap", Pages)

    buffer = zeros((LARGE,), np.dtype(np.float32))

    assert not buffer.any()


@pytest.mark.parametrize("given", [0, 1, 2, 5])
def test_an_allocation_that_fails(monkeypatch: pytest.MonkeyPatch, given: int) -> None:
    cache = filled(200)
    before = [buffer[:, :, :200].copy() for buffer in cache.buffers]
    empty = KVCache(FACTS)
    monkeypatch.setattr("ortkit.runtime.decoder.cache.cache_memory.mmap.mmap", Pages)

    for grown in (cache, empty):
        monkeypatch.setattr(Pages, "left", given)
        with pytest.raises(OutOfMemoryError) as caught:
            grown.reserve(1000)
        assert caught.value.message == ("the system does not give 0 MiB for the KV cache: Cannot allocate memory")
        assert caught.value.hint == "free memory, or ask for fewer tokens"
        assert caught.value.exit_code == 9

    assert (empty.capacity, empty.buffers) == (0, [])
    assert (cache.capacity, cache.length) == (FIRST_CAPACITY, 200)
    monkeypatch.setattr(Pages, "left", 1000)
    for capacity in (FIRST_CAPACITY, 2 * FIRST_CAPACITY):
        cache.reserve(capacity)
        for buffer, old in zip(cache.buffers, before, strict=True):
            assert buffer.shape == (1, 2, capacity, 8)
            assert buffer.flags.c_contiguous
            assert np.array_equal(buffer[:, :, :200], old)


def test_rewinding_forgets_and_the_common_prefix_is_found() -> None:
    cache = filled(10)

    assert cache.common_prefix([0, 1, 2, 7, 4]) == 3
    assert cache.common_prefix(list(range(20))) == 10
    assert cache.common_prefix([0, 1]) == 2
    assert cache.common_prefix([]) == 0
    cache.rewind(3)
    assert cache.ids == [0, 1, 2]
    assert cache.capacity == FIRST_CAPACITY


@pytest.mark.parametrize("length", [-1, 11])
def test_rewinding_past_the_end(length: int) -> None:
    with pytest.raises(InputError) as caught:
        filled(10).rewind(length)

    assert caught.value.message == f"the cache holds 10 tokens and cannot be rewound to {length}"


@pytest.mark.parametrize(
    ("prompt", "tokens", "hint"),
    [
        (100, 4000, "free memory, or ask for at most 1400 tokens (`max_tokens`)"),
        (1600, 1601, "free memory, or shorten the prompt to fewer than 1500 tokens"),
        (1500, 1501, "free memory, or shorten the prompt to fewer than 1500 tokens"),
    ],
)
def test_a_hint_can_be_followed(prompt: int, tokens: int, hint: str) -> None:
    """It was to ask for a context of 1500, which would have said to raise the context."""
    cache = KVCache(FACTS, available=lambda: SPARE + 1500 * TOKEN)

    with pytest.raises(OutOfMemoryError) as caught:
        cache.check(tokens, prompt=prompt)
    assert caught.value.hint == hint
    shorter = min(prompt, 1499)
    cache.check(1500 if prompt == shorter else shorter + 1, prompt=shorter)
