"""Mask Hub tokens in messages: a token in the wrong argument must not end up in a terminal's history or a log."""

from __future__ import annotations

import re

_TOKEN = re.compile(r"\bhf_(?:(?=[A-Za-z0-9]*[A-Z])(?=[A-Za-z0-9]*[a-z])[A-Za-z0-9]{12,}|[A-Za-z0-9]{30,})")


def without_tokens(text: str) -> str:
    """Replace all but the last four characters of each Hub token in a text."""
    return _TOKEN.sub(lambda found: f"hf_****{found[0][-4:]}", text)
