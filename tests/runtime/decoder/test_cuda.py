from __future__ import annotations

import gc
import re
from itertools import count
from pathlib import Path

import numpy as np
import pytest

from ortkit import Bundle, Chat, Decoder, OutOfMemoryError
from ortkit.runtime.bundle.graph_io import INPUT_IDS, LAST_POSITIONS, LOGIT_POSITIONS, TOTAL_LENGTH
from ortkit.runtime.decoder.cache.kv_cache import FIRST_CAPACITY, token_size
from ortkit.runtime.decoder.model_runner import ModelRunner
from ortkit.runtime.decoder.token_choice import FinishReason
from tests.decoders import TinyDecoder
from tests.fake_cuda import DeviceValue, FakeCuda, bound_values

FOX = "The quick brown fox"


def on_cuda(bundle: Bundle, **options: int) -> Decoder:
    """A decoder whose session is on a GPU, as far as memory is concerned."""
    decoder = Decoder(bundle, threads=1)
    decoder.session = FakeCuda(decoder.session, **options)
    return decoder


@pytest.fixture
def cuda(written: tuple[Bundle, TinyDecoder]) -> Decoder:
    return on_cuda(written[0])


def prompt_of(reference: TinyDecoder, count: int) -> list[int]:
    return np.random.default_rng(1).integers(3, reference.vocabulary, count).tolist()


@pytest.mark.parametrize("chunk", [300, 17, 1])
def test_logits_are_the_models_however_its_tokens_come(cuda: Decoder, reference: TinyDecoder, chunk: int) -> None:
    """Inputs that the second run of the same shape does not see, or a cache of another buffer, give other logits."""
    ids = prompt_of(reference, 300)
    forward = ModelRunner(cuda.session, cuda.new_cache())

    parts = [ids[start : start + chunk] for start in range(0, 300, chunk)]
    found = np.concatenate([forward.run(part, len(part)).copy() for part in parts])

    np.testing.assert_allclose(found, reference.logits(ids), atol=5e-5)
    assert forward.cache.capacity > FIRST_CAPACITY, "grown, with what it held"
    assert all(isinstance(buffer, DeviceValue) for buffer in forward.cache.buffers)


@pytest.mark.parametrize("lookup", [True, False])
def test_an_answer_is_the_models(cuda: Decoder, reference: TinyDecoder, *, lookup: bool) -> None:
    ids = cuda.encode(FOX)

    answer = cuda.generate(FOX, max_tokens=80, lookup=lookup)

    assert [token.id for token in answer.tokens] == reference.greedy(ids, 80)


def test_inputs_are_where_the_session_wants_them(cuda: Decoder) -> None:
    forward = ModelRunner(cuda.session, cuda.new_cache())
    for _ in range(3):
        forward.run([5])

    bound = bound_values(cuda.session)
    assert len(cuda.session.bindings) == 1, "made once for all runs of one token"
    assert {name for name, value in bound.items() if not isinstance(value, DeviceValue)} == {TOTAL_LENGTH}
    assert {name: bound[name].updates for name in (INPUT_IDS, LAST_POSITIONS, LOGIT_POSITIONS)} == {
        INPUT_IDS: 3,
        LAST_POSITIONS: 3,
        LOGIT_POSITIONS: 0,
    }
    assert bound[TOTAL_LENGTH].numpy() == 3


def test_a_prompt_has_no_row_of_padding(cuda: Decoder) -> None:
    """It is for the same bits, which a GPU does not promise."""
    cache = cuda.prefill([5, 6, 7])

    assert bound_values(cuda.session)[INPUT_IDS].numpy().tolist() == [[5, 6, 7]]
    assert cache.ids == [5, 6, 7]


def test_a_cached_prompt_is_not_read_again(cuda: Decoder, reference: TinyDecoder) -> None:
    cache = cuda.prefill(FOX)
    ids = cuda.encode(f"{FOX} jumps")

    answer = cuda.generate(f"{FOX} jumps", cache=cache, max_tokens=5)

    assert answer.usage.cached_tokens == len(cuda.encode(FOX)) > 0
    assert [token.id for token in answer.tokens] == reference.greedy(ids, 5)
    cache.rewind(4)
    assert [token.id for token in cuda.generate(ids, cache=cache, max_tokens=5).tokens] == reference.greedy(ids, 5)


def test_a_saved_cache_is_that_of_any_device(cuda: Decoder, decoder: Decoder, tmp_path: Path) -> None:
    ids = cuda.encode(f"{FOX} jumps")
    cuda.save_cache(tmp_path / "from_cuda", cuda.prefill(FOX))
    decoder.save_cache(tmp_path / "from_cpu", decoder.prefill(FOX))
    expected = [token.logprob for token in decoder.generate(ids, max_tokens=9).tokens]

    for reader, name in ((decoder, "from_cuda"), (cuda, "from_cpu"), (cuda, "from_cuda")):
        cache = reader.load_cache(tmp_path / name)
        answer = reader.generate(ids, cache=cache, max_tokens=9)
        assert answer.usage.cached_tokens == len(reader.encode(FOX))
        np.testing.assert_allclose([token.logprob for token in answer.tokens], expected, atol=1e-4)


def test_a_cache_moves_to_the_session_that_uses_it(written: tuple[Bundle, TinyDecoder], decoder: Decoder) -> None:
    """onnxruntime binds values of a session's arena with that session alone."""
    first, second = on_cuda(written[0]), on_cuda(written[0])
    cache = first.prefill(FOX)

    for user in (second, decoder, first):
        answer = user.generate(f"{FOX} jumps", cache=cache, max_tokens=5)
        assert answer.usage.cached_tokens == len(first.encode(FOX))
        assert answer.text == decoder.generate(f"{FOX} jumps", max_tokens=5).text
        cache.rewind(len(first.encode(FOX)))
    gc.collect()
    assert second.session.left == 1 << 40, "nothing is left where it was"


def test_a_gpu_that_is_full_in_the_middle_of_an_answer(
    written: tuple[Bundle, TinyDecoder], reference: TinyDecoder
) -> None:
    """The first buffers fit, and one larger buffer: the second does not."""
    facts = written[0].manifest.decoder
    assert facts is not None
    first = FIRST_CAPACITY * token_size(facts)
    cuda = on_cuda(written[0], left=2 * first)
    ids = prompt_of(reference, FIRST_CAPACITY - 10)
    expected = reference.greedy(ids, 20)
    cache = cuda.new_cache()
    stream = cuda.stream(ids, cache=cache, max_tokens=20, lookup=False)
    found: list[int] = []

    with pytest.raises(OutOfMemoryError) as caught:
        found.extend(token.id for token in stream)

    assert re.fullmatch(
        r"there is no memory for \d+ bytes on the device; the answer so far, 11 tokens, is kept", caught.value.message
    )
    assert (caught.value.hint, caught.value.exit_code) == ("free some", 9)
    assert stream.text == cuda.tokenizer.decode(ids + expected[:11])[len(cuda.tokenizer.decode(ids)) :]
    assert (cache.capacity, cache.length) == (FIRST_CAPACITY, FIRST_CAPACITY)
    assert all(buffer.shape()[2] == FIRST_CAPACITY for buffer in cache.buffers)
    cuda.session.left = 1 << 40
    assert [*stream.steps.ids, *(token.id for token in stream)] == expected, "it continues where there is memory again"


def test_a_run_without_memory_leaves_the_answer_and_the_conversation(cuda: Decoder) -> None:
    whole = cuda.chat([{"role": "user", "content": FOX}], max_tokens=6)
    chat = Chat(cuda)
    stream = chat.send(FOX, max_tokens=6)
    begun = [next(stream).id for _ in range(3)]
    cuda.session.failing = MemoryError()

    with pytest.raises(OutOfMemoryError) as caught:
        next(stream)

    assert caught.value.message == (
        f"there is too little GPU memory to run `{cuda.session.path}`; the answer so far, 3 tokens, is kept"
    )
    assert [*begun, *(token.id for token in stream)] == [token.id for token in whole.tokens]
    assert chat.messages[-1].content == whole.text


def test_an_answer_that_is_not_streamed_is_kept_in_the_error(cuda: Decoder, decoder: Decoder) -> None:
    expected = decoder.generate(FOX, max_tokens=6)

    places = count()

    def failing(_: np.ndarray) -> int:
        if (place := next(places)) == 2:
            cuda.session.failing = MemoryError()
        return expected.tokens[place].id

    with pytest.raises(OutOfMemoryError, match="the answer so far, 3 tokens, is kept") as caught:
        cuda.generate(FOX, max_tokens=6, sampler=failing, lookup=False)

    answer = caught.value.answer
    assert [token.id for token in answer.tokens] == [token.id for token in expected.tokens[:3]]
    assert answer.text == "".join(token.text for token in answer.tokens)
    assert expected.text.startswith(answer.text)
    assert (answer.finish_reason, answer.usage.completion_tokens) == (FinishReason.LENGTH, 3)


def test_an_answer_that_is_cancelled_ends_however_its_run_fails(cuda: Decoder) -> None:
    """Where memory is short, a run that was stopped looks like one that failed for want of it."""
    stream = cuda.stream(FOX, max_tokens=6)
    next(stream)

    def cancelled(*_: object) -> np.ndarray:
        stream.cancel()
        raise OutOfMemoryError("no memory")

    stream.steps.forward.run = cancelled

    assert list(stream) == []
    assert stream.finish_reason is FinishReason.CANCELLED


def test_a_prompt_without_memory_has_no_answer_to_keep(cuda: Decoder) -> None:
    cuda.session.failing = MemoryError()

    with pytest.raises(OutOfMemoryError) as caught:
        cuda.generate(FOX, max_tokens=6)
    assert caught.value.answer is None
    assert caught.value.message == f"there is too little GPU memory to run `{cuda.session.path}`"


def test_a_cache_is_empty_where_even_its_old_buffers_do_not_fit_again(written: tuple[Bundle, TinyDecoder]) -> None:
    """Another program may take what is free in between."""
    cuda = on_cuda(written[0])
    cache = cuda.prefill([5, 6, 7])
    value = cuda.session.value

    def only_one(array: np.ndarray) -> DeviceValue:
        if len([one for one in cache.buffers if one is None or one.shape()[2] > FIRST_CAPACITY]) > 0:
            raise OutOfMemoryError("the device is full")
        return value(array)

    cuda.session.value = only_one
    with pytest.raises(OutOfMemoryError, match="the device is full"):
        cache.reserve(FIRST_CAPACITY + 1)

    assert (cache.ids, cache.buffers, cache.capacity, cache.size) == ([], [], 0, 0)
    cuda.session.value = value
    assert cuda.generate([5, 6, 7], cache=cache, max_tokens=3).usage.cached_tokens == 0
