from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ortkit import Bundle, Hit, HitScores, Index, Place, Reranker
from ortkit.toolkit.commands.found_passages import marked, place_of
from ortkit.toolkit.console.hyperlinks import linked
from ortkit.toolkit.search.snippets import Snippet
from tests.commands import Finished, on_terminal
from tests.tiny_bundles import write_reranker

Ortkit = Callable[..., Finished]


def rows(out: bytes) -> list[dict]:
    return [json.loads(line) for line in out.decode().splitlines()]


def test_passages_with_their_place(ortkit: Ortkit, manuals_index: Path) -> None:
    finished = ortkit("search", manuals_index, "F-17", "--mode", "bm25")

    assert (finished.code, finished.err) == (0, "")
    assert finished.out.decode() == " 1  pumps/bilge.md:7  Bilge pump > Fuse\n    The fuse is F-17.\n"


def test_the_json_of_a_passage_is_the_hit(ortkit: Ortkit, manuals_index: Path) -> None:
    found = rows(ortkit("search", manuals_index, "the dog sleeps", "--top-n", 9, "--json").out)
    with Index.open(manuals_index) as index:
        hits = index.search("the dog sleeps", top_n=9)

    assert [(row["rank"], row["file"], row["text"], row["score"]) for row in found] == [
        (hit.rank, hit.file, hit.text, hit.score) for hit in hits
    ]
    (notes,) = [row for row in found if row["file"] == "notes.txt"]
    (hit,) = [hit for hit in hits if hit.file == "notes.txt"]
    assert notes["path"] == str(manuals_index.parent / "manuals" / "notes.txt")
    assert (notes["lines"], notes["page"], notes["title"], notes["headings"]) == ([1, 2], None, "notes.txt", [])
    assert notes["scores"] == vars(hit.scores)
    start, end = notes["match"]
    assert notes["snippet"][start:end] in (
        "The quick brown fox jumps over the lazy dog.", "And the dog sleeps."
    )  # fmt: skip


def test_options_choose_passages(ortkit: Ortkit, manuals_index: Path, tmp_path: Path) -> None:
    write_reranker(tmp_path / "reranker")
    command = ("search", manuals_index, "dog", "--json")

    assert {row["file"] for row in rows(ortkit(*command, "--path", "*.md", "--path", "lamps.csv").out)} == {
        "pumps/bilge.md", "lamps.csv"
    }  # fmt: skip
    assert {row["scores"]["bm25"] for row in rows(ortkit(*command, "--mode", "vector").out)} == {None}
    reranked = rows(ortkit(*command, "--reranker", tmp_path / "reranker").out)
    with Index.open(manuals_index) as index:
        expected = index.search("dog", reranker=Reranker(tmp_path / "reranker"))
    assert [(row["file"], row["scores"]["reranked"]) for row in reranked] == [
        (hit.file, hit.scores.reranked) for hit in expected
    ]


def test_many_queries(ortkit: Ortkit, manuals_index: Path, tmp_path: Path) -> None:
    """Lines, or records whose other fields are copied."""
    one = rows(ortkit("search", manuals_index, "dog", "--json", "--top-n", 1).out)
    lines = rows(ortkit("search", manuals_index, "--top-n", 1, stdin=b"dog\nfuse\n").out)
    records = b'{"id": 7, "query": "dog"}\n{"id": 8, "query": "fuse"}\n'
    target = tmp_path / "found.jsonl"
    assert ortkit("search", manuals_index, "--top-n", 1, "--output", target, stdin=records).out == b""

    assert lines[0] == {"query": "dog", "results": one}
    assert rows(target.read_bytes()) == [{"id": 7} | lines[0], {"id": 8} | lines[1]]
    fields = rows(ortkit("search", manuals_index, "--field", "q", "--top-n", 1, stdin=b'{"q": "dog"}\n').out)
    assert fields == [{"q": "dog", "results": one}]


@pytest.mark.parametrize(
    "query", ['"', "NEAR(", "*", "the of and", "a AND OR", "col:x", "; --", "\u0000dog", "x" * 5000]
)
def test_any_text_is_a_query(ortkit: Ortkit, manuals_index: Path, query: str) -> None:
    """What FTS5 has a syntax for, words without meaning, and what is longer than the embedder reads."""
    finished = ortkit("search", manuals_index, query)

    assert (finished.code, finished.out[:4]) == (0, b" 1  ")
    truncated = len(query) == 5000
    assert finished.err == ("warning: the query is longer than the embedder's 64 tokens, and truncated\n" * truncated)


def test_nothing_found(ortkit: Ortkit, manuals_index: Path) -> None:
    """As grep: exit code 1, and nothing on stdout."""
    for options in (("--mode", "bm25"), ("--path", "*.none"), ("--path", "*.none", "--json")):
        finished = ortkit("search", manuals_index, "zebra", *options)

        assert (finished.code, finished.out) == (1, b"")
        assert finished.err == f"nothing was found in {manuals_index}\n"
    assert rows(ortkit("search", manuals_index, "--mode", "bm25", stdin=b"zebra\n").out) == [
        {"query": "zebra", "results": []}
    ]


@pytest.mark.parametrize(
    ("arguments", "stdin", "message"),
    [
        ([" "], b"", "the query is empty"),
        (["dog", "--input", "x.txt"], b"", "the query is given as an argument, and `--input` too: give one of the two"),
        (["/etc/hostname"], b"", "`/etc/hostname` is a file, but an argument is used as the query itself"),
        ([], b"dog\n\n", "the query in line 2 is empty"),
        ([], b'{"text": "dog"}\n', "line 1 has no text in `query`; its fields are `text`"),
        (["dog", "--field", "q"], b"", "`--field` is for an input, and the query is given as an argument"),
        (["-", "--top-n", "1"], b"", "`-` would be used as the query itself"),
        (["dog", "--mode", "words"], b"", "invalid value for '--mode'"),
        (["dog", "--top-n", "0"], b"", "invalid value for '--top-n'"),
    ],
)
def test_input_that_cannot_be_used(
    ortkit: Ortkit, manuals_index: Path, arguments: list[str], stdin: bytes, message: str
) -> None:
    finished = ortkit("search", manuals_index, *arguments, stdin=stdin)

    assert finished.code == 2
    assert finished.err.startswith(f"error: {message}")


def test_no_query_on_a_terminal(ortkit: Ortkit, manuals_index: Path) -> None:
    finished = ortkit("search", manuals_index, tty=True)

    assert (finished.code, finished.err) == (
        2,
        f'error: no query\n\nhint: ortkit search {manuals_index} "some words", or `--input FILE`, or a pipe\n',
    )


def test_indexes_that_cannot_be_opened(ortkit: Ortkit, manuals_index: Path, tmp_path: Path) -> None:
    write_reranker(tmp_path / "reranker")
    missing = ortkit("search", tmp_path / "none.index", "dog")
    wrong = ortkit("search", manuals_index, "dog", "--bundle", tmp_path / "reranker")

    assert (missing.code, wrong.code) == (5, 7)
    assert missing.err == (
        f"error: there is no index at `{tmp_path}/none.index`\n\n"
        "hint: build one: `ortkit index FOLDER --bundle BUNDLE -o INDEX`\n"
    )


def test_an_index_whose_bundle_was_moved(
    ortkit: Ortkit, embedder_bundle: Bundle, manuals: Path, tmp_path: Path
) -> None:
    import shutil

    shutil.copytree(embedder_bundle.path, tmp_path / "here")
    Index.build(tmp_path / "m.index", manuals, tmp_path / "here").close()
    (tmp_path / "there").mkdir()
    (tmp_path / "here").rename(tmp_path / "there" / "moved")

    lost = ortkit("search", tmp_path / "m.index", "dog")
    found = ortkit("search", tmp_path / "m.index", "dog", "--bundle", tmp_path / "there" / "moved")

    assert (lost.code, found.code) == (5, 0)
    assert "--bundle PATH" in lost.err


def test_a_terminal_shows_links_and_the_sentence(manuals_index: Path) -> None:
    command = [sys.executable, "-m", "ortkit", "search", str(manuals_index), "F-17", "--mode", "bm25"]
    environment = {**os.environ, "TERM": "xterm", "ORTKIT_LINK": "vscode://file{path}:{line}"}
    environment.pop("NO_COLOR", None)
    shown = on_terminal(command, stdout=True, env=environment)
    plain = on_terminal(command, stdout=True, env={**environment, "NO_COLOR": "1"})

    file = manuals_index.parent / "manuals" / "pumps" / "bilge.md"
    assert f"\x1b]8;;vscode://file{file}:7\x1b\\pumps/bilge.md:7\x1b]8;;\x1b\\" in shown
    assert "    \x1b[1mThe fuse is F-17.\x1b[0m" in shown
    assert plain == " 1  pumps/bilge.md:7  Bilge pump > Fuse\r\n    The fuse is F-17.\r\n"


@pytest.mark.parametrize(
    ("environment", "url"),
    [
        ({}, "file://{host}/m/a%20%1B.md"),
        ({"TERM_PROGRAM": "vscode"}, "vscode://file/m/a%20%1B.md:12"),
        ({"TERM": "xterm-kitty"}, "file://{host}/m/a%20%1B.md#12"),
        ({"ORTKIT_LINK": "idea://open?file={path}&line={line}\x1b\x07"}, "idea://open?file=/m/a%20%1B.md&line=12"),
    ],
)
def test_links(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], url: str) -> None:
    """No name of a file ends the sequence, or reaches the terminal as it is."""
    import socket

    for name, value in {"TERM": "xterm", "NO_COLOR": "", "TERM_PROGRAM": "", "ORTKIT_LINK": "", **environment}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    text = linked("a \x1b.md:12", Path("/m/a \x1b.md"), line=12)

    target = url.replace("{host}", socket.gethostname())
    assert text == f"\x1b]8;;{target}\x1b\\a \\x1b.md:12\x1b]8;;\x1b\\"
    for name, value in (("TERM", "dumb"), ("NO_COLOR", "1")):
        monkeypatch.setenv(name, value)
        assert linked("a.md:12", Path("/m/a.md"), line=12) == "a.md:12"


def hit_at(place: Place) -> Hit:
    return Hit(1, "", "", "a.pdf", Path("/m/a.pdf"), place, 0.5, HitScores(0.5, 1, None, None, 0.5, None))


def test_places() -> None:
    assert [place_of(hit_at(place)) for place in (Place((3, 9)), Place(None, 4), Place())] == [
        *("a.pdf:3", "a.pdf, page 4", "a.pdf"),
    ]


def test_lines_of_a_snippet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wrapped at words by columns; the sentence is bold on each of its lines, and what a document has is escaped."""
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    snippet = Snippet("one two three\x1b four 東京東京 five", (4, 19))

    assert list(marked(snippet, 10)) == [
        "one \x1b[1mtwo\x1b[0m",
        "\x1b[1mthree\\x1b\x1b[0m",
        "\x1b[1mfour\x1b[0m",
        "東京東京",
        "five",
    ]
    monkeypatch.setenv("NO_COLOR", "1")
    assert list(marked(snippet, None)) == ["one two three\\x1b four 東京東京 five"]
    assert list(marked(Snippet("", (0, 0)), 10)) == [""]
