"""Where a long text can be cut so that its pieces tokenize to exactly the tokens of the whole.

Tokenizers split a text into words first, and a word's tokens do not depend on its neighbours. So a text can be cut
wherever every tokenizer of its kind ends a word: read off the parts of tokenizer.json, and only for parts that are
known. A tokenizer with another part, or without words, as SentencePiece's BPE, has no such places.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

LETTER = "0-9A-Za-zÀ-ÖØ-öø-ľŁ-ɏΆΈ-ΊΌΎ-ΡΣ-ώА-џא-תء-غف-يऄ-हก-ะぁ-ゖァ-ヺ一-鿋가-힣"
"""Letters and digits that Unicode has had for long, so that all libraries know them as such, and no combining mark."""
UNMARKED = "0-9A-Za-z一-鿋가-힣"
"""Those of them that end in no combining mark when they are decomposed."""
IDEOGRAPH = "\u4e00-\u9fff"
PUNCTUATION = re.escape(".,;:!?)]}+/=&|") + "。，、！？；：）」』"  # noqa: RUF001 - of Chinese and Japanese
"""What ends a word; not an apostrophe, which begins the last part of one in some patterns."""
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
BEFORE, AFTER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
CASED = rf"[^\r\n\p{{L}}\p{{N}}]?{BEFORE}*{AFTER}+{{0}}|[^\r\n\p{{L}}\p{{N}}]?{BEFORE}+{AFTER}*{{0}}"
SUFFIX = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
SPACE = r"\s*[\r\n]+|\s+(?!\S)|\s+"
PATTERNS = frozenset(
    {
        GPT2,
        # cl100k and Llama 3
        SUFFIX + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|" + SPACE,
        # Qwen 2 and 3
        SUFFIX + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|" + SPACE,
        # o200k and Llama 4
        CASED.replace("{0}", SUFFIX + "?") + r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|" + SPACE,
        # Tekken, of Mistral
        CASED.replace("{0}", "") + r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|" + SPACE,
    }
)
"""Patterns of words in which a letter or digit before a space, a line break or punctuation always ends one."""
SPACES = frozenset({" {2,}", " +", "\\s+"})
"""Patterns of runs of spaces, of which a piece holds the whole."""
CHARACTERWISE = frozenset(
    {"Lowercase", "NFC", "NFD", "NFKC", "NFKD", "StripAccents", "Nmt", "Precompiled", "ByteLevel"}
)
"""Normalizers that change no character by what stands beyond a space."""
WHITESPACE_ONLY = frozenset({"BertPreTokenizer", "Whitespace", "WhitespaceSplit"})
"""Pre-tokenizers that drop whitespace."""

Part = Mapping[str, Any]


class UncutError(Exception):
    """A text has too many characters without a place where it can be cut."""


@dataclass(frozen=True)
class AddedToken:
    """A token that is found in a text before it is split into words."""

    content: str
    single_word: bool
    rstrip: bool
    normalized: bool


@dataclass(frozen=True)
class Cuts:
    """Where texts can be cut: before each match of `pattern` in which no token of `spanning` stands across it."""

    pattern: re.Pattern[str]
    spanning: tuple[str, ...]
    """Added tokens, in lower case, that could."""

    def last(self, text: str, start: int, end: int) -> int | None:
        """The last place after `start` and up to `end`."""
        # Windows that grow, since the first of them nearly always has one.
        width = 256
        while True:
            low = max(start + 1, end - width)
            found = [match.start() for match in self.pattern.finditer(text, low, end + 1)]
            for place in reversed(found):
                if place > start and self.free(text, place):
                    return place
            if low == start + 1:
                return None
            width *= 8

    def first(self, text: str, start: int, end: int) -> int | None:
        """The first place after `start` and before `end`."""
        found = (match.start() for match in self.pattern.finditer(text, start + 1, end))
        return next((place for place in found if self.free(text, place)), None)

    def free(self, text: str, place: int) -> bool:
        return not any(
            content in text[max(0, place - len(content) + 1) : place + len(content) - 1].lower()
            for content in self.spanning
        )


def cuts_of(normalizer: Part | None, pre_tokenizer: Part | None, added: Iterable[AddedToken]) -> Cuts | None:
    """Where the texts of a tokenizer with these parts can be cut, None where that is not known of all of them."""
    words = flat(pre_tokenizer, "pretokenizers")
    kinds = [str(part.get("type")) for part in words]
    drops_spaces = any(kind in WHITESPACE_ONLY for kind in kinds)
    steps = flat(normalizer, "normalizers")
    if not all(is_local(step, kinds, drops_spaces=drops_spaces) for step in steps):
        return None
    behind = ends_of_words(words, kinds)
    if behind is None:
        return None
    marks = kinds[0] != "BertPreTokenizer" and any(step.get("type") in {"NFD", "NFKD"} for step in steps)
    pattern = f"(?<=[{UNMARKED if marks else LETTER}])[{behind}]"
    if kinds[0] == "BertPreTokenizer" and any(step.get("handle_chinese_chars") is True for step in steps):
        # Each is a word of its own.
        pattern += f"|(?<=[{IDEOGRAPH}])[{IDEOGRAPH}{behind}]"
    compiled = re.compile(pattern)
    spanning = []
    for token in added:
        across = compiled.search(token.content, 1)
        if across is not None:
            if token.normalized:
                return None
            spanning.append(token.content.lower())
        alone = token.single_word and re.match(f"[{behind}]", token.content)
        if alone or (token.rstrip and re.search(f"[{LETTER}]$", token.content)):
            return None
    return Cuts(compiled, tuple(spanning))


def ends_of_words(words: Sequence[Part], kinds: Sequence[str]) -> str | None:
    """The characters, as in a regular expression's class, before which a letter ends a word in a pre-tokenizer."""
    match kinds:
        case ["BertPreTokenizer"] | ["Whitespace"] | ["WhitespaceSplit", "Punctuation"]:
            return f" \\n{PUNCTUATION}"
        case ["WhitespaceSplit"] | ["WhitespaceSplit", "Metaspace"]:
            return " \\n"
        case ["Metaspace"] if words[0].get("split", True) is True:
            return " "
        case ["ByteLevel"] | ["Digits", "ByteLevel"] if words[-1].get("use_regex", True) is True:
            return " " if words[-1].get("add_prefix_space") else f" \\n{PUNCTUATION}"
        case ["Split", "ByteLevel"] | ["Split", "Digits", "ByteLevel"] if (
            is_known(words[0]) and not words[-1].get("use_regex", True) and not words[-1].get("add_prefix_space")
        ):
            return f" \\n{PUNCTUATION}"
        case _:
            return None


def is_known(split: Part) -> bool:
    pattern = split.get("pattern")
    found = pattern.get("Regex") if isinstance(pattern, Mapping) else None
    return found in PATTERNS and split.get("behavior") in {"Isolated", "Removed"} and split_is_kept(split)


def split_is_kept(split: Part) -> bool:
    """Whether matches are the words; where what is between matches is, `Removed` and `invert` go together."""
    return bool(split.get("invert")) == (split.get("behavior") == "Removed")


def is_local(step: Part, kinds: Sequence[str], *, drops_spaces: bool) -> bool:
    """Whether a normalizer makes the same of a piece as of the whole."""
    kind = step.get("type")
    if kind == "Strip":
        # Only the first and the last piece have an end of the whole; the others begin with a space and end without.
        return not step.get("strip_left") or drops_spaces
    if kind == "Replace":
        pattern = step.get("pattern")
        if not isinstance(pattern, Mapping):
            return False
        if pattern.get("Regex") in SPACES or pattern.get("String") == " ":
            return step.get("content") == " " or (step.get("content") == "▁" and list(kinds) == ["Metaspace"])
        replaced = str(pattern.get("String", ""))
        return len(replaced) == 1 and re.match(f"[{LETTER} \\n{PUNCTUATION}]", replaced) is None
    return kind in CHARACTERWISE or kind == "BertNormalizer"


def flat(part: Part | None, key: str) -> list[Part]:
    """The parts of nested sequences, in order."""
    if part is None:
        return []
    if part.get("type") != "Sequence":
        return [part]
    return [inner for one in part.get(key, []) for inner in flat(one, key)]


def state_of(component: Any) -> dict[str, Any] | None:
    """A part of a tokenizer as in tokenizer.json: what `tokenizers` pickles it as."""
    return None if component is None else dict(json.loads(component.__getstate__()))


def pieces(text: str, cuts: Cuts | None, *, size: int, longest: int) -> Iterator[str]:
    """The pieces of a text, of about `size` characters where there are places to cut.

    Raises UncutError for more than `longest` characters without one.
    """
    start = 0
    while start < len(text):
        end = next_cut(text, start, cuts, size=size, longest=longest)
        if end - start > longest:
            raise UncutError
        yield text[start:end]
        start = end


def next_cut(text: str, start: int, cuts: Cuts | None, *, size: int, longest: int) -> int:
    if len(text) - start <= size or cuts is None:
        return len(text)
    place = cuts.last(text, start, start + size)
    if place is None:
        place = cuts.first(text, start + size, start + longest + 1)
    return len(text) if place is None else place
