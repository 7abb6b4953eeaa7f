from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import models, pre_tokenizers, trainers

from ortkit import Embedder, InputError
from ortkit.runtime.bundle.manifest import TokenizerFacts
from ortkit.runtime.text.safe_tokenizer import SafeTokenizer
from ortkit.runtime.text.tokenizer import Tokenizer
from ortkit.toolkit.search import chunks as chunks_module
from ortkit.toolkit.search.chunks import Chunk, Chunker, ChunkSettings
from ortkit.toolkit.search.documents.document import Document, Passage, Place, UnreadableFileError
from ortkit.toolkit.search.documents.markdown import read_markdown
from ortkit.toolkit.search.documents.plain_text import paragraphs
from tests.decoders import TEXT, write_tokenizer
from tests.tiny_bundles import write_embedder

ROOT = Path(__file__).parents[3]


@dataclass(frozen=True)
class Reader:
    """What the chunker asks of an embedder."""

    tokenizer: Tokenizer
    max_length: int
    passage_prefix: str = ""


@dataclass(frozen=True)
class Case:
    """A chunker, and the tokenizer by `tokenizers` itself."""

    chunker: Chunker
    reference: tokenizers.Tokenizer
    prefix: str
    lower_case: bool

    def ids(self, chunk: Chunk) -> list[int]:
        text = self.prefix + chunk.embedded_text
        return list(self.reference.encode(text.lower() if self.lower_case else text).ids)

    def count(self, chunk: Chunk) -> int:
        return len(self.ids(chunk))


def case_of(
    path: Path,
    *,
    max_tokens: int | None,
    overlap: int | None = None,
    prefix: str = "",
    max_length: int = 512,
    lower_case: bool = False,
) -> Case:
    reference = tokenizers.Tokenizer.from_file(str(path))
    reference.no_truncation()
    reference.no_padding()
    reader = Reader(Tokenizer(path, TokenizerFacts(max_length, lower_case, {})), max_length, prefix)
    chunker = Chunker(cast("Embedder", reader), max_tokens=max_tokens, overlap=overlap)
    return Case(chunker, reference, prefix, lower_case)


def write_unigram(path: Path) -> None:
    tokenizer = tokenizers.Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=150, show_progress=False, unk_token="<unk>", special_tokens=["<unk>"])
    tokenizer.train_from_iterator([TEXT] * 3, trainer)
    tokenizer.save(str(path))


@pytest.fixture(scope="session")
def word_piece(checkpoint: Path) -> Path:
    return checkpoint / "tokenizer.json"


@pytest.fixture(scope="session")
def paths(tmp_path_factory: pytest.TempPathFactory, word_piece: Path) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("tokenizers")
    write_tokenizer(folder / "bpe.json")
    write_unigram(folder / "unigram.json")
    return {"word-piece": word_piece, "bpe": folder / "bpe.json", "unigram": folder / "unigram.json"}


def whole(passages: Sequence[Passage], title: str = "") -> Document:
    return Document(title, passages)


SENTENCES = [
    "The pump does not start after the winter.",
    "Check the valve first, then the fuse in the box.",
    "Water in the tank must be drained before frost!",
    "Is the handle loose? Tighten it with a key of 12 mm.",
]


def test_passages_of_one_heading_are_packed_and_not_over_headings(word_piece: Path) -> None:
    chunker = case_of(word_piece, max_tokens=64).chunker
    passages = read_markdown("# Pumps\n\nOne.\n\nTwo.\n\n## Start\n\n- three\n- four\n\n## Stop\nFive.")[1]

    chunks = list(chunker.chunks(whole(passages, "Pumps")))

    assert [(chunk.text, chunk.place, chunk.context) for chunk in chunks] == [
        ("One.\n\nTwo.", Place((3, 5), headings=("Pumps",)), "Pumps"),
        ("- three\n- four", Place((9, 10), headings=("Pumps", "Start")), "Pumps > Start"),
        ("Five.", Place((13, 13), headings=("Pumps", "Stop")), "Pumps > Stop"),
    ]
    assert chunks[1].embedded_text == "Pumps > Start\n- three\n- four"
    assert {chunk.title for chunk in chunks} == {"Pumps"}


def ids_of(chunk: Chunk) -> list[int]:
    """What the embedder is given of a chunk."""
    assert chunk.tokenized is not None
    assert chunk.tokenized.dropped == 0
    return chunk.tokenized.ids.tolist()


def test_what_fits_under_a_heading_is_tokenized_once(word_piece: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = case_of(word_piece, max_tokens=64)
    given_texts = recorded_texts(monkeypatch)
    passages = read_markdown("# Pumps\n\nOne. Two.\n\nThree.\n\n## Stop\nFour. Five.")[1]
    (first, second) = case.chunker.chunks(whole(passages, "Pumps"))

    assert given_texts == ["Pumps\n", "Pumps > Stop\n", first.embedded_text, second.embedded_text]


def recorded_texts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The texts that are tokenized from now on."""
    found: list[str] = []
    ids = SafeTokenizer.ids

    def recorded(self: SafeTokenizer, texts: Sequence[str], *arguments: Any, **options: Any) -> Any:
        found.extend(texts)
        return ids(self, texts, *arguments, **options)

    monkeypatch.setattr(SafeTokenizer, "ids", recorded)
    return found


def test_long_headings_are_not_tokenized_for_each_section(word_piece: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of headings that are shortened, the whole would be tokenized with each of many short sections."""
    long = tuple(f"heading number {n} " * 60 for n in range(5))
    passages = [Passage("x", Place(headings=(*long, "ab"[n % 2]))) for n in range(300)]
    chunker = case_of(word_piece, max_tokens=64).chunker
    given_texts = recorded_texts(monkeypatch)
    assert len(list(chunker.chunks(whole(passages, "Title")))) == 300
    assert sum(map(len, given_texts)) < 100_000


@pytest.mark.parametrize("unseen", ["\u200b", "\u200b \u200d", "\x00", "\ufeff"])
@pytest.mark.parametrize("likely", [0, 6])
def test_passages_that_are_not_seen_are_not_in_chunks(
    word_piece: Path, unseen: str, likely: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunks_module, "_LIKELY_CHARACTERS", likely)
    texts = ((1, unseen), (3, "The pump."), (5, unseen))
    passages = [Passage(text, Place((line, line)), line_by_line=True) for line, text in texts]
    (chunk,) = case_of(word_piece, max_tokens=64).chunker.chunks(whole(passages))
    assert (chunk.text, chunk.place.lines) == ("The pump.", (3, 3))


@pytest.mark.parametrize("max_tokens", [32, 64, 200])
def test_what_fits_as_a_whole_is_the_chunk_that_its_sentences_make(
    word_piece: Path, max_tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With WordPiece, whose tokens of a text are those of its sentences."""
    chunker = case_of(word_piece, max_tokens=max_tokens).chunker
    title, passages = read_markdown((ROOT / "README.md").read_text(encoding="utf-8"))
    at_once = list(chunker.chunks(whole(passages, title)))
    monkeypatch.setattr(chunks_module, "_LIKELY_CHARACTERS", 0)

    assert at_once == list(chunker.chunks(whole(passages, title)))
    assert len(at_once) > 20


def test_a_section_that_goes_on_in_the_next_batch_is_one(word_piece: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chunker = case_of(word_piece, max_tokens=64, overlap=0).chunker
    passages = [Passage(f"The pump {n}.", Place(headings=(heading,))) for heading in "AB" for n in range(4)]
    expected = [chunk.text for chunk in chunker.chunks(whole(passages))]
    for most in (1, 20, 30, 40, 60):
        monkeypatch.setattr(chunks_module, "_BATCH_CHARACTERS", most)
        assert [chunk.text for chunk in chunker.chunks(whole(passages))] == expected
    assert expected == ["The pump 0.\n\nThe pump 1.\n\nThe pump 2.\n\nThe pump 3."] * 2


def test_a_long_passage_is_split_at_sentences_with_overlap(word_piece: Path) -> None:
    case = case_of(word_piece, max_tokens=40, overlap=14)
    chunks = list(case.chunker.chunks(whole(paragraphs(" ".join(SENTENCES * 3)))))

    assert [case.count(chunk) for chunk in chunks] == [min(case.count(chunk), 40) for chunk in chunks]
    starts = re.compile(r"The pump|Check|Water|Is the|Tighten")
    assert len(chunks) > 3
    for chunk, following in itertools.pairwise(chunks):
        assert chunk.text[-1] in ".!?"
        assert starts.match(following.text)
        first = re.split(r"(?<=[.!?])\s", following.text)[0]
        assert first in chunk.text, "the next chunk begins with the last sentence of this one"


def test_without_overlap_nothing_is_repeated(word_piece: Path) -> None:
    text = " ".join(SENTENCES * 3)
    chunks = case_of(word_piece, max_tokens=40, overlap=0).chunker.chunks(whole(paragraphs(text)))

    assert " ".join(chunk.text for chunk in chunks) == text


def test_a_passage_that_fits_is_not_split(word_piece: Path) -> None:
    passages = [Passage(" ".join(SENTENCES[:2])) for _ in range(4)]
    chunks = list(case_of(word_piece, max_tokens=40, overlap=0).chunker.chunks(whole(passages)))

    assert [chunk.text for chunk in chunks] == [passages[0].text] * 4


def test_overlap_is_within_one_heading_and_page(word_piece: Path) -> None:
    text = " ".join(SENTENCES)
    places = [Place(page=1), Place(page=2), Place(page=2, headings=("A",)), Place(page=2, headings=("B",))]
    chunks = list(case_of(word_piece, max_tokens=40).chunker.chunks(whole([Passage(text, place) for place in places])))

    for place in places:
        own = [chunk for chunk in chunks if chunk.place == place]
        assert own[0].text.startswith(SENTENCES[0])
        assert len(own) > 1


def test_a_text_without_spaces_is_split_between_characters(paths: dict[str, Path]) -> None:
    """An emoji of several code points, and an accent of its own, stay whole; so do the bytes of a character."""
    families = "👩‍👩‍👧‍👦" * 20
    accents = "e\u0301" * 200
    chinese = "東京" * 300
    for path in paths.values():
        case = case_of(path, max_tokens=60, overlap=0, max_length=60)
        for text, character in ((accents, "e\u0301"), (chinese, ""), (families, "👩‍👩‍👧‍👦")):
            chunks = list(case.chunker.chunks(whole([Passage(text)])))
            assert "".join(chunk.text for chunk in chunks) == text
            assert max(map(case.count, chunks)) <= 60
            if path == paths["word-piece"] and character:
                assert all(len(chunk.text) % len(character) == 0 for chunk in chunks)


@pytest.mark.parametrize(
    "text", ["x" * 1_200_000, "word " * 40_000, "a.\n" * 10_000, "\u0301" * 50_000, " \n" * 50_000 + "x"]
)
def test_very_long_lines_are_split_in_bounded_time(word_piece: Path, text: str) -> None:
    case = case_of(word_piece, max_tokens=256, overlap=0)
    found = list(itertools.islice(case.chunker.chunks(whole([Passage(text)])), 200))

    assert max(len(chunk.text) for chunk in found) <= 256 * 16
    assert all(case.count(chunk) <= 256 for chunk in found[::20])
    assert len(found) == 200 or sum(len(words_of(chunk.text)) for chunk in found) == len(words_of(text))


def test_title_and_headings_leave_room_for_the_text(word_piece: Path) -> None:
    case = case_of(word_piece, max_tokens=64)
    long = "a heading of quite some words that are too many for a chunk"
    place = Place(headings=("Outer " + long, "Middle part", "Inner part"))

    (chunk,) = case.chunker.chunks(whole([Passage("Text.", place)], "The title"))
    (longest,) = case.chunker.chunks(whole([Passage("Text.", Place(headings=(long * 30,)))], "T" * 100_000))
    (bare,) = case.chunker.chunks(whole([Passage("Text.")], ""))

    assert chunk.context == "The title > Middle part > Inner part"
    assert chunk.place == place, "the place keeps all headings"
    assert case.count(longest) <= 20
    assert longest.context.startswith("TTT")
    assert (bare.context, bare.embedded_text) == ("", "Text.")


def test_the_passage_prompt_and_special_tokens_are_counted(word_piece: Path) -> None:
    case = case_of(word_piece, max_tokens=40, prefix="search_document: ")
    chunks = list(case.chunker.chunks(whole(paragraphs(" ".join(SENTENCES * 5)), "Pumps")))

    assert max(map(case.count, chunks)) <= 40
    assert max(map(case.count, chunks)) > 30


def test_lowercasing_that_changes_the_length_keeps_characters(paths: dict[str, Path]) -> None:
    text = "\u0130stanbul" * 400
    case = case_of(paths["bpe"], max_tokens=64, overlap=0, lower_case=True)
    chunks = list(case.chunker.chunks(whole([Passage(text)])))

    assert "".join(chunk.text for chunk in chunks) == text
    assert max(map(case.count, chunks)) <= 64


WORDS = st.sampled_from(
    [
        *("the", "pump", "Größe", "naïve", "東京東京", "valve.", "start!", "e\u0301", "🙂", "👩\u200d👩\u200d👧"),
        *("12.5", "mm;", "«quoted»", "don't", "İI", "x", "https://a.example/b?c=d&e=f", "YmFzZTY0" * 20),
    ]
)
"""Words of several scripts, and ends of sentences."""
SPACES = st.sampled_from([" ", " ", " ", "\n", "  ", "\n    ", "\t", ""])
PARAGRAPHS = st.lists(st.tuples(WORDS, SPACES), min_size=1, max_size=60).map(lambda parts: "".join(map("".join, parts)))


@st.composite
def documents(draw: st.DrawFn) -> list[Passage]:
    passages = []
    line = 1
    for text in draw(st.lists(PARAGRAPHS, min_size=1, max_size=6)):
        last = line + text.count("\n")
        headings = tuple(draw(st.lists(st.sampled_from(["One", "Two words"]), max_size=2)))
        passages.append(Passage(text, Place((line, last), headings=headings), line_by_line=True))
        line = last + draw(st.integers(1, 2))
    return passages


@cache
def cached_case(path: Path, max_tokens: int, overlap: int, prefix: str) -> Case:
    return case_of(path, max_tokens=max_tokens, overlap=overlap, prefix=prefix)


def words_of(text: str) -> str:
    return "".join(text.split())


@settings(max_examples=60)
@given(
    passages=documents(),
    name=st.sampled_from(["word-piece", "bpe", "unigram"]),
    max_tokens=st.sampled_from([32, 64, 200]),
    overlap=st.sampled_from([0, 5, 16]),
    prefix=st.sampled_from(["", "passage: "]),
    title=st.sampled_from(["", "Title", "A title of several words, too long for some"]),
)
def test_every_chunk_fits_and_nothing_is_lost(
    paths: dict[str, Path],
    passages: list[Passage],
    name: str,
    max_tokens: int,
    overlap: int,
    prefix: str,
    title: str,
) -> None:
    case = cached_case(paths[name], max_tokens, overlap, prefix)
    document = whole(passages, title)

    chunks = list(case.chunker.chunks(document))

    assert document.report.skipped_records == 0
    assert all(case.count(chunk) <= max_tokens for chunk in chunks), "counted by tokenizers itself"
    assert [ids_of(chunk) for chunk in chunks] == [case.ids(chunk) for chunk in chunks]
    lines = "\n".join(lines_of(passages)).split("\n")
    for chunk in chunks:
        assert chunk.place.lines is not None
        first, last = chunk.place.lines
        assert words_of(chunk.text) in words_of("\n".join(lines[first - 1 : last]))
        assert chunk.text.split()[0] in lines[first - 1], "the first word is in the first line"
        assert chunk.text.split()[-1] in lines[last - 1]
    for headings, group in itertools.groupby(passages, key=lambda passage: passage.place.headings):
        text = words_of("".join(passage.text for passage in group))
        rest = text
        while rest:
            chunk = chunks.pop(0)
            assert chunk.place.headings == headings
            rest = behind(text, rest, words_of(chunk.text), repeats=overlap > 0)
    assert not chunks


def behind(text: str, rest: str, found: str, *, repeats: bool) -> str:
    """What of a text follows a chunk, which may begin with what was before, but must not leave anything out."""
    start = len(text) - len(rest)
    backs = range(min(len(found), start + 1) if repeats else 1)
    longest = max((len(found) - back for back in backs if text.startswith(found, start - back)), default=0)
    assert longest > 0, "each chunk begins at the latest where the one before ended"
    return rest[longest:]


def lines_of(passages: Sequence[Passage]) -> Iterator[str]:
    """The lines of the file that these passages are from."""
    line = 1
    for passage in passages:
        assert passage.place.lines is not None
        first, last = passage.place.lines
        yield from [""] * (first - line)
        yield passage.text
        line = last + 1


def test_lines_of_a_chunk_are_exact(word_piece: Path) -> None:
    lines = [f"{number} {sentence}" for number, sentence in enumerate(SENTENCES[:3] * 20, start=1)]
    passages = paragraphs("\n".join(lines))
    assert len(passages) == 1

    for chunk in case_of(word_piece, max_tokens=50).chunker.chunks(whole(passages)):
        assert chunk.place.lines is not None
        first, last = chunk.place.lines
        assert chunk.text == "\n".join(lines[first - 1 : last])


def test_passages_that_are_not_lines_have_those_of_the_whole(word_piece: Path) -> None:
    passage = Passage(" ".join(SENTENCES * 4), Place((3, 9)))

    found = list(case_of(word_piece, max_tokens=40).chunker.chunks(whole([passage])))

    assert len(found) > 2
    assert {chunk.place.lines for chunk in found} == {(3, 9)}


@pytest.mark.parametrize("text", ["", " \n\t", "\u200b", "\ufeff\u00ad"])
def test_what_has_no_tokens_makes_no_chunk(word_piece: Path, text: str) -> None:
    assert list(case_of(word_piece, max_tokens=40).chunker.chunks(whole([Passage(text)], "Title"))) == []


def test_what_the_tokenizer_refuses_is_left_out_and_counted(tmp_path: Path) -> None:
    """A token that the model's embedding table does not have."""
    tokenizer = write_tokenizer(tmp_path / "tokenizer.json")
    tokenizer.add_tokens(["<secret>"])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    known = tokenizer.get_vocab_size() - 1
    reader = Reader(Tokenizer(tmp_path / "tokenizer.json", TokenizerFacts(64, False, {}, known_tokens=known)), 64)
    document = whole(paragraphs("The fox. A <secret> dog.\nThe end."))

    chunks = list(Chunker(cast("Embedder", reader)).chunks(document))

    assert [chunk.text for chunk in chunks] == ["The fox.\n\nThe end."]
    assert document.report.skipped_records == 1
    assert document.report.first_fault == (
        "a sentence that has the token `<secret>`, which is not in the model's vocabulary"
    )


def test_a_document_that_fails_midway_fails(word_piece: Path) -> None:
    def passages() -> Iterator[Passage]:
        yield Passage("One.")
        raise UnreadableFileError("changed while the folder was read")

    with pytest.raises(UnreadableFileError):
        list(case_of(word_piece, max_tokens=40).chunker.chunks(Document("", passages())))


def test_large_documents_are_read_as_chunks_are_needed(word_piece: Path) -> None:
    read = 0

    def passages() -> Iterator[Passage]:
        nonlocal read
        for _ in range(1_000_000):
            read += 1
            yield Passage("A row of a table with some words in it.")

    next(case_of(word_piece, max_tokens=40).chunker.chunks(Document("", passages())))

    assert read < 20_000


def test_settings_are_those_of_the_model_by_default(word_piece: Path) -> None:
    assert case_of(word_piece, max_tokens=None).chunker.settings == ChunkSettings(128, 19)
    assert case_of(word_piece, max_tokens=None, max_length=64).chunker.settings == ChunkSettings(64, 9)
    assert case_of(word_piece, max_tokens=400, overlap=0).chunker.settings == ChunkSettings(400, 0)


@pytest.mark.parametrize(
    ("max_tokens", "overlap", "message"),
    [
        (513, None, "chunks of 513 tokens are longer than the model's limit of 512 tokens"),
        (17, None, "a chunk of 17 tokens is too short: 2 are special tokens or the model's prompt"),
        (64, 33, "the overlap must be from 0 to 32 tokens, half of a chunk, not 33"),
        (64, -1, "the overlap must be from 0 to 32 tokens, half of a chunk, not -1"),
    ],
)
def test_settings_that_the_model_cannot_read(
    word_piece: Path, max_tokens: int, overlap: int | None, message: str
) -> None:
    with pytest.raises(InputError) as caught:
        case_of(word_piece, max_tokens=max_tokens, overlap=overlap)

    assert caught.value.message == message
    assert caught.value.exit_code == 2


def test_an_embedder_takes_the_chunks_whole(tmp_path: Path) -> None:
    """With a real bundle: no chunk is truncated."""
    with Embedder(write_embedder(tmp_path / "bundle")) as embedder:
        chunks = list(Chunker(embedder, max_tokens=20, overlap=3).chunks(whole(paragraphs(TEXT * 3), "Title")))
        texts = [chunk.embedded_text for chunk in chunks]
        report = embedder.embed_with_report(texts)
        vectors = embedder.embed_tokenized([chunk.tokenized for chunk in chunks if chunk.tokenized is not None])
        expected = embedder.embed_passages(texts)

    assert len(chunks) > 5
    assert not report.dropped.any()
    assert report.tokens.max() <= 20
    np.testing.assert_array_equal(vectors, expected)
