from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import transformers

from ortkit import BundleError, InputError
from ortkit.runtime.bundle.manifest import TokenizerFacts
from ortkit.runtime.text.tokenizer import BLOCK, LongTexts, Tokenizer


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
def test_truncated_tokens_are_counted(checkpoint: Path, held_out: list[str], max_length: int) -> None:
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


def split(tokenizer: Tokenizer, text: str, prefix: str = "") -> list[list[int]]:
    (found,) = tokenizer.tokenize([text], prefix=prefix, long=LongTexts.MEAN)
    assert found.dropped == 0
    assert found.tokens == sum(map(len, found.chunks))
    return [ids.tolist() for ids in found.chunks]


def test_a_long_text_is_split_where_sentences_end(checkpoint: Path) -> None:
    tokenizer = tokenizer_of(checkpoint, max_length=12)
    sentences = ["The pump is old.", 'It said: "Stop!"', "Why? Nobody knows that.", "It is 3.5 bar now."]
    text = " ".join(sentences)

    found = split(tokenizer, text)

    expected = ["The pump is old.", 'It said: "Stop!" Why?', "Nobody knows that.", "It is 3.5 bar now."]
    assert found == [ids.ids.tolist() for ids in tokenizer.tokenize(expected)]


def test_without_a_sentence_in_the_window_it_is_filled(checkpoint: Path) -> None:
    """The chunks hold all tokens of the text once, in order, each between the special tokens."""
    tokenizer = tokenizer_of(checkpoint, max_length=12)
    (whole,) = tokenizer_of(checkpoint, max_length=10_000).tokenize(["word " * 25])

    found = split(tokenizer, "word " * 25)

    assert [len(ids) for ids in found] == [12, 12, 7]
    assert [token for ids in found for token in ids[1:-1]] == whole.ids.tolist()[1:-1]
    assert {(ids[0], ids[-1]) for ids in found} == {(whole.ids[0], whole.ids[-1])}


@pytest.mark.parametrize("max_length", [8, 30, 64])
def test_chunks_of_real_texts_lose_no_token(checkpoint: Path, held_out: list[str], max_length: int) -> None:
    whole = tokenizer_of(checkpoint, max_length=100_000).tokenize(held_out)
    found = tokenizer_of(checkpoint, max_length=max_length).tokenize(held_out, long=LongTexts.MEAN)

    for full, part in zip(whole, found, strict=True):
        assert [token for ids in part.chunks for token in ids[1:-1]] == full.ids.tolist()[1:-1]
        assert max(map(len, part.chunks)) <= max_length


def test_the_prefix_stands_before_every_chunk(checkpoint: Path) -> None:
    tokenizer = tokenizer_of(checkpoint, max_length=12)
    sentences = ["The pump is old.", "It stopped last night.", "Nobody knows why."]

    found = split(tokenizer, " ".join(sentences), prefix="query: ")

    assert found == [ids.ids.tolist() for ids in tokenizer.tokenize(sentences, prefix="query: ")]


def test_a_prefix_that_leaves_no_room(checkpoint: Path) -> None:
    with pytest.raises(InputError) as caught:
        split(tokenizer_of(checkpoint, max_length=8), "word " * 20, prefix="one two three four five six ")
    assert caught.value.message == "the prompt alone has 6 tokens, and the model's limit is 8"
    assert caught.value.hint == (
        "long texts cannot be split into chunks with it; use another prompt, or truncate long texts"
    )


@pytest.mark.parametrize("text", [None, 3, b"bytes", ["nested"]])
def test_a_text_that_is_not_a_string(checkpoint: Path, text: object) -> None:
    with pytest.raises(InputError, match=f"text 1 must be a string, not {type(text).__name__}"):
        tokenizer_of(checkpoint).tokenize(["fine", text], prefix="query: ")


def test_half_a_character_is_refused(checkpoint: Path) -> None:
    with pytest.raises(InputError, match="text 0 is not valid Unicode: surrogates not allowed at character 2"):
        tokenizer_of(checkpoint).tokenize(["ab\ud800"])


def test_a_file_that_is_not_a_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")

    with pytest.raises(BundleError, match="is not a tokenizer"):
        tokenizer_of(tmp_path)
