"""Token ids to text as they come, never half a character, and together what `tokenizers` makes of all of them.

The decoder in tokenizer.json is rebuilt from steps that each take pieces of text and give those that no later token can
change. Asking `tokenizers` itself for every token would mean decoding the whole answer each time, and its own stream
loses the space before a word where a decoder strips the beginning of a text.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import tokenizers

from runtime.errors import BundleError

CONTEXT = 64
"""Tokens of the prompt that are read before an answer: more than any character, or run of bytes in words, has."""


class Step(Protocol):
    """One step of a decoder; some keep back what the next token may change."""

    def push(self, pieces: list[str]) -> list[str]:
        """What is certain after these pieces."""

    def end(self) -> list[str]:
        """What was kept back, when nothing more comes."""


class ByteLevel:
    """Characters that stand for bytes (GPT-2), back to the text whose UTF-8 they are."""

    def __init__(self) -> None:
        self.decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, pieces: list[str]) -> list[str]:
        return [self.decoder.decode(b"".join(map(bytes_of, pieces)))]

    def end(self) -> list[str]:
        return [self.decoder.decode(b"", final=True)]


class ByteFallback:
    """Tokens such as `<0xE2>`, a run of which is one text when it is valid UTF-8 and that many U+FFFD when it is not.

    A run is kept back until it ends, because its last byte may spoil its first character.
    """

    def __init__(self) -> None:
        self.run = bytearray()

    def push(self, pieces: list[str]) -> list[str]:
        certain = []
        for piece in pieces:
            byte = fallback_byte(piece)
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
        """Forget the whole characters of the run, where a prompt ends: what follows them is another text."""
        try:
            del self.run[: codecs.utf_8_decode(self.run, "strict", False)[1]]
        except UnicodeDecodeError:
            self.run.clear()


class Replace:
    """Every occurrence of a text in a piece by another."""

    def __init__(self, pattern: str, content: str) -> None:
        self.pattern = pattern
        self.content = content

    def push(self, pieces: list[str]) -> list[str]:
        return [piece.replace(self.pattern, self.content) for piece in pieces]

    def end(self) -> list[str]:
        return []


class Metaspace:
    """The sign for a space back to one, but not at the beginning of a text where the tokenizer put it there itself."""

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


class StripStart:
    """Up to `count` times a character away from the beginning of the text."""

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
    """The texts of the tokens of a tokenizer, and how they become one text."""

    def __init__(self, tokenizer: tokenizers.Tokenizer) -> None:
        """Raises BundleError for a decoder that cannot be followed token by token."""
        self.tokenizer = tokenizer
        special = {id_: token for id_, token in tokenizer.get_added_tokens_decoder().items() if token.special}
        self.special = set(special)
        """The ids of special tokens, which have no text."""
        self.special_texts = tuple(token.content for token in special.values())
        """What they are written as in a prompt."""
        # What it is pickled as is its JSON; that of the whole tokenizer takes a tenth of a second to write and read.
        self.decoder = None if tokenizer.decoder is None else json.loads(tokenizer.decoder.__getstate__())
        self.steps()

    def steps(self) -> list[Step]:
        """The steps of the decoder, for a new text."""
        if self.decoder is None:
            raise unknown_decoder("none")
        parts = self.decoder["decoders"] if self.decoder["type"] == "Sequence" else [self.decoder]
        steps: list[Step] = []
        for place, part in enumerate(parts):
            if part["type"] != "Fuse":
                fused = any(before["type"] in {"Fuse", "ByteLevel"} for before in parts[:place])
                steps.append(step_of(part, fused=fused))
        return steps


class Detokenizer:
    """Turns the ids of one answer into text."""

    def __init__(self, vocabulary: Vocabulary, prompt: Sequence[int] = ()) -> None:
        """An answer that follows `prompt`: its first word keeps the space that parts it from the prompt."""
        self.vocabulary = vocabulary
        self.steps = vocabulary.steps()
        self.push_all(first_text(vocabulary, prompt[:-CONTEXT]))
        self.push_all(prompt[-CONTEXT:])
        for step in self.steps:
            if isinstance(step, ByteFallback):
                step.settle()

    def push(self, token: int) -> str:
        """The text that is certain after one more token; special tokens have none."""
        if token in self.vocabulary.special:
            return ""
        piece = self.vocabulary.tokenizer.id_to_token(token)
        # Models have more logits than tokens where the vocabulary was padded; such an id has no text.
        return "" if piece is None else self.through([piece], self.steps)

    def push_all(self, ids: Iterable[int]) -> str:
        return "".join(map(self.push, ids))

    def end(self) -> str:
        """What was kept back, when no more tokens come: U+FFFD for half a character."""
        return "".join(self.through(step.end(), self.steps[place + 1 :]) for place, step in enumerate(self.steps))

    @staticmethod
    def through(pieces: list[str], steps: Sequence[Step]) -> str:
        for step in steps:
            if not pieces:
                return ""
            pieces = step.push(pieces)
        return "".join(pieces)


def first_text(vocabulary: Vocabulary, ids: Sequence[int]) -> list[int]:
    """The first token that is not special, which decides what happens at the beginning of a text."""
    return next(([id_] for id_ in ids if id_ not in vocabulary.special), [])


def step_of(part: Mapping[str, Any], *, fused: bool) -> Step:
    """One step from its JSON; `fused` when the steps before it give one text and no longer that of each token."""
    match part:
        # Of a fused text it takes all as it is when one character stands for no byte.
        case {"type": "ByteLevel"} if not fused:
            return ByteLevel()
        case {"type": "ByteFallback"}:
            return ByteFallback()
        # A single character is found in pieces as in the whole.
        case {"type": "Replace", "pattern": {"String": str(pattern)}, "content": str(content)} if (
            not fused or len(pattern) == 1
        ):
            return Replace(pattern, content)
        case {"type": "Metaspace", "replacement": str(replacement)} if not fused:
            return Metaspace(replacement, prepended=part.get("prepend_scheme", "always") != "never")
        case {"type": "Strip", "content": str(character), "start": int(count), "stop": 0} if fused:
            return StripStart(character, count)
        case _:
            raise unknown_decoder(str(part.get("type")))


def unknown_decoder(name: str) -> BundleError:
    return BundleError(
        f"the decoder `{name}` in `tokenizer.json` cannot be followed token by token",
        hint="export the model again with a newer edgekit, and report the model if that does not help",
    )


def fallback_byte(piece: str) -> int | None:
    """The byte that a token such as `<0xE2>` stands for."""
    if len(piece) != 6 or not piece.startswith("<0x") or piece[5] != ">":
        return None
    try:
        return int(piece[3:5], 16)
    except ValueError:
        return None


def byte_alphabet() -> dict[str, int]:
    """GPT-2's characters for bytes: printable ones for themselves, the others from U+0100 on."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + place): byte for place, byte in enumerate(others)}


ALPHABET = byte_alphabet()


def bytes_of(piece: str) -> bytes:
    """The bytes that a token's characters stand for; an added token may hold others, and stands for its own UTF-8."""
    try:
        return bytes([ALPHABET[character] for character in piece])
    except KeyError:
        return piece.encode("utf-8")
