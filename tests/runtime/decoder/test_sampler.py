from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from transformers.generation.logits_process import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from ortkit import InputError
from ortkit.runtime.decoder.sampler import BLOCK, Penalties, Sampling, candidates, drawn, make_sampler

VOCABULARY = 2000


def random_logits(seed: int, spread: float = 3.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, spread, VOCABULARY).astype(np.float32)


def distribution(logits: np.ndarray, **options: float) -> tuple[np.ndarray, np.ndarray]:
    """Ids and probabilities of the tokens that are left."""
    ids, weights = candidates(logits, **options)
    return np.arange(len(logits)) if ids is None else ids, weights / weights.sum()


def warped(logits: np.ndarray, temperature: float, top_k: int, top_p: float, min_p: float) -> np.ndarray:
    """The probabilities that transformers samples from, its warpers in the order in which `generate` builds them."""
    warpers = LogitsProcessorList([TemperatureLogitsWarper(temperature)])
    if top_k:
        warpers.append(TopKLogitsWarper(top_k))
    if top_p < 1:
        warpers.append(TopPLogitsWarper(top_p))
    if min_p:
        warpers.append(MinPLogitsWarper(min_p))
    scores = warpers(torch.zeros(1, 1, dtype=torch.long), torch.from_numpy(logits)[None])
    return torch.softmax(scores[0].double(), -1).numpy()


@pytest.mark.parametrize("temperature", [0.3, 1.0, 1.7])
@pytest.mark.parametrize(
    ("top_k", "top_p", "min_p"),
    [(0, 1.0, 0.0), (40, 1.0, 0.0), (0, 0.9, 0.0), (0, 0.05, 0.0), (0, 1.0, 0.1), (50, 0.8, 0.05), (1, 0.5, 1.0)],
)
def test_the_distribution_is_that_of_transformers(temperature: float, top_k: int, top_p: float, min_p: float) -> None:
    for seed in range(20):
        logits = random_logits(seed)
        expected = warped(logits, temperature, top_k, top_p, min_p)

        ids, probabilities = distribution(logits, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)

        assert np.array_equal(ids, np.flatnonzero(expected))
        np.testing.assert_allclose(probabilities, expected[ids], rtol=1e-4)


def test_a_top_k_over_the_vocabulary_keeps_all() -> None:
    ids, _ = distribution(random_logits(0), temperature=1, top_k=10 * VOCABULARY)

    assert len(ids) == VOCABULARY


def test_equal_logits_at_the_end_of_the_top_k_are_all_left_as_in_transformers() -> None:
    logits = np.array([1, 3, 2, 2, 0], np.float32)

    ids, _ = distribution(logits, temperature=1, top_k=2)

    assert ids.tolist() == [1, 2, 3] == np.flatnonzero(warped(logits, 1.0, 2, 1.0, 0.0)).tolist()


@pytest.mark.parametrize("temperature", [1e-6, 1e-30])
def test_a_very_low_temperature_is_greedy(temperature: float) -> None:
    logits = random_logits(1)

    ids, probabilities = distribution(logits, temperature=temperature)

    assert probabilities[ids.tolist().index(logits.argmax())] == pytest.approx(1)


def test_temperature_zero_takes_the_most_probable() -> None:
    sampler = make_sampler(temperature=0, top_p=0.5, seed=3)

    assert [sampler(random_logits(seed)) for seed in range(5)] == [random_logits(seed).argmax() for seed in range(5)]


def test_draws_follow_the_distribution() -> None:
    logits = np.log(np.array([0.5, 0.3, 0.15, 0.05], np.float32))
    sampler = make_sampler(temperature=1, seed=0)

    found = np.bincount([sampler(logits) for _ in range(20_000)], minlength=4) / 20_000

    np.testing.assert_allclose(found, [0.5, 0.3, 0.15, 0.05], atol=0.01)


@pytest.mark.parametrize("size", [1, 5, BLOCK, BLOCK + 1, 5 * BLOCK + 17])
def test_the_place_of_a_draw_is_that_of_the_running_sum(size: int) -> None:
    random = np.random.default_rng(size)
    weights = random.exponential(1, size).astype(np.float32)
    weights[random.random(size) < 0.2] = 0
    weights[0] = 1
    cumulative = weights.astype(np.float64).cumsum()

    for share in [0.0, 0.5, *random.random(200), 1 - 2**-53]:
        place = drawn(weights, share)

        assert weights[place] > 0
        reached = cumulative[place] / cumulative[-1]
        assert reached - weights[place] / cumulative[-1] - 1e-5 <= share <= reached + 1e-5


def test_the_same_seed_draws_the_same_tokens() -> None:
    def drawn(seed: int | None) -> list[int]:
        sampler = make_sampler(temperature=1, top_p=0.95, seed=seed)
        return [sampler(random_logits(step, spread=1)) for step in range(30)]

    assert drawn(1) == drawn(1)
    assert drawn(1) != drawn(2)
    assert drawn(None) != drawn(None)


@pytest.mark.parametrize("penalty", [1.3, 0.7])
def test_repetition_is_that_of_transformers_over_prompt_and_answer(penalty: float) -> None:
    prompt, answer = [5, 7, 7, 1999], [7, 11, 0]
    penalties = Penalties(Sampling(repetition_penalty=penalty), vocabulary=VOCABULARY, prompt=prompt)
    for token in answer:
        penalties.add(token)
    logits = random_logits(4)
    expected = RepetitionPenaltyLogitsProcessor(penalty)(
        torch.tensor([prompt + answer]), torch.from_numpy(logits.copy())[None]
    )[0].numpy()

    found = penalties.apply(logits)

    np.testing.assert_array_equal(found, expected)
    assert np.array_equal(logits, random_logits(4)), "the model's logits stay as they were"


def test_bias_is_that_of_transformers_and_comes_before_repetition() -> None:
    sampling = Sampling(logit_bias={5: 4.0, 9: -100.0}, repetition_penalty=1.5)
    logits = random_logits(5)
    ids = torch.tensor([[5, 6]])
    biased = SequenceBiasLogitsProcessor({(5,): 4.0, (9,): -100.0})(ids, torch.from_numpy(logits.copy())[None])
    expected = RepetitionPenaltyLogitsProcessor(1.5)(ids, biased)[0].numpy()

    found = Penalties(sampling, vocabulary=VOCABULARY, prompt=[5, 6]).apply(logits)

    np.testing.assert_array_equal(found, expected)


def test_presence_and_frequency_are_taken_for_tokens_of_the_answer_alone() -> None:
    """OpenAI's formula: logit - count * frequency - (count > 0) * presence."""
    sampling = Sampling(presence_penalty=0.5, frequency_penalty=0.25)
    penalties = Penalties(sampling, vocabulary=VOCABULARY, prompt=[1, 2, 3])
    answer = [3, 4, 3, 3]
    for token in answer:
        penalties.add(token)
    logits = random_logits(6)
    counts = np.bincount(answer, minlength=VOCABULARY)

    np.testing.assert_allclose(penalties.apply(logits), logits - 0.25 * counts - 0.5 * (counts > 0), rtol=1e-6)


def test_minus_infinity_forbids_a_token() -> None:
    logits = random_logits(7)
    best = int(logits.argmax())
    penalties = Penalties(Sampling(logit_bias={best: -math.inf}), vocabulary=VOCABULARY)

    ids, probabilities = distribution(penalties.apply(logits), temperature=1)

    assert probabilities[ids.tolist().index(best)] == 0
    assert make_sampler()(penalties.apply(logits)) == np.argsort(logits)[-2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -0.1}, "`temperature` must be 0 or more, not -0.1"),
        ({"temperature": math.nan}, "`temperature` must be 0 or more, not nan"),
        ({"top_k": -1}, "`top_k` must be 0 for all tokens, or more, not -1"),
        ({"top_p": 0}, "`top_p` must be above 0 and at most 1, not 0"),
        ({"top_p": 1.01}, "`top_p` must be above 0 and at most 1, not 1.01"),
        ({"min_p": 1.5}, "`min_p` must be from 0 to 1, not 1.5"),
        ({"seed": -1}, "`seed` must be 0 or more, not -1"),
    ],
)
def test_invalid_sampling_parameters(options: dict, message: str) -> None:
    with pytest.raises(InputError) as caught:
        make_sampler(**options)

    assert caught.value.message == message


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"repetition_penalty": 0}, "`repetition_penalty` must be above 0, not 0"),
        ({"presence_penalty": math.inf}, "`presence_penalty` must be a finite number, not inf"),
        ({"frequency_penalty": math.nan}, "`frequency_penalty` must be a finite number, not nan"),
        ({"logit_bias": {3: math.inf}}, "`logit_bias` for token 3 must be a number or minus infinity, not inf"),
        ({"logit_bias": {3: math.nan}}, "`logit_bias` for token 3 must be a number or minus infinity, not nan"),
        ({"temperature": 1e-46}, "`temperature` must be a number in the range of float32, not 1e-46"),
        ({"temperature": 1e39}, "`temperature` must be a number in the range of float32, not 1e+39"),
        ({"repetition_penalty": 1e-46}, "`repetition_penalty` must be a number in the range of float32, not 1e-46"),
        ({"presence_penalty": -1e39}, "`presence_penalty` must be a number in the range of float32, not -1e+39"),
        ({"frequency_penalty": 1e39}, "`frequency_penalty` must be a number in the range of float32, not 1e+39"),
        ({"logit_bias": {3: 1e39}}, "`logit_bias` for token 3 must be a number in the range of float32, not 1e+39"),
    ],
)
def test_penalties_without_effect(options: dict, message: str) -> None:
    with pytest.raises(InputError) as caught:
        Sampling(**options)

    assert caught.value.message == message


@pytest.mark.parametrize("options", [{}, {"top_p": 0.9}, {"top_k": 5}, {"min_p": 0.1}])
def test_the_smallest_temperature_takes_the_most_probable(options: dict) -> None:
    logits = random_logits(8)

    with np.errstate(over="ignore"):
        assert make_sampler(temperature=1e-44, seed=1, **options)(logits) == logits.argmax()


def test_a_bias_that_forbids_all() -> None:
    all_but_one = dict.fromkeys(range(VOCABULARY - 1), -math.inf)
    assert make_sampler()(
        Penalties(Sampling(logit_bias=all_but_one), vocabulary=VOCABULARY).apply(random_logits(9))
    ) == (VOCABULARY - 1)

    with pytest.raises(InputError) as caught:
        Penalties(Sampling(logit_bias=all_but_one | {VOCABULARY - 1: -math.inf}), vocabulary=VOCABULARY)

    assert caught.value.message == "`logit_bias` excludes every token of the vocabulary"
    assert caught.value.exit_code == 2


def test_a_bias_for_a_token_that_is_not_there() -> None:
    with pytest.raises(InputError) as caught:
        Penalties(Sampling(logit_bias={2000: 1.0}), vocabulary=VOCABULARY)

    assert caught.value.message == "`logit_bias` names token 2000, and the vocabulary has 2000 tokens"
