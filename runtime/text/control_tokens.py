"""Text from elsewhere in a prompt: what in it looks like a control token of the chat template must not become one.

A rendered prompt is tokenized as a whole, so `<|im_end|>` in a document would end the message that quotes it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from .safe_tokenizer import SafeTokenizer

_MARKER = re.compile(r"<<\w+>>|<</\w+>>|<\|[^<>|\s]{1,64}\|>|</?[A-Za-z][\w:.-]{0,63}>|\[/?[A-Z][A-Z_]{0,63}\]")
"""What templates write around messages, where the tokenizer has no token for it: `[INST]`, `<<SYS>>`."""
_ROUNDS = 8
"""Breaking one token can make another; published tokenizers need one round."""


class ControlTokens:
    """The control tokens of a model: special tokens, and whatever the chat template writes around messages."""

    def __init__(self, tokenizer: SafeTokenizer, template: str | None) -> None:
        self.tokenizer = tokenizer
        self.template = template or ""
        added = tokenizer.tokenizer.get_added_tokens_decoder()
        self.ids = frozenset(
            id_
            for id_, token in added.items()
            # Added tokens may also be runs of spaces, or HTML that the model has tokens for: those are text.
            if token.special or (token.content.strip() and token.content in self.template)
        )
        """Ids of the control tokens."""
        self.markers = frozenset(_MARKER.findall(self.template))
        """Markers of the template, which may be ordinary text for the tokenizer."""

    def spelled_out(self, text: str, *, markers: Iterable[str] = ()) -> str:
        """The text with a space inside of all that is a control token, a marker of the template, or one of `markers`.

        So `<|im_end|>` becomes `< |im_end|>`, and no token of the result is a control token. Raises InputError for a
        text that cannot be tokenized.
        """
        text = _split(text, self.markers.union(markers))
        rounds = 0
        while found := self._spans_in(text):
            for start, end in reversed(found):
                # Deleted where a space does not help, because the tokenizer's normalizer removes it.
                broken = _with_space(text[start:end]) if rounds < _ROUNDS else ""
                text = text[:start] + broken + text[end:]
            rounds += 1
        return text

    def _spans_in(self, text: str) -> list[tuple[int, int]]:
        """Where the control tokens of a text begin and end."""
        if not text:
            return []
        spans = self.tokenizer.spans(text)
        return [
            (int(start), int(end))
            for id_, start, end in zip(spans.ids, spans.starts, spans.ends, strict=True)
            if int(id_) in self.ids
        ]


def _split(text: str, markers: Iterable[str]) -> str:
    """Put a space into each marker; again, until none is left, because `[[INST]INST]` makes a new one."""
    for marker in markers:
        while marker in text:
            text = text.replace(marker, _with_space(marker))
    return text


def _with_space(token: str) -> str:
    """A token with a space after its first character; one of a single character becomes a space.

    Tokens that take the whitespace before them along begin with it.
    """
    bare = token.lstrip()
    before = token[: len(token) - len(bare)]
    return f"{before}{bare[0]} {bare[1:]}" if len(bare.rstrip()) > 1 else f"{before} "
