"""The only module that calls `tokenizers`: bounds its memory, and converts its failures to errors of this package.

`tokenizers` panics on some texts and files, which raises a BaseException in Python, and takes hundreds of bytes for
each character of a text. So long texts are tokenized in pieces (see `split_points`), panics become InputError or
BundleError, and a tokenizer.json that would expand texts without bound is refused when it is opened.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from numpy.typing import NDArray

from ..errors import BundleError, InputError, OrtkitError
from ..session.memory import available_memory, mebibytes
from .split_points import AddedToken, Cuts, UncutError, cuts_of, flat, pieces, state_of

PIECE = 1 << 14
"""Characters of a piece of a long text, about."""
AT_ONCE = 1 << 16
"""Characters of all texts in one call of `tokenizers`, which then takes less than 50 MiB."""
_BYTES_AT_ONCE = 50 << 20
"""Those 50 MiB."""
_FEWEST = 1 << 12
"""Characters in one call within a limit on the memory: fewer would be slower, and save little."""
LONGEST = 1 << 20
"""Largest number of characters without a split point."""
_BYTES = {"Unigram": 128}
"""Memory of `tokenizers` in bytes for each byte of a long word, by type of model (measured on Chinese)."""
_MOST_BYTES = 256
"""The same for all other types."""
_GROWTH = 256
"""Largest factor by which normalizer and pre-tokenizer may expand a text."""
_SPECIAL_TOKENS = 1024
"""Largest number of special tokens around a text."""
_MOST_PARTS = {b"{": 1 << 15, b",": 1 << 22}
"""Limits on characters of tokenizer.json. Parsing takes quadratic time in the number of added tokens, which are
objects: this many take seconds. Published tokenizers have less than a third of each."""
_PROBES = ("a", "A", "1", ".", "the", " a", "\u6771")
"""Texts to find the special tokens with: at least one of them has a token with any tokenizer."""


@dataclass(frozen=True)
class _Ids:
    """Token ids of a text, or of its beginning or end."""

    ids: NDArray[np.int64]
    total: int
    """Number of tokens of the whole text."""


@dataclass(frozen=True)
class Spans:
    """Token ids of a whole text, and their offsets in characters."""

    ids: NDArray[np.int64]
    starts: NDArray[np.int64]
    ends: NDArray[np.int64]


class SafeTokenizer:
    """A tokenizer without truncation and padding, which this package does itself."""

    def __init__(
        self, tokenizer: tokenizers.Tokenizer, name: str = "tokenizer.json", *, vocabulary: int | None = None
    ) -> None:
        """`vocabulary` is the size of the model's embedding table where the tokenizer has more ids.

        Raises BundleError for a tokenizer that fails on all texts, or would expand texts without bound.
        """
        self.tokenizer = tokenizer
        self.vocabulary = vocabulary
        self.name = name
        tokenizer.no_padding()
        tokenizer.no_truncation()
        self.characters = AT_ONCE
        """Characters of all texts in one call of `tokenizers`; `limit_memory` lowers it."""
        self.growth = _growth_of(tokenizer)
        if self.growth > _GROWTH:
            raise BundleError(
                f"the tokenizer `{name}` makes texts up to {self.growth:.3g} times longer; the limit is {_GROWTH}"
            )
        if _refused_template(tokenizer):
            raise BundleError(
                f"the post-processor of the tokenizer `{name}` is not supported: it must insert each text once, "
                f"with at most {_SPECIAL_TOKENS} special tokens around it"
            )
        self.before, self.after = self.special_tokens()

    @cached_property
    def cuts(self) -> Cuts | None:
        """The split points of long texts."""
        added = [
            AddedToken(token.content, token.single_word, token.rstrip, token.normalized)
            for token in self.tokenizer.get_added_tokens_decoder().values()
        ]
        return cuts_of(state_of(self.tokenizer.normalizer), state_of(self.tokenizer.pre_tokenizer), added)

    def special_tokens(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The special tokens before and after every text."""
        for probe in _PROBES:
            bare, full = (self._probed(probe, special=special) for special in (False, True))
            around = len(full) - len(bare)
            for before in range(around + 1) if bare else ():
                if full[before : before + len(bare)] == bare:
                    return np.array(full[:before], np.int64), np.array(full[before + len(bare) :], np.int64)
        raise BundleError(f"the tokenizer `{self.name}` produces no tokens for any text")

    def _probed(self, text: str, *, special: bool) -> list[int]:
        try:
            return list(self.tokenizer.encode(text, add_special_tokens=special).ids)
        # Where it fails on a probe, it fails on all texts.
        except BaseException as error:
            raise_unless_of_tokenizers(error)
            raise BundleError(f"the tokenizer `{self.name}` cannot be used: {error}") from error

    def encode(self, text: str, *, enough: int | None = None) -> list[int]:
        """Token ids of a text without special tokens; raises UnreadableError.

        A long text is tokenized only until there are more than `enough` tokens.
        """
        if len(text) > self._piece:
            return [int(id_) for id_ in self._long_ids(text, keep=None, left=False, enough=enough).ids]
        (found,) = self.encoded([text])
        if isinstance(found, UnreadableError):
            raise found
        return list(found)

    def ids(
        self,
        texts: Sequence[str],
        faults: dict[int, str],
        *,
        keep: int | None = None,
        left: bool = False,
        first: int = 0,
    ) -> list[_Ids]:
        """Token ids of texts without special tokens: all, or the first or last `keep` of each.

        A text that cannot be tokenized has no ids, and an entry in `faults`: its index plus `first` -> the reason, as a
        predicate such as `cannot be tokenized: ...`.
        """
        found: dict[int, _Ids] = {}
        short: list[int] = []
        for index, text in enumerate(texts):
            if len(text) <= self._piece:
                short.append(index)
                continue
            try:
                found[index] = self._long_ids(text, keep=keep, left=left)
            except UnreadableError as error:
                faults[first + index] = error.fault
        for group in _groups(texts, short, self._at_once):
            encoded = self.encoded([texts[index] for index in group])
            for index, one in zip(group, encoded, strict=True):
                if isinstance(one, UnreadableError):
                    faults[first + index] = one.fault
                else:
                    ids = np.array(one, np.int64)
                    found[index] = _Ids(kept(ids, keep, left=left), len(ids))
        for index in [index for index, one in found.items() if self._unknown(one.ids) is not None]:
            faults[first + index] = str(self._unknown(found.pop(index).ids))
        nothing = _Ids(np.empty(0, np.int64), 0)
        return [found.get(index, nothing) for index in range(len(texts))]

    def _unknown(self, ids: NDArray[np.int64]) -> str | None:
        """The fault of a text with a token outside the model's embedding table; None without one."""
        if self.vocabulary is None or not (ids >= self.vocabulary).any():
            return None
        token = self.tokenizer.id_to_token(int(ids[ids >= self.vocabulary][0]))
        return f"has the token `{token}`, which is not in the model's vocabulary"

    @property
    def _at_once(self) -> int:
        """Characters in one call of `tokenizers`, fewer for a tokenizer that expands texts."""
        return max(1024, int(self.characters * 4 / max(4.0, self.growth)))

    @property
    def _piece(self) -> int:
        """Characters from which on a text is tokenized in pieces."""
        return min(PIECE, self.characters)

    def limit_memory(self, size: int) -> int:
        """Let a call take at most about `size` bytes; returns how many it takes, at least those for _FEWEST."""
        self.characters = min(AT_ONCE, max(_FEWEST, size * AT_ONCE // _BYTES_AT_ONCE))
        return self.characters * _BYTES_AT_ONCE // AT_ONCE

    def _long_ids(self, text: str, *, keep: int | None, left: bool, enough: int | None = None) -> _Ids:
        parts: list[NDArray[np.int64]] = []
        total = held = 0
        for group in self.grouped(text):
            for ids in self.encoded(group):
                if isinstance(ids, UnreadableError):
                    raise ids
                total += len(ids)
                if keep is None or left or held < keep:
                    parts.append(np.array(ids, np.int64))
                    held += len(ids)
                if enough is not None and total > enough:
                    return _Ids(np.concatenate(parts), total)
                while keep is not None and left and held - len(parts[0]) >= keep:
                    held -= len(parts.pop(0))
        return _Ids(kept(np.concatenate([np.empty(0, np.int64), *parts]), keep, left=left), total)

    def spans(self, text: str) -> Spans:
        """Token ids of a whole text with their offsets; raises UnreadableError."""
        ids: list[NDArray[np.int64]] = []
        offsets: list[NDArray[np.int64]] = []
        start = 0
        for (piece,) in self.grouped(text, at_once=1):
            encoding = self.called(lambda piece=piece: self.tokenizer.encode(piece, add_special_tokens=False))
            ids.append(np.array(encoding.ids, np.int64))
            offsets.append(np.array(encoding.offsets, np.int64).reshape(-1, 2) + start)
            start += len(piece)
        starts, ends = np.concatenate(offsets).T
        whole = np.concatenate(ids)
        fault = self._unknown(whole)
        if fault is not None:
            raise UnreadableError(fault)
        return Spans(whole, starts, ends)

    def grouped(self, text: str, *, at_once: int | None = None) -> Iterator[list[str]]:
        """The pieces of a long text, grouped for one call of `tokenizers` each."""
        group: list[str] = []
        size = 0
        try:
            for piece in pieces(text, self.cuts, size=min(PIECE, self._at_once), longest=LONGEST):
                self._check_memory(piece)
                if group and (size + len(piece) > self._at_once or at_once == len(group)):
                    yield group
                    group, size = [], 0
                group.append(piece)
                size += len(piece)
        except UncutError as error:
            raise UnreadableError(
                f"has more than {LONGEST} characters without a place where this tokenizer ends a word, such as a space"
            ) from error
        if group:
            yield group

    def _check_memory(self, piece: str) -> None:
        """Raise UnreadableError for a piece that cannot be split, and would take more memory than is free."""
        if len(piece) <= AT_ONCE:
            return
        each = _BYTES.get(type(self.tokenizer.model).__name__, _MOST_BYTES)
        need = round(len(piece.encode("utf-8", "surrogatepass")) * each * max(1.0, self.growth / 4))
        free = available_memory()
        if free is not None and need > free:
            raise UnreadableError(
                f"has {len(piece)} characters without a place where this tokenizer ends a word, such as a space; they "
                f"take about {mebibytes(need)}, and {mebibytes(free)} are free"
            )

    def encoded(self, texts: list[str]) -> list[list[int] | UnreadableError]:
        """Token ids of texts that are short enough for one call, or an error for each text that fails."""
        try:
            return [
                encoding.ids
                for encoding in self.called(lambda: self.tokenizer.encode_batch_fast(texts, add_special_tokens=False))
            ]
        except UnreadableError as error:
            if len(texts) == 1:
                return [error]
        # One at a time, to find the text that fails.
        return [self.encoded([text])[0] for text in texts]

    def called(self, call: Any) -> Any:
        """Call `tokenizers`; raises UnreadableError for any failure on a text."""
        try:
            return call()
        except BaseException as error:
            raise_unless_of_tokenizers(error)
            raise UnreadableError(f"cannot be tokenized by `{self.name}`: {error}") from error


class UnreadableError(InputError):
    """A text cannot be tokenized; `fault` is the reason, as a predicate."""

    def __init__(self, fault: str) -> None:
        super().__init__(f"the text {fault}")
        self.fault = fault


def raise_unless_of_tokenizers(error: BaseException) -> None:
    """Re-raise an error that does not come from `tokenizers`.

    Its errors are plain Exceptions, and its panics a subclass of BaseException that cannot be imported.
    """
    if isinstance(error, (KeyboardInterrupt, SystemExit, GeneratorExit, MemoryError, OrtkitError)):
        raise error


def open_tokenizer(path: Path, *, vocabulary: int | None = None) -> SafeTokenizer:
    """Open a tokenizer.json; `vocabulary` is the size of the model's embedding table where that is smaller.

    Raises BundleError for a file that is not valid or not supported.
    """
    try:
        # Not `from_file`, which supports only paths in UTF-8.
        content = path.read_bytes()
    except OSError as error:
        raise BundleError(f"`{path}` cannot be read: {error.strerror or error}") from error
    _check_counts(path, content)
    try:
        tokenizer = tokenizers.Tokenizer.from_buffer(content)
    except BaseException as error:
        raise_unless_of_tokenizers(error)
        raise BundleError(f"`{path}` is not a tokenizer: {error}") from error
    return SafeTokenizer(tokenizer, str(path), vocabulary=vocabulary)


def _check_counts(path: Path, content: bytes) -> None:
    """Refuse a tokenizer.json that `tokenizers` would parse for minutes."""
    for character, most in _MOST_PARTS.items():
        found = content.count(character)
        if found > most:
            raise BundleError(
                f"the tokenizer `{path}` has too many tokens: {found} times `{character.decode()}`; the limit is {most}"
            )


def kept(ids: NDArray[np.int64], keep: int | None, *, left: bool) -> NDArray[np.int64]:
    if keep is None or len(ids) <= keep:
        return ids
    return ids[len(ids) - keep :] if left else ids[:keep]


def _groups(texts: Sequence[str], chosen: Sequence[int], most: int) -> Iterator[list[int]]:
    """Indices of texts in groups of about `most` characters, and at most 256 texts."""
    group: list[int] = []
    size = 0
    for index in chosen:
        if group and (size + len(texts[index]) > most or len(group) == 256):
            yield group
            group, size = [], 0
        group.append(index)
        size += len(texts[index])
    if group:
        yield group


def _refused_template(tokenizer: tokenizers.Tokenizer) -> bool:
    """Whether a post-processor inserts a text more than once, or too many special tokens."""
    parts = flat(state_of(tokenizer.post_processor), "processors")
    templates = [part.get("single", []) for part in parts if part.get("type") == "TemplateProcessing"]
    if any(sum("Sequence" in piece for piece in template) != 1 for template in templates):
        return True
    return bool(tokenizer.num_special_tokens_to_add(False) > _SPECIAL_TOKENS)


def _growth_of(tokenizer: tokenizers.Tokenizer) -> float:
    """Upper bound of the factor by which normalizer and pre-tokenizer expand a text, in bytes."""
    growth = 1.0
    for part in flat(state_of(tokenizer.normalizer), "normalizers"):
        growth *= _growth_of_normalizer(part)
    for part in flat(state_of(tokenizer.pre_tokenizer), "pretokenizers"):
        growth *= {"ByteLevel": 2.0, "Metaspace": 3.0}.get(str(part.get("type")), 1.0)
    return growth


def _growth_of_normalizer(part: Mapping[str, Any]) -> float:
    kind = part.get("type")
    if kind == "Replace":
        pattern, content = part.get("pattern"), len(str(part.get("content", "")).encode())
        found = pattern.get("String") if isinstance(pattern, Mapping) else None
        # A regular expression may match single bytes, or the empty string before each.
        return max(1.0, content / len(found.encode()) if found else content + 1.0)
    if kind == "Precompiled":
        # SentencePiece's character map ends with the replacements, each terminated by a zero byte.
        try:
            charsmap = base64.b64decode(str(part.get("precompiled_charsmap", "")))
        except (binascii.Error, ValueError):
            return 1.0
        trie = int.from_bytes(charsmap[:4], "little")
        return max(1.0, max(map(len, charsmap[4 + trie :].split(b"\0"))) / 3)
    if kind == "Prepend":
        # Once for each section between added tokens, which have at least a byte.
        return 1.0 + len(str(part.get("prepend", "")).encode())
    if kind == "ByteLevel":
        return 2.0
    return 3.0 if kind in {"NFD", "NFKD", "NFC", "NFKC"} else 1.0
