# ruff: noqa: RUF001 - Cyrillic
from __future__ import annotations

import html
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ortkit.toolkit.search.documents import html as html_reader
from ortkit.toolkit.search.documents import reading
from ortkit.toolkit.search.documents.html import read_html
from tests.toolkit.search.documents.read_files import placed, read, refusal, texts

PAGE = """<!DOCTYPE html>
<html><head><title>Pumps &amp; valves</title>
<style>p { color: red }</style><script>if (a < b) { "<p>no</p>" }</script></head>
<body>
<nav><ul><li>Home</li></ul></nav>
<h1>The <em>pump</em></h1>
<p>Open the valve
   first, then&nbsp;wait for&#32;5&eacute;.</p>
<div>Loose text <b>bold</b><br>new line
<p>Unclosed paragraph
<ul><li>One<li>Two <a href="x">link</a></ul>
<h2>Sizes</h2>
<table><caption>All sizes</caption>
<tr><th>part</th><th>size</th></tr>
<tr><td><p>valve</p></td><td>3 <i>mm</i></td></tr>
<tr><td>fuse<td>5 A
</table>
<pre>
$ pump --start
  started

$ pump --stop
</pre>
<template><p>no</p></template><svg><title>no</title><text>no</text></svg>
<p hidden>no</p><div role="navigation">no</div><img src="a.png" alt="A drawing">
<h2>Nothing follows</h2>
<footer>End.</footer></body></html>
"""


def test_blocks_and_their_places(tmp_path: Path) -> None:
    document, passages = read(tmp_path, "page.html", PAGE)

    assert document.title == "Pumps & valves"
    sizes = ("The pump", "Sizes")
    assert placed(passages) == [
        ("Open the valve first, then wait for 5é.", (7, 8), ("The pump",)),
        ("Loose text bold new line", (9, 9), ("The pump",)),
        ("Unclosed paragraph", (10, 10), ("The pump",)),
        ("One", (11, 11), ("The pump",)),
        ("Two link", (11, 11), ("The pump",)),
        ("All sizes", (13, 13), sizes),
        ("part | size", (14, 14), sizes),
        ("valve | 3 mm", (15, 15), sizes),
        ("fuse | 5 A", (16, 16), sizes),
        ("$ pump --start\n  started\n\n$ pump --stop", (19, 22), sizes),
        ("A drawing", (25, 25), sizes),
        ("End.", (27, 27), ("The pump", "Nothing follows")),
    ]
    assert [passage.line_by_line for passage in passages].index(True) == 9


def test_words_stand_in_their_lines(tmp_path: Path) -> None:
    lines = PAGE.split("\n")
    for passage in read(tmp_path, "page.html", PAGE)[1]:
        assert passage.place.lines is not None
        first, last = passage.place.lines
        words = passage.text.split()
        assert words[0] in html.unescape(lines[first - 1])
        assert words[-1] in html.unescape(lines[last - 1])


@pytest.mark.parametrize(
    ("head", "encoding"),
    [
        ('<meta charset="iso-8859-1">', "cp1252"),
        ('<META http-equiv="Content-Type" content="text/html; charset=windows-1251">', "cp1251"),
        ("<meta charset=shift_jis>", "shift_jis"),
        ('<meta charset="utf-8">', "utf-8"),
        ('<meta charset="no-such">', "utf-8"),
        ('<meta charset="utf-16">', "utf-16"),
    ],
)
def test_the_declared_encoding(tmp_path: Path, head: str, encoding: str) -> None:
    text = {"cp1251": "Насос", "shift_jis": "ポンプ"}.get(encoding, "Düse")

    assert texts(tmp_path, "a.html", f"{head}<p>{text}</p>".encode(encoding)) == [text]


def test_xhtml_names_its_encoding_at_the_beginning(tmp_path: Path) -> None:
    content = '<?xml version="1.0" encoding="windows-1251"?><html><body><p>Насос</p></body></html>'

    assert texts(tmp_path, "a", content.encode("cp1251")) == ["Насос"]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("<p>one<nav>menu<p>two", ["one", "menu", "two"]),
        ("<p>one<![endif]--><p>two", ["one", "two"]),
        ("<p>one<![foo[ bar ]]><p>two", ["one", "two"]),
        ("<p>one</p></p></div></nav><p>two", ["one", "two"]),
        ("<p>a < b && c > d &unknown; &#xD800; &#0; &#1114112;", None),
        ("text <", ["text <"]),
        ("<nav><nav>in</nav>in</nav>out", ["out"]),
        ("<script>unclosed <p>one", []),
        ("<td>cell<td>other", ["cell | other"]),
        ("<table><tr><td><table><tr><td>in</table></table>", ["in"]),
        ("<div><div><div>deep", ["deep"]),
        ("<br/><hr/><p/>text", ["text"]),
        ("<svg><path/></svg>text", ["text"]),
        ("plain text", ["plain text"]),
        ("<select><option>a</select><p>b", ["b"]),
    ],
)
def test_malformed_html(content: str, expected: list[str] | None) -> None:
    found = [passage.text for passage in read_html(content)[1]]

    if expected is None:
        assert found == ["a < b && c > d &unknown; \ufffd \ufffd \ufffd"]
    else:
        assert found == expected


@pytest.mark.parametrize("content", ["one<!-- comment <p>two", "one<p attr='<p>unclosed", "one<![CDATA[x", "one<?php"])
def test_what_is_unclosed_at_the_end_does_not_hide_what_is_before(content: str) -> None:
    """Python's releases differ in what they make of the rest."""
    assert "".join(passage.text for passage in read_html(content)[1]).startswith("one")


TAGS = st.sampled_from(
    [
        *("<p>", "</p>", "<nav>", "</nav>", "<td>", "<tr>", "<table>", "</table>", "<h1>", "</h1>", "<h3>", "<pre>"),
        *("</pre>", "<script>", "</script>", "<!--", "-->", "<![", "<!x", "<?", "&", "&#", "<", ">", "\n", "text"),
        *('"', "<a b='", "<br/>"),
    ]
)


@given(st.lists(TAGS, max_size=25).map("".join))
def test_any_html_is_read(text: str) -> None:
    for passage in read_html(text)[1]:
        assert passage.place.lines is not None
        assert 1 <= passage.place.lines[0] <= passage.place.lines[1] <= text.count("\n") + 1


def test_large_html_is_read_in_a_process_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = read(tmp_path, "page.html", PAGE)
    monkeypatch.setattr(reading, "_HTML_APART", 100)
    monkeypatch.setattr(html_reader, "read_html", None)

    document, passages = read(tmp_path, "page.html", PAGE)

    assert (document.title, passages) == (expected[0].title, expected[1])


def test_html_that_takes_quadratic_time_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ortkit.toolkit.search.documents import library_process

    monkeypatch.setattr(library_process, "SECONDS_BETWEEN", 2.0)
    started = time.monotonic()

    error = refusal(tmp_path, "a.html", "<!" + "<a" * 2_000_000)

    assert error.message == "is an HTML file that takes more than 2 s for a page, or 600 s in all"
    assert time.monotonic() - started < 60
    assert texts(tmp_path, "b.html", "<p>text" + " " * 300_000) == ["text"], "the next file is read"
