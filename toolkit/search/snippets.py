"""Snippets: the part of a passage that a person sees, with the sentence in it that fits the query best.

Sentences are compared with the query by their embeddings, which finds paraphrases that share no word with it. On 60 of
the benchmarks' questions, embeddings and shared words (weighted by rarity) chose the same sentence 36 times; of the 24
others, judged by hand, that of the embeddings answered better 15 times, and that of the words 5 times.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...runtime.text.sentences import sentence_spans
from .characters import whole_characters

if TYPE_CHECKING:
    from ...runtime.encoder.embedder import Embedder
    from .hits import Hit

WIDTH = 240
"""Characters of a snippet, without the marks where it was cut."""
CUT = "…"
_MOST_SENTENCES = 24
"""Of a passage, from its beginning: more are those of tables and lists."""
_LONGEST_SENTENCE = 400
"""Characters of a sentence that are compared."""
_SPACES = re.compile(r"\s+")


@dataclass(frozen=True)
class Snippet:
    """A part of a passage on one line, with the place of the sentence that fits the query best."""

    text: str
    match: tuple[int, int]
    """Start and end of that sentence in `text`, or of the part of it that is shown; (0, 0) where there is none."""

    @property
    def parts(self) -> tuple[str, str, str]:
        """The text before the sentence, the sentence, and the text after it."""
        start, end = self.match
        return self.text[:start], self.text[start:end], self.text[end:]


def heading_of(hit: Hit) -> str:
    """Title and headings of a passage on one line, each once: `Pump manual > Starting by hand`."""
    parts = [" ".join(part.split()) for part in (hit.title, *hit.place.headings)]
    return " > ".join(dict.fromkeys(part for part in parts if part))


def snippets(query: str, hits: Sequence[Hit], embedder: Embedder | None, *, width: int = WIDTH) -> list[Snippet]:
    """The snippet of each hit, at most `width` characters and the marks where it was cut.

    Without an embedder, sentences are compared by the words that they share with the query.
    """
    lines = [_one_line(hit.text) for hit in hits]
    spans = [sentence_spans(hit.text)[:_MOST_SENTENCES] for hit in hits]
    sentences = [
        [_one_line(hit.text[start:end]) for start, end in found] for hit, found in zip(hits, spans, strict=True)
    ]
    if embedder is None:
        scores = [[_shared_words(query, sentence) for sentence in group] for group in sentences]
    else:
        scores = _similarities(query, sentences, embedder)
    return [
        _snippet(line, group[max(range(len(group)), key=scored.__getitem__)] if group else "", width)
        for line, group, scored in zip(lines, sentences, scores, strict=True)
    ]


def _similarities(query: str, groups: Sequence[Sequence[str]], embedder: Embedder) -> list[list[float]]:
    """The similarity of each sentence to the query; of a group with a single sentence, none is computed."""
    compared = [sentence[:_LONGEST_SENTENCE] for group in groups if len(group) > 1 for sentence in group]
    if not compared:
        return [[0.0] * len(group) for group in groups]
    vectors = embedder.embed_passages(compared)
    found = iter((vectors @ embedder.embed_query(query)).tolist())
    return [[next(found) for _ in group] if len(group) > 1 else [0.0] * len(group) for group in groups]


def _shared_words(query: str, sentence: str) -> float:
    """Words of the query in the sentence, longer ones for more: a rough weight by rarity."""
    words = set(re.findall(r"\w+", sentence.casefold()))
    return float(sum(len(word) ** 2 for word in set(re.findall(r"\w+", query.casefold())) if word in words))


def _snippet(line: str, sentence: str, width: int) -> Snippet:
    """The sentence with as much of the text around it as fits, mostly of what follows."""
    start = line.find(sentence)
    if not sentence or start < 0:
        return Snippet(shortened(line, width), (0, 0))
    end = start + len(sentence)
    if len(sentence) >= width:
        shown = shortened(sentence, width)
        before = f"{CUT} " if start else ""
        return Snippet(before + shown, (len(before), len(before) + len(shown)))
    left = width - len(sentence)
    # A third before, or what the text after leaves.
    first = max(0, start - max(left // 3, left - (len(line) - end)))
    first = _word_start(line, first, start)
    last = min(len(line), first + width)
    last = _word_end(line, end, last)
    before, after = (f"{CUT} " if first else ""), (f" {CUT}" if last < len(line) else "")
    shift = len(before) - first
    return Snippet(before + line[first:last] + after, (start + shift, end + shift))


def shortened(text: str, width: int) -> str:
    """The beginning of a text, at most `width` characters and a mark; cut between words, and never in a character."""
    if len(text) <= width:
        return text
    place = _word_end(text, width // 2, width)
    return f"{text[:place]} {CUT}" if place < len(text) and text[place].isspace() else f"{text[:place]}{CUT}"


def _word_start(line: str, first: int, start: int) -> int:
    """The beginning of a word at or after `first`, at most `start`."""
    if first == 0:
        return 0
    space = line.find(" ", first - 1, start)
    return start if space < 0 else space + 1


def _word_end(line: str, end: int, last: int) -> int:
    """The end of a word at or before `last`; without one after `end`, the end of a character."""
    if last >= len(line):
        return len(line)
    space = line.rfind(" ", end, last + 1)
    return space if space >= 0 else whole_characters(line, last, end)


def _one_line(text: str) -> str:
    return _SPACES.sub(" ", text).strip()
