from __future__ import annotations

import io
import sys
from types import SimpleNamespace

import pytest

from runtime import Rates
from toolkit.answers import Totals, write_text


def stream_of(*pieces: str) -> SimpleNamespace:
    class Tokens(SimpleNamespace):
        def __iter__(self) -> object:
            return iter([SimpleNamespace(text=piece) for piece in pieces])

    return Tokens(cancel=lambda: None)


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [
        (["a", "", "ü\n"], "aü\n"),
        (["a", "b"], "ab\n"),
        ([], "\n"),
        (["a\n", ""], "a\n"),
    ],
)
def test_an_answer_ends_its_last_line(pieces: list[str], expected: str) -> None:
    file = io.BytesIO()
    write_text(stream_of(*pieces), file)

    assert file.getvalue().decode() == expected


@pytest.mark.parametrize("terminal", [True, False])
def test_what_a_terminal_would_obey_is_not_written_to_one(monkeypatch: pytest.MonkeyPatch, *, terminal: bool) -> None:
    text = "a\x1b[2J\rb\x9bc\x7f\td\u0301e\n"
    buffer = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", SimpleNamespace(buffer=buffer, isatty=lambda: terminal))
    write_text(stream_of(text), buffer)

    assert buffer.getvalue().decode() == ("a\ufffd[2J\ufffdb\ufffdc\ufffd\td\u0301e\n" if terminal else text)


def test_rates_are_those_of_all_answers(capsys: pytest.CaptureFixture[str]) -> None:
    first = Rates(10, 0, 21, prompt_seconds=0.5, first_token_seconds=0.625, new_seconds=1.0)
    second = Rates(30, 25, 1, prompt_seconds=0.25, first_token_seconds=0.375, new_seconds=0.0)
    one = Totals().with_answer(first)

    assert str(one) == "read 10 tokens at 20/s; wrote 21 at 20/s; first after 0.62 s"
    assert str(one.with_answer(second)) == ("2 answers; read 15 tokens at 20/s, 25 more were known; wrote 22 at 20/s")
    assert str(Totals().with_answer(second)) == (
        "read 5 tokens at 20/s, 25 more were known; wrote 1; first after 0.38 s"
    )
    assert one.with_answer(Rates(99, 0, 0, 0.0, 0.0, 0.0)) == one
    Totals().tell(asked=True)
    one.tell(asked=False)
    assert capsys.readouterr().err == ""
