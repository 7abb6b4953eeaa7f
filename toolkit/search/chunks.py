"""Split documents into chunks of the embedder's length, by its own tokenizer.

Passages under one heading are packed into a chunk. A long passage is split where sentences begin, and a long sentence
between tokens. A chunk repeats the end of the one before, if that is under the same heading. Every chunk is tokenized
as it will be embedded, since the tokens of a text need not be those of its parts; what fits as a whole, only so.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, groupby, islice, pairwise

import numpy as np

from ...runtime.encoder.embedder import Embedder
from ...runtime.errors import InputError
from ...runtime.text.sentences import sentence_starts
from ...runtime.text.tokenizer import TokenizedText
from .characters import whole_characters
from .documents.document import Document, Passage, Place

DEFAULT_TOKENS = 128
"""Default length of chunks, for models that read more.

Measured with 240 questions on text whose subject changes every 50 words: 71% of the answer is in the best 768 tokens of
chunks of 128 tokens, and 49% in those of 256.
"""
_OVERLAP_SHARE = 0.15
_CONTEXT_SHARE = 4
"""Title and headings have at most this part of a chunk: a quarter."""
_FEWEST_TOKENS = 16
"""Smallest room for the text of a chunk."""
_LONGEST_SENTENCE = 1 << 13
"""Characters: a longer one is split before it is tokenized, which is slow and may be refused for much longer ones."""
_LONGEST_TOKEN = 16
"""Characters that count as a token at least: WordPiece has one `[UNK]` for a word of any length, such as base64."""
_LIKELY_CHARACTERS = 6
"""Characters of a token up to which what stands under a heading is tokenized as a whole first. English has 4 to 5."""
_BATCH_CHARACTERS, _BATCH_PASSAGES = 1 << 16, 1 << 10
"""Characters and passages of a document that are tokenized together, about."""
_BATCH_CHUNKS = 128
_CONTEXT_SEPARATOR = " > "
_LONGEST_NAME = 1000
"""Characters of a title or heading that are looked at."""
_WORD = re.compile(r"\w")
_VERSION = 2


@dataclass(frozen=True)
class Chunk:
    """A part of a document that gets one embedding."""

    text: str
    """As in the document; shown, and given to an LLM."""
    title: str
    place: Place
    context: str = ""
    """Title and headings, shortened to leave room for the text."""
    tokenized: TokenizedText | None = field(default=None, compare=False, repr=False)
    """`embedded_text` with the passage prompt; None for a chunk from an index."""

    @property
    def embedded_text(self) -> str:
        """The context above the text, within the model's length."""
        return f"{self.context}\n{self.text}" if self.context else self.text


@dataclass(frozen=True)
class ChunkSettings:
    """How documents are split; chunks of other settings are not comparable, so a change means a new build."""

    max_tokens: int
    """Tokens of `embedded_text`, including special tokens and the passage prompt."""
    overlap: int
    """Largest number of tokens that are repeated in the next chunk under the same heading."""
    version: int = _VERSION
    """Of the readers and the chunker: another version makes other chunks of the same files."""


@dataclass(frozen=True)
class _Sentence:
    """A part of a passage that is not split: a sentence, or some tokens of a long one."""

    passage: Passage
    start: int
    end: int
    tokens: int
    line: int
    """Line breaks in the passage before `start`."""

    @property
    def text(self) -> str:
        return self.passage.text[self.start : self.end]

    @property
    def lines(self) -> tuple[int, int] | None:
        """Lines in the file of the first and last character that is not whitespace; None without one."""
        whole = self.passage.place.lines
        if whole is None or not self.passage.line_by_line:
            return whole
        text = self.text
        words = text.lstrip()
        if not words:
            return None
        first = whole[0] + self.line + text.count("\n", 0, len(text) - len(words))
        return first, first + words.rstrip().count("\n")


@dataclass(frozen=True)
class _Draft:
    """A chunk before it is tokenized as a whole."""

    context: str
    sentences: list[_Sentence]
    repeated: int = 0
    """How many of them are repeated from the chunk before."""

    def chunk(self, title: str) -> Chunk:
        """The chunk without its tokens."""
        place = self.sentences[0].passage.place
        lines = [found for sentence in self.sentences if (found := sentence.lines) is not None]
        whole = (min(first for first, _ in lines), max(last for _, last in lines)) if lines else None
        return Chunk(_text_of(self.sentences), title, Place(whole, place.page, place.headings), self.context)


@dataclass(frozen=True)
class _Section:
    """Passages under one heading, or of one page, that follow each other."""

    passages: Sequence[Passage]
    is_whole: bool
    """Whether these are all of them."""

    @property
    def headings(self) -> tuple[str, ...]:
        return self.passages[0].place.headings

    @property
    def key(self) -> tuple[tuple[str, ...], int | None]:
        """Differs from that of the section before."""
        return _section_of(self.passages[0])

    @property
    def is_visible(self) -> bool:
        """Whether each passage has a character that is seen, for which every tokenizer has a token."""
        return all(map(_has_visible, self.passages))

    @property
    def characters(self) -> int:
        return sum(len(passage.text) for passage in self.passages)

    def draft(self, context: str) -> _Draft:
        """All passages in one draft; their tokens are not known."""
        return _Draft(context, [_Sentence(passage, 0, len(passage.text), 0, 0) for passage in self.passages])


@dataclass(frozen=True)
class _Context:
    """What stands above the text of a chunk."""

    text: str
    tokens: int


class Chunker:
    """Splits documents into chunks, by the embedder's own tokenizer. Thread-safe.

    >>> [chunk.text for chunk in Chunker(embedder).chunks(Document("Pumps", [Passage("Open the valve.")]))]
    ['Open the valve.']
    """

    def __init__(self, embedder: Embedder, *, max_tokens: int | None = None, overlap: int | None = None) -> None:
        """`max_tokens` is the length of chunks in tokens, `overlap` how many of them are repeated in the next.

        Defaults: 128 or the model's limit, and 15% of that. Raises InputError for what the model cannot read.
        """
        self._tokenizer = embedder.tokenizer
        self._prefix = embedder.passage_prefix
        self._around = int(embedder.tokenizer.sizes([self._prefix])[0])
        """Special tokens and those of the prompt."""
        self._special = len(embedder.tokenizer.before) + len(embedder.tokenizer.after)
        self.settings = _checked_settings(max_tokens, overlap, most=embedder.max_length, around=self._around)
        room = self.settings.max_tokens - self._around
        self._context_room = room // _CONTEXT_SHARE
        self._longest = room - self._context_room
        """Tokens of a sentence that fits into every chunk."""
        self._step = self.settings.overlap or max(1, self._longest // _CONTEXT_SHARE)
        """Tokens of the pieces of a longer one."""
        alone, joined = self._tokens_of(["a", "a\n\na"])
        self._join = max(0, int(joined) - 2 * int(alone))
        """Tokens of the line breaks between passages."""

    def chunks(self, document: Document) -> Iterator[Chunk]:
        """The chunks of a document, in order; raises UnreadableFileError as its passages do.

        What the tokenizer refuses is left out, and counted in the document's report.
        """
        parts = self._parts(document)
        while batch := list(islice(parts, _BATCH_CHUNKS)):
            fitted = iter(self._fitted([part for part in batch if isinstance(part, _Draft)], document))
            for part in batch:
                if isinstance(part, Chunk):
                    yield part
                else:
                    yield from next(fitted)

    def _tokens_of(self, texts: Sequence[str]) -> list[int | str]:
        """Tokens of each text, without special tokens and prompt; or why it cannot be tokenized."""
        sizes = self._tokenizer.sizes(texts)
        return [size if isinstance(size, str) else size - self._special for size in sizes]

    def _parts(self, document: Document) -> Iterator[_Draft | Chunk]:
        """The chunks of sections that fit as a whole, and the drafts of the others."""
        packer: _Packer | None = None
        above: tuple[tuple[str, ...], int | None] | None = None
        contexts: dict[tuple[str, ...], _Context] = {}
        for sections in _sections(document.passages):
            wholes = self._wholes(sections, document.title, contexts)
            rest = [section for section, whole in zip(sections, wholes, strict=True) if whole is None]
            sentences = self._sentences([passage for section in rest for passage in section.passages], document)
            for section, whole in zip(sections, wholes, strict=True):
                if above != section.key:
                    if packer is not None:
                        yield from packer.end()
                    above, packer = section.key, None
                if whole is not None:
                    yield whole
                    continue
                if packer is None:
                    context = contexts[section.headings]
                    room = self.settings.max_tokens - self._around - context.tokens
                    packer = _Packer(context.text, room, self.settings.overlap, self._join)
                for _ in section.passages:
                    found = next(sentences)
                    if any(sentence.tokens for sentence in found):
                        yield from packer.add(found)
        if packer is not None:
            yield from packer.end()

    def _wholes(
        self, sections: Sequence[_Section], title: str, contexts: dict[tuple[str, ...], _Context]
    ) -> list[Chunk | None]:
        """For each section its chunk, if it is one; `contexts` gets what stands above the sections."""
        # Many small calls of the tokenizer are slow: one is for all headings, and one for all sections.
        new = list({section.headings: None for section in sections if section.headings not in contexts})
        above = [_above(title, headings) for headings in new]
        sizes = self._tokens_of([_context_line(names) for names in above])
        contexts.update(zip(new, map(self._context, above, sizes), strict=True))
        likely = {
            place: section.draft(contexts[section.headings].text).chunk(title)
            for place, section in enumerate(sections)
            if section.is_whole and section.is_visible and section.characters <= self._longest * _LIKELY_CHARACTERS
        }
        texts = [chunk.embedded_text for chunk in likely.values()]
        wholes: list[Chunk | None] = [None] * len(sections)
        for (place, chunk), found in zip(
            likely.items(), self._tokenizer.tokenized(texts, prefix=self._prefix), strict=True
        ):
            empty = contexts[sections[place].headings].tokens + self._around
            # Of a text that is refused, all but the sentence that is the cause may be read.
            if isinstance(found, str) or found.total <= empty:
                continue
            if max(found.total, empty + _weight(0, len(chunk.text))) <= self.settings.max_tokens:
                wholes[place] = replace(chunk, tokenized=found)
        return wholes

    def _sentences(self, passages: Sequence[Passage], document: Document) -> Iterator[list[_Sentence]]:
        """The sentences of each passage, none longer than a chunk."""
        both = [(passage, list(_split(passage.text))) for passage in passages]
        texts = [passage.text[start:end] for passage, cuts in both for start, end in cuts]
        sizes = iter(self._tokens_of(texts))
        for passage, cuts in both:
            line = 0
            sentences: list[_Sentence] = []
            for start, end in cuts:
                size = next(sizes)
                if isinstance(size, str):
                    document.report.skip(f"a sentence that {size}")
                else:
                    for first, last, tokens in self._pieces(passage.text, start, end, max(size, _weight(start, end))):
                        sentences.append(_Sentence(passage, first, last, tokens, line))
                        line += passage.text.count("\n", first, last)
                    continue
                line += passage.text.count("\n", start, end)
            yield sentences

    def _pieces(self, text: str, start: int, end: int, size: int) -> Iterator[tuple[int, int, int]]:
        """A sentence of `size` tokens, or its pieces if it is too long: start, end, tokens."""
        if size <= self._longest:
            yield start, end, size
            return
        starts = np.maximum.accumulate(self._tokenizer.spans(text[start:end]).starts) + start
        at = start
        while at < end:
            first = int(np.searchsorted(starts, at))
            last = first + self._step
            cut = min(end if last >= len(starts) else int(starts[last]), at + self._step * _LONGEST_TOKEN)
            if cut < end:
                cut = _word_start(text, at, cut)
            if cut <= at:
                # A character of more tokens than a piece has.
                beyond = starts[starts > at]
                cut = int(beyond[0]) if len(beyond) else end
            tokens = int(np.searchsorted(starts, cut)) - first
            yield at, cut, max(tokens, 1, _weight(at, cut))
            at = cut

    def _context(self, names: list[str], size: int | str) -> _Context:
        """Title and headings of `size` tokens in one line, and its tokens.

        Of too long ones, the outer headings are left out first, then the end of the line. The line break is counted.
        """
        if isinstance(size, str):
            return _Context("", 0)
        while size > self._context_room and len(names) > 2:
            names = [names[0], *names[2:]]
            size = self._line_size(names)
        if size > self._context_room:
            line = _context_line(names)
            starts = self._tokenizer.spans(line).starts
            names = [line[: int(starts[min(len(starts) - 1, max(0, self._context_room - 2))])].strip()]
            size = self._line_size(names)
        if size > self._context_room:
            return _Context("", 0)
        return _Context(_context_line(names).rstrip("\n"), size)

    def _line_size(self, names: list[str]) -> int:
        (size,) = self._tokens_of([_context_line(names)])
        # Larger than any room.
        return self.settings.max_tokens if isinstance(size, str) else size

    def _fitted(self, drafts: Sequence[_Draft], document: Document) -> Iterator[list[Chunk]]:
        """The chunks of each draft, within the limit as a whole; longer ones are split again."""
        chunks = [draft.chunk(document.title) for draft in drafts]
        tokenized = self._tokenizer.tokenized([chunk.embedded_text for chunk in chunks], prefix=self._prefix)
        for draft, chunk, found in zip(drafts, chunks, tokenized, strict=True):
            if not chunk.text:
                yield []
            elif isinstance(found, str):
                document.report.skip(f"a passage that {found}")
                yield []
            elif found.total <= self.settings.max_tokens:
                yield [replace(chunk, tokenized=found)]
            elif parts := _halves(draft):
                yield [chunk for part in self._fitted(parts, document) for chunk in part]
            else:
                document.report.skip(f"a character of more than {self.settings.max_tokens} tokens")
                yield []


class _Packer:
    """Packs sentences under one heading into drafts of at most `room` tokens, by the sum of their tokens."""

    def __init__(self, context: str, room: int, overlap: int, join: int) -> None:
        self.context = context
        self.room = room
        self.overlap = overlap
        self.join = join
        self.sentences: list[_Sentence] = []
        self.tokens = 0
        self.repeated = 0

    def add(self, sentences: Sequence[_Sentence]) -> Iterator[_Draft]:
        """Add a passage: whole if it fits into a chunk, unless that would leave the one before less than half full."""
        whole = sum(sentence.tokens for sentence in sentences) + self.join
        if self.tokens + whole > self.room >= whole and 2 * self.tokens >= self.room:
            yield from self._next(whole)
        for sentence in sentences:
            size = self._size(sentence)
            if self.tokens + size > self.room:
                yield from self._next(sentence.tokens + self.join)
                size = self._size(sentence)
            self.sentences.append(sentence)
            self.tokens += size

    def end(self) -> Iterator[_Draft]:
        # White space alone, the beginning of a long sentence, would make a chunk that only repeats.
        if any(not sentence.text.isspace() for sentence in self.sentences[self.repeated :]):
            yield _Draft(self.context, self.sentences, self.repeated)

    def _size(self, sentence: _Sentence) -> int:
        joined = self.sentences and self.sentences[-1].passage is not sentence.passage
        return sentence.tokens + (self.join if joined else 0)

    def _next(self, following: int) -> Iterator[_Draft]:
        """End the draft; the next one begins with its last sentences, as far as `following` tokens leave room."""
        yield from self.end()
        most = min(self.overlap, self.room - following)
        ended, self.sentences, self.tokens = self.sentences, [], 0
        taken = 0
        for sentence in reversed(ended):
            taken += sentence.tokens + self.join
            if taken > most:
                break
            self.sentences.append(sentence)
        # The last line of a table or of a code block says nothing where the chunk begins with it.
        while self.sentences and not _WORD.search(self.sentences[-1].text):
            self.sentences.pop()
        self.sentences.reverse()
        self.tokens = sum(sentence.tokens + self.join for sentence in self.sentences)
        self.repeated = len(self.sentences)


def _checked_settings(max_tokens: int | None, overlap: int | None, *, most: int, around: int) -> ChunkSettings:
    length = min(most, DEFAULT_TOKENS) if max_tokens is None else max_tokens
    if length > most:
        raise InputError(f"chunks of {length} tokens are longer than the model's limit of {most} tokens")
    if length < around + _FEWEST_TOKENS:
        raise InputError(
            f"a chunk of {_tokens(length)} is too short: {around} are special tokens or the model's prompt",
            hint=f"give at least {around + _FEWEST_TOKENS}",
        )
    repeated = int(length * _OVERLAP_SHARE) if overlap is None else overlap
    if not 0 <= repeated <= length // 2:
        raise InputError(f"the overlap must be from 0 to {length // 2} tokens, half of a chunk, not {repeated}")
    return ChunkSettings(length, repeated)


def _tokens(count: int) -> str:
    return "1 token" if count == 1 else f"{count} tokens"


def _weight(start: int, end: int) -> int:
    """Tokens that a text of this length counts as at least."""
    return (end - start) // _LONGEST_TOKEN


def _section_of(passage: Passage) -> tuple[tuple[str, ...], int | None]:
    return passage.place.headings, passage.place.page


def _has_visible(passage: Passage) -> bool:
    return any(character.isprintable() and not character.isspace() for character in passage.text)


def _sections(passages: Iterable[Passage]) -> Iterator[list[_Section]]:
    """The sections of a document, in batches; passages without words are left out."""
    key = None
    for batch, is_last in _batches(passages):
        groups = [list(group) for _, group in groupby(batch, _section_of)]
        begins = [_section_of(group[0]) != key if place == 0 else True for place, group in enumerate(groups)]
        yield [
            _Section(group, begins[place] and (is_last or place + 1 < len(groups)))
            for place, group in enumerate(groups)
        ]
        key = _section_of(batch[-1]) if batch else key


def _batches(passages: Iterable[Passage]) -> Iterator[tuple[list[Passage], bool]]:
    """Passages of about _BATCH_CHARACTERS characters, and whether they are the last ones."""
    batch: list[Passage] = []
    characters = 0
    for passage in passages:
        if not passage.text or passage.text.isspace():
            continue
        batch.append(passage)
        characters += len(passage.text)
        if characters > _BATCH_CHARACTERS or len(batch) == _BATCH_PASSAGES:
            yield batch, False
            batch, characters = [], 0
    yield batch, True


def _above(title: str, headings: tuple[str, ...]) -> list[str]:
    """Title and headings, each in one line and once; a title that is a heading too stands where that is."""
    names = [" ".join(name[:_LONGEST_NAME].split()) for name in (title, *headings)]
    return [name for name in (names if names[0] not in names[1:] else names[1:]) if name]


def _context_line(names: list[str]) -> str:
    return _CONTEXT_SEPARATOR.join(names) + "\n" if names else ""


def _split(text: str) -> Iterator[tuple[int, int]]:
    """The sentences of a text, with the whitespace before each; long ones in parts. Without words: none."""
    start = 0
    for end in chain(sentence_starts(text), [len(text)]):
        if end - start > _LONGEST_SENTENCE:
            while end - start > _LONGEST_SENTENCE:
                cut = _word_start(text, start, start + _LONGEST_SENTENCE)
                yield start, cut
                start = cut
        if not text[start:end].isspace() and end > start:
            yield start, end
            start = end


def _word_start(text: str, start: int, end: int) -> int:
    """Where to cut `text[start:]` at `end` or a little before: before a space, else between characters."""
    space = max(text.rfind(" ", (start + end) // 2, end), text.rfind("\n", (start + end) // 2, end))
    if space > start:
        return space
    cut = whole_characters(text, end, start)
    return cut if cut > start else end


def _text_of(sentences: Sequence[_Sentence]) -> str:
    """The sentences as in the document, with their whitespace; a blank line between passages, except lines."""
    text = ""
    begin = sentences[0]
    for sentence, following in pairwise([*sentences, None]):
        assert sentence is not None  # noqa: S101 - for mypy: the last one alone is None
        if following is not None and following.passage is sentence.passage and following.start == sentence.end:
            continue
        text += _trimmed(sentence.passage.text[begin.start : sentence.end], inside=begin.start > 0)
        if following is not None:
            text += "\n" if _is_next_line(sentence.passage, following.passage) else "\n\n"
            begin = following
    return text


def _trimmed(text: str, *, inside: bool) -> str:
    """Without blank lines around, and the space before a sentence; the indentation of a line remains."""
    words = text.lstrip()
    indented = text[: len(text) - len(words)]
    if inside and "\n" not in indented:
        return words.rstrip()
    return (indented.rpartition("\n")[2] + words).rstrip()


def _is_next_line(before: Passage, after: Passage) -> bool:
    """Whether two passages are lines of the file that follow each other, such as the items of a list."""
    if not (before.line_by_line and after.line_by_line):
        return False
    first, last = before.place.lines, after.place.lines
    return first is not None and last is not None and last[0] == first[1] + 1


def _halves(draft: _Draft) -> list[_Draft]:
    """A draft without what it repeats, its halves, or those of its sentence; none for a single character."""
    sentences = draft.sentences
    if draft.repeated:
        return [_Draft(draft.context, sentences[draft.repeated :])]
    if len(sentences) > 1:
        middle = len(sentences) // 2
        return [_Draft(draft.context, sentences[:middle]), _Draft(draft.context, sentences[middle:])]
    (one,) = sentences
    text = one.passage.text
    cut = _word_start(text, one.start, (one.start + one.end + 1) // 2)
    if not one.start < cut < one.end:
        return []
    tokens = one.tokens // 2
    halves = [
        _Sentence(one.passage, one.start, cut, tokens, one.line),
        _Sentence(one.passage, cut, one.end, one.tokens - tokens, one.line + text.count("\n", one.start, cut)),
    ]
    return [_Draft(draft.context, [half]) for half in halves if not half.text.isspace()]
