from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import transformers

from runtime import BundleError, InputError
from runtime.manifest import TokenizerFacts
from runtime.tokenizer import BLOCK, Tokenizer


def tokenizer_of(checkpoint: Path, *, max_length: int = 256, lower_case: bool = False) -> Tokenizer:
    return Tokenizer(checkpoint / "tokenizer.json", TokenizerFacts(max_length, lower_case, {}))


def test_ids_are_those_of_transformers_at_the_manifests_limit(checkpoint: Path, held_out: list[str]) -> None:
    """tokenizer.json of this model pads and cuts to 128; the manifest's 256 must win."""
    reference = transformers.AutoTokenizer.from_pretrained(checkpoint)
    expected = [reference(text, truncation=True, max_length=256)["input_ids"] for text in held_out]

    found = tokenizer_of(checkpoint).tokenize(held_out)

    assert [text.ids.tolist() for text in found] == expected
    assert max(map(len, expected)) > 200
    assert len(held_out) > BLOCK


@pytest.mark.parametrize("max_length", [3, 8, 64])
def test_what_is_cut_is_counted_token_by_token(checkpoint: Path, held_out: list[str], max_length: int) -> None:
    whole = tokenizer_of(checkpoint, max_length=100_000).tokenize(held_out)
    cut = tokenizer_of(checkpoint, max_length=max_length).tokenize(held_out)

    for full, part in zip(whole, cut, strict=True):
        assert full.dropped == 0
        assert part.dropped == len(full.ids) - len(part.ids)
        assert len(part.ids) == min(max_length, len(full.ids))
        assert part.ids[-1] == full.ids[-1], "the end token stays"
    assert any(part.dropped for part in cut)


def test_a_megabyte_of_text_is_cut_and_counted(checkpoint: Path) -> None:
    (found,) = tokenizer_of(checkpoint).tokenize(["word " * 210_000])

    assert len(found.ids) == 256
    assert found.dropped == 210_000 - 254


def test_lower_case_is_put_before_tokenizing(checkpoint: Path, tmp_path: Path) -> None:
    cased = tmp_path / "tokenizer.json"
    content = (checkpoint / "tokenizer.json").read_text(encoding="utf-8")
    cased.write_text(content.replace('"lowercase":true', '"lowercase":false'), encoding="utf-8")
    assert '"lowercase":false' in cased.read_text(encoding="utf-8")
    as_is = Tokenizer(cased, TokenizerFacts(256, lower_case=False, special_tokens={}))
    lower = Tokenizer(cased, TokenizerFacts(256, lower_case=True, special_tokens={}))

    assert not np.array_equal(as_is.tokenize(["HELLO"])[0].ids, lower.tokenize(["HELLO"])[0].ids)
    assert np.array_equal(as_is.tokenize(["hello"])[0].ids, lower.tokenize(["HELLO"])[0].ids)


@pytest.mark.parametrize("text", [None, 3, b"bytes", ["nested"]])
def test_what_is_no_string_is_named(checkpoint: Path, text: object) -> None:
    with pytest.raises(InputError, match=f"text 1 is no string but {type(text).__name__}"):
        tokenizer_of(checkpoint).tokenize(["fine", text])


def test_half_a_character_is_refused(checkpoint: Path) -> None:
    with pytest.raises(InputError, match="text 0 is not valid Unicode: surrogates not allowed at character 2"):
        tokenizer_of(checkpoint).tokenize(["ab\ud800"])


def test_a_file_that_is_no_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")

    with pytest.raises(BundleError, match="is no tokenizer"):
        tokenizer_of(tmp_path)
