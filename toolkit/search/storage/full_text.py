"""BM25 by SQLite's FTS5: what is indexed of a text, and how any query becomes a valid MATCH expression.

FTS5's `unicode61` makes one token of a run of Chinese, Japanese or Korean characters, which no query would equal. Such
runs are replaced by their bigrams, in texts and queries, as Lucene's CJKBigramFilter does: `水泵坏了` is indexed as
`水泵 泵坏 坏了`. Thai, Lao, Khmer and Burmese, which do not separate words either, are found by whole runs only, and by
embeddings as any other language.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass

TOKENIZER = "porter unicode61 remove_diacritics 2"
"""Case and diacritics are folded, and English suffixes removed: `pumps` finds `pump`."""
COLUMNS = ("title", "headings", "text")
WEIGHTS = (2.0, 2.0, 1.0)
"""Of a term in each column, for bm25()."""
_CJK = re.compile(
    "[\u2e80-\u2fdf\u3005-\u3007\u3021-\u3029\u3031-\u3035\u3041-\u3096\u309d-\u309f\u30a1-\u30fa\u30fc-\u30ff"
    "\u3105-\u312f\u3131-\u318e\u31a0-\u31bf\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\ua960-\ua97f\uac00-\ud7ff"
    "\uf900-\ufaff\uff66-\uffdc\U0001b000-\U0001b16f\U00020000-\U0003ffff]+"
)
_WORD = re.compile(r"[^\W_]+")
_MOST_WORDS = 256
"""Different words of a query that are looked up."""
_MOST_TERMS = 64
"""Terms of a MATCH expression; the rarest are taken."""
_MOST_COUNTED = 50_000
"""Terms whose number of chunks is kept in memory."""
_MOST_POSTINGS = 20_000
"""Entries (term and chunk) that a query scores: bm25() takes about a microsecond for each. The rarest terms first."""


def searchable(text: str) -> str:
    """A text for FTS5: runs of CJK characters as bigrams."""
    return text if text.isascii() else _CJK.sub(_bigrams, text)


def _bigrams(run: re.Match[str]) -> str:
    text = run[0]
    grams = (text[start : start + 2] for start in range(max(len(text) - 1, 1)))
    return f" {' '.join(grams)} "


def words_of(query: str) -> list[str]:
    """The different words of a query, in order, as FTS5 separates them: what is not a letter or digit is dropped."""
    return list(dict.fromkeys(word.lower() for word in _WORD.findall(searchable(query))))[:_MOST_WORDS]


def prepare(connection: sqlite3.Connection) -> None:
    """Make the temporary tables that `match_expression` uses; `words` is the name of the FTS5 table in `main`."""
    connection.execute("CREATE VIRTUAL TABLE temp.frequencies USING fts5vocab(main, words, row)")
    connection.execute(f"CREATE VIRTUAL TABLE temp.asked USING fts5(word, tokenize='{TOKENIZER}')")
    connection.execute("CREATE VIRTUAL TABLE temp.asked_terms USING fts5vocab(temp, asked, instance)")


@dataclass(frozen=True)
class _Term:
    word: str
    chunks: int


def match_expression(
    connection: sqlite3.Connection, query: str, chunks: int, *, alone: bool, counted: dict[str, int] | None = None
) -> str | None:
    """The MATCH expression of a query: any of its words, without those that are too frequent; None if none is left.

    BM25 gives no weight to a term that is in more than half of the chunks. With `alone`, where no embeddings help, the
    rarest is taken even so. `counted` keeps the number of chunks of terms for later queries: FTS5 counts them.
    """
    terms = sorted(
        _frequencies(connection, words_of(query), {} if counted is None else counted), key=lambda term: term.chunks
    )
    rare = [term for term in terms if term.chunks * 2 <= chunks] or (terms[:1] if alone else [])
    kept: list[str] = []
    postings = 0
    for term in rare[:_MOST_TERMS]:
        postings += term.chunks
        if kept and postings > _MOST_POSTINGS:
            break
        kept.append(term.word)
    # In double quotes everything is text. Words are sorted: the sum of BM25's floats depends on the order.
    return " OR ".join(f'"{word}"' for word in sorted(kept)) or None


def _frequencies(connection: sqlite3.Connection, words: Iterable[str], counted: dict[str, int]) -> list[_Term]:
    """The words that are in the index, with the number of chunks; of words with the same term (stem), the first."""
    numbered = list(enumerate(words))
    connection.executemany("INSERT INTO temp.asked(rowid, word) VALUES (?, ?)", numbered)
    try:
        rows = connection.execute("SELECT doc, term FROM temp.asked_terms ORDER BY doc, offset").fetchall()
    finally:
        connection.rollback()
    of_word: dict[int, str] = {}
    for number, term in rows:
        of_word.setdefault(number, term)
    first_of: dict[str, int] = {}
    for number, term in of_word.items():
        first_of.setdefault(term, number)
    found = []
    for term, number in first_of.items():
        chunks = counted.get(term)
        if chunks is None:
            row = connection.execute("SELECT doc FROM temp.frequencies WHERE term = ?", (term,)).fetchone()
            chunks = 0 if row is None else row[0]
            if len(counted) < _MOST_COUNTED:
                counted[term] = chunks
        if chunks:
            found.append(_Term(numbered[number][1], chunks))
    return found


def ranked(
    connection: sqlite3.Connection, expression: str, count: int, *, files: str | None = None
) -> list[tuple[int, float]]:
    """The best chunks for a MATCH expression and their BM25 (higher is better), best first, ties by id.

    `files` is a JSON array of the files' ids to which the search is limited.
    """
    score = f"bm25(words, {', '.join(map(str, WEIGHTS))})"
    if files is None:
        sql = f"SELECT rowid, -{score} AS score FROM words WHERE words MATCH ? ORDER BY score DESC, rowid LIMIT ?"  # noqa: S608
        return connection.execute(sql, (expression, count)).fetchall()
    sql = (
        f"SELECT words.rowid, -{score} AS score FROM words JOIN chunks ON chunks.id = words.rowid "  # noqa: S608
        "WHERE words MATCH ? AND chunks.file IN (SELECT value FROM json_each(?)) "
        "ORDER BY score DESC, words.rowid LIMIT ?"
    )
    return connection.execute(sql, (expression, files, count)).fetchall()
