from __future__ import annotations

import io
import sys
from types import SimpleNamespace

import pytest

from ortkit import InputError
from ortkit.toolkit.io.chat_input import from_pipe, from_terminal, turns_of


def turns(text: bytes) -> list[str]:
    return list(turns_of(from_pipe(io.BytesIO(text))))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"", []),
        (b"a\n\n  \nb\r\n", ["a", "b"]),
        (b"\xef\xbb\xbfa", ["a"]),
        (b"a\\\nb\\\n\nc", ["a\nb\n", "c"]),
        (b"a\\", ["a"]),
        (b'"""a"""\nb', ["a", "b"]),
        (b'"""\na\n\n/b\\\n"""\nc', ["a\n\n/b\\", "c"]),
        (b'"""a\nb"""\nc', ["a\nb", "c"]),
        (b'"""a\nb', ["a\nb"]),
        (b'"""\n"""\na', ["a"]),
        (b'say """ twice', ['say """ twice']),
        (b" /a", [" /a"]),
    ],
)
def test_lines_become_messages(text: bytes, expected: list[str]) -> None:
    assert turns(text) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"a\n\xff", "line 2 is not valid UTF-8 at byte 1"),
        (b"a\0", "line 1 has a NUL byte and is not text"),
    ],
)
def test_binary_input_is_refused(text: bytes, message: str) -> None:
    with pytest.raises(InputError, match=message):
        turns(text)


def test_bytes_that_are_no_text_are_asked_for_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    typed = iter([b"\xff", b"fox"])
    monkeypatch.setattr(sys, "stdout", SimpleNamespace(isatty=lambda: True))
    monkeypatch.setattr("builtins.input", lambda _prompt: next(typed).decode())
    read = from_terminal()

    assert read("> ") == "fox"
    assert capsys.readouterr().err == "error: the input is not valid UTF-8\n\nhint: set the terminal to UTF-8\n"


def test_answers_to_a_file_leave_the_prompt_on_stderr(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("Hello\nfox"))

    assert list(turns_of(from_terminal())) == ["Hello", "fox"]
    assert capsys.readouterr() == ("", "> > > ")
