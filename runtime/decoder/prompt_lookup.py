"""Prompt lookup (n-gram speculation): draft the next tokens from an earlier occurrence of the last ones in the text.

Answers that quote their prompt, such as summaries and edited code, are decoded several tokens at a time (Saxena 2023,
prompt lookup decoding). A draft never changes the answer: the graph computes logits after each drafted token, the next
token is sampled from them as usual, and the draft is dropped from the first wrong token on.

A run with a draft takes longer than one without, so drafts must be accepted often enough. Their hit rate is known
before any is made: each token of prompt and answer is compared with the token that would have been drafted, which takes
a microsecond or two. Where no draft pays, a run has one row and costs the same as without lookup.

onnxruntime's CPU kernels sum a single row in another order than several, and the last row of an odd number like a
single row. Activations quantized to 8 bits amplify the difference, so that tokens of about equal probability swap. So
each run has one row or an even number of rows, which all give the same bits: prompts are padded
(`ModelRunner.prefill`), and a token runs with a draft of 1, 3 or 7 tokens, or alone. An answer could still depend on
which of its tokens ran with a draft. It depends on the text only: whether a token has a draft (`pays`) follows from the
tokens up to it, and stays so while drafted tokens are right, wherever runs begin and end. Neither a draft's length, nor
`max_tokens`, nor a cached prompt changes a bit. One exception: tokens of an earlier answer ran with one row each where
no draft paid, and are not computed again, so a conversation's next answer may differ in its last bits from one whose
whole text is a prompt. On a GPU bits depend on the number of rows, and so an answer's last bits on its drafts.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache

from ..session.cpu import RUN_COSTS

_SHORTEST_RUN = min(RUN_COSTS)
_NGRAMS = (3, 2)
"""Lengths of the n-grams to look up, the longest first: a longer match makes a better draft."""
_LONGEST = 4
"""Matches of this length and longer share a hit rate."""
_INITIAL_HIT_RATE = 0.5
"""Initial hit rate."""
_DECAY = 0.9
"""Weight of the previous hit rate in the moving average."""
_LEAST_HIT_RATE = 0.4
"""Hit rate from which on drafts pay: nothing is lost even where two rows take 1.4 times as long as one."""


class PromptLookup:
    """Drafts for one growing text, longer with a better hit rate, and none where they do not pay."""

    def __init__(self, ids: Iterable[int]) -> None:
        """The tokens of a prompt."""
        self.ids: list[int] = []
        self.followers: dict[tuple[int, ...], int] = {}
        """N-gram -> position after its latest occurrence."""
        self.hit_rates = dict.fromkeys(range(min(_NGRAMS), _LONGEST + 1), _INITIAL_HIT_RATE)
        """Hit rate by length of the match, as a moving average."""
        self.place: int | None = None
        """Position of the next token to draft; None without a match."""
        self.length = 0
        """Of the match."""
        self.pays = False
        """Whether to draft now."""
        for token in ids:
            self.add(token)

    def add(self, token: int) -> None:
        """Append the next token of the text, and update the hit rate."""
        ids, place = self.ids, self.place
        hit = place is not None and ids[place] == token
        if place is not None:
            self.hit_rates[self.length] += (1 - _DECAY) * (hit - self.hit_rates[self.length])
        for length in _NGRAMS:
            if len(ids) >= length:
                self.followers[tuple(ids[-length:])] = len(ids)
        ids.append(token)
        if place is not None and hit:
            self.place, self.length = place + 1, min(self.length + 1, _LONGEST)
            # The next token may be drafted already, so this cannot change.
            if self.pays:
                return
        else:
            self.place = self._look_up()
        self.pays = self.place is not None and self.hit_rates[self.length] >= _LEAST_HIT_RATE

    def _look_up(self) -> int | None:
        """The position after the latest occurrence of the longest matching n-gram."""
        for length in _NGRAMS:
            place = self.followers.get(tuple(self.ids[-length:]))
            if place is not None:
                self.length = length
                return place
        return None

    def draft(self, most: int) -> list[int]:
        """Draft at least one and at most `most` tokens; empty where it does not pay."""
        if self.place is None or not self.pays:
            return []
        best = min(best_run(round(self.hit_rates[self.length], 2)), most + 1)
        return self._copied(
            self.place, max((tokens for tokens in RUN_COSTS if tokens <= best), default=_SHORTEST_RUN) - 1
        )

    def _copied(self, place: int, count: int) -> list[int]:
        """The tokens from a position on, repeated where the text ends."""
        found = self.ids[place : place + count]
        period = len(self.ids) - place
        while len(found) < count:
            found.append(found[len(found) - period])
        return found


@cache
def best_run(hit_rate: float) -> int:
    """The best number of tokens in a run, the drafted ones and the one before them, for a hit rate."""

    def gain(tokens: int) -> float:
        # A run yields the tokens up to the first wrong one, and the right one in its place.
        return sum(hit_rate**place for place in range(tokens)) / RUN_COSTS[tokens]

    return max(RUN_COSTS, key=gain)
