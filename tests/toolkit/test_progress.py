from __future__ import annotations

import io

import pytest

from toolkit.progress import StageProgress, TextProgress, duration, rated


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


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_weights_are_told_by_tensors_and_bytes_with_the_time_that_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is done within no time was done before, and does not count for the rate."""
    times = iter([0.0, 0.001, 0.002, 10.0, 20.0])
    monkeypatch.setattr("toolkit.progress.time.monotonic", lambda: next(times))
    monkeypatch.setattr("sys.stderr", terminal := Terminal())
    progress = StageProgress()

    for tensors in range(1, 6):
        progress.advanced(tensors, 9, tensors * 10**8, 9 * 10**8)

    assert terminal.getvalue().split("\r\x1b[K")[1:] == [
        "  1 of 9 tensors, 100.0 MB of 900.0 MB",
        "  2 of 9 tensors, 200.0 MB of 900.0 MB",
        "  3 of 9 tensors, 300.0 MB of 900.0 MB",
        "  4 of 9 tensors, 400.0 MB of 900.0 MB, 50 s left",
        "  5 of 9 tensors, 500.0 MB of 900.0 MB, 40 s left",
    ]


def test_nothing_is_told_of_weights_in_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    StageProgress().advanced(1, 2, 10, 20)

    assert capsys.readouterr().err == ""
