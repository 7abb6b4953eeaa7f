from __future__ import annotations

import csv
import io
import json
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ortkit.toolkit.search.documents.document import Place
from ortkit.toolkit.search.documents.reading import read_document
from ortkit.toolkit.search.documents.tables import read_json, record_text
from tests.toolkit.search.documents.read_files import read, refusal, texts, written


def test_a_row_is_a_passage(tmp_path: Path) -> None:
    content = 'part,size,note\r\nvalve,3 mm,"of brass,\r\nor steel"\r\n\r\nfuse,5 A,\r\n,,\r\n'

    document, passages = read(tmp_path, "parts.csv", content)

    assert document.title == "parts.csv"
    assert [(passage.text, passage.place) for passage in passages] == [
        ("part: valve\nsize: 3 mm\nnote: of brass,\r\nor steel".replace("\r", " "), Place((2, 3))),
        ("part: fuse\nsize: 5 A", Place((5, 5))),
    ]
    assert document.report.skipped_records == 0


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
def test_delimiters_and_encodings(tmp_path: Path, delimiter: str, encoding: str) -> None:
    content = f"Teil{delimiter}Größe\nDüse{delimiter}3 mm\nVentil{delimiter}für 5 bar\n".encode(encoding)
    expected = ["Teil: Düse\nGröße: 3 mm", "Teil: Ventil\nGröße: für 5 bar"]

    assert texts(tmp_path, "a.tsv" if delimiter == "\t" else "a.csv", content) == expected


def test_old_mac_line_ends(tmp_path: Path) -> None:
    passages = read(tmp_path, "a.csv", "a,b\r1,2\r3,4\r")[1]

    assert [(passage.text, passage.place.lines) for passage in passages] == [
        ("a: 1\nb: 2", (2, 2)),
        ("a: 3\nb: 4", (3, 3)),
    ]


def test_headers_with_gaps_and_repeats(tmp_path: Path) -> None:
    assert texts(tmp_path, "a.csv", "a,,a,b,\n1,2,3,4,5\n") == ["a: 1\ncolumn 2: 2\na (3): 3\nb: 4\ncolumn 5: 5"]


def test_bad_rows_are_skipped_and_counted(tmp_path: Path) -> None:
    rows = b"word,more\n" * 10_000
    content = b'a,b\n1,2\n3\n4,5,6\n7,8"x\n"9"x,10\n' + rows + b"\xff,1\n11,12\n"

    document, passages = read(tmp_path, "a.csv", content)

    assert [(passage.text, passage.place.lines) for passage in (*passages[:2], passages[-1])] == [
        ("a: 1\nb: 2", (2, 2)),
        ('a: 7\nb: 8"x', (5, 5)),
        ("a: 11\nb: 12", (10_008, 10_008)),
    ]
    assert len(passages) == 10_003
    assert document.report.skipped_records == 4
    assert document.report.first_fault == "line 3 has 1 column, and the header 2"


def test_a_quote_that_does_not_end_costs_its_row(tmp_path: Path) -> None:
    rows = "".join(f"{number},word\n" for number in range(5000))

    document, passages = read(tmp_path, "a.csv", f'a,b\n1,2\n\n"3,4\n5,6\n{rows}')

    assert [passage.text for passage in passages[:3]] == ["a: 1\nb: 2", "a: 5\nb: 6", "a: 0\nb: word"]
    assert len(passages) == 5002
    assert passages[1].place.lines == (5, 5)
    assert document.report.skipped_records == 1


def test_a_header_that_is_not_valid(tmp_path: Path) -> None:
    assert refusal(tmp_path, "a.csv", 'a,"b"x\n1,2').message.startswith("has a header that is not valid CSV: ")


def test_large_tables_are_streamed(tmp_path: Path) -> None:
    found = written(tmp_path, "a.csv", "name,value\n" + "a name of a row,a value of some words\n" * 400_000)
    assert found.size > 14 << 20
    tracemalloc.start()
    count = sum(1 for _, _ in zip(read_document(found).passages, range(20_000), strict=False))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    assert count == 20_000
    assert peak < 1 << 20


RECORDS = [
    {"name": "valve", "size": 3, "new": True, "none": None, "empty": ""},
    {"pump": {"parts": ["valve", "fuse", None], "maker": {"name": "Müller"}}, "price": 1.50},
    {"rows": [{"a": 1}, {"a": 2, "b": [[3]]}]},
    "just text",
    17,
]
SHOWN = [
    "name: valve\nsize: 3\nnew: true",
    "pump.parts: valve, fuse\npump.maker.name: Müller\nprice: 1.5",
    "rows.1.a: 1\nrows.2.a: 2\nrows.2.b.1: 3",
    "just text",
    "17",
]


def test_jsonl(tmp_path: Path) -> None:
    lines = [json.dumps(record, ensure_ascii=False) for record in RECORDS]
    content = "\n\n".join(lines) + "\n{broken\n" + '{"a": NaN}\n' + '{"b": "\\ud800"}\n'

    document, passages = read(tmp_path, "a.jsonl", content)

    assert [passage.text for passage in passages] == [*SHOWN, "b: \ufffd"]
    assert [passage.place.lines for passage in passages] == [(1, 1), (3, 3), (5, 5), (7, 7), (9, 9), (12, 12)]
    assert document.report.skipped_records == 2
    assert str(document.report.first_fault).startswith("line 10 is not valid JSON: ")
    assert texts(tmp_path, "a.json", "\n".join(lines[:3])) == SHOWN[:3], "by content"


def test_json_has_a_passage_per_element(tmp_path: Path) -> None:
    content = json.dumps(RECORDS, ensure_ascii=False, indent=1)
    lines = content.split("\n")

    passages = read(tmp_path, "a.json", content)[1]

    assert [passage.text for passage in passages] == SHOWN
    for passage in passages:
        assert passage.place.lines is not None
        first, last = passage.place.lines
        assert passage.text.split()[-1].strip(",") in "\n".join(lines[first - 1 : last])
    assert passages[0].place.lines == (2, 8)


def test_json_has_a_passage_per_member(tmp_path: Path) -> None:
    content = '{\n "title": "Pumps",\n "parts": [\n  {"a": 1}\n ],\n "n": 1e400, "long": ' + "9" * 5000 + "}"

    passages = read(tmp_path, "a.json", content)[1]

    assert [(passage.text, passage.place.lines) for passage in passages] == [
        ("title: Pumps", (2, 2)),
        ("parts.1.a: 1", (3, 5)),
        ("n: 1e400", (6, 6)),
        ("long: " + "9" * 5000, (6, 6)),
    ]


@pytest.mark.parametrize(
    "content",
    ["{// comment\n}", '{"a": 1', '{"a": 1} x', "[1,]", "{'a': 1}", "[" * 100_000, '{"a" 1}', "{1: 2}", "[1 2]", "nul"],
)
def test_what_is_not_json_is_plain_text(tmp_path: Path, content: str) -> None:
    assert read_json(content) is None
    assert texts(tmp_path, "a.json", content) == [content]


@pytest.mark.parametrize("content", ["{}", "[]", "null", '""', "[null, {}]", " [ ] "])
def test_json_without_values_has_no_passages(content: str) -> None:
    assert read_json(content) == []


def test_records_nested_deeply(tmp_path: Path) -> None:
    value = 1
    for _ in range(30):
        value = {"a": value}

    assert record_text(value).startswith(".".join("a" * 21) + ': {"a": {"a"')
    content = '{"a":' * 900 + "1" + "}" * 900 + '\n{"b": 2}\n' + '{"a":' * 100_000
    document, passages = read(tmp_path, "a.jsonl", content)
    assert passages[-1].text == "b: 2"
    assert document.report.skipped_records >= 1


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


def has_words(value: object) -> bool:
    if isinstance(value, dict | list):
        return any(map(has_words, value.values() if isinstance(value, dict) else value))
    return value is not None and bool(str(value).strip())


@given(JSON)
def test_any_json_is_read_with_all_its_words(value: object) -> None:
    content = json.dumps(value, indent=2)
    passages = read_json(content)

    assert passages is not None
    lines = content.count("\n") + 1
    assert all(1 <= p.place.lines[0] <= p.place.lines[1] <= lines for p in passages if p.place.lines)
    if isinstance(value, dict):
        text = "".join(passage.text for passage in passages)
        assert all(key in text for key, inner in value.items() if key.isalnum() and has_words(inner))


CELLS = st.text(st.characters(codec="utf-8", exclude_categories=["Cc"]) | st.sampled_from('\n,;"'), max_size=8)


@given(st.lists(st.tuples(CELLS, CELLS), max_size=8))
def test_any_csv_is_read_whole(tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str]]) -> None:
    file = io.StringIO()
    csv.writer(file, lineterminator="\n").writerows([("a", "b"), *rows])

    document, passages = read(tmp_path_factory.getbasetemp(), "any.csv", file.getvalue())

    assert document.report.skipped_records == 0
    assert len(passages) == sum(any(value.strip() for value in row) for row in rows)
