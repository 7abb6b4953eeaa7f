"""Requests for a batch that begin alike and arrive, overlap and leave at random, and what each would get alone."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ortkit import Answer, Batch, Decoder

Told = list[tuple[int, float, str]]


@dataclass(frozen=True)
class Request:
    """A prompt and the options of its answer."""

    prompt: list[int]
    options: dict[str, Any] = field(default_factory=dict)


def told(answer: Answer) -> Told:
    """All that an answer says, with the bits of its log-probabilities."""
    return [(token.id, token.logprob, token.text) for token in answer.tokens]


def requests(
    seed: int, count: int, *, vocabulary: int, lengths: Sequence[int] = (1, 2, 31, 63, 64, 65, 130), answer: int = 24
) -> list[Request]:
    """Prompts of a few common beginnings, each cut anywhere, and an end of their own; one in three is sampled."""
    source = random.Random(seed)

    def ids(length: int) -> list[int]:
        return [source.randrange(3, vocabulary) for _ in range(length)]

    beginnings = [ids(max(lengths)) for _ in range(3)]
    made = []
    for _ in range(count):
        prompt = source.choice(beginnings)[: source.choice(lengths)] + ids(source.choice(lengths))
        options: dict[str, Any] = {"max_tokens": source.randint(1, answer)}
        if source.random() < 0.3:
            options |= {"temperature": 0.8, "seed": source.randrange(100), "repetition_penalty": 1.2}
        made.append(Request(prompt, options))
    return made


def follow_ups(asked: Sequence[Request], answers: Sequence[Told]) -> list[Request]:
    """Each prompt with its answer and one more token, as the next turn of a conversation."""
    return [
        Request([*request.prompt, *(id_ for id_, _, _ in answer), 5], request.options)
        for request, answer in zip(asked, answers, strict=True)
    ]


def alone(decoder: Decoder, asked: Sequence[Request], **options: Any) -> list[Told]:
    """What each is answered with nothing beside it and nothing cached."""
    answers = []
    for request in asked:
        with Batch(decoder, slots=1, prefix_bytes=0, **options) as batch:
            answers.append(told(batch.submit(request.prompt, **request.options).answer()))
    return answers


def together(batch: Batch, asked: Sequence[Request], seed: int, *, pause: float = 0.002) -> list[Told]:
    """What each is answered where all arrive at random, some twice, of which some are cancelled at some time."""
    source = random.Random(seed)
    order = [*range(len(asked)), *source.sample(range(len(asked)), len(asked) // 2)]
    source.shuffle(order)
    streams = {}
    for place in order:
        request = asked[place]
        stream = batch.submit(request.prompt, **request.options)
        if place in streams:
            time.sleep(source.random() * pause)
            stream.cancel()
        else:
            streams[place] = stream
        if source.random() < 0.7:
            time.sleep(source.random() * pause)
    return [told(streams[place].answer()) for place in range(len(asked))]
