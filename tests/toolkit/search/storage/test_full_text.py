"""What FTS5 gets of texts and queries."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator

import pytest

from ortkit.toolkit.search.storage import full_text
from ortkit.toolkit.search.storage.full_text import (
    COLUMNS,
    TOKENIZER,
    match_expression,
    prepare,
    ranked,
    searchable,
    words_of,
)


def words_of_chunk(number: int) -> list[str]:
    return ["every", *["half"][number % 2 :], *(["some"] if number % 5 == 0 else []), *["rare"][number:]]


@pytest.fixture
def connection() -> Iterator[sqlite3.Connection]:
    """100 chunks: `every` in all, `half` in 50, `some` in 20, `rare` in one."""
    made = sqlite3.connect(":memory:")
    made.execute(f"CREATE VIRTUAL TABLE words USING fts5({', '.join(COLUMNS)}, content='', tokenize='{TOKENIZER}')")
    for number in range(100):
        words = words_of_chunk(number)
        made.execute(
            "INSERT INTO words (rowid, title, headings, text) VALUES (?, '', '', ?)", (number, " ".join(words))
        )
    made.commit()
    prepare(made)
    yield made
    made.close()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain text", "plain text"),
        ("naïve café", "naïve café"),
        ("水", " 水 "),
        ("水泵坏了", " 水泵 泵坏 坏了 "),
        ("the水泵F-17", "the 水泵 F-17"),
        ("ポンプ", " ポン ンプ "),
        ("펌프가 안", " 펌프 프가   안 "),
        ("𠀀𠀁", " 𠀀𠀁 "),
    ],
)
def test_cjk_runs_become_bigrams(text: str, expected: str) -> None:
    assert searchable(text) == expected


def test_words() -> None:
    assert words_of('The "pump" F-17, the PUMP_2 NEAR(x) * 水泵坏') == [
        "the", "pump", "f", "17", "2", "near", "x", "水泵", "泵坏"
    ]  # fmt: skip
    assert words_of("\0 🙂 *") == []
    assert len(words_of(" ".join(map(str, range(1000))))) == 256


@pytest.mark.parametrize(
    ("query", "alone", "expected"),
    [
        ("rare some", False, '"rare" OR "some"'),
        ("Some, some: SOMES", False, '"some"'),
        ("every half rare", False, '"half" OR "rare"'),
        ("every", False, None),
        ("every", True, '"every"'),
        ("unknown", True, None),
        ("unknown rare", False, '"rare"'),
        ("?", True, None),
    ],
)
def test_frequent_words_are_left_out(
    query: str, expected: str | None, connection: sqlite3.Connection, *, alone: bool
) -> None:
    assert match_expression(connection, query, 100, alone=alone) == expected
    # Nothing is left of a query.
    assert connection.execute("SELECT count(*) FROM temp.asked").fetchone() == (0,)
    assert not connection.in_transaction


def test_the_rarest_words_within_a_budget(connection: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(full_text, "_MOST_POSTINGS", 30)
    assert match_expression(connection, "half some rare", 100, alone=False) == '"rare" OR "some"'
    assert match_expression(connection, "half", 100, alone=False) == '"half"'
    monkeypatch.setattr(full_text, "_MOST_TERMS", 1)
    assert match_expression(connection, "half some rare", 100, alone=False) == '"rare"'


def test_scores_are_those_of_bm25(connection: sqlite3.Connection) -> None:
    """By hand, from Robertson's formula with k1 = 1.2 and b = 0.75, as FTS5 documents it."""
    from math import log

    lengths = [len(words_of_chunk(number)) for number in range(100)]
    mean = sum(lengths) / 100
    found = ranked(connection, '"some"', 100)
    assert len(found) == 20
    idf = log((100 - 20 + 0.5) / (20 + 0.5))
    for row, score in found:
        expected = idf * (1 * 2.2) / (1 + 1.2 * (1 - 0.75 + 0.75 * lengths[row] / mean))
        assert score == pytest.approx(expected, rel=1e-9)
    assert found == sorted(found, key=lambda one: (-one[1], one[0]))
