from __future__ import annotations

from pathlib import Path

import pytest
import tokenizers
import transformers
from tokenizers import normalizers

from ortkit.exporters.certification.probe import lines_of, telling_texts, tokenizer_probe


@pytest.fixture(scope="module")
def tokenizer(checkpoint: Path) -> transformers.PreTrainedTokenizerBase:
    return transformers.AutoTokenizer.from_pretrained(str(checkpoint), local_files_only=True)


@pytest.mark.parametrize("length", [8, 48, 256])
def test_texts_lie_around_the_length_that_a_model_reads(
    tokenizer: transformers.PreTrainedTokenizerBase, length: int
) -> None:
    counts = [len(tokenizer(text)["input_ids"]) for text in tokenizer_probe(tokenizer, length)]

    assert {length - 1, length, length + 1, length + 9} <= set(counts)


def test_a_cut_on_either_side_shows(tokenizer: transformers.PreTrainedTokenizerBase) -> None:
    long = next(text for text in tokenizer_probe(tokenizer, 32) if len(tokenizer(text)["input_ids"]) == 33)
    right = tokenizer(long, truncation=True, max_length=32)["input_ids"]
    left = transformers.AutoTokenizer.from_pretrained(tokenizer.name_or_path, truncation_side="left")

    assert left(long, truncation=True, max_length=32)["input_ids"] != right


@pytest.mark.parametrize(
    "changes",
    [{"lowercase": False}, {"strip_accents": False}, {"handle_chinese_chars": False}, {"clean_text": False}],
)
def test_one_other_setting_of_a_normalizer_shows(checkpoint: Path, changes: dict[str, bool]) -> None:
    right = tokenizers.Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    wrong = tokenizers.Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    wrong.normalizer = normalizers.BertNormalizer(**changes)

    assert any(right.encode(text).ids != wrong.encode(text).ids for text in telling_texts())


def test_every_added_token_of_a_checkpoint_is_read(checkpoint: Path) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(checkpoint), local_files_only=True)
    added = [f"<extra_{number}>" for number in range(20)]
    tokenizer.add_tokens(added)

    texts = tokenizer_probe(tokenizer, 64)

    read = {number for text in texts for number in tokenizer(text, truncation=True, max_length=64)["input_ids"]}
    assert read >= set(tokenizer.convert_tokens_to_ids(added)) | set(tokenizer.all_special_ids)


def test_lines_of_texts_end_with_nothing_but_a_line_feed() -> None:
    assert lines_of("a\u2028b\x85c\x0cd\re\n\nf\n".encode()) == ["a\u2028b\x85c\x0cd\re", "", "f"]
