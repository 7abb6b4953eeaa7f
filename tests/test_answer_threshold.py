"""The measurement of the threshold of `ortkit ask`, on similarities whose shares are known."""

from __future__ import annotations

import numpy as np

from benchmarks.accuracy import Retrieval
from benchmarks.answer_threshold import Nearest


def test_the_threshold_refuses_at_most_two_percent() -> None:
    """100 questions on 100 passages, and one passage of another subject that all of them are as near to."""
    own = np.linspace(0.305, 0.8, 100, dtype=np.float32)
    similarities = np.full((100, 101), 0.1, np.float32)
    similarities[np.arange(100), np.arange(100)] = own
    similarities[:, 100] = 0.2
    nearest = Nearest.of(similarities, Retrieval([""] * 100, [""] * 101, np.arange(100)), own=100)

    assert nearest.threshold == 0.31
    assert (own < 0.31).sum() == 1 + (own[1] < 0.31)
    assert nearest.row(0.31) == ["0.31", f"{(own < 0.31).mean():.1%}", "100.0%", "100.0%"]
    assert nearest.row(0.15) == ["0.15", "0.0%", "0.0%", "0.0%"]
