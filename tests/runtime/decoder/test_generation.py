from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ortkit import Bundle, Chat, Decoder, OutOfMemoryError, Precision, Sampling
from ortkit.exporters import export
from ortkit.runtime.decoder.cache.kv_cache import KVCache
from ortkit.runtime.decoder.chat import USER
from ortkit.runtime.decoder.generation import Steps
from ortkit.runtime.decoder.model_runner import ModelRunner
from ortkit.runtime.decoder.prompt_lookup import PromptLookup
from ortkit.runtime.decoder.token_choice import TokenChoice
from ortkit.runtime.session.cpu import RUN_COSTS
from ortkit.runtime.text.messages import Message
from tests.exporters.decoder_checkpoints import write_checkpoint
from tests.quantized_decoder import write_quantized

QUOTED = (
    "The old lighthouse on the northern cape was built in 1874, after three ships were lost on the reef in a single "
    "winter. Its tower is thirty-one metres high and was raised from blocks of granite."
)
REQUEST = f"When was the lighthouse built, and why?\n\n{QUOTED}"
TOKENS = 40
SAMPLED = Sampling(temperature=0.6, seed=5)

Chosen = list[tuple[int, float]]
"""Tokens and the logarithms of their probabilities, to the bit."""


def quoting(decoder: Decoder, sampling: Sampling) -> tuple[list[int], Sampling]:
    """A prompt, and a bias with which the small decoder's answer repeats itself, as one that quotes would."""
    words = decoder.encode(" the quick brown fox jumps over the lazy dog")
    biased = Sampling(**{**vars(sampling), "logit_bias": dict.fromkeys(words, 8.0)})
    return decoder.encode("The dog: ") + words * 6, biased


def watched(steps: Steps) -> tuple[Steps, list[tuple[int, int]]]:
    """The steps, and the place and number of tokens of each run that they make."""
    run, runs = steps.forward.run, []

    def noted(*arguments: object, **options: object) -> object:
        runs.append((steps.forward.cache.length, len(arguments[0])))
        return run(*arguments, **options)

    steps.forward.run = noted
    return steps, runs


def chosen(decoder: Decoder, prompt: list[int], count: int, sampling: Sampling, **options: object) -> Chosen:
    return [(step.id, step.logprob) for step in decoder.steps(prompt, max_tokens=count, sampling=sampling, **options)]


@pytest.mark.parametrize("sampling", [Sampling(), SAMPLED], ids=["greedy", "sampled"])
def test_an_answer_is_the_same_in_fewer_runs(decoder: Decoder, sampling: Sampling) -> None:
    prompt, biased = quoting(decoder, sampling)

    def ids_and_runs(*, lookup: bool) -> tuple[list[int], list[int]]:
        steps, runs = watched(decoder.steps(prompt, max_tokens=150, sampling=biased, lookup=lookup))
        return [step.id for step in steps], [tokens for _, tokens in runs[1:]]

    plain, runs = ids_and_runs(lookup=False)
    drafted, fewer = ids_and_runs(lookup=True)

    assert drafted == plain
    assert runs == [1] * 149
    assert len(fewer) < 0.8 * 149
    assert set(fewer) <= {1, *RUN_COSTS}
    assert {1, max(RUN_COSTS)} <= set(fewer), "drafts where they pay, and none where they do not"


@pytest.mark.parametrize("sampling", [Sampling(), SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("count", [2, 3, 40, 41, 42, 43, 150])
def test_how_many_rows_a_token_is_read_with_follows_from_the_text(
    decoder: Decoder, sampling: Sampling, count: int
) -> None:
    """Several where a draft pays, one where none does, wherever the runs begin and the answer ends."""
    prompt, biased = quoting(decoder, sampling)
    steps, runs = watched(decoder.steps(prompt, max_tokens=count, sampling=biased))
    ids = [step.id for step in steps]

    lookup = PromptLookup(prompt)
    several = set()
    for place, token in enumerate(ids[:-1], len(prompt)):
        lookup.add(token)
        if lookup.pays:
            several.add(place)
    read_with = {place + number: tokens for place, tokens in runs[1:] for number in range(tokens)}
    # The KV cache keeps the result of the latest run.
    assert sorted(place for place in read_with if read_with[place] > 1 and place < len(prompt) + count - 1) == sorted(
        several
    )
    assert set(range(len(prompt), len(prompt) + count - 1)) <= set(read_with)


@pytest.mark.parametrize("number", [1, 2, 3, 8])
def test_an_answer_continues_after_a_run_that_failed(decoder: Decoder, number: int) -> None:
    """Memory may be short for a moment: the next token is asked for again."""
    prompt, biased = quoting(decoder, Sampling())
    expected = chosen(decoder, prompt, 60, biased)
    steps = decoder.steps(prompt, max_tokens=60, sampling=biased)
    run, drafted = steps.forward.run, 0

    def failing(ids: list[int], positions: int = 1, **options: object) -> np.ndarray:
        nonlocal drafted
        drafted += bool(steps.ids) and len(ids) > 1
        if drafted == number:
            drafted += 1
            raise OutOfMemoryError("no memory")
        return run(ids, positions, **options)

    steps.forward.run = failing
    with pytest.raises(OutOfMemoryError):
        list(steps)
    before = len(steps.ids)

    rest = [(step.id, step.logprob) for step in steps]

    assert steps.ids == [id_ for id_, _ in expected]
    assert 0 < before < 60
    assert rest == expected[before:]
    assert steps.forward.cache.ids == (prompt + steps.ids)[: steps.forward.cache.length]


def read(decoder: Decoder, cache: KVCache, ids: list[int], run_tokens: int) -> np.ndarray:
    """The logits after a prompt, read in runs of at most so many tokens."""
    choice = TokenChoice(decoder.facts.vocabulary, max_tokens=1)
    return Steps(ModelRunner(decoder.session, cache), ids, choice, run_tokens=run_tokens).prefill()[-1].copy()


def check_prompts_give_the_same_bits(decoder: Decoder, cases: int) -> None:
    """Whatever is cached, and however long the runs are that a limit on memory asks for."""
    rng = np.random.default_rng(cases)

    def ids(count: int) -> list[int]:
        return rng.integers(3, decoder.facts.vocabulary, count).tolist()

    for _ in range(cases):
        prompt = ids(int(rng.integers(1, 250)))
        expected = read(decoder, decoder.new_cache(), prompt, 512)
        cache = decoder.new_cache()
        for length in sorted(rng.integers(1, len(prompt) + 1, 2).tolist()):
            read(decoder, cache, prompt[:length] + ids(3), 128)
        assert np.array_equal(read(decoder, cache, prompt, int(rng.choice([64, 128, 256]))), expected)


def test_prompts_of_a_model_with_large_heads_give_the_same_bits(tmp_path: Path) -> None:
    """Products of 256 numbers are summed in parts that depend on the length of the sequence."""
    decoder = Decoder(write_quantized(tmp_path / "m", head_size=256), threads=1)

    check_prompts_give_the_same_bits(decoder, 20)

    cache = decoder.prefill(list(range(100)))
    assert decoder.generate(list(range(100)), cache=cache, max_tokens=1).usage.cached_tokens == 64


@pytest.mark.slow
@pytest.mark.parametrize("family", ["gemma2", "gemma3_text"])
def test_prompts_of_exported_models_with_large_heads_give_the_same_bits(family: str, tmp_path: Path) -> None:
    """With windows and soft caps."""
    folder = write_checkpoint(tmp_path / "checkpoint", family, head_dim=256)

    bundle = export(str(folder), precision=Precision.FP32, out=tmp_path / "b").bundle

    check_prompts_give_the_same_bits(Decoder(bundle, threads=2), 40)


def test_without_lookup_there_is_no_n_gram_table(decoder: Decoder) -> None:
    assert decoder.steps("Hello", lookup=False).lookup is None
    assert decoder.steps("Hello").lookup is not None


@pytest.mark.slow
@pytest.mark.parametrize("cases", [200])
def test_logits_of_the_real_model_in_4_bits_depend_on_the_ids_alone(smollm_bundle: Bundle, cases: int) -> None:
    """However a text is split into cached tokens, runs and a draft: its blocks of 64 give a single row other bits."""
    decoder = Decoder(smollm_bundle, threads=1)
    rng = np.random.default_rng(cases)

    for _ in range(cases):
        ids = rng.integers(0, decoder.facts.vocabulary, rng.integers(1, 90)).tolist()
        expected = read(decoder, decoder.new_cache(), ids, decoder.run_tokens)
        cache = decoder.new_cache()
        for length in sorted(rng.integers(1, len(ids) + 1, rng.integers(0, 3)).tolist()):
            read(decoder, cache, [*ids[:length], *rng.integers(0, decoder.facts.vocabulary, 3).tolist()], 33)
        assert np.array_equal(read(decoder, cache, ids, int(rng.integers(1, 70))), expected)
        drafted = int(rng.choice(list(RUN_COSTS)))
        if drafted < len(ids):
            cache = decoder.new_cache()
            read(decoder, cache, ids[:-drafted], decoder.run_tokens)
            assert np.array_equal(ModelRunner(decoder.session, cache).run(ids[-drafted:], drafted)[-1], expected)


@pytest.mark.slow
@pytest.mark.parametrize("sampling", [Sampling(), SAMPLED], ids=["greedy", "sampled"])
def test_the_real_model_in_4_bits_gives_the_same_bits_whatever_was_read_and_drafted_before(
    smollm_bundle: Bundle, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, sampling: Sampling
) -> None:
    """Its products differ by the number of rows, and that of each token follows from the text."""
    decoder = Decoder(smollm_bundle, threads=1)
    chat = Chat(decoder)
    prompt = decoder.encode_exactly(decoder.apply_chat_template([Message(USER, REQUEST)]))
    steps, runs = watched(decoder.steps(prompt, max_tokens=TOKENS, sampling=sampling))
    expected = [(step.id, step.logprob) for step in steps]
    assert len({tokens for _, tokens in runs[1:]}) > 1, "runs of several sizes"

    def with_cache(cache: KVCache) -> Chosen:
        return chosen(decoder, prompt, TOKENS, sampling, cache=cache)

    half = decoder.prefill(prompt[: len(prompt) // 2])
    decoder.save_cache(tmp_path / "saved", decoder.prefill(prompt))
    again: dict[str, Callable[[], Chosen]] = {
        "a fresh cache": lambda: with_cache(decoder.new_cache()),
        "half of the prompt": lambda: with_cache(half),
        "the prompt and the answer": lambda: with_cache(half),
        "a saved cache": lambda: with_cache(decoder.load_cache(tmp_path / "saved")),
        "a conversation": lambda: [
            (token.id, token.logprob) for token in chat.send(REQUEST, max_tokens=TOKENS, sampling=sampling)
        ],
    }
    for name, answer in again.items():
        assert answer() == expected, name
    for count in (2, 17, 18, 19):
        assert chosen(decoder, prompt, count, sampling) == expected[:count]
    # A token that no answer has.
    monkeypatch.setattr(PromptLookup, "_copied", lambda *_: [3] * 3)
    assert chosen(decoder, prompt, TOKENS, sampling) == expected, "drafts that are all wrong"
