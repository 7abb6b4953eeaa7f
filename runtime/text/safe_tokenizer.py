"""The one place that calls `tokenizers`: no text and no tokenizer.json ends the process or takes memory without bound.

`tokenizers` panics on some texts and tokenizers, which is no Exception in Python, and takes hundreds of bytes for each
character that it reads at once. So texts are read in pieces (see `pieces`), its panics become errors of this package,
and a tokenizer.json that would blow up texts is refused when it is opened.
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

from ..errors import BundleError, OrtkitError, InputError
from ..session.memory import available_memory, mebibytes
from .split_points import AddedToken, Cuts, UncutError, cuts_of, flat, pieces, state_of

PIECE = 1 << 14
"""Characters of a long text that are tokenized at once, about."""
AT_ONCE = 1 << 16
"""Characters of all texts that are tokenized at once: what `tokenizers` keeps of them stays below 50 MiB."""
LONGEST = 1 << 20
"""Characters that may follow one another without a place where the tokenizer can be given them in pieces."""
BYTES = {"Unigram": 128}
"""That `tokenizers` takes for each byte of a long word, by the kind of its model, as measured on Chinese."""
MOST_BYTES = 256
"""The same for all other kinds."""
GROWTH = 256
"""How many times its size a text may become on the way through normalizer and pre-tokenizer."""
SPECIAL_TOKENS = 1024
"""Most that may stand around a text."""
MOST_PARTS = {b"{": 1 << 15, b",": 1 << 22}
"""Added tokens are objects, and reading them takes the square of their number: as many take seconds. No published
tokenizer has a third of them, or of the entries of its vocabulary and its merges."""
PROBES = ("a", "A", "1", ".", "the", " a", "\u6771")
"""Texts of which a tokenizer makes at least a token, one of them."""


@dataclass(frozen=True)
class Ids:
    """The ids of a text, or those of its beginning or end."""

    ids: NDArray[np.int64]
    total: int
    """How many the text has in all."""


@dataclass(frozen=True)
class Spans:
    """The ids of a whole text and where each stands in it, in characters."""

    ids: NDArray[np.int64]
    starts: NDArray[np.int64]
    ends: NDArray[np.int64]


class SafeTokenizer:
    """A tokenizer without truncation and padding, which are this package's own."""

    def __init__(
        self, tokenizer: tokenizers.Tokenizer, name: str = "tokenizer.json", *, known: int | None = None
    ) -> None:
        """`known` is how many ids the model knows, where the tokenizer has more.

        Raises BundleError for a tokenizer that reads no text, or that would blow texts up.
        """
        self.tokenizer = tokenizer
        self.known = known
        self.name = name
        tokenizer.no_padding()
        tokenizer.no_truncation()
        self.growth = growth_of(tokenizer)
        if self.growth > GROWTH:
            raise BundleError(
                f"the tokenizer `{name}` makes texts up to {self.growth:.3g} times longer, and the limit is {GROWTH}"
            )
        if refused_template(tokenizer):
            raise BundleError(
                f"the post-processor of the tokenizer `{name}` is not supported: it must put each text in once, and at "
                f"most {SPECIAL_TOKENS} special tokens around it"
            )
        self.before, self.after = self.special_tokens()

    @cached_property
    def cuts(self) -> Cuts | None:
        """Where long texts can be cut."""
        added = [
            AddedToken(token.content, token.single_word, token.rstrip, token.normalized)
            for token in self.tokenizer.get_added_tokens_decoder().values()
        ]
        return cuts_of(state_of(self.tokenizer.normalizer), state_of(self.tokenizer.pre_tokenizer), added)

    def special_tokens(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The ids that stand before and after every text."""
        for probe in PROBES:
            bare, full = (self.probed(probe, special=special) for special in (False, True))
            around = len(full) - len(bare)
            for before in range(around + 1) if bare else ():
                if full[before : before + len(bare)] == bare:
                    return np.array(full[:before], np.int64), np.array(full[before + len(bare) :], np.int64)
        raise BundleError(f"the tokenizer `{self.name}` makes no token of any text")

    def probed(self, text: str, *, special: bool) -> list[int]:
        try:
            return list(self.tokenizer.encode(text, add_special_tokens=special).ids)
        # Where it fails on these, it fails on all texts.
        except BaseException as error:
            raise_unless_of_tokenizers(error)
            raise BundleError(f"the tokenizer `{self.name}` cannot be used: {error}") from error

    def encode(self, text: str, *, enough: int | None = None) -> list[int]:
        """The ids of a text without special tokens around it; raises UnreadableError.

        Of a long text no more is read when there are more than `enough`.
        """
        if len(text) > PIECE:
            return [int(id_) for id_ in self.long_ids(text, keep=None, left=False, enough=enough).ids]
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
    ) -> list[Ids]:
        """The ids of texts without special tokens around them: all, or of each the first or last `keep`.

        What a text that cannot be read suffers from goes into `faults`, by its place from `first` on, as a predicate:
        `cannot be tokenized: ...`. It has no ids then.
        """
        found: dict[int, Ids] = {}
        short: list[int] = []
        for index, text in enumerate(texts):
            if len(text) <= PIECE:
                short.append(index)
                continue
            try:
                found[index] = self.long_ids(text, keep=keep, left=left)
            except UnreadableError as error:
                faults[first + index] = error.fault
        for group in groups(texts, short, self.at_once):
            encoded = self.encoded([texts[index] for index in group])
            for index, one in zip(group, encoded, strict=True):
                if isinstance(one, UnreadableError):
                    faults[first + index] = one.fault
                else:
                    ids = np.array(one, np.int64)
                    found[index] = Ids(kept(ids, keep, left=left), len(ids))
        for index in [index for index, one in found.items() if self.unknown(one.ids) is not None]:
            faults[first + index] = str(self.unknown(found.pop(index).ids))
        nothing = Ids(np.empty(0, np.int64), 0)
        return [found.get(index, nothing) for index in range(len(texts))]

    def unknown(self, ids: NDArray[np.int64]) -> str | None:
        """What a text suffers from that has a token which the model has no vector for; None where it has none."""
        if self.known is None or not (ids >= self.known).any():
            return None
        token = self.tokenizer.id_to_token(int(ids[ids >= self.known][0]))
        return f"has the token `{token}`, which is not in the model's vocabulary"

    @property
    def at_once(self) -> int:
        """Characters that are tokenized at once, fewer for a tokenizer that makes them longer."""
        return max(1024, int(AT_ONCE * 4 / max(4.0, self.growth)))

    def long_ids(self, text: str, *, keep: int | None, left: bool, enough: int | None = None) -> Ids:
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
                    return Ids(np.concatenate(parts), total)
                while keep is not None and left and held - len(parts[0]) >= keep:
                    held -= len(parts.pop(0))
        return Ids(kept(np.concatenate([np.empty(0, np.int64), *parts]), keep, left=left), total)

    def spans(self, text: str) -> Spans:
        """The ids of a whole text with their places; raises UnreadableError."""
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
        fault = self.unknown(whole)
        if fault is not None:
            raise UnreadableError(fault)
        return Spans(whole, starts, ends)

    def grouped(self, text: str, *, at_once: int | None = None) -> Iterator[list[str]]:
        """Pieces of a long text, as many as are tokenized at once."""
        group: list[str] = []
        size = 0
        try:
            for piece in pieces(text, self.cuts, size=min(PIECE, self.at_once), longest=LONGEST):
                self.check_memory(piece)
                if group and (size + len(piece) > self.at_once or at_once == len(group)):
                    yield group
                    group, size = [], 0
                group.append(piece)
                size += len(piece)
        except UncutError as error:
            raise UnreadableError(
                f"has more than {LONGEST} characters without a place at which this tokenizer can be given it in parts, "
                "such as a space between words"
            ) from error
        if group:
            yield group

    def check_memory(self, piece: str) -> None:
        """Raise UnreadableError for a piece that could not be cut and for which there is no memory."""
        if len(piece) <= AT_ONCE:
            return
        each = BYTES.get(type(self.tokenizer.model).__name__, MOST_BYTES)
        need = round(len(piece.encode("utf-8", "surrogatepass")) * each * max(1.0, self.growth / 4))
        free = available_memory()
        if free is not None and need > free:
            raise UnreadableError(
                f"has {len(piece)} characters without a place at which this tokenizer can be given it in parts, which "
                f"takes about {mebibytes(need)}, and {mebibytes(free)} are free"
            )

    def encoded(self, texts: list[str]) -> list[list[int] | UnreadableError]:
        """The ids of texts that are short enough to be tokenized at once, or why there are none."""
        try:
            return [
                encoding.ids
                for encoding in self.called(lambda: self.tokenizer.encode_batch_fast(texts, add_special_tokens=False))
            ]
        except UnreadableError as error:
            if len(texts) == 1:
                return [error]
        # One of them is at fault, and one at a time shows which.
        return [self.encoded([text])[0] for text in texts]

    def called(self, call: Any) -> Any:
        """What `tokenizers` gives; raises UnreadableError for each way in which it fails on a text."""
        try:
            return call()
        except BaseException as error:
            raise_unless_of_tokenizers(error)
            raise UnreadableError(f"cannot be tokenized by `{self.name}`: {error}") from error


class UnreadableError(InputError):
    """A text cannot be tokenized; `fault` says why, as a predicate."""

    def __init__(self, fault: str) -> None:
        super().__init__(f"the text {fault}")
        self.fault = fault


def raise_unless_of_tokenizers(error: BaseException) -> None:
    """Raise again what is not a failure of `tokenizers`: its own are bare Exceptions, and panics of its BaseExceptions.

    The class of panics cannot be imported; it stands beside Python's own, which are the other ones here.
    """
    if isinstance(error, (KeyboardInterrupt, SystemExit, GeneratorExit, MemoryError, OrtkitError)):
        raise error


def open_tokenizer(path: Path, *, known: int | None = None) -> SafeTokenizer:
    """Open a tokenizer.json, of whose ids a model knows the first `known`, or all.

    Raises BundleError when it is none, or cannot be used.
    """
    try:
        # Not from_file, which takes a path for UTF-8, as no name on a disk needs to be.
        content = path.read_bytes()
    except OSError as error:
        raise BundleError(f"`{path}` cannot be read: {error.strerror or error}") from error
    check_counts(path, content)
    try:
        tokenizer = tokenizers.Tokenizer.from_buffer(content)
    except BaseException as error:
        raise_unless_of_tokenizers(error)
        raise BundleError(f"`{path}` is not a tokenizer: {error}") from error
    return SafeTokenizer(tokenizer, str(path), known=known)


def check_counts(path: Path, content: bytes) -> None:
    """Refuse a tokenizer.json that `tokenizers` would read for minutes, by what it must hold at least."""
    for character, most in MOST_PARTS.items():
        found = content.count(character)
        if found > most:
            raise BundleError(
                f"the tokenizer `{path}` has {found} times `{character.decode()}`, which stands in it once for each "
                f"token, and {most} are allowed"
            )


def kept(ids: NDArray[np.int64], keep: int | None, *, left: bool) -> NDArray[np.int64]:
    if keep is None or len(ids) <= keep:
        return ids
    return ids[len(ids) - keep :] if left else ids[:keep]


def groups(texts: Sequence[str], chosen: Sequence[int], most: int) -> Iterator[list[int]]:
    """Places of texts in groups of at most about `most` characters, and 256 texts."""
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


def refused_template(tokenizer: tokenizers.Tokenizer) -> bool:
    """Whether a post-processor puts a text in more often than once, or very many tokens around it."""
    parts = flat(state_of(tokenizer.post_processor), "processors")
    templates = [part.get("single", []) for part in parts if part.get("type") == "TemplateProcessing"]
    if any(sum("Sequence" in piece for piece in template) != 1 for template in templates):
        return True
    return bool(tokenizer.num_special_tokens_to_add(False) > SPECIAL_TOKENS)


def growth_of(tokenizer: tokenizers.Tokenizer) -> float:
    """How many times its bytes a text may become on the way to its words, at most."""
    growth = 1.0
    for part in flat(state_of(tokenizer.normalizer), "normalizers"):
        growth *= growth_of_normalizer(part)
    for part in flat(state_of(tokenizer.pre_tokenizer), "pretokenizers"):
        growth *= {"ByteLevel": 2.0, "Metaspace": 3.0}.get(str(part.get("type")), 1.0)
    return growth


def growth_of_normalizer(part: Mapping[str, Any]) -> float:
    kind = part.get("type")
    if kind == "Replace":
        pattern, content = part.get("pattern"), len(str(part.get("content", "")).encode())
        found = pattern.get("String") if isinstance(pattern, Mapping) else None
        # A regular expression may match a single byte, or nothing before each.
        return max(1.0, content / len(found.encode()) if found else content + 1.0)
    if kind == "Precompiled":
        # SentencePiece's map of characters ends with what they become, each closed by a zero byte.
        try:
            charsmap = base64.b64decode(str(part.get("precompiled_charsmap", "")))
        except (binascii.Error, ValueError):
            return 1.0
        trie = int.from_bytes(charsmap[:4], "little")
        return max(1.0, max(map(len, charsmap[4 + trie :].split(b"\0"))) / 3)
    if kind == "Prepend":
        # To each stretch of text between added tokens, of which each has a byte at least.
        return 1.0 + len(str(part.get("prepend", "")).encode())
    if kind == "ByteLevel":
        return 2.0
    return 3.0 if kind in {"NFD", "NFKD", "NFC", "NFKC"} else 1.0
