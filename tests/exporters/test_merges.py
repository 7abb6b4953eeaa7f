from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models

from ortkit.exporters.models.tokenizer import with_merges_as_strings
from tests.decoders import TEXT, write_tokenizer


def test_merges_become_texts_and_the_tokenizer_stays_the_same(tmp_path: Path) -> None:
    expected = write_tokenizer(tmp_path / "tokenizer.json")
    text = (tmp_path / "tokenizer.json").read_text(encoding="utf-8")
    pairs = json.loads(text)["model"]["merges"]
    assert len(pairs) > 20
    assert all(isinstance(pair, list) for pair in pairs)

    short = with_merges_as_strings(text)

    assert json.loads(short)["model"]["merges"] == [f"{first} {second}" for first, second in pairs]
    found = Tokenizer.from_str(short)
    assert found.to_str() == expected.to_str()
    assert found.encode(TEXT).ids == expected.encode(TEXT).ids
    assert with_merges_as_strings(short) == short


def test_pieces_with_spaces_stay_as_they_are() -> None:
    vocabulary = {"a": 0, " ": 1, "b": 2, "a ": 3, "a b": 4}
    text = Tokenizer(models.BPE(vocabulary, [("a", " "), ("a ", "b")])).to_str()

    assert with_merges_as_strings(text) == text


@pytest.mark.parametrize(
    "text",
    [
        "{}",
        '{"model": []}',
        '{"model": {"type": "WordPiece", "vocab": {}}}',
        '{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": [["a", "a"]]}}',
        '{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": [["a"]]}}',
        '{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": [1]}}',
    ],
)
def test_what_is_no_such_tokenizer_is_left_for_who_opens_it(text: str) -> None:
    assert with_merges_as_strings(text) == text
