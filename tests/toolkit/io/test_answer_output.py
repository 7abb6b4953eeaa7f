from __future__ import annotations

import io
import os
import sys
from types import SimpleNamespace

import pytest

from ortkit import Rates
from ortkit.toolkit.io.answer_output import GenerationStats, write_text


def stream_of(*pieces: str) -> SimpleNamespace:
    tokens = iter([SimpleNamespace(text=piece) for piece in pieces])

    class Tokens(SimpleNamespace):
        def __iter__(self) -> object:
            return self

        def __next__(self) -> object:
            return next(tokens)

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
def test_control_characters_are_not_written_to_a_terminal(monkeypatch: pytest.MonkeyPatch, *, terminal: bool) -> None:
    text = "a\x1b[2J\rb\x9bc\x7f\td\u0301e\n"
    buffer = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", SimpleNamespace(buffer=buffer, isatty=lambda: terminal))
    write_text(stream_of(text), buffer)

    assert buffer.getvalue().decode() == ("a\ufffd[2J\ufffdb\ufffdc\ufffd\td\u0301e\n" if terminal else text)


def test_rates_are_those_of_all_answers(capsys: pytest.CaptureFixture[str]) -> None:
    first = Rates(10, 0, 21, prompt_seconds=0.5, first_token_seconds=0.625, new_seconds=1.0)
    second = Rates(30, 25, 1, prompt_seconds=0.25, first_token_seconds=0.375, new_seconds=0.0)
    one = GenerationStats().with_answer(first)

    assert str(one) == "prompt: 10 tokens, 20 tok/s; generated 21 tokens, 20 tok/s; first token 0.62 s"
    assert str(one.with_answer(second)) == (
        "2 answers; prompt: 40 tokens (25 cached), 20 tok/s; generated 22 tokens, 20 tok/s"
    )
    assert str(GenerationStats().with_answer(second)) == (
        "prompt: 30 tokens (25 cached), 20 tok/s; generated 1 token; first token 0.38 s"
    )
    assert one.with_answer(Rates(99, 0, 0, 0.0, 0.0, 0.0)) == one
    GenerationStats().print(requested=True)
    one.print(requested=False)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("terminal", [True, False])
def test_words_wrap_on_a_terminal_alone(monkeypatch: pytest.MonkeyPatch, *, terminal: bool) -> None:
    buffer = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", SimpleNamespace(buffer=buffer, isatty=lambda: terminal))
    monkeypatch.setattr("shutil.get_terminal_size", lambda *_, **__: os.terminal_size((8, 24)))
    write_text(stream_of("one two three"), buffer, wrap=True)

    assert buffer.getvalue().decode() == ("one two\nthree\n" if terminal else "one two three\n")
