"""Small seeded decoders as their publishers leave them: weights, tokenizer, chat template, generation config."""

from __future__ import annotations

import json
from pathlib import Path

from ortkit.exporters.checkpoint.checkpoint import Checkpoint
from ortkit.exporters.sources import find_checkpoint
from tests.decoders import CHATML, write_tokenizer
from tests.exporters.decoders import tiny_decoder

TOKENIZER_CONFIG = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "bos_token": "<|endoftext|>",
    "eos_token": "<|im_end|>",
    "chat_template": CHATML,
    "clean_up_tokenization_spaces": False,
}


def write_checkpoint(folder: Path, family: str = "llama, tied", **changes: object) -> Path:
    """A decoder of a family of `decoders.FAMILIES`; `changes` are for its config."""
    tiny_decoder(family, **changes).save_pretrained(folder)
    write_tokenizer(folder / "tokenizer.json")
    write_json(folder / "tokenizer_config.json", TOKENIZER_CONFIG)
    write_json(folder / "generation_config.json", {"eos_token_id": 2})
    return folder


def write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content))


def change_json(path: Path, **changes: object) -> None:
    """Set fields of a JSON object, and remove those that are None."""
    content = json.loads(path.read_text()) | changes
    write_json(path, {name: value for name, value in content.items() if value is not None})


def opened(folder: Path) -> Checkpoint:
    return find_checkpoint(str(folder))
