from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ortkit.toolkit.search.documents.markdown import read_markdown
from tests.toolkit.search.documents.read_files import placed, read

MANUAL = """\
---
layout: page
title: "The pump's manual"
---
Before all headings.

# Pumps #

One line,
and another.
- first item
  continued
- second item

1. numbered

Starting it
-----------

| part | size |
|------|-----:|
| valve | 3 mm |
| fuse | 5 A |

After the table.
***
### By *hand* with `key` [12](x.html) {#hand}

```sh
# no heading

pump --start
```

~~~
```
~~~
## Stop ##
####### seven
#hashtag
    # indented
"""


def test_blocks_and_their_places(tmp_path: Path) -> None:
    document, passages = read(tmp_path, "manual.md", MANUAL)

    assert document.title == "The pump's manual"
    start = ("Pumps", "Starting it")
    hand = (*start, "By hand with key 12")
    assert placed(passages) == [
        ("Before all headings.", (5, 5), ()),
        ("One line,\nand another.", (9, 10), ("Pumps",)),
        ("- first item\n  continued", (11, 12), ("Pumps",)),
        ("- second item", (13, 13), ("Pumps",)),
        ("1. numbered", (15, 15), ("Pumps",)),
        ("| part | size |\n|------|-----:|", (20, 21), start),
        ("| valve | 3 mm |", (22, 22), start),
        ("| fuse | 5 A |", (23, 23), start),
        ("After the table.", (25, 25), start),
        ("```sh\n# no heading\n\npump --start\n```", (29, 33), hand),
        ("~~~\n```\n~~~", (35, 37), hand),
        ("####### seven\n#hashtag\n    # indented", (39, 41), ("Pumps", "Stop")),
    ]
    assert all(passage.line_by_line for passage in passages)


@pytest.mark.parametrize(
    ("content", "title"),
    [
        ("# One\n\ntext\n\n# Two\n\ntext", "One"),
        ("One\n===\n\ntext", "One"),
        ("## Two\n\ntext\n\n# One\n\ntext", "One"),
        ("## Two\n\ntext", "a.md"),
        ("+++\ntitle = 'TOML'\n+++\n# One\n\ntext", "TOML"),
        ("---\nno: title\n...\n# One\n\ntext", "One"),
        ("---\nnever: ends\n\n# One\n\ntext", "One"),
        ("# ![logo](x.png) **Bold** ~~out~~ __x__\n\ntext", "logo Bold out __x__"),
    ],
)
def test_the_title(tmp_path: Path, content: str, title: str) -> None:
    assert read(tmp_path, "a.md", content)[0].title == title


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("# A\n## B\n# C\n\ntext", [("## B", ("A",)), ("text", ("C",))]),
        ("# A\n\n# B", [("# A", ()), ("# B", ())]),
        ("# A\n## B\n### C\ntext", [("text", ("A", "B", "C"))]),
        ("text\n\nTwo\nlines\n---", [("text", ()), ("Two\nlines\n---", ())]),
        ("#\n\ntext", [("text", ())]),
    ],
)
def test_a_heading_without_text_is_a_passage(
    tmp_path: Path, content: str, expected: list[tuple[str, tuple[str, ...]]]
) -> None:
    found = read(tmp_path, "a.md", content)[1]

    assert [(passage.text, passage.place.headings) for passage in found] == expected


@pytest.mark.parametrize(
    "content",
    [
        "- item\n---\n",
        "> quote\n---\n",
        "\n---\n",
        "text\n\n===\n",
        "```\ntext\n---\n```",
        "| a |\n|---|\n| b |\n---\n",
    ],
)
def test_lines_that_make_no_heading(content: str) -> None:
    assert {passage.place.headings for passage in read_markdown(content)[1]} <= {()}


def test_a_code_block_without_an_end_goes_to_the_end() -> None:
    assert [passage.text for passage in read_markdown("```\na\n\n# b")[1]] == ["```\na\n\n# b"]


def test_comments_are_left_out() -> None:
    content = "one\n\n<!-- not\n\nthis -->\n\ntwo <!-- inline -->\n\n<!-- never ends\n\nthree"

    found = [passage.text for passage in read_markdown(content)[1]]

    assert found == ["one", "two <!-- inline -->", "<!-- never ends", "three"]


LINES = st.sampled_from(
    [
        *("# A", "## B #", "text", "more text", "", "", "---", "===", "```", "~~~", "- item", "| a | b |", "|---|---|"),
        *("<!-- x", "-->", "    code", "> quote", "1. one", "***", "+++", "title: x", "####", "\t", "- ```"),
    ]
)


@given(st.lists(LINES, max_size=30))
def test_any_lines_are_read_with_exact_places(lines: list[str]) -> None:
    passages = read_markdown("\n".join(lines))[1]

    last = 0
    for passage in passages:
        assert passage.place.lines is not None
        first, end = passage.place.lines
        assert first > last or "#" in passage.text
        last = end
        assert passage.text == "\n".join(lines[first - 1 : end])
