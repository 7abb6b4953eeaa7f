"""The KV caches of a decoder within a limit on the memory."""

from __future__ import annotations

import re
import threading

import pytest

from ortkit import Decoder, OutOfMemoryError
from ortkit.runtime.decoder.cache.kv_cache import token_size
from ortkit.runtime.session.memory_limit import MARGIN, resident_memory

PROMPT = "The quick brown fox"


@pytest.fixture
def limited(decoder: Decoder) -> Decoder:
    """The shared decoder with a limit that leaves 32 MiB."""
    return Decoder(decoder.bundle, threads=1, max_memory=resident_memory() + (32 << 20))


def shrink(decoder: Decoder, tokens: int) -> None:
    """Leave room for the KV cache of so many tokens."""
    assert decoder.room is not None
    decoder.room.size = tokens * token_size(decoder.facts)


def test_answers_do_not_depend_on_the_limit(decoder: Decoder, limited: Decoder) -> None:
    ids = [index % decoder.facts.vocabulary for index in range(50)]

    expected, found = (one.generate(ids, max_tokens=20, top_logprobs=3) for one in (decoder, limited))
    assert [token.logprob for token in found.tokens] == [token.logprob for token in expected.tokens]
    assert found.text == expected.text


def test_the_room_is_told(limited: Decoder) -> None:
    assert limited.plan.fits == limited.context
    shrink(limited, 40)
    assert limited.plan.fits == 40
    assert limited.plan.max_memory == limited.max_memory


def test_what_does_not_fit_is_refused_before_it_is_tried(limited: Decoder) -> None:
    shrink(limited, 40)
    prompt = limited.count_tokens(PROMPT)

    with pytest.raises(OutOfMemoryError) as caught:
        limited.generate(PROMPT, max_tokens=45)
    tokens = prompt + 45
    assert caught.value.message.startswith(f"the KV cache of {tokens} tokens takes ")
    assert caught.value.message.endswith(", and there is memory for 40 tokens")
    assert re.fullmatch(
        r"raise `max_memory` \(`--max-memory \d+M`, ORTKIT_MAX_MEMORY\), or ask for at most "
        rf"{40 - prompt} tokens \(`max_tokens`\)",
        caught.value.hint or "",
    )
    # Without `max_tokens`, the answer is as long as fits.
    assert limited.generate(PROMPT, sampler=lambda _: 5).usage.total_tokens == 40


def test_caches_share_the_room(limited: Decoder) -> None:
    shrink(limited, 60)
    first = limited.prefill([3] * 20)
    held = first.capacity

    assert 21 <= held <= 60
    assert limited.new_cache().largest_that_fits() == 60 - held
    with pytest.raises(OutOfMemoryError):
        limited.prefill([3] * (61 - held))
    del first
    assert limited.new_cache().largest_that_fits() == 60


def test_caches_grow_one_at_a_time(limited: Decoder) -> None:
    """Two at once could both find the same room."""
    shrink(limited, 60)
    assert limited.room is not None
    found: list[int] = []

    with limited.room.growing:
        thread = threading.Thread(target=lambda: found.append(limited.prefill([3] * 20).length))
        thread.start()
        thread.join(0.2)
        assert found == []
    thread.join(60)
    assert found == [20]


def test_a_context_that_does_not_fit(decoder: Decoder) -> None:
    """One that was asked for; the model's own is not, and is shortened."""
    limited = Decoder(decoder.bundle, threads=1, max_memory=resident_memory() + (32 << 20))
    shrink(limited, 40)
    assert limited.room is not None

    limited.room.check_context(40)
    with pytest.raises(OutOfMemoryError) as caught:
        limited.room.check_context(50)
    assert caught.value.message.startswith("the KV cache of a context of 50 tokens takes ")
    assert caught.value.message.endswith("there is room for 40 tokens")
    assert (caught.value.hint or "").endswith("ORTKIT_MAX_MEMORY), or take a shorter context: `--context 40`")


def test_no_room_for_an_answer(decoder: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ortkit.runtime.decoder.decoder.check_opening", lambda *_, **__: None)

    with pytest.raises(OutOfMemoryError) as caught:
        Decoder(decoder.bundle, threads=1, max_memory=resident_memory() + MARGIN)
    assert caught.value.message.startswith(
        f"an answer of `{decoder.bundle.path}` with a context of 256 tokens takes this process to about "
    )


def test_the_limit_is_checked_before_anything_is_opened(decoder: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    def opened(*_: object) -> None:
        raise AssertionError("the tokenizer was opened")

    monkeypatch.setattr("ortkit.runtime.decoder.decoder.open_tokenizer", opened)
    with pytest.raises(OutOfMemoryError, match=r"^opening `"):
        Decoder(decoder.bundle, max_memory=1 << 20)
