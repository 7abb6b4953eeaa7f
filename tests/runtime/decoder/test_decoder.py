from __future__ import annotations

import dataclasses
import threading
from pathlib import Path

import numpy as np
import pytest

from ortkit import Bundle, BundleError, Decoder, InputError, OutOfMemoryError, TextTooLongError
from ortkit.runtime.bundle.manifest import CacheType, GenerationDefaults
from ortkit.runtime.decoder.cache.kv_cache import SPARE, token_size
from ortkit.runtime.decoder.memory_estimate import _LARGEST_RUN
from ortkit.runtime.decoder.model_runner import ModelRunner
from ortkit.runtime.decoder.sampler import Sampling
from ortkit.runtime.decoder.token_choice import FinishReason
from tests.decoders import CONTEXT, TEXT, TinyDecoder, with_facts, write_decoder
from tests.tampered import changed_bundle

FOX = "The quick brown fox"


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


@pytest.mark.parametrize(
    ("window", "cache", "close"),
    [(None, CacheType.FLOAT32, 5e-5), (24, CacheType.FLOAT32, 5e-5), (24, CacheType.FLOAT16, 0.1)],
)
def test_logits_are_the_same_in_one_piece_in_chunks_and_token_by_token(
    tmp_path: Path, window: int | None, cache: CacheType, close: float
) -> None:
    """A number in float16 is up to a 2,048th off: scores of 20 by a hundredth, and so shares, and logits of 10."""
    bundle, reference = write_decoder(tmp_path / "tiny", window=window, cache=cache)
    decoder = Decoder(bundle, threads=1)
    ids = np.random.default_rng(1).integers(3, reference.vocabulary, 300).tolist()
    expected = reference.logits(ids)

    for chunk in (300, 128, 17, 1):
        forward = ModelRunner(decoder.session, decoder.new_cache())
        found = [
            forward.run(ids[start : start + chunk], len(ids[start : start + chunk])).copy()
            for start in range(0, 300, chunk)
        ]
        np.testing.assert_allclose(np.concatenate(found), expected, atol=close)
        assert forward.cache.buffers[0].dtype == cache.value


@pytest.mark.parametrize("lookup", [True, False])
def test_a_greedy_answer_is_that_of_the_model(decoder: Decoder, reference: TinyDecoder, *, lookup: bool) -> None:
    ids = decoder.encode(FOX)
    expected = reference.greedy(ids, 80)
    logprobs = log_softmax(reference.logits(ids + expected))[len(ids) - 1 :]

    answer = decoder.generate(FOX, max_tokens=80, lookup=lookup)

    assert [token.id for token in answer.tokens] == expected
    found = [token.logprob for token in answer.tokens]
    np.testing.assert_allclose(found, [row[id_] for row, id_ in zip(logprobs, expected, strict=False)], atol=1e-4)
    assert answer.finish_reason is FinishReason.LENGTH
    assert [token.finish_reason for token in answer.tokens] == [None] * 79 + [FinishReason.LENGTH]
    assert answer.text == "".join(token.text for token in answer.tokens)
    assert answer.text == decoder.tokenizer.decode(ids + expected)[len(FOX) :]


def test_a_prompt_longer_than_a_chunk(decoder: Decoder, reference: TinyDecoder) -> None:
    ids = np.random.default_rng(2).integers(3, reference.vocabulary, _LARGEST_RUN + 40).tolist()

    assert [step.id for step in decoder.steps(ids, max_tokens=4)] == reference.greedy(ids, 4)


@pytest.mark.parametrize("length", [1, 2, 3, _LARGEST_RUN, _LARGEST_RUN + 1, _LARGEST_RUN + 2])
def test_a_prompt_is_read_in_even_numbers_of_rows(decoder: Decoder, length: int) -> None:
    """Kernels compute a single row, and the last of an odd number, with other bits."""
    steps = decoder.steps([5] * length, max_tokens=2)
    run, rows = steps.forward.run, []
    steps.forward.run = lambda ids, *rest, **named: (rows.append(len(ids)), run(ids, *rest, **named))[1]

    next(steps)

    assert all(count % 2 == 0 for count in rows)
    assert sum(rows) == length + length % 2
    assert max(rows) <= decoder.run_tokens == _LARGEST_RUN
    assert steps.forward.cache.ids == [5] * length


def test_a_prompt_of_odd_length_fills_the_context(decoder: Decoder) -> None:
    """Its row of padding needs no room beyond that of the answer's first token."""
    context = 64
    small = Decoder(decoder.bundle, threads=1, context=context)
    ids = np.random.default_rng(3).integers(3, decoder.facts.vocabulary, context - 1).tolist()

    assert [step.id for step in small.steps(ids)] == [step.id for step in decoder.steps(ids, max_tokens=1)]
    assert small.prefill(ids).ids == ids


def test_ids_and_text_are_the_same_prompt(decoder: Decoder) -> None:
    assert decoder.generate(decoder.encode(FOX), max_tokens=9).text == decoder.generate(FOX, max_tokens=9).text
    assert (
        decoder.generate(np.array(decoder.encode(FOX)), max_tokens=9).text == decoder.generate(FOX, max_tokens=9).text
    )
    assert decoder.count_tokens(FOX) == len(decoder.encode(FOX))


def test_the_most_probable_tokens(decoder: Decoder, reference: TinyDecoder) -> None:
    ids = decoder.encode(FOX)
    expected = log_softmax(reference.logits(ids)[-1])
    order = np.argsort(-expected)[:5]

    [step] = decoder.steps(FOX, max_tokens=1, top_logprobs=5)

    assert [top.id for top in step.top_logprobs] == order.tolist()
    np.testing.assert_allclose([top.logprob for top in step.top_logprobs], expected[order], atol=1e-4)
    assert step.id == step.top_logprobs[0].id
    assert step.logprob == step.top_logprobs[0].logprob


@pytest.mark.parametrize("lookup", [True, False])
def test_each_end_token_ends_an_answer_and_is_not_shown(
    decoder: Decoder, reference: TinyDecoder, *, lookup: bool
) -> None:
    expected = reference.greedy(decoder.encode(FOX), 30)
    ends = next(place for place in range(5, 30) if expected[place] not in expected[:place])
    ending = with_facts(decoder, eos_ids=(1, expected[ends], 0))

    answer = ending.generate(FOX, max_tokens=30, lookup=lookup)

    assert [token.id for token in answer.tokens] == expected[: ends + 1]
    assert answer.finish_reason is FinishReason.STOP
    assert answer.tokens[-1].finish_reason is FinishReason.STOP


def test_an_end_token_that_is_special_has_no_text(decoder: Decoder) -> None:
    forced = Sampling(logit_bias={2: 1000.0})

    [token] = decoder.stream(FOX, sampling=forced)

    assert (token.id, token.text, token.finish_reason) == (2, "", FinishReason.STOP)


def test_a_stop_string_across_tokens_ends_an_answer(decoder: Decoder) -> None:
    whole = decoder.generate(FOX, max_tokens=60)
    pieces = [token.text for token in whole.tokens]
    place = next(place for place in range(8, 50) if len(pieces[place]) == len(pieces[place + 1]) == 1)
    stop = pieces[place] + pieces[place + 1]

    answer = decoder.generate(FOX, max_tokens=60, stop=["never there", stop])

    assert answer.text == whole.text.split(stop)[0]
    assert answer.finish_reason is answer.tokens[-1].finish_reason is FinishReason.STOP
    assert "".join(token.text for token in answer.tokens) == answer.text
    assert len(answer.tokens) < 60


def test_text_held_for_a_stop_string_is_shown_at_the_end(decoder: Decoder) -> None:
    whole = decoder.generate(FOX, max_tokens=10)

    answer = decoder.generate(FOX, max_tokens=10, stop=[whole.text[-2:] + "and more"])

    assert answer.text == whole.text


def test_sampling_is_the_same_for_the_same_seed_with_drafts_and_without(decoder: Decoder) -> None:
    def text(seed: int, *, lookup: bool = False) -> str:
        sampling = Sampling(temperature=0.9, top_p=0.95, repetition_penalty=1.1, presence_penalty=0.1, seed=seed)
        return decoder.generate(TEXT, max_tokens=100, sampling=sampling, lookup=lookup).text

    assert text(1) == text(1) == text(1, lookup=True)
    assert text(1) != text(2)


def test_the_publishers_defaults(decoder: Decoder) -> None:
    said = with_facts(
        decoder, generation=GenerationDefaults(temperature=0.5, top_k=9, top_p=0.8, min_p=0.1, repetition_penalty=1.2)
    )

    assert said.sampling == Sampling(temperature=0.5, top_k=9, top_p=0.8, min_p=0.1, repetition_penalty=1.2)
    assert decoder.sampling == Sampling()


def test_a_raw_text_begins_with_the_bos_token(decoder: Decoder) -> None:
    beginning = with_facts(decoder, add_bos=True, bos_id=0)
    ids = decoder.encode(FOX)

    assert beginning.encode(FOX) == [0, *ids]
    assert beginning.encode("<|endoftext|>" + FOX) == [0, *ids], "no second one"
    assert beginning.encode_exactly(FOX) == ids


def test_rates_and_counts(decoder: Decoder) -> None:
    stream = decoder.stream(FOX, max_tokens=20)
    tokens = list(stream)
    rates = stream.rates

    assert (rates.prompt_tokens, rates.cached_tokens, rates.new_tokens) == (len(decoder.encode(FOX)), 0, 20)
    assert 0 < rates.prompt_seconds <= rates.first_token_seconds
    assert rates.prompt_per_second == rates.prompt_tokens / rates.prompt_seconds
    assert rates.new_per_second == 19 / rates.new_seconds
    assert tokens[-1].rates == rates
    assert [token.rates.new_tokens for token in tokens] == list(range(1, 21))


def test_a_cached_prefix_is_reused(decoder: Decoder) -> None:
    cache = decoder.prefill(FOX)
    ids = decoder.encode(FOX)
    assert cache.ids == ids
    expected = decoder.generate(FOX + " jumps", max_tokens=20)

    answer = decoder.generate(FOX + " jumps", max_tokens=20, cache=cache)

    assert answer.text == expected.text
    assert 0 < answer.rates.cached_tokens <= len(ids)
    # Another ending, and the very same prompt again.
    assert decoder.generate(FOX, max_tokens=20, cache=cache).text == decoder.generate(FOX, max_tokens=20).text
    again = decoder.generate(FOX, max_tokens=20, cache=cache)
    assert again.text == decoder.generate(FOX, max_tokens=20).text
    assert again.rates.cached_tokens == len(ids) - 1, "the last token is read again for its logits"


def test_an_answer_grows_its_buffers(decoder: Decoder, reference: TinyDecoder) -> None:
    cache = decoder.new_cache()
    ids = decoder.encode(FOX)

    answer = decoder.generate(FOX, max_tokens=300, cache=cache)

    assert cache.capacity == 512
    expected = reference.logits(ids + [token.id for token in answer.tokens])[len(ids) - 1 : -1]
    assert [token.id for token in answer.tokens] == expected.argmax(-1).tolist()


@pytest.mark.parametrize("tokens", [0, 3])
def test_an_answer_can_be_cancelled_at_any_moment(decoder: Decoder, tokens: int) -> None:
    stream = decoder.stream(FOX)
    first = [next(stream).text for _ in range(tokens)]

    stream.cancel()

    assert list(stream) == []
    assert stream.finish_reason is FinishReason.CANCELLED
    assert stream.text == "".join(first)
    assert stream.answer().finish_reason is FinishReason.CANCELLED


def test_a_cancelled_answer_has_no_text_but_that_of_its_tokens(decoder: Decoder) -> None:
    """What was held back because a stop string might begin there was never shown, and is not said."""
    whole = decoder.generate(FOX, max_tokens=10).text
    stream = decoder.stream(FOX, max_tokens=10, stop=whole[2:] + "and more")
    shown = [next(stream).text for _ in range(9)]
    assert stream._text.stops.held

    stream.cancel()

    assert list(stream) == []
    assert stream.text == "".join(shown)


def test_a_stream_ends_with_its_block(decoder: Decoder) -> None:
    with decoder.stream(FOX) as stream:
        next(stream)
        assert repr(stream) == "<Stream of 1 tokens, running>"

    assert stream.finish_reason is FinishReason.CANCELLED
    assert repr(stream) == "<Stream of 1 tokens, finished: cancelled>"
    assert stream.usage.completion_tokens == 1


def test_closing_ends_an_answer(decoder: Decoder) -> None:
    stream = decoder.stream(FOX)
    next(stream)

    stream.close()

    assert stream.finish_reason is FinishReason.CANCELLED


def test_a_running_step_is_aborted(decoder: Decoder) -> None:
    """Cancelled from another thread during prefill: nothing of its chunk counts."""
    ids = [5] * (CONTEXT - 10)
    stream = decoder.stream(ids)
    run = stream.steps.forward.run

    def cancelling(*arguments: object, **options: object) -> object:
        other = threading.Thread(target=stream.cancel)
        other.start()
        other.join()
        return run(*arguments, **options)

    stream.steps.forward.run = cancelling

    assert list(stream) == []
    assert stream.finish_reason is FinishReason.CANCELLED
    assert stream.steps.forward.cache.length == 0


def test_a_failing_run_is_not_a_cancellation(decoder: Decoder) -> None:
    steps = decoder.steps(FOX)
    steps.forward.stop()

    with pytest.raises(BundleError, match="onnxruntime cannot run"):
        list(steps)


def test_several_answers_at_once(decoder: Decoder) -> None:
    prompts = [FOX, "and the dog", "sleeps. Größe"]
    expected = [decoder.generate(prompt, max_tokens=30).text for prompt in prompts]
    streams = [decoder.stream(prompt, max_tokens=30) for prompt in prompts]
    for _ in range(30):
        for stream in streams:
            next(stream)

    assert [stream.text for stream in streams] == expected

    found = {}
    threads = [
        threading.Thread(
            target=lambda prompt=prompt: found.update({prompt: decoder.generate(prompt, max_tokens=30).text})
        )
        for prompt in prompts
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[prompt] for prompt in prompts] == expected


def test_decoders_of_one_bundle_share_its_weights(decoder: Decoder) -> None:
    assert Decoder(decoder.bundle, threads=1).session is decoder.session
    assert Decoder(decoder.bundle, threads=2).session is not decoder.session


@pytest.mark.parametrize(
    ("prompt", "options", "error", "message"),
    [
        ("a", {"max_tokens": "2"}, InputError, "`max_tokens` must be an integer, not str"),
        (None, {}, InputError, "the prompt must be a string or a list of token ids, not NoneType"),
        (np.array([[1, 2]]), {}, InputError, "the prompt must be a string or a list of token ids, not ndarray"),
        ("", {}, InputError, "the prompt is empty"),
        ([], {}, InputError, "the prompt is empty"),
        ("\ud800", {}, InputError, "the prompt is not valid Unicode: surrogates not allowed at character 0"),
        ([5, -1], {}, InputError, "token 1 of the prompt is -1, and the vocabulary has 320 tokens"),
        ([5, 320], {}, InputError, "token 1 of the prompt is 320, and the vocabulary has 320 tokens"),
        ([5, "a"], {}, InputError, "token 1 of the prompt must be an integer, not str"),
        ([5, True], {}, InputError, "token 1 of the prompt must be an integer, not bool"),
        ([5], {"max_tokens": 0}, InputError, "`max_tokens` must be at least 1, not 0"),
        (
            [5],
            {"top_logprobs": -1},
            InputError,
            "`top_logprobs` must be from 0 to 320, the size of the vocabulary, not -1",
        ),
        (
            [5] * 1000,
            {"max_tokens": 25},
            InputError,
            "`max_tokens` is 25, and a prompt of 1000 tokens leaves 24 in the context of 1024",
        ),
        (
            [5] * 1024,
            {},
            TextTooLongError,
            "the prompt has 1024 tokens, 1 more than the context of 1024 has room for with an answer",
        ),
        (
            [5] * 1500,
            {},
            TextTooLongError,
            "the prompt has 1500 tokens, 477 more than the context of 1024 has room for with an answer",
        ),
    ],
)
def test_invalid_prompts(
    decoder: Decoder, prompt: object, options: dict, error: type[InputError], message: str
) -> None:
    with pytest.raises(error) as caught:
        decoder.stream(prompt, **options)

    assert caught.value.message == message
    assert caught.value.exit_code == 2


def test_an_answer_may_fill_the_context(decoder: Decoder) -> None:
    answer = decoder.generate([5] * 1000, max_tokens=24)

    assert len(answer.tokens) == 24
    assert len(decoder.generate([5] * 1015).tokens) == 9, "without `max_tokens` it ends where the context does"


def test_a_smaller_context(decoder: Decoder) -> None:
    small = Decoder(decoder.bundle, threads=1, context=8)

    assert len(small.generate([5] * 5).tokens) == 3
    with pytest.raises(TextTooLongError) as caught:
        small.generate([5] * 8)
    assert caught.value.hint == "shorten it, or raise `context`"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threads": 0}, "`threads` must be at least 1, not 0"),
        ({"threads": 1.5}, "`threads` must be an integer, not float"),
        ({"threads": True}, "`threads` must be an integer, not bool"),
        ({"context": "64"}, "`context` must be an integer, not str"),
        ({"threads": 100_000}, "`threads` must be at most 1024, not 100000"),
        ({"context": 1}, "`context` must be from 2 to 1024, the model's context length, not 1"),
        ({"context": 1025}, "`context` must be from 2 to 1024, the model's context length, not 1025"),
    ],
)
def test_options_that_cannot_be_used(decoder: Decoder, options: dict, message: str) -> None:
    with pytest.raises(InputError) as caught:
        Decoder(decoder.bundle, **options)

    assert caught.value.message == message


def test_too_little_memory_is_reported_before_anything_runs(decoder: Decoder) -> None:
    free = SPARE + 100 * token_size(decoder.facts)
    cache = decoder.new_cache()
    cache.available = lambda: free

    with pytest.raises(OutOfMemoryError) as caught:
        decoder.stream([5] * 50, max_tokens=51, cache=cache)

    assert caught.value.message == ("the KV cache of 101 tokens takes 0 MiB, and there is memory for 100 tokens")
    assert len(decoder.generate([5] * 50, max_tokens=50, cache=cache).tokens) == 50
    cache = decoder.new_cache()
    cache.available = lambda: free if cache.capacity == 0 else SPARE
    assert len(decoder.generate([5] * 50, cache=cache).tokens) == 50, "as many as fit"
    cache.available = lambda: 0
    assert cache.capacity == 100
    assert len(decoder.generate([5] * 80, cache=cache).tokens) == 20, "as many as there is room for already"


def test_the_cache_of_another_model(decoder: Decoder) -> None:
    cache = with_facts(decoder, eos_ids=(9,)).new_cache()

    with pytest.raises(InputError) as caught:
        decoder.stream(FOX, cache=cache)

    assert caught.value.message == "the cache was made for another model"


def test_a_cache_works_with_another_decoder_of_its_bundle(decoder: Decoder) -> None:
    """Whose session is another, as with other threads; what was bound for the first is not for it."""
    others = Decoder(decoder.bundle, threads=1), Decoder(decoder.bundle, threads=2)
    assert others[0].session is not others[1].session
    expected = others[0].generate(FOX, max_tokens=3).text
    cache = decoder.new_cache()

    assert [it.generate(FOX, max_tokens=3, cache=cache).text for it in (*others, *others)] == [expected] * 4


def test_values_that_are_not_caches(decoder: Decoder) -> None:
    with pytest.raises(InputError, match="`cache` must be a KVCache, not str"):
        decoder.generate(FOX, cache="saved")  # type: ignore[arg-type]


def test_the_cache_of_a_model_with_other_weights(decoder: Decoder) -> None:
    """As of one that was trained on: all that its manifest says is the same."""
    manifest = decoder.bundle.manifest
    files = manifest.files | {"model.onnx": dataclasses.replace(manifest.files["model.onnx"], sha256="0" * 64)}
    other = Decoder(Bundle(decoder.bundle.path, dataclasses.replace(manifest, files=files)), threads=1)
    cache = other.prefill(FOX)
    assert cache.facts == decoder.facts

    for use in (lambda: decoder.stream(FOX, cache=cache), lambda: decoder.save_cache("saved", cache)):
        with pytest.raises(InputError) as caught:
            use()
        assert caught.value.message == "the cache was made for another model"
        assert caught.value.hint == "make one with `decoder.new_cache()`"
        assert caught.value.exit_code == 2


def test_a_bundle_of_another_kind(int8_bundle: Bundle) -> None:
    with pytest.raises(BundleError) as caught:
        Decoder(int8_bundle)

    assert caught.value.message == f"`{int8_bundle.path}` is an embedder, not a decoder"
    assert caught.value.hint == (
        f"open it with `Embedder('{int8_bundle.path}')`, or with `load`, which selects the class"
    )


def test_a_manifest_that_does_not_fit_its_graph(decoder: Decoder) -> None:
    with pytest.raises(BundleError, match="; supported: the inputs of a decoder with 3 layers"):
        with_facts(decoder, layers=3)
    with pytest.raises(BundleError) as caught:
        with_facts(decoder, cache_type=CacheType.FLOAT16)
    assert caught.value.message == (
        f"the graph `{decoder.session.path}` has a KV cache of type `tensor(float)`, and the manifest says float16"
    )
    assert caught.value.exit_code == 7
    manifest = dataclasses.replace(decoder.bundle.manifest, decoder=None)
    with pytest.raises(BundleError, match="has no section `decoder`"):
        Decoder(Bundle(decoder.bundle.path, manifest))


@pytest.mark.parametrize(
    ("temperature", "problem"), [(-1.0, "0 or more, not -1.0"), (float("nan"), "0 or more, not nan")]
)
def test_invalid_generation_defaults(decoder: Decoder, temperature: float, problem: str) -> None:
    with pytest.raises(BundleError) as caught:
        with_facts(decoder, generation=GenerationDefaults(temperature=temperature))

    assert caught.value.message == (
        f"`decoder.generation` in the manifest is not valid: `temperature` must be {problem}"
    )
    assert caught.value.exit_code == 7


def test_a_first_token_that_the_model_does_not_have(decoder: Decoder) -> None:
    with pytest.raises(BundleError) as caught:
        with_facts(decoder, add_bos=True, bos_id=320)

    assert caught.value.message == (
        f"the manifest of `{decoder.bundle.path}` has the beginning-of-sequence token 320, and the vocabulary has 320 "
        "tokens"
    )
    with_facts(decoder, add_bos=False, bos_id=320)


@pytest.mark.parametrize("options", [{}, {"top_p": 0.9}, {"top_k": 5}, {"min_p": 0.1}, {"presence_penalty": 1.0}])
def test_nan_logits(decoder: Decoder, options: dict) -> None:
    steps = decoder.steps(FOX, sampling=Sampling(temperature=1.0, seed=1, **options))
    steps.forward.run = lambda *_, **__: np.full((2, decoder.facts.vocabulary), np.nan, np.float32)

    with pytest.raises(BundleError, match="gives logits that are not finite numbers at token 0 of the answer"):
        next(steps)


def test_a_prompt_far_over_the_context_is_not_tokenized_completely(
    decoder: Decoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    encoded = decoder._safe_tokenizer.encoded
    monkeypatch.setattr(
        decoder._safe_tokenizer, "encoded", lambda texts: read.append(sum(map(len, texts))) or encoded(texts)
    )
    text = "The quick brown fox. " * 200_000

    for ask in (decoder.generate, decoder.encode_exactly, decoder.prefill, decoder.count_tokens):
        with pytest.raises(TextTooLongError, match=r"the prompt has at least \d+ tokens, \d+ more than the context"):
            ask(text)
    assert sum(read) < len(text) / 10


@pytest.mark.parametrize("prompt", ["", [], "\u200b\u200b"])
def test_a_prompt_without_tokens(prompt: object, tmp_path: Path) -> None:
    """As transformers, whose `generate` raises for no ids; nothing of the kind reaches the graph."""

    def no_character(content: dict) -> None:
        content["normalizer"] = {"type": "Replace", "pattern": {"String": "\u200b"}, "content": ""}

    bundle, _ = write_decoder(tmp_path / "tiny")
    bare = Decoder(changed_bundle(bundle, tmp_path / "bare", tokenizer=no_character), threads=1)

    with pytest.raises(InputError) as caught:
        bare.generate(prompt)
    assert caught.value.message == ("the prompt has no tokens" if prompt else "the prompt is empty")
    assert caught.value.hint == "pass at least one word"


def test_a_cache_that_another_answer_has_used_since(decoder: Decoder) -> None:
    cache = decoder.new_cache()
    first = decoder.stream("The quick brown fox", max_tokens=9, cache=cache)
    next(first)
    expected = decoder.generate("Hello", max_tokens=3).tokens

    second = decoder.generate("Hello", max_tokens=3, cache=cache)

    assert [token.id for token in second.tokens] == [token.id for token in expected]
    with pytest.raises(InputError) as caught:
        next(first)
    assert caught.value.message == "another answer has used this KV cache since, so this one cannot continue"
    assert decoder.generate("Hello", max_tokens=3, cache=cache).text == second.text


@pytest.mark.parametrize("prompt", [b"ab", bytearray(b"ab"), {1: "x"}, {1, 2}, None, 5])
def test_a_prompt_of_another_type(decoder: Decoder, prompt: object) -> None:
    with pytest.raises(InputError) as caught:
        decoder.generate(prompt, max_tokens=1)  # type: ignore[arg-type]
    assert caught.value.message == (f"the prompt must be a string or a list of token ids, not {type(prompt).__name__}")
    assert decoder.generate(np.str_("Hello"), max_tokens=1).text == decoder.generate("Hello", max_tokens=1).text
