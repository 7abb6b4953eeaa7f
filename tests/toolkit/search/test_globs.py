from __future__ import annotations

import time

import pytest

from ortkit import InputError
from ortkit.toolkit.search.globs import Globs

MATCHES = [
    ("*.md", ["a.md", "docs/a.md", "docs/b/.md"], ["a.mdx", "md", "a.md.txt"]),
    ("docs/*.md", ["docs/a.md"], ["docs/b/a.md", "x/docs/a.md"]),
    ("docs/**/*.md", ["docs/a.md", "docs/b/a.md", "docs/b/c/a.md"], ["a.md", "x/docs/a.md"]),
    ("docs/**", ["docs/a.md", "docs/b/a"], ["docs", "a/docs/b"]),
    ("**/drafts/*.txt", ["drafts/a.txt", "x/y/drafts/a.txt"], ["x/drafts/y/a.txt"]),
    ("drafts", ["drafts", "drafts/", "x/drafts/", "drafts/a.txt", "x/drafts/y/z"], ["draft", "drafts.txt"]),
    ("drafts/", ["drafts/", "drafts/a.txt", "x/drafts/a.txt"], ["drafts", "x/drafts"]),
    ("/a.md", ["a.md"], ["x/a.md/b"]),
    ("./docs/a.md", ["docs/a.md"], ["a.md"]),
    ("report-?.txt", ["report-1.txt", "x/report-é.txt"], ["report-10.txt", "report-.txt"]),
    ("[a-c]*.txt", ["axe.txt", "c.txt"], ["dog.txt"]),
    ("[!a-c]*.txt", ["dog.txt"], ["axe.txt"]),
    ("[]]x", ["]x"], ["x"]),
    ("[[]x]", ["[x]"], ["x"]),
    ("a+b(1).txt", ["a+b(1).txt"], ["aab1.txt"]),
    ("*", ["a", "x/y", "line\nbreak"], []),
    ("a*b*c", ["abc", "a--b--c"], ["ab/c"]),
    ("a*b*c*d", ["abcd", "a-b-b-c-c-d-d"], ["abcdc", "acbd"]),
    ("**/a/**/b*/**/c.md", ["a/b/c.md", "x/a/a/y/bb/b/z/c.md"], ["a/c.md", "b/a/c.md", "a/b/x.md"]),
    ("a/**/**/b", ["a/b", "a/x/y/b", "a/x/b/z"], ["a", "x/a/b"]),
    ("x/**/a*a/**", ["x/aa/b", "x/y/a-a/b/c"], ["x/aa", "x/a/b"]),
    ("\udcff.txt", ["\udcff.txt"], ["x.txt"]),
]


@pytest.mark.parametrize(("pattern", "matching", "others"), MATCHES, ids=[ascii(row[0]) for row in MATCHES])
def test_what_a_pattern_matches(pattern: str, matching: list[str], others: list[str]) -> None:
    globs = Globs([pattern])

    assert [name for name in matching + others if globs.match(name)] == matching


def test_patterns_of_many_stars_take_no_time() -> None:
    """A client of the server can send them."""
    began = time.monotonic()
    assert not Globs(["*a" * 30 + "b"]).match("a" * 250)
    assert not Globs(["**/a/" * 30 + "b"]).match("a/" * 100 + "c")
    assert not Globs(["**/*a*a/" * 15 + "b"]).match("aaaaaaaaaa/" * 100 + "c")
    assert time.monotonic() - began < 2


def test_one_of_several_is_enough_and_none_matches_nothing() -> None:
    assert Globs(["*.txt", "*.md"]).match("a.md")
    assert not Globs([]).match("a.md")
    assert not Globs([])


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("", "the include pattern `` matches no file"),
        ("/", "the include pattern `/` matches no file"),
        ("../a", "the include pattern `../a` leads out of the folder"),
        ("[a", "the include pattern `[a` has a `[` without `]`"),
        ("[z-a]", "the include pattern `[z-a]` is not valid: `[z-a]`: bad character range z-a"),
    ],
)
def test_a_pattern_that_is_not_valid(pattern: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        Globs([pattern], "include pattern")

    assert caught.value.message == message
    assert caught.value.exit_code == 2
