from __future__ import annotations

import pytest

from ortkit.toolkit.console.masking import without_tokens


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("hf_AbCdEfGhIjKlMnOp", "hf_****MnOp"),
        ("No such command 'hf_" + "a" * 34 + "'.", "No such command 'hf_****aaaa'."),
        ("org/hf_AbCdEfGhIjKlMnOp: hf_AbCdEfGhIjKlMnOp", "org/hf_****MnOp: hf_****MnOp"),
        ("https://x/?token=hf_AbCdEfGhIjKlMnOp", "https://x/?token=hf_****MnOp"),
        ("hf_transformers", "hf_transformers"),
        ("bundles/hf_tiny_model-int8", "bundles/hf_tiny_model-int8"),
        ("HF_HUB_ETAG_TIMEOUT", "HF_HUB_ETAG_TIMEOUT"),
    ],
)
def test_tokens_are_masked_and_names_are_not(text: str, shown: str) -> None:
    assert without_tokens(text) == shown
