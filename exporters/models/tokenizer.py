"""The tokenizer.json of a bundle: the tokenizer that transformers builds from all of a checkpoint's files.

`tokenizer_config.json`, `added_tokens.json` and `special_tokens_map.json` add tokens to a checkpoint's own
`tokenizer.json` and override its normalizer and its post-processor, so a copy of that file may be another tokenizer.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from ...runtime.bundle.bundle import TOKENIZER
from ...runtime.bundle.manifest import Side
from ...runtime.errors import CheckpointError, UnsupportedModelError
from ..certification.probe import calibration_texts, probe_searches, probe_texts
from ..checkpoint.checkpoint import Checkpoint
from ..checkpoint.files import check_file
from .loading import load_config, load_tokenizer


@dataclass(frozen=True)
class BundleTokenizer:
    """A bundle's tokenizer, as transformers has it."""

    text: str
    """Of its tokenizer.json: the checkpoint's own, its merges short, where transformers builds the same from it."""
    truncation_side: Side
    known_tokens: int | None
    """How many ids the model knows, where the tokenizer has more."""

    @property
    def special_tokens(self) -> dict[str, int]:
        """Name -> id of the tokens that are marked as special."""
        content: dict[str, Any] = json.loads(self.text)
        return {token["content"]: token["id"] for token in content.get("added_tokens", []) if token.get("special")}


def bundle_tokenizer(checkpoint: Checkpoint) -> BundleTokenizer:
    """The tokenizer that a checkpoint's bundle gets.

    Raises CheckpointError where transformers builds none, UnsupportedModelError for one that exists in Python only.
    """
    path = check_file(checkpoint.folder, TOKENIZER)
    if not path.is_file():
        raise CheckpointError(
            f"`{checkpoint.folder}` holds no `{TOKENIZER}`",
            hint="load its tokenizer with transformers' `AutoTokenizer` and save it with `save_pretrained`",
        )
    tokenizer = load_tokenizer(checkpoint)
    if not tokenizer.is_fast:
        raise UnsupportedModelError(
            f"`{checkpoint.name}` has the tokenizer `{type(tokenizer).__name__}`, which exists in Python only",
            hint=f"ortkit reads tokenizers that transformers can save as `{TOKENIZER}`",
        )
    built = whole(tokenizer.backend_tokenizer)
    text = path.read_bytes().decode("utf-8")
    text = with_merges_as_strings(text if whole(Tokenizer.from_str(text)) == built else built)
    return BundleTokenizer(text, Side(tokenizer.truncation_side), known_tokens(checkpoint, tokenizer))


def known_tokens(checkpoint: Checkpoint, tokenizer: Any) -> int | None:
    """How many ids a model knows, where its tokenizer has more, None where it knows all; `tokenizer` is transformers'.

    Publishers add tokens that no text of their use has, and pad vocabularies. Raises CheckpointError where ordinary
    texts have tokens that the model has no embedding for: it is the tokenizer of another one.
    """
    known: int = checkpoint.config.get("vocab_size") or load_config(checkpoint).vocab_size
    largest = max(tokenizer.get_vocab().values(), default=0)
    if largest < known:
        return None
    texts = [*probe_texts().texts, *calibration_texts().texts, *(query for query, _ in probe_searches().searches)]
    met = next((id_ for ids in tokenizer(texts, verbose=False)["input_ids"] for id_ in ids if id_ >= known), None)
    if met is not None:
        raise CheckpointError(
            f"the tokenizer of `{checkpoint.name}` has {largest + 1} tokens, its model knows {known}, and ordinary "
            f"texts have others, such as `{tokenizer.convert_ids_to_tokens(met)}`",
            hint="it is the tokenizer of another model, or the weights are",
        )
    return known


def whole(tokenizer: Tokenizer) -> str:
    """A tokenizer as JSON, without the limits and the padding that it was last used with."""
    copy = Tokenizer.from_str(tokenizer.to_str())
    copy.no_truncation()
    copy.no_padding()
    return str(copy.to_str())


def with_merges_as_strings(text: str) -> str:
    """Store the BPE merges of a tokenizer.json as strings, `"a b"` instead of `["a", "b"]`, which load faster.

    SmolLM2's 48,900 merges load in 75 ms instead of 90 ms, at every start of the bundle. The text as it is where a
    piece holds a space, or where `tokenizers` would not read the same tokenizer.
    """
    content = json.loads(text)
    model = content.get("model")
    merges = model.get("merges") if isinstance(model, dict) else None
    if not isinstance(merges, list) or not all(map(_is_plain_pair, merges)):
        return text
    model["merges"] = [" ".join(merge) for merge in merges]
    shorter = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
    try:
        same = Tokenizer.from_str(shorter).to_str() == Tokenizer.from_str(text).to_str()
    # `tokenizers` raises bare Exception for what is not a tokenizer, which is reported when the file is opened.
    except Exception:  # noqa: BLE001
        return text
    return shorter if same else text


def lower_case_first(path: Path) -> None:
    """Have a tokenizer.json put texts in lower case before all else, unless it has a step for that already."""
    content = path.read_bytes().decode("utf-8")
    changed = lower_cased(content)
    if changed != content:
        path.write_text(changed, encoding="utf-8")


def lower_cased(text: str) -> str:
    """A tokenizer.json with a step that puts texts in lower case before all else; the same where it has one."""
    content = json.loads(text)
    normalizer = content.get("normalizer")
    steps = normalizer["normalizers"] if normalizer and normalizer["type"] == "Sequence" else [normalizer]
    if {"type": "Lowercase"} in steps:
        return text
    steps = [step for step in steps if step is not None]
    content["normalizer"] = {"type": "Sequence", "normalizers": [{"type": "Lowercase"}, *steps]}
    return json.dumps(content, ensure_ascii=False)


def _is_plain_pair(merge: object) -> bool:
    return isinstance(merge, list) and all(isinstance(piece, str) and " " not in piece for piece in merge)
