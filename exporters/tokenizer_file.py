"""The tokenizer.json of a bundle: the tokenizer that transformers builds from all of a checkpoint's files.

`tokenizer_config.json`, `added_tokens.json` and `special_tokens_map.json` add tokens to a checkpoint's own
`tokenizer.json` and override its normalizer and its post-processor, so a copy of that file may be another tokenizer.
"""

from __future__ import annotations

import json
from typing import Any

from tokenizers import Tokenizer

from exporters.checkpoint import Checkpoint
from exporters.pytorch_model import load_tokenizer
from exporters.short_merges import with_short_merges
from runtime.bundle import TOKENIZER
from runtime.errors import CheckpointError, UnsupportedModelError


def tokenizer_text(checkpoint: Checkpoint) -> str:
    """The text of a bundle's tokenizer.json: the checkpoint's own where transformers builds the same from it.

    Raises CheckpointError where transformers builds none, UnsupportedModelError for one that exists in Python only.
    """
    path = checkpoint.folder / TOKENIZER
    if not path.is_file():
        raise CheckpointError(
            f"`{checkpoint.folder}` holds no `{TOKENIZER}`",
            hint="load its tokenizer with transformers' `AutoTokenizer` and save it with `save_pretrained`",
        )
    tokenizer = load_tokenizer(checkpoint)
    if not tokenizer.is_fast:
        raise UnsupportedModelError(
            f"`{checkpoint.name}` has the tokenizer `{type(tokenizer).__name__}`, which exists in Python only",
            hint=f"edgekit reads tokenizers that transformers can save as `{TOKENIZER}`",
        )
    built = whole(tokenizer.backend_tokenizer)
    text = path.read_bytes().decode("utf-8")
    return with_short_merges(text if whole(Tokenizer.from_str(text)) == built else built)


def whole(tokenizer: Tokenizer) -> str:
    """A tokenizer as JSON, without the limits and the padding that it was last used with."""
    copy = Tokenizer.from_str(tokenizer.to_str())
    copy.no_truncation()
    copy.no_padding()
    return str(copy.to_str())


def special_tokens(text: str) -> dict[str, int]:
    """Name -> id of the tokens that a tokenizer.json marks as special."""
    content: dict[str, Any] = json.loads(text)
    return {token["content"]: token["id"] for token in content.get("added_tokens", []) if token.get("special")}
