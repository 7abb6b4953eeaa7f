from __future__ import annotations

from pathlib import Path

import pytest

from exporters.pytorch_model import load_tokenizer
from runtime.errors import CheckpointError
from tests.exporters.decoder_checkpoints import change_json, opened, write_checkpoint


def test_a_tokenizer_saved_by_transformers_5(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "tiny")
    before = load_tokenizer(opened(folder))
    path = folder / "tokenizer_config.json"
    change_json(path, tokenizer_class="TokenizersBackend", extra_special_tokens=["<|im_start|>"])

    found = load_tokenizer(opened(folder))

    text = "<|im_start|>user\nWhat is a pump?<|im_end|>"
    assert found(text)["input_ids"] == before(text)["input_ids"]
    assert (found.bos_token_id, found.eos_token_id) == (before.bos_token_id, before.eos_token_id)
    assert found.chat_template == before.chat_template
    assert "<|im_start|>" in found.all_special_tokens


@pytest.mark.parametrize(
    ("file", "changes"),
    [
        ("tokenizer_config.json", {"tokenizer_class": "OtherTokenizer"}),
        ("tokenizer.json", {"model": {"type": "Other"}}),
        ("tokenizer.json", {"added_tokens": None}),
    ],
)
def test_a_tokenizer_that_transformers_cannot_load(file: str, changes: dict, tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "tiny")
    change_json(folder / file, **changes)

    with pytest.raises(CheckpointError, match=r"^the tokenizer of `tiny` cannot be loaded: ") as caught:
        load_tokenizer(opened(folder))
    assert caught.value.exit_code == 7
