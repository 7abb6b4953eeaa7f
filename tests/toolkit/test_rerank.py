from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from ortkit import Bundle, Reranker
from tests.commands import Finished, on_terminal

Ortkit = Callable[..., Finished]
DOCUMENTS = ["Boil it for a minute", "A bowline", "größer", "Boil it for a minute"]


def rows(out: bytes) -> list[dict]:
    return [json.loads(line) for line in out.decode().splitlines()]


@pytest.fixture(scope="module")
def expected(reranker_bundle: Bundle) -> list[dict]:
    ranked = Reranker(reranker_bundle).rank("safe water", DOCUMENTS)
    return [{"text": one.text, "index": one.index, "score": one.score} for one in ranked]


def test_arguments_come_out_best_first(ortkit: Ortkit, reranker_bundle: Bundle, expected: list[dict]) -> None:
    finished = ortkit("rerank", reranker_bundle.path, "--query", "safe water", *DOCUMENTS)

    assert (finished.code, finished.err) == (0, "")
    assert rows(finished.out) == expected


def test_a_pipe_and_a_file_of_lines(
    ortkit: Ortkit, reranker_bundle: Bundle, expected: list[dict], tmp_path: Path
) -> None:
    text = "\n".join(DOCUMENTS).encode()
    (tmp_path / "documents.txt").write_bytes(text)
    command = ("rerank", reranker_bundle.path, "--query", "safe water")

    assert rows(ortkit(*command, stdin=text).out) == expected
    assert rows(ortkit(*command, "--input", "-", stdin=text).out) == expected
    assert rows(ortkit(*command, "--input", tmp_path / "documents.txt", "--top-n", 2).out) == expected[:2]
    finished = ortkit(*command, "--input", tmp_path / "documents.txt", "--output", tmp_path / "ranked.jsonl")
    assert finished.out == b""
    assert rows((tmp_path / "ranked.jsonl").read_bytes()) == expected


def test_fields_are_passed_through(ortkit: Ortkit, reranker_bundle: Bundle, expected: list[dict]) -> None:
    """The other fields of documents are copied to the output."""
    lines = [json.dumps({"id": number, "text": text, "tags": ["ü"]}) for number, text in enumerate(DOCUMENTS)]
    finished = ortkit("rerank", reranker_bundle.path, "--query", "safe water", stdin="\n".join(lines).encode())

    assert rows(finished.out) == [{"id": row["index"], "tags": ["ü"]} | row for row in expected]


@pytest.mark.parametrize("form", ["lines", "array", "csv"])
def test_documents_in_a_field_of_another_name(
    ortkit: Ortkit, reranker_bundle: Bundle, expected: list[dict], tmp_path: Path, form: str
) -> None:
    records = [{"body": text} for text in DOCUMENTS]
    contents = {
        "lines": "\n".join(map(json.dumps, records)),
        "array": json.dumps(records, indent=2),
        "csv": "\n".join(["body", *DOCUMENTS]),
    }
    path = tmp_path / {"lines": "in.jsonl", "array": "in.json", "csv": "in.csv"}[form]
    path.write_text(contents[form], encoding="utf-8")
    command = ("rerank", reranker_bundle.path, "--query", "safe water", "--input", path)

    refused = ortkit(*command)
    assert (refused.code, refused.out) == (2, b"")
    assert "has no text in a field `text`; its fields are `body`\n" in refused.err
    found = rows(ortkit(*command, "--field", "body").out)
    assert found == [{"body": row["text"], "index": row["index"], "score": row["score"]} for row in expected]


def test_searches_in_an_array_with_documents_in_another_field(
    ortkit: Ortkit, reranker_bundle: Bundle, expected: list[dict]
) -> None:
    searches = [{"query": "safe water", "documents": [{"body": text} for text in DOCUMENTS]}]
    command = ("rerank", reranker_bundle.path)

    finished = ortkit(*command, "--field", "body", stdin=json.dumps(searches, indent=1).encode())
    (found,) = rows(finished.out)
    assert [row["index"] for row in found["results"]] == [row["index"] for row in expected]
    refused = ortkit(*command, stdin=json.dumps(searches).encode())
    assert refused.err.startswith("error: document 1 in item 1 has no text in a field `text`; its fields are `body`\n")
    for search, message in [
        (
            {"question": "q", "documents": []},
            "line 1 has no string in a field `query`; its fields are `question`, `docu",
        ),
        ({"query": "q", "texts": ["a"]}, "line 1 has no list in a field `documents`; its fields are `query`, `texts`"),
        ({"query": "q", "documents": ["a"], "top_n": 3}, "line 1: `top_n` is an option that records cannot have"),
    ]:
        finished = ortkit(*command, stdin=json.dumps(search).encode())
        assert (finished.code, finished.out) == (2, b"")
        assert finished.err.startswith(f"error: {message}")


def test_rankings_before_an_error_are_kept_beside_the_output(
    ortkit: Ortkit, reranker_bundle: Bundle, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    finished = ortkit(
        "rerank", reranker_bundle.path, "--output", output, stdin=b'{"query": "q", "documents": ["a"]}\n{'
    )

    assert finished.code == 2
    assert finished.err.startswith(
        f"note: the partial output is in `{output}.incomplete`\nerror: line 2 is not valid JSON"
    )
    assert [row["query"] for row in rows((tmp_path / "out.incomplete").read_bytes())] == ["q"]
    assert not output.exists()


def test_a_search_in_each_line(ortkit: Ortkit, reranker_bundle: Bundle, expected: list[dict]) -> None:
    lines = [
        {"query": "safe water", "documents": DOCUMENTS, "id": 7},
        {"query": "nothing", "documents": []},
        {"query": "safe water", "documents": [{"text": text, "page": 3} for text in DOCUMENTS]},
    ]
    stdin = "\n\n".join(map(json.dumps, lines)).encode()
    finished = ortkit("rerank", reranker_bundle.path, "--top-n", 3, stdin=stdin)
    found = rows(finished.out)

    assert (finished.code, finished.err) == (0, "")
    assert found[0] == {"query": "safe water", "id": 7, "results": expected[:3]}
    assert found[1] == {"query": "nothing", "results": []}
    assert found[2]["results"] == [{"page": 3} | row for row in expected[:3]]


def test_scores_between_0_and_1(ortkit: Ortkit, reranker_bundle: Bundle, expected: list[dict]) -> None:
    finished = ortkit("rerank", reranker_bundle.path, "--query", "safe water", "--scores", "sigmoid", *DOCUMENTS)
    found = rows(finished.out)

    assert [row["index"] for row in found] == [row["index"] for row in expected]
    assert all(0 < row["score"] < 1 for row in found)


def test_no_documents_are_no_error(ortkit: Ortkit, reranker_bundle: Bundle) -> None:
    for arguments in (["--query", "q"], []):
        finished = ortkit("rerank", reranker_bundle.path, *arguments, stdin=b"")
        assert (finished.code, finished.out, finished.err) == (0, b"", "")


def test_truncated_and_empty_texts_are_reported(ortkit: Ortkit, reranker_bundle: Bundle) -> None:
    long = "water " * 300
    command = ("rerank", reranker_bundle.path)
    one = ortkit(*command, "--query", "q", "a", long, "", long)
    lines = [
        json.dumps({"query": query, "documents": documents}) for query, documents in [("q", ["a", long]), (long, ["b"])]
    ]
    many = ortkit(*command, stdin="\n".join(lines).encode())

    assert one.code == many.code == 0
    assert one.err == (
        "warning: 2 of 4 documents were longer than 128 tokens with the query and cut there (1, 3)\n"
        "warning: 1 of 4 documents is empty, and the score of an empty document is meaningless (2)\n"
    )
    assert many.err == (
        "warning: 1 of 3 documents was longer than 128 tokens with the query and cut there (line 1: 1)\n"
        "warning: the query was cut: with a document it is longer than 128 tokens\n"
    )
    finished = ortkit(*command, "--query", "q", "--no-truncate", "a", long)
    assert (finished.code, finished.out) == (2, b"")
    assert finished.err == (
        "error: text 2 and its query are longer than the model's limit of 128 tokens\n\n"
        "hint: split it, or leave out `--no-truncate` to truncate it\n"
    )


def test_a_long_document_is_named_behind_many_others(ortkit: Ortkit, reranker_bundle: Bundle) -> None:
    """Its index in the batch differs from its index in the input."""
    command = ("rerank", reranker_bundle.path, "--no-truncate")
    texts = ["a"] * 599 + ["long " * 300, "long " * 300, "a"]
    searches = [{"query": "q", "documents": texts[:550]}, {"query": "q", "documents": texts[550:]}]

    lines = ortkit(*command, "--query", "q", stdin="\n".join(texts).encode())
    found = ortkit(*command, stdin="\n".join(map(json.dumps, searches)).encode())

    assert (lines.code, lines.out) == (2, b"")
    assert lines.err.startswith("error: line 600 and its query are longer than the model's limit of 128 tokens\n")
    assert found.code == 2
    assert found.err.startswith("error: document 50 in line 2 and its query are longer than the model's ")


@pytest.mark.parametrize(
    ("arguments", "stdin", "message"),
    [
        (["--query", " ", "a"], b"", "error: the query is empty\n"),
        (["a"], b"", "error: no query\n"),
        (["--query", "q", "--input", "-", "a"], b"", "error: documents are given as arguments and with `--input`"),
        (
            ["--query", "q", "--scores", "softmax", "a"],
            b"",
            "error: `softmax` needs several labels, and the model has one",
        ),
        (["--query", "q", "--label", "x", "a"], b"", "error: the model has no label `x`"),
        (["--query", "q"], b"a\0b", "error: line 1 has a NUL byte and is not text"),
        ([], b"a plain line", "error: line 1 is not valid JSON"),
        ([], b"[1]", "error: item 1 has no string in a field `query`"),
        ([], b'{"query": 5}', "error: line 1 has no string in a field `query`"),
        ([], b'{"query": " ", "documents": []}', "error: the query in line 1 is empty"),
        ([], b'{"query": "q", "documents": "a"}', "error: line 1 has no list in a field `documents`"),
        (
            [],
            b'{"query": "q", "documents": ["a", 5]}',
            "error: document 2 in line 1 must be a string, or an object with a field `text`",
        ),
        ([], b'{"query": "q", "documents": ["\\ud800"]}', "error: document 1 in line 1 is not valid Unicode"),
        ([], b'{"query": "\\ud800", "documents": []}', "error: the query in line 1 is not valid Unicode"),
    ],
)
def test_input_that_cannot_be_used_ends_with_2(
    ortkit: Ortkit, reranker_bundle: Bundle, arguments: list[str], stdin: bytes, message: str
) -> None:
    finished = ortkit("rerank", reranker_bundle.path, *arguments, stdin=stdin)

    assert (finished.code, finished.out) == (2, b"")
    assert finished.err.startswith(message)


def test_results_before_a_broken_line_are_given(ortkit: Ortkit, reranker_bundle: Bundle) -> None:
    finished = ortkit("rerank", reranker_bundle.path, stdin=b'{"query": "q", "documents": ["a"]}\n{')

    assert finished.code == 2
    assert [row["query"] for row in rows(finished.out)] == ["q"]
    assert finished.err.startswith("error: line 2 is not valid JSON")


def test_the_input_is_not_replaced(ortkit: Ortkit, reranker_bundle: Bundle, tmp_path: Path) -> None:
    path = tmp_path / "documents.txt"
    path.write_text("a\nb\n")
    arguments = ["rerank", reranker_bundle.path, "--query", "q", "--output", path]

    finished = ortkit(*arguments, "--input", path)

    assert finished.code == 2
    assert finished.err.startswith(f"error: `{path}` is also the input, and would be replaced\n")
    assert path.read_text() == "a\nb\n"


def test_a_terminal_without_documents(ortkit: Ortkit, reranker_bundle: Bundle) -> None:
    finished = ortkit("rerank", reranker_bundle.path, "--query", "q", tty=True)

    assert finished.code == 2
    assert finished.err.startswith("error: no documents to rank\n\nhint: ortkit rerank ")


def test_bundles_of_the_wrong_kind_name_the_command(
    ortkit: Ortkit, reranker_bundle: Bundle, int8_bundle: Bundle
) -> None:
    for command, bundle, message, right in (
        (["rerank", int8_bundle.path, "--query", "q", "a"], int8_bundle, "an embedder, not a reranker", "embed"),
        (["embed", reranker_bundle.path, "a"], reranker_bundle, "a reranker, not an embedder", "rerank"),
    ):
        finished = ortkit(*command)
        assert finished.code == 7
        assert finished.err == f"error: `{bundle.path}` is {message}\n\nhint: use `ortkit {right} {bundle.path}`\n"


def test_inspect_and_verify_know_rerankers(ortkit: Ortkit, reranker_bundle: Bundle) -> None:
    shown = ortkit("inspect", reranker_bundle.path, "--runtime").out.decode()
    verified = ortkit("verify", reranker_bundle.path)

    assert "kind         reranker, architecture bert" in shown
    assert "labels       LABEL_0" in shown
    assert "scores       raw (the publisher's default)" in shown
    certificate = reranker_bundle.manifest.certificate
    assert certificate is not None
    assert f"on {certificate.probe_size} queries against sentence-transformers 5." in shown
    assert "workers      " in shown
    assert verified.code == 0
    assert "certificate  8 golden pairs: logits within 0." in verified.out.decode()


def test_progress_on_a_terminal(reranker_bundle: Bundle, tmp_path: Path) -> None:
    import sys

    path = tmp_path / "documents.txt"
    path.write_text("\n".join(DOCUMENTS))
    command = [sys.executable, "-m", "ortkit", "rerank", str(reranker_bundle.path), "--query", "q"]

    assert "ranking [####################] 100%, 4 texts" in on_terminal([*command, "--input", str(path)])
