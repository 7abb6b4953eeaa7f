from __future__ import annotations

import gc
import pickle
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ortkit import (
    Batch,
    BundleError,
    Decoder,
    FinishReason,
    InputError,
    OrtkitError,
    OutOfMemoryError,
    ProviderError,
    QueueFullError,
    TextTooLongError,
    Token,
)
from ortkit.runtime.decoder.batch import batch as batch_module
from ortkit.runtime.decoder.batch import batch_memory
from ortkit.runtime.decoder.batch.slots import Row, Slots
from ortkit.runtime.decoder.cache.kv_cache import token_size
from ortkit.runtime.session.memory import SPARE
from ortkit.runtime.session.memory_limit import resident_memory
from tests.batch_traffic import Request, alone, together, told
from tests.decoders import CONTEXT, TEXT, TinyDecoder, with_facts, write_decoder

FOX = "The quick brown fox"
LONG = 60
"""Seconds that no step takes, even on a busy machine."""


@pytest.fixture
def batch(decoder: Decoder) -> Iterator[Batch]:
    with Batch(decoder, slots=4, context=256) as opened:
        yield opened


def engines() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name == "ortkit-batch"}


@pytest.fixture
def earlier() -> set[threading.Thread]:
    """The engines that other tests keep, such as those of a server."""
    return engines()


def until(condition: Callable[[], bool]) -> None:
    """Wait for what another thread does."""
    end = time.monotonic() + LONG
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


class Gate:
    """A sampler that stops the engine at its first token until it is opened."""

    def __init__(self) -> None:
        self.reached, self.opened = threading.Event(), threading.Event()

    def __call__(self, logits: np.ndarray) -> int:
        self.reached.set()
        assert self.opened.wait(LONG)
        return int(logits.argmax())


def test_answers_are_those_of_the_model(batch: Batch, decoder: Decoder, reference: TinyDecoder) -> None:
    texts = [TEXT[start : start + 12 + start] for start in range(9)]

    streams = [batch.submit(text, max_tokens=9 + place) for place, text in enumerate(texts)]

    for place, (text, stream) in enumerate(zip(texts, streams, strict=True)):
        answer = stream.answer()
        assert [token.id for token in answer.tokens] == reference.greedy(decoder.encode(text), 9 + place)
        assert answer.text == stream.text == "".join(token.text for token in answer.tokens)
        assert answer.finish_reason is FinishReason.LENGTH
        assert answer.usage.prompt_tokens == len(decoder.encode(text))
        assert answer.usage.completion_tokens == 9 + place
        assert answer.rates.first_token_seconds > answer.rates.prompt_seconds > 0
        assert answer.rates.new_per_second > 0


def test_each_answer_has_its_own_options(batch: Batch, decoder: Decoder) -> None:
    """Those of one float32 row are as good as bit for bit those of two, so single answers are the reference."""
    options: list[dict] = [
        {"max_tokens": 20},
        {"max_tokens": 20, "temperature": 0.9, "seed": 3},
        {"max_tokens": 20, "temperature": 0.9, "seed": 4, "top_k": 20, "top_p": 0.9},
        {"max_tokens": 20, "repetition_penalty": 1.5, "frequency_penalty": 0.3},
        {"max_tokens": 20, "logit_bias": {9: 100.0}},
        {"max_tokens": 5, "sampler": lambda logits: int(logits.argsort()[-2])},
        {"max_tokens": 20, "stop": decoder.generate(FOX, max_tokens=9).text[3:6]},
        {"max_tokens": 3, "top_logprobs": 4},
        {},
    ]

    streams = [batch.submit(FOX, **one) for one in options]

    for one, stream in zip(options, streams, strict=True):
        expected = decoder.generate(FOX, **({"max_tokens": batch.context - len(decoder.encode(FOX))} | one))
        found = stream.answer()
        assert [token.id for token in found.tokens] == [token.id for token in expected.tokens]
        assert (found.text, found.finish_reason) == (expected.text, expected.finish_reason)
        for token, other in zip(found.tokens, expected.tokens, strict=True):
            assert token.logprob == pytest.approx(other.logprob, abs=1e-4)
            assert [top.id for top in token.top_logprobs] == [top.id for top in other.top_logprobs]


def test_a_conversation(batch: Batch, decoder: Decoder) -> None:
    messages = [{"role": "user", "content": FOX}]

    assert batch.submit_chat(messages, max_tokens=7).answer().text == decoder.chat(messages, max_tokens=7).text


def test_an_end_token_ends_an_answer(decoder: Decoder, reference: TinyDecoder) -> None:
    expected = reference.greedy(decoder.encode(FOX), 30)
    ends = next(place for place in range(5, 30) if expected[place] not in expected[:place])

    with Batch(with_facts(decoder, eos_ids=(expected[ends],)), slots=2, context=128) as batch:
        answer = batch.submit(FOX, max_tokens=30).answer()

    assert [token.id for token in answer.tokens] == expected[: ends + 1]
    assert answer.finish_reason is FinishReason.STOP


def test_an_answer_may_fill_the_context(decoder: Decoder) -> None:
    with Batch(decoder, slots=2, context=64) as batch:
        answers = [batch.submit([5] * length).answer() for length in (1, 62, 63)]

    assert [answer.usage.completion_tokens for answer in answers] == [63, 2, 1]


class Runs:
    """What the engine runs, in order: (what, rows or tokens)."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.done: list[tuple[str, int]] = []
        prefill, decode = Slots.prefill, Slots.decode

        def prefilled(slots: Slots, row: Row, count: int, options: object) -> np.ndarray:
            self.done.append(("prefill", count))
            return prefill(slots, row, count, options)

        def decoded(slots: Slots, tokens: list[int], options: object) -> np.ndarray:
            self.done.append(("decode", len(tokens)))
            return decode(slots, tokens, options)

        monkeypatch.setattr(Slots, "prefill", prefilled)
        monkeypatch.setattr(Slots, "decode", decoded)


def test_running_answers_do_not_stall_behind_long_prompts(batch: Batch, monkeypatch: pytest.MonkeyPatch) -> None:
    runs, gate = Runs(monkeypatch), Gate()
    running = batch.submit([7, 8], max_tokens=30, sampler=gate)
    gate.reached.wait(LONG)
    prompts = [batch.submit([20 + place] * 200, max_tokens=2) for place in range(3)]
    gate.opened.set()

    for stream in (running, *prompts):
        stream.answer()

    between = "".join(what[0] for what, _ in runs.done).strip("d")
    assert runs.done[0] == ("prefill", 2)
    assert "pp" not in between
    assert sum(count for what, count in runs.done if what == "prefill") == 2 + 3 * 200
    assert all(count % 2 == 0 for _, count in runs.done)
    assert max(count for what, count in runs.done if what == "prefill") <= 128
    assert {count for what, count in runs.done if what == "decode"} <= {2, 4}


def test_short_prompts_overtake_long_ones_but_not_for_ever(decoder: Decoder) -> None:
    order: list[str] = []
    with Batch(decoder, slots=8, context=600, prefix_bytes=0) as batch:
        gate = Gate()
        first = batch.submit([3, 4], max_tokens=1, sampler=gate)
        gate.reached.wait(LONG)

        def note(name: str) -> Callable[[Token | Exception], None]:
            return lambda _: order.append(name)

        batch.submit([5] * 500, max_tokens=1, listener=note("long"))
        for place in range(20):
            batch.submit([6 + place] * 100, max_tokens=1, listener=note(f"short {place}"))
        gate.opened.set()
        first.answer()
        until(lambda: len(order) == 21)

    assert order[0] == "short 0"
    # The seven beside it, and those that came until 400 tokens were prefilled.
    assert order.index("long") == 10


def test_finished_rows_are_not_computed(batch: Batch, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rows that go on move to the front."""
    runs = Runs(monkeypatch)
    streams = [batch.submit([5 + place, 6], max_tokens=length) for place, length in enumerate((3, 40, 3, 40))]

    for stream in streams:
        stream.answer()

    decoded = [count for what, count in runs.done if what == "decode"]
    assert decoded[-10:] == [2] * 10


@pytest.mark.parametrize("moment", ["waiting", "in its prompt", "running"])
def test_a_cancelled_answer_frees_its_slot(decoder: Decoder, moment: str) -> None:
    with Batch(decoder, slots=1, context=1000, prefix_bytes=0) as batch:
        gate = Gate()
        gate.opened.set()
        blocking = batch.submit([5, 6]) if moment == "waiting" else None
        stream = batch.submit([7] * 900, sampler=gate)
        if moment == "running":
            next(stream)
        elif moment == "in its prompt":
            until(lambda: batch.stats.running == 1)

        stream.cancel()

        assert list(stream) == []
        assert stream.finish_reason is FinishReason.CANCELLED
        if blocking is not None:
            assert batch.stats.running == 1
            blocking.close()
            assert blocking.finish_reason is FinishReason.CANCELLED
        until(lambda: batch.stats.running == 0)
        assert len(batch.submit(FOX, max_tokens=4).answer().tokens) == 4


def test_a_stream_ends_with_its_block(batch: Batch) -> None:
    with batch.submit(FOX) as stream:
        token = next(stream)
    stream.cancel()

    assert list(stream) == []
    assert stream.text == token.text
    assert stream.usage.completion_tokens == 1
    assert repr(stream) == "<BatchStream of 1 tokens, finished: cancelled>"
    until(lambda: batch.stats.running == 0)


def test_answers_are_cancelled_from_any_thread_at_any_time(batch: Batch) -> None:
    expected = told(batch.submit(FOX, max_tokens=30).answer())
    found, random = [], np.random.default_rng(1)

    def ask(delays: list[float]) -> None:
        for delay in delays:
            stream = batch.submit(FOX, max_tokens=30)
            timer = threading.Timer(delay, stream.cancel)
            timer.start()
            found.append(told(stream.answer()))
            timer.join()

    threads = [threading.Thread(target=ask, args=(random.uniform(0, 0.03, 8).tolist(),)) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(found) == 48
    assert all(one == expected[: len(one)] for one in found)
    until(lambda: batch.stats.running == batch.stats.waiting == 0)


def test_a_listener_gets_what_iteration_would(batch: Batch) -> None:
    expected = batch.submit(FOX, max_tokens=6).answer()
    heard: list[Token | Exception] = []

    stream = batch.submit(FOX, max_tokens=6, listener=heard.append)
    until(lambda: stream.finish_reason is not None)

    until(lambda: len(heard) == 6)
    assert [token.id for token in heard if isinstance(token, Token)] == [token.id for token in expected.tokens]
    assert stream.text == expected.text
    assert stream.usage.completion_tokens == 6
    with pytest.raises(InputError, match="go to its `listener`"):
        next(stream)


def test_a_cancelled_listener_hears_nothing_more(batch: Batch) -> None:
    heard: list[Token | Exception] = []
    stream = batch.submit(FOX, listener=heard.append)
    until(lambda: len(heard) > 2)

    stream.close()
    until(lambda: batch.stats.running == 0)
    count = len(heard)

    assert stream.finish_reason is FinishReason.CANCELLED
    assert len(batch.submit(FOX, max_tokens=5).answer().tokens) == 5
    assert len(heard) == count


@pytest.mark.parametrize("part", ["sampler", "listener"])
def test_an_error_of_the_callers_code_is_for_its_answer_alone(
    batch: Batch, part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[Token | Exception] = []

    def fail(given: object) -> int:
        heard.append(given)  # type: ignore[arg-type]
        if len(heard) <= 2:
            raise LookupError("the caller's")
        return 3

    other = batch.submit(FOX, max_tokens=20)
    if part == "sampler":
        with pytest.raises(LookupError, match="the caller's"):
            batch.submit(FOX, sampler=fail).answer()
    else:
        # It raises at the error too, which nobody can be told.
        raised: list[object] = []
        monkeypatch.setattr(threading, "excepthook", raised.append)
        batch.submit(FOX, listener=fail)
        until(lambda: len(raised) == 1)
        assert isinstance(heard[1], LookupError)

    assert len(other.answer().tokens) == 20
    assert batch.stats.running == 0


@pytest.mark.parametrize("part", ["sampler", "listener"])
def test_not_even_an_exit_or_a_panic_ends_the_engine(batch: Batch, part: str) -> None:
    """`Exception` is not a base class of theirs, and the thread of all answers would end at one."""

    class Panic(BaseException):
        pass

    def fail(given: object) -> int:
        if isinstance(given, Exception):
            heard.append(given)
            return 0
        raise Panic("stack overflow")

    heard: list[Exception] = []
    other = batch.submit(FOX, max_tokens=20)
    if part == "listener":
        batch.submit(FOX, listener=fail)
        until(lambda: len(heard) == 1)
    else:
        with pytest.raises(OrtkitError) as caught:
            batch.submit(FOX, sampler=fail).answer()
        heard.append(caught.value)

    assert str(heard[0]) == "the answer was ended by Panic: stack overflow"
    assert len(other.answer().tokens) == 20
    assert len(batch.submit(FOX, max_tokens=3).answer().tokens) == 3


def test_an_error_of_a_listener_at_the_last_token_is_shown(batch: Batch, monkeypatch: pytest.MonkeyPatch) -> None:
    raised: list[threading.ExceptHookArgs] = []
    monkeypatch.setattr(threading, "excepthook", raised.append)

    def fail(event: Token | Exception) -> None:
        if isinstance(event, Token) and event.finish_reason is not None:
            raise LookupError("the caller's")

    batch.submit(FOX, max_tokens=3, listener=fail)

    until(lambda: len(raised) == 1)
    assert isinstance(raised[0].exc_value, LookupError)
    assert batch.stats.running == 0


@pytest.mark.parametrize("what", ["prefill", "decode"])
def test_an_error_of_a_run_goes_to_its_answers(batch: Batch, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    expected = batch.submit(FOX, max_tokens=8).answer()
    original, failing = getattr(Slots, what), threading.Event()

    def run(*arguments: object) -> np.ndarray:
        if failing.is_set():
            failing.clear()
            raise OutOfMemoryError("there is no memory", hint="free some")
        found: np.ndarray = original(*arguments)
        return found

    monkeypatch.setattr(Slots, what, run)
    gate = Gate()
    streams = [batch.submit(FOX, max_tokens=8, sampler=gate), *(batch.submit(FOX, max_tokens=8) for _ in range(2))]
    gate.reached.wait(LONG)
    failing.set()
    gate.opened.set()
    answers, errors = [], []
    for stream in streams:
        try:
            answers.append(stream.answer())
        except OutOfMemoryError as error:
            errors.append(error)
            with pytest.raises(OutOfMemoryError):
                next(stream)

    assert len(errors) >= 1
    assert {str(error) for error in errors} == {"there is no memory\n\nhint: free some"}
    assert len(set(map(id, errors))) == len(errors)
    if what == "prefill":
        assert len(answers) == 2
    else:
        assert errors[0].answer is not None
        assert [token.id for token in errors[0].answer.tokens] == [token.id for token in expected.tokens[:1]]  # type: ignore[attr-defined]
    assert all([token.id for token in answer.tokens] == [t.id for t in expected.tokens] for answer in answers)
    assert told(batch.submit(FOX, max_tokens=8).answer()) == told(expected), "the engine continues"


def test_logits_that_are_not_numbers(batch: Batch, monkeypatch: pytest.MonkeyPatch) -> None:
    def advance(slots: Slots, row: Row, count: int, _options: object) -> np.ndarray:
        row.length += count
        return np.full(slots.facts.vocabulary, np.nan, np.float32)

    monkeypatch.setattr(Slots, "prefill", advance)

    with pytest.raises(BundleError, match="gives logits that are not finite numbers at token 0"):
        batch.submit(FOX).answer()


def test_a_bug_in_the_engine_ends_all_answers(batch: Batch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Slots, "decode", lambda *_: 1 / 0)

    with pytest.raises(ZeroDivisionError):
        batch.submit(FOX).answer()

    with pytest.raises(OrtkitError) as caught:
        batch.submit(FOX)
    assert caught.value.message == "the engine of the batch was ended by an error"


def test_a_full_queue(decoder: Decoder) -> None:
    gate = Gate()
    with Batch(decoder, slots=1, context=64, waiting=1) as batch:
        streams = [batch.submit(FOX, max_tokens=2, sampler=gate), batch.submit(FOX, max_tokens=2)]
        gate.reached.wait(LONG)
        assert (batch.stats.running, batch.stats.waiting) == (1, 1)

        with pytest.raises(QueueFullError) as caught:
            batch.submit(FOX)

        assert str(caught.value) == (
            "2 requests are running or waiting, and there is room for 2\n\nhint: send the request again later"
        )
        assert caught.value.exit_code == 9
        gate.opened.set()
        # The slot is free when the last token is there.
        for _ in range(20):
            assert len(streams.pop(0).answer().tokens) == 2
            streams.append(batch.submit(FOX, max_tokens=2))


def test_what_is_refused_before_anything_is_queued(batch: Batch) -> None:
    for options, message in (
        ({"temperature": -1.0}, "`temperature` must be 0 or more, not -1.0"),
        ({"top_logprobs": -1}, "`top_logprobs` must be from 0 to"),
        ({"stop": ""}, "stop string 0 is empty"),
        ({"max_tokens": 250}, "`max_tokens` is 250, and a prompt of 10 tokens leaves 246 in the context of 256"),
    ):
        with pytest.raises(InputError) as caught:
            batch.submit([5] * 10, **options)
        assert message in caught.value.message
    with pytest.raises(TextTooLongError) as long:
        batch.submit([5] * 256)
    assert long.value.message == (
        "the prompt has 256 tokens, 1 more than the context of 256 has room for with an answer"
    )
    assert long.value.hint == "shorten it, or raise `context`"
    with pytest.raises(InputError, match="the prompt is empty"):
        batch.submit("")
    with pytest.raises(TypeError, match="unexpected keyword argument `tempereature`; did you mean `temperature`"):
        batch.submit(FOX, tempereature=1)
    assert batch.stats.running == batch.stats.waiting == 0


def test_closing_ends_all_answers(decoder: Decoder, earlier: set[threading.Thread]) -> None:
    heard: list[Token | Exception] = []
    batch = Batch(decoder, slots=2, context=900)
    streams = [batch.submit([5] * 400) for _ in range(4)]
    batch.submit(FOX, listener=heard.append)
    assert repr(batch).startswith(f"<Batch '{decoder.bundle.path}': 2 slots of 900 tokens, ")

    batch.close()
    batch.close()

    for stream in streams:
        assert stream.answer().finish_reason is FinishReason.CANCELLED
    assert str(heard[-1]) == (
        f"the Batch of `{decoder.bundle.path}` is closed\n\nhint: make another one of its decoder: `Batch(decoder)`"
    )
    with pytest.raises(InputError, match="is closed"):
        batch.submit(FOX)
    assert (batch.stats.slots, batch.stats.running, batch.stats.waiting) == (2, 0, 0)
    assert repr(batch).endswith("closed>")
    assert not engines() - earlier


def test_a_batch_cannot_be_pickled(batch: Batch) -> None:
    with pytest.raises(TypeError, match="Batch cannot be pickled: make one in each process"):
        pickle.dumps(batch)


def test_closing_while_a_request_is_made(decoder: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    batch, made = Batch(decoder, slots=2, context=64), batch_module.TokenSequence

    def make_late(*arguments: Any) -> object:
        batch.close()
        return made(*arguments)

    monkeypatch.setattr(batch_module, "TokenSequence", make_late)

    with pytest.raises(InputError, match="is closed"):
        batch.submit(FOX)


def test_a_batch_that_nobody_uses_ends(decoder: Decoder, earlier: set[threading.Thread]) -> None:
    gate = Gate()
    stream = Batch(decoder, slots=2, context=64).submit(FOX, max_tokens=3, sampler=gate)
    gate.reached.wait(LONG)
    gc.collect()
    gate.opened.set()
    assert len(stream.answer().tokens) == 3, "an answer keeps its batch"
    reference = weakref.ref(stream._batch)

    del stream
    gc.collect()

    assert reference() is None
    until(lambda: not engines() - earlier)


def test_an_idle_engine_takes_no_time(batch: Batch) -> None:
    batch.submit(FOX, max_tokens=3).answer()
    began = time.process_time()

    time.sleep(0.5)

    assert time.process_time() - began < 0.1


SCRIPT = """
import os, sys, time
from ortkit import Batch, Decoder, InputError
batch = Batch(Decoder(sys.argv[1], threads=1), slots=2, context=1000)
stream = batch.submit("The quick brown fox")
next(stream)
waiting = [batch.submit("The lazy dog") for _ in range(5)]
{}
"""
FORK = """
child = os.fork()
if child == 0:
    for use in (lambda: batch.submit("The"), lambda: next(stream)):
        try:
            use()
        except InputError as error:
            print(error.message.replace(str(os.getppid()), "PARENT"), flush=True)
    sys.exit(0)
os.waitpid(child, 0)
print(stream.answer().finish_reason)
"""


@pytest.mark.parametrize("end", ["", "sys.exit(3)", "1 / 0", FORK])
def test_the_interpreters_exit_and_forks(decoder: Decoder, end: str) -> None:
    command = [sys.executable, "-W", "ignore", "-c", SCRIPT.format(end), str(decoder.bundle.path)]

    done = subprocess.run(command, capture_output=True, text=True, timeout=LONG, check=False)

    assert done.returncode == {"": 0, "sys.exit(3)": 3, "1 / 0": 1, FORK: 0}[end], done.stderr
    assert ("ZeroDivisionError" in done.stderr) == (end == "1 / 0")
    if end == FORK:
        belongs = f"the Batch of `{decoder.bundle.path}` belongs to process PARENT, which this one was forked from"
        assert done.stdout.splitlines() == [belongs, belongs, "stop"]


def test_prompts_that_begin_alike_are_prefilled_once(decoder: Decoder) -> None:
    beginning = [5 + place % 200 for place in range(150)]
    with Batch(decoder, slots=4, context=256) as batch:
        gate = Gate()
        first = batch.submit([9], max_tokens=1, sampler=gate)
        gate.reached.wait(LONG)
        # They come together, and the second takes what the first has prefilled meanwhile.
        streams = [batch.submit([*beginning, 30 + place], max_tokens=20) for place in range(3)]
        gate.opened.set()
        first.answer()

        assert [stream.answer().usage.cached_tokens for stream in streams] == [0, 150, 150]
        assert batch.submit([*beginning, 30], max_tokens=1).answer().usage.cached_tokens == 150, "all but the last"
        assert batch.submit(beginning[:40], max_tokens=1).answer().usage.cached_tokens == 39
        assert batch.submit([7, *beginning], max_tokens=1).answer().usage.cached_tokens == 0
        stats = batch.stats
        assert stats.cached_tokens == 150 * 3 + 39
        assert stats.prompt_tokens == 1 + 151 * 4 + 40 + 151
        assert stats.completion_tokens == 1 + 60 + 3


def test_tokens_of_an_answer_are_not_taken_for_a_prompts(batch: Batch) -> None:
    """They were summed in another order."""
    prompt = [5] * 50
    answer = [token.id for token in batch.submit(prompt, max_tokens=20).answer().tokens]

    turn = batch.submit([*prompt, *answer, 9], max_tokens=1).answer()

    assert turn.usage.cached_tokens == 50
    assert batch.submit([*prompt, *answer, 9, 9], max_tokens=1).answer().usage.cached_tokens == 71


def test_the_prefix_store_keeps_prompts_that_left_their_slots(decoder: Decoder) -> None:
    size = 60 * (token_size(decoder.facts) + 8)
    with Batch(decoder, slots=1, context=128, prefix_bytes=2 * size) as batch:

        def cached(first: int) -> int:
            return batch.submit([first] * 59 + [first + 1], max_tokens=1).answer().usage.cached_tokens

        # A slot of padding holds the one before.
        assert [cached(first) for first in (10, 20, 30, 40, 50)] == [0] * 5
        assert batch.stats.prefix_bytes == 2 * size
        assert [cached(first) for first in (50, 40)] == [59, 59]
        assert [cached(first) for first in (10, 20)] == [0, 0], "the oldest were dropped"
    with Batch(decoder, slots=1, context=128, prefix_bytes=0) as batch:
        assert [cached(first) for first in (10, 20, 30, 10)] == [0] * 4
        assert batch.stats.prefix_bytes == 0


@pytest.mark.parametrize("prefix_bytes", [0, 200_000, None])
def test_no_answer_is_that_to_another_prompt_under_load(decoder: Decoder, prefix_bytes: int | None) -> None:
    """Prompts differ in one token, early or late; slots and store are far too few, and answers are cancelled."""
    random = np.random.default_rng(3)
    common = random.integers(3, decoder.facts.vocabulary, 120).tolist()
    asked = []
    for place in range(30):
        prompt = list(common[: int(random.integers(60, 120))])
        prompt[int(random.choice((0, 33, 58, -1)))] = 3 + place
        asked.append(Request(prompt, {"max_tokens": int(random.integers(1, 12))}))
    expected = alone(decoder, asked, context=160)
    with Batch(decoder, slots=3, context=160, prefix_bytes=prefix_bytes) as batch:
        found: dict[int, object] = {}
        threads = [
            threading.Thread(target=lambda seed=seed: found.update({seed: together(batch, asked, seed)}))  # type: ignore[misc]
            for seed in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    assert found == dict.fromkeys(range(4), expected)


def test_a_copy_to_another_prompt_is_refused(decoder: Decoder) -> None:
    """Whatever the engine believes, tokens are compared where they are copied."""
    slots = Slots(decoder.session, decoder.facts, rows=2, capacity=64)
    source, target = slots.rows
    source.keep(np.array([5, 6, 7, 8]), 4)
    target.keep(np.array([5, 6, 9, 8]), 0)

    slots.copy(source, target, 2)
    assert target.length == 2
    for take in (
        lambda: slots.copy(source, target, 3),
        lambda: slots.restore(slots.saved(source), target, 4),
        lambda: slots.copy(source, target, 5),
    ):
        with pytest.raises(RuntimeError, match="tokens of two prompts are not the same"):
            take()


def test_memory_is_refused_before_it_is_taken(decoder: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    row = 4 * token_size(decoder.facts)
    logits = 3 * 4 * 4 * decoder.facts.vocabulary
    monkeypatch.setattr(batch_memory, "available_memory", lambda: SPARE + logits + 100 * row)

    with pytest.raises(OutOfMemoryError) as caught:
        Batch(decoder, slots=4, context=101, prefix_bytes=0)
    assert caught.value.message == (
        "the KV cache of 4 slots with a context of 101 tokens takes 0 MiB, and there is memory for 100 tokens in each"
    )
    assert caught.value.hint == "free memory, or take `context=100` or fewer slots"
    with Batch(decoder, slots=4, context=100, prefix_bytes=0) as batch:
        assert batch.context == 100
    monkeypatch.setattr(batch_memory, "available_memory", lambda: SPARE + logits + 800 * row)
    with Batch(decoder, slots=4, prefix_bytes=0) as batch:
        assert batch.context == 400, "half of the free memory"
    monkeypatch.setattr(batch_memory, "available_memory", lambda: SPARE + logits + 1 * row)
    with pytest.raises(OutOfMemoryError) as caught:
        Batch(decoder, slots=4, prefix_bytes=0)
    assert caught.value.hint == "free memory, or take fewer slots"
    monkeypatch.setattr(batch_memory, "available_memory", lambda: None)
    with Batch(decoder, slots=4) as batch:
        assert batch.context == CONTEXT


def test_max_memory_covers_slots_and_store(decoder: Decoder) -> None:
    # What the process has and the tokenizer may take, and room for some thousand tokens.
    mebibytes = 1024 + resident_memory() // (1 << 20)
    limited = Decoder(decoder.bundle, threads=1, max_memory=mebibytes << 20)
    assert limited.room is not None
    free = limited.room.available()

    with Batch(limited, slots=4, context=512, prefix_bytes=1 << 20) as batch:
        assert batch.size == 4 * 512 * token_size(decoder.facts) + (1 << 20)
        assert limited.room.available() <= free - batch.size
    until(lambda: (gc.collect() or True) and limited.room.available() >= free - (1 << 20))
    limited.room.size = 100 * 4 * token_size(decoder.facts) + 3 * 4 * 4 * decoder.facts.vocabulary
    with pytest.raises(OutOfMemoryError) as caught:
        Batch(limited, slots=4, context=101, prefix_bytes=0)
    assert caught.value.hint is not None
    assert caught.value.hint.startswith(
        f"raise `max_memory` (`--max-memory {mebibytes + 1}M`, ORTKIT_MAX_MEMORY), or take `context=100`"
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"slots": 0}, "`slots` must be at least 1, not 0"),
        ({"slots": "8"}, "`slots` must be an integer, not str"),
        ({"context": 1}, f"`context` must be from 2 to {CONTEXT}, the decoder's, not 1"),
        ({"context": CONTEXT + 1}, f"`context` must be from 2 to {CONTEXT}, the decoder's, not {CONTEXT + 1}"),
        ({"waiting": -1}, "`waiting` must be at least 0, not -1"),
        ({"prefix_bytes": -1}, "`prefix_bytes` must be at least 0, not -1"),
    ],
)
def test_options_that_cannot_be_used(decoder: Decoder, options: dict, message: str) -> None:
    with pytest.raises(InputError) as caught:
        Batch(decoder, **options)

    assert caught.value.message == message


def test_what_is_not_a_decoder() -> None:
    with pytest.raises(InputError) as caught:
        Batch("bundle")  # type: ignore[arg-type]

    assert str(caught.value) == "`decoder` must be a Decoder, not str\n\nhint: open one with `Decoder(bundle)`"


def test_a_decoder_for_a_gpu_is_refused(decoder: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoder.session, "device", "cuda")

    with pytest.raises(ProviderError) as caught:
        Batch(decoder)

    assert caught.value.message == f"`{decoder.bundle.path}` is for cpu, and a Batch runs on the CPU only"
    assert caught.value.exit_code == 8


@pytest.mark.parametrize("changes", [{"plain_attention": True}, {"batch": 1}], ids=str)
def test_graphs_that_decode_one_sequence_at_a_time(tmp_path: Path, changes: dict) -> None:
    """With plain attention, and those whose batch axis is fixed."""
    bundle, reference = write_decoder(tmp_path / "tiny", eos_ids=(), **changes)
    decoder = Decoder(bundle, threads=1)
    texts = [TEXT[start : start + 80] for start in range(0, 30, 3)]
    with Batch(decoder, slots=3, context=128) as batch:
        streams = [batch.submit(text, max_tokens=12) for text in texts]
        for text, stream in zip(texts, streams, strict=True):
            assert [token.id for token in stream.answer().tokens] == reference.greedy(decoder.encode(text), 12)


def test_many_prompts(decoder: Decoder, earlier: set[threading.Thread]) -> None:
    texts = [TEXT[start : start + 20] for start in range(12)]

    answers = decoder.generate_many(texts, max_tokens=5)

    assert [answer.text for answer in answers] == [decoder.generate(text, max_tokens=5).text for text in texts]
    endless = with_facts(decoder, eos_ids=())
    assert [answer.usage.completion_tokens for answer in endless.generate_many([[5], [6] * 9])] == [1023, 1015]
    assert decoder.generate_many([]) == []
    assert not engines() - earlier


def test_many_conversations(decoder: Decoder) -> None:
    asked = [[{"role": "user", "content": text}] for text in ("Hello", "Why?", FOX)]

    answers = decoder.chat_many(iter(asked), slots=2, max_tokens=5)

    assert [answer.text for answer in answers] == [decoder.chat(one, max_tokens=5).text for one in asked]


def test_errors_of_many_prompts_name_the_prompt(decoder: Decoder) -> None:
    with pytest.raises(TextTooLongError) as long:
        decoder.generate_many([FOX, [5] * CONTEXT])
    assert long.value.message.startswith("prompt 1: the prompt has 1024 tokens, 1 more than")
    assert long.value.texts == (1,)
    with pytest.raises(InputError, match="prompt 2: the prompt is empty"):
        decoder.generate_many([FOX, FOX, ""])
    with pytest.raises(InputError, match="`max_tokens` must be at least 1, not 0"):
        decoder.generate_many([FOX], max_tokens=0)
    asked, sampled = [{"role": "user", "content": FOX}], iter((7, -1))
    with pytest.raises(InputError, match="prompt 1: message 0 has no `content`"):
        decoder.chat_many([asked, [{"role": "user"}]])
    with pytest.raises(InputError, match="prompt 1: `sampler` returned token -1"):
        decoder.generate_many([FOX, FOX], slots=1, sampler=lambda _: next(sampled), max_tokens=1)
    with pytest.raises(InputError, match="`prompts` must be a list of prompts, not str"):
        decoder.generate_many(FOX)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="`conversations` must be a list of conversations, not int"):
        decoder.chat_many(5)  # type: ignore[arg-type]


def test_many_prompts_take_the_slots_that_fit(decoder: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    free = SPARE + 3 * 4 * 4 * decoder.facts.vocabulary + 4 * 100 * token_size(decoder.facts)
    monkeypatch.setattr(batch_memory, "available_memory", lambda: free)

    answers = decoder.generate_many([[5] * 50] * 8, max_tokens=50)

    assert [len(answer.tokens) for answer in answers] == [50] * 8
    monkeypatch.setattr(batch_memory, "available_memory", lambda: SPARE)
    with pytest.raises(OutOfMemoryError, match="the KV cache of 1 slots with a context of 100 tokens"):
        decoder.generate_many([[5] * 50] * 8, max_tokens=50)
