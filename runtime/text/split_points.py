"""Split points: where a long text can be split so that its pieces tokenize to exactly the tokens of the whole.

Pre-tokenizers split a text into words, and the tokens of a word do not depend on its neighbors. So a text can be split
where a pre-tokenizer always ends a word. The split points follow from normalizer, pre-tokenizer and added tokens in
tokenizer.json, for supported types only. Others, and tokenizers without words such as SentencePiece's BPE, have none.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_LETTER = "0-9A-Za-zÀ-ÖØ-öø-ľŁ-ɏΆΈ-ΊΌΎ-ΡΣ-ώА-џא-תء-غف-يऄ-हก-ะぁ-ゖァ-ヺ一-鿋가-힣"
"""Letters and digits of old Unicode versions, which all libraries classify alike, without combining marks."""
_UNMARKED = "0-9A-Za-z一-鿋가-힣"
"""Those of _LETTER whose decomposition (NFD) does not end in a combining mark."""
_IDEOGRAPH = "\u4e00-\u9fff"
_PUNCTUATION = re.escape(".,;:!?)]}+/=&|") + "。，、！？；：）」』"  # noqa: RUF001 - Chinese and Japanese
"""Characters that end a word; not the apostrophe, which begins a suffix in some patterns."""
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_BEFORE, _AFTER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED = rf"[^\r\n\p{{L}}\p{{N}}]?{_BEFORE}*{_AFTER}+{{0}}|[^\r\n\p{{L}}\p{{N}}]?{_BEFORE}+{_AFTER}*{{0}}"
_SUFFIX = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPACE = r"\s*[\r\n]+|\s+(?!\S)|\s+"
PATTERNS = frozenset(
    {
        GPT2,
        # cl100k and Llama 3
        _SUFFIX + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|" + _SPACE,
        # Qwen 2 and 3
        _SUFFIX + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|" + _SPACE,
        # o200k and Llama 4
        _CASED.replace("{0}", _SUFFIX + "?") + r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|" + _SPACE,
        # Tekken, of Mistral
        _CASED.replace("{0}", "") + r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|" + _SPACE,
    }
)
"""Pre-tokenization patterns in which a letter or digit before a space, a newline or punctuation always ends a word."""
_SPACES = frozenset({" {2,}", " +", "\\s+"})
"""Patterns of runs of spaces, which are never split."""
_CHARACTERWISE = frozenset(
    {"Lowercase", "NFC", "NFD", "NFKC", "NFKD", "StripAccents", "Nmt", "Precompiled", "ByteLevel"}
)
"""Normalizers whose result for a character does not depend on text beyond a space."""
_WHITESPACE_ONLY = frozenset({"BertPreTokenizer", "Whitespace", "WhitespaceSplit"})
"""Pre-tokenizers that drop whitespace."""

Part = Mapping[str, Any]


class UncutError(Exception):
    """A text has too many characters without a split point."""


@dataclass(frozen=True)
class AddedToken:
    """A token that is matched before the text is split into words."""

    content: str
    single_word: bool
    rstrip: bool
    normalized: bool


@dataclass(frozen=True)
class Cuts:
    """Split points: the start of each match of `pattern` that is not inside an added token of `spanning`."""

    pattern: re.Pattern[str]
    spanning: tuple[str, ...]
    """Lowercased added tokens that contain a match of `pattern`."""

    def last(self, text: str, start: int, end: int) -> int | None:
        """The last split point after `start` and up to `end`."""
        # Growing windows: the first one nearly always contains a split point.
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
        """The first split point after `start` and before `end`."""
        found = (match.start() for match in self.pattern.finditer(text, start + 1, end))
        return next((place for place in found if self.free(text, place)), None)

    def free(self, text: str, place: int) -> bool:
        return not any(
            content in text[max(0, place - len(content) + 1) : place + len(content) - 1].lower()
            for content in self.spanning
        )


def cuts_of(normalizer: Part | None, pre_tokenizer: Part | None, added: Iterable[AddedToken]) -> Cuts | None:
    """The split points of a tokenizer with these parts; None where one of them is not supported."""
    words = flat(pre_tokenizer, "pretokenizers")
    kinds = [str(part.get("type")) for part in words]
    drops_spaces = any(kind in _WHITESPACE_ONLY for kind in kinds)
    steps = flat(normalizer, "normalizers")
    if not all(_is_local(step, kinds, drops_spaces=drops_spaces) for step in steps):
        return None
    behind = _ends_of_words(words, kinds)
    if behind is None:
        return None
    marks = kinds[0] != "BertPreTokenizer" and any(step.get("type") in {"NFD", "NFKD"} for step in steps)
    pattern = f"(?<=[{_UNMARKED if marks else _LETTER}])[{behind}]"
    if kinds[0] == "BertPreTokenizer" and any(step.get("handle_chinese_chars") is True for step in steps):
        # Each ideograph is a word.
        pattern += f"|(?<=[{_IDEOGRAPH}])[{_IDEOGRAPH}{behind}]"
    compiled = re.compile(pattern)
    spanning = []
    for token in added:
        across = compiled.search(token.content, 1)
        if across is not None:
            if token.normalized:
                return None
            spanning.append(token.content.lower())
        alone = token.single_word and re.match(f"[{behind}]", token.content)
        if alone or (token.rstrip and re.search(f"[{_LETTER}]$", token.content)):
            return None
    return Cuts(compiled, tuple(spanning))


def _ends_of_words(words: Sequence[Part], kinds: Sequence[str]) -> str | None:
    """The characters before which a letter ends a word, as a regular expression's class; None if not supported."""
    match kinds:
        case ["BertPreTokenizer"] | ["Whitespace"] | ["WhitespaceSplit", "Punctuation"]:
            return f" \\n{_PUNCTUATION}"
        case ["WhitespaceSplit"] | ["WhitespaceSplit", "Metaspace"]:
            return " \\n"
        case ["Metaspace"] if words[0].get("split", True) is True:
            return " "
        case ["ByteLevel"] | ["Digits", "ByteLevel"] if words[-1].get("use_regex", True) is True:
            return " " if words[-1].get("add_prefix_space") else f" \\n{_PUNCTUATION}"
        case ["Split", "ByteLevel"] | ["Split", "Digits", "ByteLevel"] if (
            _is_known(words[0]) and not words[-1].get("use_regex", True) and not words[-1].get("add_prefix_space")
        ):
            return f" \\n{_PUNCTUATION}"
        case _:
            return None


def _is_known(split: Part) -> bool:
    pattern = split.get("pattern")
    found = pattern.get("Regex") if isinstance(pattern, Mapping) else None
    return found in PATTERNS and split.get("behavior") in {"Isolated", "Removed"} and _split_is_kept(split)


def _split_is_kept(split: Part) -> bool:
    """Whether the matches are the words: `Isolated`, or `Removed` with `invert`."""
    return bool(split.get("invert")) == (split.get("behavior") == "Removed")


def _is_local(step: Part, kinds: Sequence[str], *, drops_spaces: bool) -> bool:
    """Whether a normalizer gives the same result for a piece as for the whole text."""
    kind = step.get("type")
    if kind == "Strip":
        # Inner pieces begin with a space and end without one.
        return not step.get("strip_left") or drops_spaces
    if kind == "Replace":
        pattern = step.get("pattern")
        if not isinstance(pattern, Mapping):
            return False
        if pattern.get("Regex") in _SPACES or pattern.get("String") == " ":
            return step.get("content") == " " or (step.get("content") == "▁" and list(kinds) == ["Metaspace"])
        replaced = str(pattern.get("String", ""))
        return len(replaced) == 1 and re.match(f"[{_LETTER} \\n{_PUNCTUATION}]", replaced) is None
    return kind in _CHARACTERWISE or kind == "BertNormalizer"


def flat(part: Part | None, key: str) -> list[Part]:
    """Flatten nested sequences of parts, in order."""
    if part is None:
        return []
    if part.get("type") != "Sequence":
        return [part]
    return [inner for one in part.get(key, []) for inner in flat(one, key)]


def state_of(component: Any) -> dict[str, Any] | None:
    """A part of a tokenizer as in tokenizer.json, from its pickled state."""
    return None if component is None else dict(json.loads(component.__getstate__()))


def pieces(text: str, cuts: Cuts | None, *, size: int, longest: int) -> Iterator[str]:
    """Split a text into pieces of about `size` characters, at split points.

    Raises UncutError for more than `longest` characters without one.
    """
    start = 0
    while start < len(text):
        end = _next_cut(text, start, cuts, size=size, longest=longest)
        if end - start > longest:
            raise UncutError
        yield text[start:end]
        start = end


def _next_cut(text: str, start: int, cuts: Cuts | None, *, size: int, longest: int) -> int:
    if len(text) - start <= size or cuts is None:
        return len(text)
    place = cuts.last(text, start, start + size)
    if place is None:
        place = cuts.first(text, start + size, start + longest + 1)
    return len(text) if place is None else place
