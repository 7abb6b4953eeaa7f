"""Whether stdin is read if no option names it, for processes started as by shells, cron and CI."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ortkit import Bundle
from tests.commands import Finished

Ortkit = Callable[..., Finished]
PROBE = """
import ortkit.toolkit.cli as c, ortkit.toolkit.io.pipes as p
c.open_closed_streams()
p.PATIENCE = 0.3
with p.open_input(None) as s:
    has = p.carries_input(s)
    print(has, s.read() if has else b"")
"""
UNREAD = "note: stdin was not read, since the program that started ortkit has the same stdin; "
linux = pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="only Linux tells whose stdin another has")


@pytest.fixture
def probe(tmp_path: Path) -> Path:
    """A command that prints whether it has input, and which."""
    path = tmp_path / "probe"
    path.write_text(f'#!/bin/sh\nexec {sys.executable} -c "$PROBE"\n')
    path.chmod(0o755)
    return path


def shell(script: str, probe: Path, **options: object) -> tuple[list[str], str]:
    environment = os.environ | {"PROBE": PROBE, "P": str(probe)}
    finished = subprocess.run(
        ["bash", "-c", script], capture_output=True, text=True, check=True, env=environment, timeout=60, **options
    )
    return finished.stdout.splitlines(), finished.stderr


@pytest.mark.parametrize(
    "script",
    [
        "printf notes | $P",
        "(sleep .1; printf notes) | $P",
        "(sleep 2; printf notes) | $P",
        "printf notes > n; $P < n",
        "$P <<< notes",
        "printf notes | timeout 50 $P",
        "printf notes | env -u NOTHING nice $P",
    ],
)
def test_piped_input_is_read(probe: Path, tmp_path: Path, script: str) -> None:
    (line,), told = shell(script, probe, cwd=tmp_path, stdin=subprocess.DEVNULL)

    assert line in ("True b'notes'", "True b'notes\\n'")
    waited = "note: waiting for data from the pipe; add `< /dev/null` if there is none\n"
    assert told == (waited if "sleep 2" in script else "")


@pytest.mark.parametrize(
    "script",
    ["$P < /dev/null", "$P <&-", "true | $P", "echo | $P", ": > n; $P < n", "echo a | xargs $P", "$P < /dev/tty"],
)
def test_an_empty_stdin_is_not_read(probe: Path, tmp_path: Path, script: str) -> None:
    if "tty" in script:
        script = "script -qec '$P' /dev/null < /dev/null | head -1"
    lines, told = shell(script, probe, cwd=tmp_path, stdin=subprocess.DEVNULL)

    assert (lines, told) == (["False b''"], "")


@linux
@pytest.mark.parametrize(
    "script",
    [
        r"printf 'a\nb\nc\n' | while read line; do $P; done",
        r"printf 'a\nb\nc\n' > list; while read line; do $P; done < list",
        r"printf '$P;\n$P;\n$P\n' | bash",
        r"printf '$P;\n$P;\n$P\n' > commands; bash < commands",
    ],
)
def test_stdin_of_the_parent_process_is_not_read(probe: Path, tmp_path: Path, script: str) -> None:
    """The rest of a list or of a script; a note says if it was not read."""
    lines, told = shell(script, probe, cwd=tmp_path, stdin=subprocess.DEVNULL)

    assert lines == ["False b''"] * 3
    assert told.count(UNREAD) == len(told.splitlines()) >= 2


@linux
def test_a_pipe_that_nobody_closes_is_not_waited_for(probe: Path) -> None:
    """As of a program that starts another one and leaves its pipe open."""
    reading, writing = os.pipe()
    ours, theirs = socket.socketpair()
    for stdin in (reading, theirs):
        lines, told = shell("exec $P", probe, stdin=stdin)
        assert lines == ["False b''"]
        assert told == "note: no data on stdin for 0 seconds, so it is not read; `--input -` waits for it\n"
    ours.sendall(b"notes")
    ours.shutdown(socket.SHUT_WR)
    assert shell("exec $P", probe, stdin=theirs)[0] == ["True b'notes'"]
    for number in (reading, writing):
        os.close(number)
    ours.close()
    theirs.close()


@linux
@pytest.mark.parametrize("arguments", [["a text"], ["--input", "{file}"]])
def test_a_pipe_beside_arguments_is_not_waited_for(tmp_path: Path, arguments: list[str]) -> None:
    """With texts as arguments, in a loop and with a pipe that the parent holds open."""
    (tmp_path / "in").write_text("a text\n")
    command = [sys.executable, "-m", "ortkit", "embed", "nothing"]
    command += [argument.format(file=tmp_path / "in") for argument in arguments]
    loop = subprocess.run(
        ["bash", "-c", 'while read line; do "$@"; done', "bash", *command],
        input=b"a\nb\n",
        capture_output=True,
        check=False,
    )
    idle = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE)
    assert idle.stderr is not None
    told = idle.stderr.read()

    missing = b"error: there is no bundle at `nothing`\n"
    assert loop.stderr.count(missing) == 2
    assert b"stdin" not in loop.stderr + told
    assert told.startswith(missing)
    assert idle.wait() == 5
    idle.communicate()


@pytest.mark.parametrize(
    ("command", "arguments", "what"),
    [
        ("embed", ["a text"], "texts are given as arguments"),
        ("rerank", ["--query", "q", "a document"], "documents are given as arguments"),
        ("embed", ["--input", "{file}"], "texts are read from `{file}`"),
        ("rerank", ["--query", "q", "--input", "{file}"], "documents are read from `{file}`"),
        ("rerank", ["--input", "{file}"], "documents are read from `{file}`"),
        ("generate", ["--input", "{file}"], "the input is `{file}`"),
        ("generate", ["Shorten:", "--input", "{file}"], "the input is `{file}`"),
    ],
)
def test_two_inputs_are_refused(ortkit: Ortkit, tmp_path: Path, command: str, arguments: list[str], what: str) -> None:
    """Before a bundle is opened."""
    file = tmp_path / "in.txt"
    file.write_text("a text\n")
    arguments = [argument.format(file=file) for argument in arguments]

    finished = ortkit(command, "nothing", *arguments, stdin=b"notes")

    assert (finished.code, finished.out) == (2, b"")
    assert finished.err == (
        f"error: {what.format(file=file)}, and stdin has input too: one of the two would be ignored\n"
        "\nhint: leave one out: `--input -` reads stdin alone, `< /dev/null` leaves it out\n"
    )
    assert ortkit(command, "nothing", *arguments, stdin=b"").code == 5


@pytest.mark.parametrize(
    ("command", "options", "noun"),
    [("embed", [], "text"), ("rerank", ["--query", "q"], "document"), ("generate", [], "prompt")],
)
def test_the_name_of_a_file_is_not_taken_for_a_text(
    ortkit: Ortkit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, options: list[str], noun: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "x.txt").write_text("a text")
    (tmp_path / "water").write_text("a text")

    for name in ("notes/x.txt", "water", str(tmp_path / "water")):
        finished = ortkit(command, "nothing", *options, name)
        assert (finished.code, finished.out) == (2, b"")
        assert finished.err == (
            f"error: `{name}` is a file, but an argument is used as the {noun} itself\n\n"
            f"hint: `--input {name}` reads it; `--literal` uses the name as the {noun}\n"
        )
        # Both ways of the hint work.
        assert ortkit(command, "nothing", *options, "--input", name).code == 5
        assert ortkit(command, "nothing", *options, name, "--literal").code == 5
    assert ortkit(command, "nothing", *options, "./notes/").code == 5
    finished = ortkit(command, "nothing", *options, f"{tmp_path}/notes")
    assert finished.code == 2
    assert f"`{tmp_path}/notes` is a folder, but an argument is used as the {noun} itself" in finished.err
    # A word may be the name of a folder by chance, and a text may be too long for a name.
    for text in ("notes", "a" * 5000, "nothing/x.txt", ""):
        assert ortkit(command, "nothing", *options, text).code == 5


@pytest.mark.parametrize(
    ("command", "options", "noun"),
    [("embed", [], "text"), ("rerank", ["--query", "q"], "document"), ("generate", [], "prompt")],
)
def test_other_ways_to_name_an_input_are_not_taken_for_texts(
    ortkit: Ortkit, tmp_path: Path, command: str, options: list[str], noun: str
) -> None:
    (tmp_path / "x.txt").write_text("a text")

    dash = ortkit(command, "nothing", *options, "-")
    at = ortkit(command, "nothing", *options, f"@{tmp_path}/x.txt")

    assert (dash.code, at.code) == (2, 2)
    assert dash.err == (
        f"error: `-` would be used as the {noun} itself\n\n"
        f"hint: `--input -` reads stdin; `--literal` uses the dash as the {noun}\n"
    )
    assert at.err.startswith(
        f"error: `@{tmp_path}/x.txt` would be used as the {noun} itself, but `{tmp_path}/x.txt` is a file"
    )
    assert ortkit(command, "nothing", *options, "-", "--literal").code == 5
    assert ortkit(command, "nothing", *options, "@someone").code == 5


@pytest.mark.parametrize(("command", "option"), [("rerank", "--query"), ("generate", "--system"), ("chat", "--system")])
def test_an_option_that_takes_a_text_is_not_given_a_file(
    ortkit: Ortkit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, option: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my prompt.txt").write_text("Be brief.")
    (tmp_path / "water").write_text("Be brief.")

    finished = ortkit(command, "nothing", option, "my prompt.txt")

    assert (finished.code, finished.out) == (2, b"")
    assert finished.err == (
        f"error: `my prompt.txt` is a file, but `{option}` takes the text itself\n\n"
        f"hint: `{option} \"$(cat 'my prompt.txt')\"` gives its content; `--literal` uses the name as the text\n"
    )
    for arguments in ([option, "my prompt.txt", "--literal"], [option, "water"], [option, "no/file.txt"]):
        assert ortkit(command, "nothing", *arguments).code == 5


@pytest.mark.parametrize(
    ("command", "option"),
    [
        ("embed", "--input"),
        ("embed", "--output"),
        ("embed", "--prompt"),
        ("embed", "--ranges"),
        ("embed", "--field"),
        ("rerank", "--input"),
        ("rerank", "--query"),
        ("rerank", "--label"),
        ("generate", "--input"),
        ("generate", "--system"),
        ("generate", "--save-prefix"),
        ("generate", "--load-prefix"),
        ("chat", "--system"),
    ],
)
def test_an_option_given_twice_is_refused(ortkit: Ortkit, command: str, option: str) -> None:
    finished = ortkit(command, "nothing", option, "a", f"{option}=b c")

    assert (finished.code, finished.out) == (2, b"")
    assert finished.err.startswith(f"error: `{option}` takes one value, not 2: `a`, `b c`\n\nhint: ")
    assert ("awk 1 a 'b c' | ortkit ..." in finished.err) == (option == "--input")


def test_a_pipe_follows_the_prompt(ortkit: Ortkit, decoder_bundle: Bundle) -> None:
    """From a shell; the input is one text in any format, unless its records are prompts."""
    command = ("generate", decoder_bundle.path, "--max-tokens", 6)

    for notes in (b"fox", b'{"text": 5}\n{"text": 6}', b'[\n  "fox"\n]', b"id,text\n1,fox\n"):
        expected = ortkit(*command, f"Shorten:\n\n{notes.decode().rstrip(chr(10))}").out
        assert ortkit(*command, "Shorten:", stdin=notes).out == expected
    finished = ortkit(*command, "Shorten:", stdin=b'{"prompt": "a"}\n')
    assert finished.code == 2
    assert finished.err.startswith("error: PROMPT was given, and the input has prompts of its own")
    piped = subprocess.run(
        ["bash", "-c", f"printf fox | {sys.executable} -m ortkit {' '.join(map(str, command))} Shorten:"],
        capture_output=True,
        check=True,
    )
    assert piped.stdout == ortkit(*command, "Shorten:\n\nfox").out
