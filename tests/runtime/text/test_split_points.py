"""Texts that are cut tokenize as the whole: every kind of tokenizer, random texts and sizes of pieces."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import tokenizers
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, models, normalizers, pre_tokenizers, trainers

from ortkit import TextError
from ortkit.runtime.bundle.manifest import Side, TokenizerFacts
from ortkit.runtime.text.safe_tokenizer import SafeTokenizer
from ortkit.runtime.text.split_points import GPT2, PATTERNS
from ortkit.runtime.text.tokenizer import LongTexts, Tokenizer

CORPUS = [
    "The pump isn't old; it's 12345 bar, we'll see. Größe naïve 東京都は大きい。北京，上海 가나다 привет мир",  # noqa: RUF001 - Chinese
    "def f(x):\n    return x+1\n\n<b>word</b> https://example.org/a/b?c=d aaaa bbbb e\u0301 \u00e9",
]
WORDS = [
    *("a", "b", "word", "Pump", "it's", "WE'LL", "don't", "123", "4567", "x1", "é", "e\u0301", "\u0301", "ŀ", "naïve"),
    *("東京", "京", "は", "が", "가나", "мир", "й", "हिन्दी", "🙂", "👩‍👩‍👧", "\u200b", "ͺ", "²", "Ⅷ", "ﬁ", "ß", "İ"),  # noqa: RUF001 - Greek
    *(" ", " ", " ", "  ", "    ", "\n", "\r\n", "\n\n", "\t", "\u00a0", "\u3000", "\u2028", "\x00", "\x0c"),
    *(".", ",", "'", "'s", "...", "。", "，", "-", "_", "/", "+", "<", ">", "<mask>", "<s>", "foo bar", "a.b", "[SEP]"),  # noqa: RUF001
]
TEXTS = st.lists(st.sampled_from(WORDS), max_size=60).map("".join)


def trained(tokenizer: tokenizers.Tokenizer, trainer: object) -> tokenizers.Tokenizer:
    tokenizer.train_from_iterator(CORPUS * 3, trainer)
    tokenizer.add_tokens([AddedToken("<mask>", lstrip=True, special=True, normalized=False)])
    tokenizer.add_tokens([AddedToken("<s>", rstrip=True, special=True, normalized=False)])
    tokenizer.add_tokens([AddedToken("foo bar", normalized=False), AddedToken("a.b", normalized=False)])
    return tokenizer


def bpe(*words: object, normalizer: object = None) -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = words[0] if len(words) == 1 else pre_tokenizers.Sequence(list(words))
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    return trained(tokenizer, trainers.BpeTrainer(vocab_size=420, show_progress=False, initial_alphabet=alphabet))


def unigram(*words: object, normalizer: object = None) -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = words[0] if len(words) == 1 else pre_tokenizers.Sequence(list(words))
    return trained(
        tokenizer,
        trainers.UnigramTrainer(vocab_size=150, show_progress=False, unk_token="<unk>", special_tokens=["<unk>"]),
    )


def word_piece(words: object, normalizer: object) -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = words
    return trained(
        tokenizer, trainers.WordPieceTrainer(vocab_size=250, show_progress=False, special_tokens=["[UNK]", "[SEP]"])
    )


def split(pattern: str) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Split(Regex(pattern), "isolated")


BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
MAKERS: dict[str, Callable[[], tokenizers.Tokenizer]] = {
    "bert": lambda: word_piece(pre_tokenizers.BertPreTokenizer(), normalizers.BertNormalizer(lowercase=True)),
    "bert, cased, no Chinese": lambda: word_piece(
        pre_tokenizers.BertPreTokenizer(), normalizers.BertNormalizer(lowercase=False, handle_chinese_chars=False)
    ),
    "whitespace": lambda: word_piece(pre_tokenizers.Whitespace(), normalizers.Lowercase()),
    "gpt2": lambda: bpe(pre_tokenizers.ByteLevel(add_prefix_space=False)),
    "roberta": lambda: bpe(pre_tokenizers.ByteLevel(add_prefix_space=True)),
    "smollm": lambda: bpe(pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)),
    "gpt2, NFC": lambda: bpe(pre_tokenizers.ByteLevel(add_prefix_space=False), normalizer=normalizers.NFC()),
    "xlm-roberta": lambda: unigram(
        pre_tokenizers.WhitespaceSplit(),
        pre_tokenizers.Metaspace(),
        normalizer=normalizers.Sequence([normalizers.Nmt(), normalizers.NFKC()]),
    ),
    "metaspace": lambda: unigram(
        pre_tokenizers.Metaspace(),
        normalizer=normalizers.Sequence(
            [normalizers.NFKC(), normalizers.Strip(left=False), normalizers.Replace(Regex(" {2,}"), " ")]
        ),
    ),
    "metaspace, first": lambda: unigram(pre_tokenizers.Metaspace(prepend_scheme="first")),
} | {
    f"{number}{form or ''}": lambda pattern=pattern, form=form: bpe(
        split(pattern), BYTES, normalizer=getattr(normalizers, form)() if form else None
    )
    for number, pattern in enumerate(sorted(PATTERNS))
    for form in (None, "NFD" if pattern != GPT2 else "NFKC")
}
MADE: dict[str, SafeTokenizer] = {}


def made(kind: str) -> SafeTokenizer:
    if kind not in MADE:
        MADE[kind] = SafeTokenizer(MAKERS[kind]())
    return MADE[kind]


@pytest.mark.parametrize("kind", MAKERS)
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=TEXTS, size=st.integers(1, 30))
@example(text="foo bar a.b <mask> word <s> x.\ny 's a's \n\n b", size=1)
@example(text="ŀ\ny é\n。 が\nh й\n", size=1)
def test_pieces_have_the_tokens_of_the_whole(monkeypatch: pytest.MonkeyPatch, kind: str, text: str, size: int) -> None:
    tokenizer = made(kind)
    monkeypatch.setattr("ortkit.runtime.text.safe_tokenizer.PIECE", size)
    whole = tokenizer.tokenizer.encode(text, add_special_tokens=False)

    spans = tokenizer.spans(text) if text else None

    assert tokenizer.encode(text) == whole.ids
    if spans is not None:
        assert spans.ids.tolist() == whole.ids
        assert list(zip(spans.starts.tolist(), spans.ends.tolist(), strict=True)) == whole.offsets


@pytest.mark.parametrize("kind", MAKERS)
def test_all_these_kinds_are_cut(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """The test above would pass where no text is ever cut."""
    monkeypatch.setattr("ortkit.runtime.text.safe_tokenizer.PIECE", 30)
    text = "The pump is old. " * 40

    sizes = [len(piece) for group in made(kind).grouped(text) for piece in group]

    assert sum(sizes) == len(text)
    assert max(sizes) <= 30


@pytest.mark.parametrize(
    "change",
    [
        lambda tokenizer: setattr(tokenizer, "normalizer", normalizers.Prepend("_")),
        lambda tokenizer: setattr(tokenizer, "normalizer", normalizers.Replace("w", " ")),
        lambda tokenizer: setattr(tokenizer, "normalizer", normalizers.Replace(".", "")),
        lambda tokenizer: setattr(tokenizer, "pre_tokenizer", split(r"\w+ \w+")),
        lambda tokenizer: setattr(tokenizer, "pre_tokenizer", pre_tokenizers.Metaspace(split=False)),
        lambda tokenizer: tokenizer.add_tokens([AddedToken("pump is", normalized=True)]),
        lambda tokenizer: tokenizer.add_tokens([AddedToken("pump", rstrip=True)]),
    ],
    ids=["prepend", "to a space", "to nothing", "own pattern", "no words", "normalized token", "rstrip"],
)
def test_unsupported_tokenizers_have_no_split_points(change: Callable[[tokenizers.Tokenizer], object]) -> None:
    tokenizer = MAKERS["gpt2"]()
    change(tokenizer)

    assert SafeTokenizer(tokenizer).cuts is None


@pytest.mark.parametrize("side", Side)
@pytest.mark.parametrize("max_length", [3, 12, 500])
def test_long_texts_are_cut_and_counted_as_if_they_were_read_at_once(
    monkeypatch: pytest.MonkeyPatch, checkpoint: Path, held_out: list[str], side: Side, max_length: int
) -> None:
    facts = TokenizerFacts(max_length, lower_case=False, special_tokens={}, truncation_side=side)
    reference = tokenizers.Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    reference.no_padding()
    reference.enable_truncation(max_length, direction=side.value)
    text = " ".join(held_out[:40])
    monkeypatch.setattr("ortkit.runtime.text.safe_tokenizer.PIECE", 100)
    tokenizer = Tokenizer(checkpoint / "tokenizer.json", facts)

    (found,) = tokenizer.tokenize([text])

    expected = reference.encode(text)
    assert found.ids.tolist() == expected.ids
    reference.no_truncation()
    total = len(reference.encode(text).ids)
    assert found.tokens + found.dropped == total
    assert list(tokenizer.count(["a", text])) == [3, total]


def test_chunks_of_a_long_text_are_those_of_the_whole(
    monkeypatch: pytest.MonkeyPatch, checkpoint: Path, held_out: list[str]
) -> None:
    text = " ".join(held_out[:40])
    tokenizer = Tokenizer(checkpoint / "tokenizer.json", TokenizerFacts(32, lower_case=False, special_tokens={}))
    (whole,) = tokenizer.tokenize([text], long=LongTexts.MEAN)
    monkeypatch.setattr("ortkit.runtime.text.safe_tokenizer.PIECE", 100)

    (found,) = tokenizer.tokenize([text], long=LongTexts.MEAN)

    assert [ids.tolist() for ids in found.chunks] == [ids.tolist() for ids in whole.chunks]
    assert len(found.chunks) > 50


def test_too_many_characters_without_a_place_to_cut(monkeypatch: pytest.MonkeyPatch, checkpoint: Path) -> None:
    monkeypatch.setattr("ortkit.runtime.text.safe_tokenizer.PIECE", 10)
    monkeypatch.setattr("ortkit.runtime.text.safe_tokenizer.LONGEST", 40)
    tokenizer = Tokenizer(checkpoint / "tokenizer.json", TokenizerFacts(32, lower_case=False, special_tokens={}))

    for long in LongTexts:
        with pytest.raises(TextError) as caught:
            tokenizer.tokenize(["short", "x" * 41, "fine " * 20, "\u0301" * 50], long=long)
        assert caught.value.message == (
            "text 1 has more than 40 characters without a place where this tokenizer ends a word, such as a space"
        )
        assert caught.value.texts == (1, 3)
    with pytest.raises(TextError, match="text 0 has more than 40 characters"):
        list(tokenizer.count(["x" * 41]))


def test_a_long_word_that_does_not_fit_in_memory(monkeypatch: pytest.MonkeyPatch, checkpoint: Path) -> None:
    monkeypatch.setattr("ortkit.runtime.text.safe_tokenizer.AT_ONCE", 1000)
    monkeypatch.setattr("ortkit.runtime.text.safe_tokenizer.PIECE", 1000)
    monkeypatch.setattr("ortkit.runtime.text.safe_tokenizer.available_memory", lambda: 1 << 20)
    tokenizer = Tokenizer(checkpoint / "tokenizer.json", TokenizerFacts(32, lower_case=False, special_tokens={}))

    with pytest.raises(TextError) as caught:
        tokenizer.tokenize(["x" * 10_000])

    assert caught.value.message == (
        "text 0 has 10000 characters without a place where this tokenizer ends a word, such as a space; they take "
        "about 2 MiB, and 1 MiB are free"
    )
