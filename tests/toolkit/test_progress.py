from __future__ import annotations

import pytest

from toolkit.progress import TextProgress, duration, rated


def test_a_bar_has_rate_and_time_left() -> None:
    progress = TextProgress(1000)
    progress.advance(250, 50)

    assert progress.line(10) == "embedding [#####---------------]  25%, 50 texts, 5 texts/s, 30 s left"


def test_what_was_done_before_does_not_count_for_the_rate() -> None:
    progress = TextProgress(1000)
    progress.advance(500, 0)
    progress.advance(250, 50)

    assert progress.line(10) == "embedding [###############-----]  75%, 50 texts, 5 texts/s, 10 s left"


@pytest.mark.parametrize(("seconds", "shown"), [(0, "0 s"), (99, "99 s"), (150, "2 min"), (8000, "2 h 13 min")])
def test_durations_are_short(seconds: float, shown: str) -> None:
    assert duration(seconds) == shown


@pytest.mark.parametrize(("rate", "shown"), [(1234.5, "1234"), (10, "10"), (9.96, "10"), (2.34, "2.3"), (0.05, "0.05")])
def test_slow_rates_have_two_digits(rate: float, shown: str) -> None:
    assert rated(rate) == shown
