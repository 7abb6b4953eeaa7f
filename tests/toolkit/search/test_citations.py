from __future__ import annotations

import pytest

from ortkit.toolkit.search.citations import CitationReader, without_citations


def read(answer: str, sources: int = 3, *, step: int = 1) -> tuple[str, list[int], list[int]]:
    reader = CitationReader(sources)
    pieces = [reader.push(answer[place : place + step]) for place in range(0, len(answer), step)]
    return "".join(pieces) + reader.end(), reader.cited, reader.unknown


@pytest.mark.parametrize("step", [1, 2, 7, 1000])
@pytest.mark.parametrize(
    ("answer", "shown", "cited", "unknown"),
    [
        ("Turn it off [1]. Then wait [3].", None, [1, 3], []),
        ("Both [2][1], and again [2].", None, [2, 1], []),
        ("A list [1, 3] and a range [1-3].", None, [1, 3, 2], []),
        ("In words [Source 2], [sources 1 and 3], [^2].", None, [2, 1, 3], []),
        ("Made up [4].", "Made up [?].", [], [4]),
        ("Half made up [1, 9].", "Half made up [1][?].", [1], [9]),
        ("Out of range [2-5], zero [0].", "Out of range [2][3][?], zero [?].", [2, 3], [4, 5, 0]),
        ("A year [2026], a note [see below], a box [ ] and [x].", "A year [?], a note [see below], a box [ ] and [x].",
         [], [2026]),
        ("In code `x[7]` and\n```\ny[8]\n```\nnot [9].", "In code `x[7]` and\n```\ny[8]\n```\nnot [?].", [], [9]),
        ("An open ` and [9] on its line\n[9]", "An open ` and [9] on its line\n[?]", [], [9]),
        ("[[1]] and [1", None, [1], []),
        ("no end [" + "1, " * 40, None, [], []),
        ("a [link](x.md) [1]", None, [1], []),
    ],
)  # fmt: skip
def test_what_is_cited(answer: str, shown: str | None, cited: list[int], unknown: list[int], step: int) -> None:
    """Whatever the tokens: a citation may come in pieces."""
    assert read(answer, step=step) == (answer if shown is None else shown, cited, unknown)


def test_only_what_may_become_a_citation_is_held_back() -> None:
    reader = CitationReader(2)

    assert [reader.push(piece) for piece in ("see ", "[", "1", "]", " or [", "x", "]")] == [
        *("see ", "", "", "[1]", " or ", "[x", "]"),
    ]


@pytest.mark.parametrize(
    ("passage", "quoted"),
    [
        ("As shown in [3] and [4, 5].", "As shown in (3) and (4, 5)."),
        ("Call `a[0]` as in [1].", "Call `a[0]` as in (1)."),
        ("```\nb[1]\n```\n[2]", "```\nb[1]\n```\n(2)"),
        ("A [link] and [x1].", "A [link] and [x1]."),
    ],
)
def test_references_of_a_passage_are_no_longer_citations(passage: str, quoted: str) -> None:
    assert without_citations(passage) == quoted
