from __future__ import annotations

import io
import sys

import pytest

from ortkit.toolkit.console.progress import StageProgress, TextProgress, duration, rated
from tests.commands import lines_on_terminal, on_terminal


def test_a_bar_has_rate_and_time_left() -> None:
    progress = TextProgress(1000)
    progress.advance(250, 50)

    assert progress.line(10) == "embedding [#####---------------]  25%, 50 texts, 5 texts/s, 30 s left"


def test_resumed_work_does_not_count_for_the_rate() -> None:
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


def test_bytes_are_shown_with_the_rate_and_the_time_that_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors that take no time were resumed, and do not count for the rate."""
    times = iter([0.0, 0.001, 0.002, 10.0, 20.0])
    monkeypatch.setattr("ortkit.toolkit.console.progress.time.monotonic", lambda: next(times))
    monkeypatch.setattr("sys.stderr", terminal := Terminal())
    progress = StageProgress()

    for tensors in range(1, 6):
        progress.update(tensors * 10**8, 9 * 10**8, "bytes")

    assert terminal.getvalue().split("\r\x1b[K")[1:] == [
        "  100.0 MB of 900.0 MB",
        "  200.0 MB of 900.0 MB",
        "  300.0 MB of 900.0 MB",
        "  400.0 MB of 900.0 MB, 10.0 MB/s, 50 s left",
        "  500.0 MB of 900.0 MB, 10.0 MB/s, 40 s left",
    ]


def test_bytes_are_not_shown_in_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    StageProgress().update(10, 20, "bytes")

    assert capsys.readouterr().err == ""


TELL = """
import sys, time, ortkit.toolkit.cli as cli, ortkit.toolkit.console.progress as progress
from ortkit.runtime.errors import InputError
cli.configure_output()
progress.HEARTBEAT = 0.2
{}
"""


def told(code: str, exit_code: int = 0) -> tuple[str, list[str]]:
    shown = on_terminal([sys.executable, "-c", TELL.format(code)], code=exit_code)
    return shown, lines_on_terminal(shown)


def test_other_output_begins_on_a_new_line() -> None:
    """An error, a warning of a library, a log, a question."""
    _, lines = told(
        """
import logging, warnings
with progress.StageProgress() as told:
    told.begin("trace")
    warnings.warn("a warning of a library")
    told.update(3, 9, "texts")
    logging.getLogger("torch").warning("a log")
    told.update(10, 20, "bytes")
    print("a print", file=sys.stderr)
    told.end("trace", 1.0)
    told.begin("quantize")
    told.note("it is large")
    told.update(5, 10, "bytes")
def fail(): raise InputError("it broke", hint="mend it")
cli.exit_code_of(fail)
"""
    )

    assert lines[0] == "  ...     trace"
    assert lines[1].endswith("UserWarning: a warning of a library")
    assert lines[2:] == [
        "  3 of 9 texts",
        "a log",
        "  0.0 MB of 0.0 MB",
        "a print",
        "    1.0 s trace",
        "note: it is large",
        "  0.0 MB of 0.0 MB",
        "error: it broke",
        "",
        "hint: mend it",
        "",
    ]


def test_a_stage_shows_that_it_runs_and_stops_at_an_error() -> None:
    shown, lines = told(
        """
def run():
    with progress.StageProgress() as told:
        told.begin("trace")
        time.sleep(0.7)
        told.update(3, 9, "texts")
        raise InputError("it broke")
cli.exit_code_of(run)
time.sleep(0.5)
"""
    )

    assert shown.count("trace, 0 s") + shown.count("trace, 1 s") >= 2
    assert lines == ["  3 of 9 texts", "error: it broke", ""]


def test_counts_are_drawn_now_and_then_and_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr", terminal := Terminal())
    progress = StageProgress()

    for number in range(1, 1001):
        progress.update(number, 1000, "texts")

    lines = terminal.getvalue().split("\r\x1b[K")[1:]
    assert lines[0] == "  1 of 1000 texts"
    assert lines[-1] == "  1000 of 1000 texts"
    assert len(lines) < 100


def test_texts_that_are_computed_count_before_they_are_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr", terminal := Terminal())
    progress = TextProgress(1000)

    progress.within(3)
    assert "  0%, 3 texts, " in terminal.getvalue()
    assert "left" not in terminal.getvalue()
    progress.advance(500, 8)
    assert " 50%, 8 texts, " in terminal.getvalue()
