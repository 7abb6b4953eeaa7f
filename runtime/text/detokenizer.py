"""Incremental detokenization: no partial characters, and the same text in the end as `Tokenizer.decode` returns.

The decoder in tokenizer.json is rebuilt from steps that take pieces of text and return those that no later token can
change. `tokenizers.decoders.DecodeStream` (0.22) cannot be used, as the tests show: it raises an Exception where a run
of byte tokens turns out not to be UTF-8 (`<0x48>`, `<0xC3>`, `.`), and it has no flush, so that the U+FFFD of an
incomplete character at the end is lost.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import tokenizers

from ..errors import BundleError

_CONTEXT = 64
"""Tokens of the prompt that are decoded before an answer: more than any character, or run of byte tokens, has."""


class _DecodeStep(Protocol):
    """One step of a decoder; some hold back text that the next token may change."""

    def push(self, pieces: list[str]) -> list[str]:
        """The text that is final after these pieces."""

    def end(self) -> list[str]:
        """The text held back, at the end."""


class _ByteLevel:
    """Characters that stand for bytes (GPT-2), decoded as UTF-8."""

    def __init__(self) -> None:
        self.decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, pieces: list[str]) -> list[str]:
        return [self.decoder.decode(b"".join(map(_bytes_of, pieces)))]

    def end(self) -> list[str]:
        return [self.decoder.decode(b"", final=True)]


class _ByteFallback:
    """Tokens such as `<0xE2>`: a run of them is a text if it is valid UTF-8, otherwise one U+FFFD for each.

    A run is held back until it ends, because its last byte can make all of it invalid.
    """

    def __init__(self) -> None:
        self.run = bytearray()

    def push(self, pieces: list[str]) -> list[str]:
        certain = []
        for piece in pieces:
            byte = _fallback_byte(piece)
            if byte is None:
                certain += [*self.end(), piece]
            else:
                self.run.append(byte)
        return certain

    def end(self) -> list[str]:
        run, self.run = self.run, bytearray()
        if not run:
            return []
        try:
            return [run.decode("utf-8")]
        except UnicodeDecodeError:
            return ["\ufffd"] * len(run)

    def settle(self) -> None:
        """Drop complete characters, at the end of a prompt: the answer starts after them."""
        try:
            del self.run[: codecs.utf_8_decode(self.run, "strict", False)[1]]
        except UnicodeDecodeError:
            self.run.clear()


class _Replace:
    """Replace every occurrence of a string in a piece."""

    def __init__(self, pattern: str, content: str) -> None:
        self.pattern = pattern
        self.content = content

    def push(self, pieces: list[str]) -> list[str]:
        return [piece.replace(self.pattern, self.content) for piece in pieces]

    def end(self) -> list[str]:
        return []


class _Metaspace:
    """The replacement character back to a space; dropped in the first token where the tokenizer prepends it."""

    def __init__(self, replacement: str, *, prepended: bool) -> None:
        self.replacement = replacement
        self.drop = prepended

    def push(self, pieces: list[str]) -> list[str]:
        certain = []
        for piece in pieces:
            certain.append(piece.replace(self.replacement, "" if self.drop else " "))
            self.drop = False
        return certain

    def end(self) -> list[str]:
        return []


class _StripStart:
    """Strip a character up to `count` times from the beginning of the text."""

    def __init__(self, character: str, count: int) -> None:
        self.character = character
        self.left = count

    def push(self, pieces: list[str]) -> list[str]:
        text = "".join(pieces)
        while self.left and text:
            if text[0] != self.character:
                self.left = 0
            else:
                text = text[1:]
                self.left -= 1
        return [text]

    def end(self) -> list[str]:
        return []


class Vocabulary:
    """A tokenizer's tokens and decoder."""

    def __init__(self, tokenizer: tokenizers.Tokenizer) -> None:
        """Raises BundleError for a decoder that cannot run incrementally."""
        self.tokenizer = tokenizer
        special = {id_: token for id_, token in tokenizer.get_added_tokens_decoder().items() if token.special}
        self.special = set(special)
        """Ids of special tokens, which have no text."""
        self.special_texts = tuple(token.content for token in special.values())
        """Their spelling in a prompt."""
        # Its pickled state is its JSON; that of the whole tokenizer takes 0.1 s to write and read.
        self.decoder = None if tokenizer.decoder is None else json.loads(tokenizer.decoder.__getstate__())
        self.steps()

    def steps(self) -> list[_DecodeStep]:
        """The decoder's steps, for a new text."""
        if self.decoder is None:
            raise _unknown_decoder("none")
        parts = self.decoder["decoders"] if self.decoder["type"] == "Sequence" else [self.decoder]
        steps: list[_DecodeStep] = []
        for place, part in enumerate(parts):
            if part["type"] != "Fuse":
                fused = any(before["type"] in {"Fuse", "ByteLevel"} for before in parts[:place])
                steps.append(_step_of(part, fused=fused))
        return steps

    def bytes_of(self, token: int) -> bytes:
        """The bytes that a token stands for, wherever it is in a text; those of its spelling for a special token.

        A token may hold a part of a character, so these need not be UTF-8.
        """
        piece = self.tokenizer.id_to_token(token)
        if piece is None:
            return b""
        if token in self.special:
            return str(piece).encode("utf-8")
        steps = self.steps()
        if any(isinstance(step, _ByteLevel) for step in steps):
            return _bytes_of(piece)
        byte = _fallback_byte(piece) if any(isinstance(step, _ByteFallback) for step in steps) else None
        if byte is not None:
            return bytes([byte])
        for step in steps:
            if isinstance(step, _Metaspace):
                step.drop = False
            if isinstance(step, (_Metaspace, _Replace)):
                [piece] = step.push([piece])
        return str(piece).encode("utf-8")


class Detokenizer:
    """Decodes the ids of one answer."""

    def __init__(self, vocabulary: Vocabulary, prompt: Sequence[int] = ()) -> None:
        """Decode an answer to `prompt`: its first word keeps the space that separates it from the prompt."""
        self.vocabulary = vocabulary
        self.steps = vocabulary.steps()
        self.push_all(first_text(vocabulary, prompt[:-_CONTEXT]))
        self.push_all(prompt[-_CONTEXT:])
        for step in self.steps:
            if isinstance(step, _ByteFallback):
                step.settle()

    def push(self, token: int) -> str:
        """The text that is final after one more token; special tokens have none."""
        if token in self.vocabulary.special:
            return ""
        piece = self.vocabulary.tokenizer.id_to_token(token)
        # A padded vocabulary has more ids than tokens; the others have no text.
        return "" if piece is None else self._through([piece], self.steps)

    def push_all(self, ids: Iterable[int]) -> str:
        return "".join(map(self.push, ids))

    def end(self) -> str:
        """The text held back, at the end of the answer: U+FFFD for an incomplete character."""
        return "".join(self._through(step.end(), self.steps[place + 1 :]) for place, step in enumerate(self.steps))

    @staticmethod
    def _through(pieces: list[str], steps: Sequence[_DecodeStep]) -> str:
        for step in steps:
            if not pieces:
                return ""
            pieces = step.push(pieces)
        return "".join(pieces)


def first_text(vocabulary: Vocabulary, ids: Sequence[int]) -> list[int]:
    """The first token that is not special: decoders treat the beginning of a text differently."""
    return next(([id_] for id_ in ids if id_ not in vocabulary.special), [])


def _step_of(part: Mapping[str, Any], *, fused: bool) -> _DecodeStep:
    """A step from its JSON; `fused` where the steps before it join the tokens' texts."""
    match part:
        # ByteLevel leaves a fused text unchanged where one of its characters is not in the byte alphabet.
        case {"type": "ByteLevel"} if not fused:
            return _ByteLevel()
        case {"type": "ByteFallback"}:
            return _ByteFallback()
        # A single character cannot span pieces.
        case {"type": "Replace", "pattern": {"String": str(pattern)}, "content": str(content)} if (
            not fused or len(pattern) == 1
        ):
            return _Replace(pattern, content)
        case {"type": "Metaspace", "replacement": str(replacement)} if not fused:
            return _Metaspace(replacement, prepended=part.get("prepend_scheme", "always") != "never")
        case {"type": "Strip", "content": str(character), "start": int(count), "stop": 0} if fused:
            return _StripStart(character, count)
        case _:
            raise _unknown_decoder(str(part.get("type")))


def _unknown_decoder(name: str) -> BundleError:
    return BundleError(
        f"the decoder `{name}` in `tokenizer.json` is not supported",
        hint="export the model again with a newer ortkit, and report the model if that does not help",
    )


def _fallback_byte(piece: str) -> int | None:
    """The byte of a token such as `<0xE2>`; None for others."""
    if len(piece) != 6 or not piece.startswith("<0x") or piece[5] != ">":
        return None
    try:
        return int(piece[3:5], 16)
    except ValueError:
        return None


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's byte alphabet: printable bytes stand for themselves, the others start at U+0100."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + place): byte for place, byte in enumerate(others)}


_ALPHABET = _byte_alphabet()


def _bytes_of(piece: str) -> bytes:
    """The bytes of a token; an added token with other characters is its own UTF-8."""
    try:
        return bytes([_ALPHABET[character] for character in piece])
    except KeyError:
        return piece.encode("utf-8")
