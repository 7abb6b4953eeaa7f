"""Drafts of the next tokens, taken from where the last ones stood before in the same text.

Answers that quote their prompt, as summaries and edited code do, are read from it several tokens at a time (Saxena
2023, prompt lookup decoding). A draft never changes what is said: the graph gives the logits after each drafted token,
the next token is chosen from them as ever, and the draft is left where it was wrong.

For that to be true to the bit no run has one row: onnxruntime's kernels add up a single row in another order than
several, and int8 activations make of the last bit of a sum a difference that decides between tokens of about the same
probability. Any two numbers of rows from two on give the same bits (measured, int4 and float32). So a run without a
draft reads the token before once more, and a draft of one token costs nothing. That is the price of drafts: 7% where
the processor has VNNI, 22% with AVX2 alone, wherever nothing matches.
"""

from __future__ import annotations

from functools import cache

RUN_COSTS = {1: 1.0, 2: 1.07, 4: 1.55, 8: 2.4}
"""What a run with so many tokens takes in units of one with a single token: measured, int4, two threads, VNNI.

AVX2 alone needs 1.22, 1.95 and 3.34; beside a run with two tokens, which is the least, that is nearly the same.
"""
LEAST, MOST = 2, 8
"""Tokens in a run."""
LENGTHS = (4, 3, 2)
"""How many last tokens are looked up, the longest first: the longer the match, the better the draft."""
FIRST_GUESS = 0.5
"""The share of drafted tokens that is taken for right before any was seen."""
MEMORY = 0.9
"""How much of an estimate stays when another drafted token turned out right or wrong."""


class PromptLookup:
    """Drafts from one growing text, longer the better they have been."""

    def __init__(self, ids: list[int]) -> None:
        """The tokens of a prompt."""
        self.ids: list[int] = []
        self.followers: dict[tuple[int, ...], int] = {}
        """Some tokens in a row -> the place of what followed them the last time."""
        self.rightness = dict.fromkeys(LENGTHS, FIRST_GUESS)
        """By the length of the match, the share of drafted tokens that were right, the latest ones weighing most."""
        self.length = 0
        """Of the match that gave the last draft."""
        for token in ids:
            self.add(token)

    def add(self, token: int) -> None:
        """Take note of the next token of the text."""
        place = len(self.ids)
        for length in LENGTHS:
            if place >= length:
                self.followers[tuple(self.ids[place - length :])] = place
        self.ids.append(token)

    def draft(self, most: int) -> list[int]:
        """What may come next, at most so many tokens; empty where nothing matches."""
        for length in LENGTHS:
            place = self.followers.get(tuple(self.ids[-length:]))
            if place is not None:
                self.length = length
                return self.copied(place, min(most, best_run(round(self.rightness[length], 2)) - 1))
        return []

    def copied(self, place: int, count: int) -> list[int]:
        """The tokens from a place on; where the text ends it goes on as it did from there."""
        found = self.ids[place : place + count]
        period = len(self.ids) - place
        while len(found) < count:
            found.append(found[len(found) - period])
        return found

    def learn(self, drafted: int, right: int) -> None:
        """Take note of how many tokens of the last draft were right; those after the first wrong one tell nothing."""
        for outcome in [1.0] * right + [0.0] * (right < drafted):
            self.rightness[self.length] = MEMORY * self.rightness[self.length] + (1 - MEMORY) * outcome


@cache
def best_run(rightness: float) -> int:
    """How many tokens a run should have, drafted ones and the one before them, when drafts are right so often."""

    def gain(tokens: int) -> float:
        # A run gives the tokens up to the first wrong one, and the right one in its place.
        return sum(rightness**place for place in range(tokens)) / run_cost(tokens)

    return max(range(LEAST, MOST + 1), key=gain)


def run_cost(tokens: int) -> float:
    """What a run takes, on straight lines between those that were measured."""
    if tokens in RUN_COSTS:
        return RUN_COSTS[tokens]
    below = max(known for known in RUN_COSTS if known < tokens)
    above = min(known for known in RUN_COSTS if known > tokens)
    return RUN_COSTS[below] + (RUN_COSTS[above] - RUN_COSTS[below]) * (tokens - below) / (above - below)
