"""Drafts of the next tokens, taken from where the last ones stood before in the same text.

Answers that quote their prompt, as summaries and edited code do, are read from it several tokens at a time (Saxena
2023, prompt lookup decoding). A draft never changes what is said: the graph gives the logits after each drafted token,
the next token is chosen from them as ever, and the draft is left where it was wrong.

A run with a draft takes longer than one without, so a draft must be right often enough. How often is known before any
was made: what would be drafted is compared with what comes, for each token of the prompt and of the answer, which costs
a microsecond or two. Where no draft pays, a run has one row, and takes as long as if nothing were looked up.

onnxruntime's kernels add up a single row in another order than several, and the last row of an odd number as a single
one. Activations that are rounded to 8 bits make more of it, so that tokens of about the same probability change places.
So each run has one row, or an even number of rows, which all give the same bits: prompts are padded to it
(`Forward.prefill`), and a token is read with a draft, of 1, 3 or 7 tokens, or alone. What a text becomes could still
hang on which of its tokens were read in a run with a draft. It hangs on nothing but the text: whether there is a draft
at a token (`pays`) follows from the tokens up to it, and stays so for as long as the drafted ones are right, wherever
one run ends and the next begins. Neither the length of a draft, nor where an answer is to end, nor what a cache held of
the prompt, if it was read as a prompt, changes a bit. The one exception: tokens of an earlier answer were read with one
row each where no draft paid, and are not read again, so a conversation's next answer may differ in its last bits from
one whose whole text is read as a prompt.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache

RUN_COSTS = {2: 1.22, 4: 1.95, 8: 3.34}
"""How many tokens a run with a draft may have, and what it takes in units of one with a single token.

Measured with AVX2 alone, int4, two threads; where the processor has VNNI it is less: 1.07, 1.55 and 2.4.
"""
LEAST = min(RUN_COSTS)
LENGTHS = (3, 2)
"""How many last tokens are looked up, the longest first: the longer the match, the better the draft."""
LONGEST = 4
"""A match that has grown to so many tokens counts as any longer one."""
FIRST_GUESS = 0.5
"""The share of first drafted tokens that is taken for right before any was seen."""
MEMORY = 0.9
"""How much of an estimate stays when another token turned out right or wrong."""
LEAST_RIGHT = 0.4
"""The share from which on drafts pay: then even where two rows took 1.4 times as long as one, nothing would be lost."""


class PromptLookup:
    """Drafts from one growing text, where they pay, and longer the better they would have been."""

    def __init__(self, ids: Iterable[int]) -> None:
        """The tokens of a prompt."""
        self.ids: list[int] = []
        self.followers: dict[tuple[int, ...], int] = {}
        """Some tokens in a row -> the place of what followed them the last time."""
        self.rightness = dict.fromkeys(range(min(LENGTHS), LONGEST + 1), FIRST_GUESS)
        """By the length of a match, how often what followed it came again, the latest ones weighing most."""
        self.place: int | None = None
        """Of what comes next if the text goes on as it did before; None where nothing matches."""
        self.length = 0
        """Of the match."""
        self.pays = False
        """Whether a draft is to be made now."""
        for token in ids:
            self.add(token)

    def add(self, token: int) -> None:
        """Take note of the next token of the text, and whether it would have been drafted."""
        ids, place = self.ids, self.place
        right = place is not None and ids[place] == token
        if place is not None:
            self.rightness[self.length] += (1 - MEMORY) * (right - self.rightness[self.length])
        for length in LENGTHS:
            if len(ids) >= length:
                self.followers[tuple(ids[-length:])] = len(ids)
        ids.append(token)
        if place is not None and right:
            self.place, self.length = place + 1, min(self.length + 1, LONGEST)
            # The next token may be drafted already, so there is no way back.
            if self.pays:
                return
        else:
            self.place = self.look_up()
        self.pays = self.place is not None and self.rightness[self.length] >= LEAST_RIGHT

    def look_up(self) -> int | None:
        """The place of what followed the longest match the last time."""
        for length in LENGTHS:
            place = self.followers.get(tuple(self.ids[-length:]))
            if place is not None:
                self.length = length
                return place
        return None

    def draft(self, most: int) -> list[int]:
        """What may come next, at least one token and at most so many; empty where it does not pay."""
        if self.place is None or not self.pays:
            return []
        best = min(best_run(round(self.rightness[self.length], 2)), most + 1)
        return self.copied(self.place, max((tokens for tokens in RUN_COSTS if tokens <= best), default=LEAST) - 1)

    def copied(self, place: int, count: int) -> list[int]:
        """The tokens from a place on; where the text ends it goes on as it did from there."""
        found = self.ids[place : place + count]
        period = len(self.ids) - place
        while len(found) < count:
            found.append(found[len(found) - period])
        return found


@cache
def best_run(rightness: float) -> int:
    """How many tokens a run should have, drafted ones and the one before them, when drafts are right so often."""

    def gain(tokens: int) -> float:
        # A run gives the tokens up to the first wrong one, and the right one in its place.
        return sum(rightness**place for place in range(tokens)) / RUN_COSTS[tokens]

    return max(RUN_COSTS, key=gain)
