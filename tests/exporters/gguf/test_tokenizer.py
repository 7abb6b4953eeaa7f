from __future__ import annotations

import dataclasses
import inspect
import json
from itertools import pairwise
from pathlib import Path

import pytest
import regex
import sentencepiece
import transformers
from tokenizers import Tokenizer, pre_tokenizers
from transformers.convert_slow_tokenizer import TikTokenConverter

from ortkit.exporters.certification.probe import calibration_texts
from ortkit.exporters.gguf.metadata import GgufFile
from ortkit.exporters.gguf.tokenizer import COMPARED, SAMPLE, SPLITTINGS, Vocabulary, make_tokenizer, read_vocabulary
from ortkit.runtime.errors import CheckpointError, OrtkitError, UnsupportedModelError
from tests.assets import vocabulary_path
from tests.exporters.gguf_files import BYTE, CONTROL, MERGES, NORMAL, TOKENIZER, TOKENS, UNKNOWN, USER_DEFINED

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
HARD = [
    SAMPLE,
    "",
    " ",
    "  a",
    "a  ",
    "1234567",
    "v1.2.3\r\n\t\t x",
    "don't DON'T 'tis",
    "\u200b…—„“",
    "नमस्ते ১২৩",
    "🙂👩‍👩‍👧",
]


def vocabulary(**changes: object) -> Vocabulary:
    fields = TOKENIZER | changes
    return read_vocabulary("m.gguf", {f"tokenizer.ggml.{key}": value for key, value in fields.items()})


@pytest.fixture(scope="module")
def real_tokenizer(smollm: GgufFile) -> Tokenizer:
    return make_tokenizer(smollm.vocabulary)


def merged_by_hand(text: str, vocabulary: Vocabulary) -> list[str]:
    """Byte-pair encoding as llama.cpp's `smollm` has it: single digits, then GPT-2's pieces, then merge by merge."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    letter = {byte: chr(byte) for byte in printable} | {byte: chr(256 + place) for place, byte in enumerate(others)}
    assert sorted(letter.values()) == letters
    ranks = {tuple(merge.split(" ")): rank for rank, merge in enumerate(vocabulary.merges)}
    known = set(vocabulary.tokens)
    found = []
    for part in regex.split(r"(\p{N})", text):
        for piece in regex.findall(GPT2, part):
            symbols = [letter[byte] for byte in piece.encode() if letter[byte] in known]
            while len(symbols) > 1:
                pairs = list(pairwise(symbols))
                best = min(pairs, key=lambda pair: ranks.get(pair, len(ranks)))
                if best not in ranks:
                    break
                place = pairs.index(best)
                symbols[place : place + 2] = ["".join(best)]
            found += symbols
    return found


def test_the_real_one_cuts_text_as_by_hand(smollm: GgufFile, real_tokenizer: Tokenizer) -> None:
    for text in [*calibration_texts().texts[::4], *HARD]:
        expected = merged_by_hand(text, smollm.vocabulary)

        assert real_tokenizer.encode(text).tokens == expected, text
        assert real_tokenizer.decode(real_tokenizer.encode(text).ids, skip_special_tokens=False) == text


def test_the_real_ones_turns(smollm: GgufFile, real_tokenizer: Tokenizer) -> None:
    """Nothing is put before a text, and the end of a turn is one token: not so in what transformers makes of it."""
    ids = real_tokenizer.encode("<|im_start|>user\nhi<|im_end|>\n").ids

    assert ids == [1, 4093, 198, 6004, 2, 198]
    assert not smollm.add_bos


@pytest.mark.parametrize("name", SPLITTINGS)
def test_every_way_of_cutting_gives_the_text_back(name: str) -> None:
    tokenizer = make_tokenizer(vocabulary(pre=name))

    for text in HARD:
        assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False).ids) == text


@pytest.mark.parametrize(
    ("name", "text", "pieces"),
    [
        ("gpt-2", "a 123 b's\n\n c", ["a", " 123", " b", "'s", "\n\n", " c"]),
        ("smollm", "a 123 b's\n\n c", ["a", " ", "1", "2", "3", " b", "'s", "\n\n", " c"]),
        ("llama-bpe", "a 1234 b'S\n\n c(d", ["a", " ", "123", "4", " b", "'S", "\n\n", " c", "(d"]),
        ("qwen2", "a 12 b'S\n\n c(d", ["a", " ", "1", "2", " b", "'S", "\n\n", " c", "(d"]),
        ("tekken", "a 12 HelloWorld/\n", ["a", " ", "1", "2", " Hello", "World", "/\n"]),
    ],
)
def test_where_text_is_cut(name: str, text: str, pieces: list[str]) -> None:
    """As llama.cpp's patterns say, worked out by hand."""
    tokenizer = make_tokenizer(vocabulary(pre=name))
    cuts = [text[start:end] for _, (start, end) in tokenizer.pre_tokenizer.pre_tokenize_str(text)]

    assert cuts == pieces


def test_merges_by_hand() -> None:
    tokenizer = make_tokenizer(vocabulary())

    assert tokenizer.encode("in the  12").tokens == ["in", "Ġthe", "ĠĠ", "1", "2"]
    assert make_tokenizer(vocabulary(pre="gpt-2")).encode("in the 12").tokens == ["in", "Ġthe", "Ġ", "12"]


def test_words_that_are_tokens_are_taken_whole_where_llama_3_does() -> None:
    """Though no merge leads to them."""
    tokens = [*TOKENS, "xyz"]
    changes = {"tokens": tokens, "token_type": [*TOKENIZER["token_type"], NORMAL]}

    assert make_tokenizer(vocabulary(pre="llama-bpe", **changes)).encode("xyz").tokens[-1] == "xyz"
    assert make_tokenizer(vocabulary(pre="qwen2", **changes)).encode("xyz").tokens == ["x", "y", "z"]


@pytest.mark.parametrize(
    ("changes", "begins"),
    [
        ({}, False),
        ({"add_bos_token": True}, True),
        ({"add_bos_token": None}, False),
        ({"add_bos_token": None, "pre": "llama-bpe"}, True),
        ({"add_bos_token": False, "pre": "llama-bpe"}, False),
        ({"add_bos_token": True, "bos_token_id": None}, False),
    ],
)
def test_texts_begin_with_the_token_for_it_where_the_file_says_so(changes: dict, *, begins: bool) -> None:
    found = vocabulary(**changes)
    tokenizer = make_tokenizer(found)

    assert found.adds_bos == begins
    assert (tokenizer.encode("the").ids[:1] == [0]) == begins
    assert tokenizer.encode("the", add_special_tokens=False).ids[:1] != [0]


def test_tokens_that_a_user_defined_are_kept_when_special_ones_are_left_out() -> None:
    tokens = [*TOKENS, "<tool>"]
    tokenizer = make_tokenizer(vocabulary(tokens=tokens, token_type=[*TOKENIZER["token_type"], USER_DEFINED]))

    ids = tokenizer.encode("a<tool><|im_end|>").ids

    assert ids == [TOKENS.index("a"), len(TOKENS), 2]
    assert tokenizer.decode(ids) == "a<tool>"


def sentence_pieces(**changes: object) -> dict:
    """A vocabulary as SentencePiece trains it: a score for each token, higher ones merge first."""
    letters = ["▁", "h", "e", "l", "o", "w", "r", "d"]
    words = {"he": -1.0, "ll": -2.0, "hell": -3.0, "▁w": -4.0, "or": -5.0, "hello": -6.0, "▁hello": -7.0}
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *words, *letters]
    types = [UNKNOWN, CONTROL, CONTROL, *[BYTE] * 256, *[NORMAL] * (len(words) + len(letters))]
    scores = [0.0] * 259 + list(words.values()) + [-10.0 - place for place in range(len(letters))]
    fields = {"model": "llama", "pre": None, "tokens": tokens, "token_type": types, "scores": scores, "merges": None}
    return fields | {"bos_token_id": 1, "eos_token_id": 2, "add_bos_token": None} | changes


def test_sentence_pieces_merge_by_score() -> None:
    found = vocabulary(**sentence_pieces())
    tokenizer = make_tokenizer(found)

    assert found.adds_bos
    assert tokenizer.encode("hello world").tokens == ["<s>", "▁hello", "▁w", "or", "l", "d"]
    # `he` before `ll`, and no way from there to `hel`.
    assert tokenizer.encode("hel").tokens == ["<s>", "▁", "he", "l"]
    assert tokenizer.encode("ö</s>").tokens == ["<s>", "▁", "<0xC3>", "<0xB6>", "</s>"]
    for text in HARD:
        assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_the_unknown_token_has_no_text() -> None:
    tokenizer = make_tokenizer(vocabulary(**sentence_pieces()))

    ids = tokenizer.encode("hello<unk>").ids

    assert ids[-1] == 0
    assert tokenizer.decode(ids) == "hello"


def test_mistrals_pieces_merge_as_sentencepiece_merges_them() -> None:
    own = sentencepiece.SentencePieceProcessor(model_file=str(vocabulary_path()))
    numbers = range(own.get_piece_size())
    kinds = {own.is_unknown: UNKNOWN, own.is_control: CONTROL, own.is_byte: BYTE}
    fields = sentence_pieces(
        tokens=[own.id_to_piece(number) for number in numbers],
        token_type=[next((kind for is_of, kind in kinds.items() if is_of(number)), NORMAL) for number in numbers],
        scores=[own.get_score(number) for number in numbers],
    )
    tokenizer = make_tokenizer(vocabulary(**fields))

    for text in [*filter(None, HARD), *calibration_texts().texts]:
        assert tokenizer.encode(text).ids == [1, *own.encode(text)]


def test_sentence_pieces_without_a_space_before() -> None:
    tokenizer = make_tokenizer(vocabulary(**sentence_pieces(add_space_prefix=False)))

    assert tokenizer.encode("hello world").tokens == ["<s>", "hello", "▁w", "or", "l", "d"]
    assert tokenizer.decode(tokenizer.encode(" hello").ids) == " hello"


def test_transformers_reads_the_tokenizer_alike(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    make_tokenizer(vocabulary(**sentence_pieces())).save(str(path))

    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=str(path))

    assert tokenizer("hello").input_ids == [1, 259 + 6]


def refused(**changes: object) -> OrtkitError:
    with pytest.raises(OrtkitError) as caught:
        make_tokenizer(vocabulary(**changes))
    return caught.value


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokens": []}, "`m.gguf` holds no tokenizer"),
        ({"model": None}, "`m.gguf` holds no tokenizer"),
        (
            {"token_type": [NORMAL]},
            f"`m.gguf` has {len(TOKENS)} tokens, but not a type for each or some of them twice",
        ),
        ({"bos_token_id": 9999}, f"`m.gguf` has {len(TOKENS)} tokens, and `tokenizer.ggml.bos_token_id` is 9999"),
        ({"merges": ["ab"]}, "`m.gguf` has a merge that is none: `ab`"),
        (sentence_pieces(scores=[1.0]), "`m.gguf` has 274 tokens, but not a score for each"),
    ],
)
def test_parts_that_do_not_fit(changes: dict, message: str) -> None:
    error = refused(**changes)

    assert isinstance(error, CheckpointError)
    assert error.message == message


def test_merges_of_tokens_that_are_not_there() -> None:
    assert refused(merges=[*MERGES, "q x"]).message.startswith("the merges of `m.gguf` do not fit its tokens: ")


def test_a_vocabulary_that_cannot_write_every_text() -> None:
    """Bytes that no token stands for would vanish without a word."""
    tokens = [token if token != "G" else "GG" for token in TOKENS]

    error = refused(tokens=tokens)

    shown = SAMPLE.replace("\n", "\\n").replace("\t", "\\t")
    assert error.message == f"the tokenizer of `m.gguf` makes `{shown.replace('G', '')}` of `{shown}`"
    assert error.exit_code == 7


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "t5"}, "`m.gguf` has a tokenizer of the kind `t5`, which is not supported"),
        ({"pre": "viking"}, "`m.gguf` says `viking` about how its tokenizer cuts text (`tokenizer.ggml.pre`)"),
        ({"pre": None}, "`m.gguf` says nothing about how its tokenizer cuts text (`tokenizer.ggml.pre`)"),
    ],
)
def test_tokenizers_that_are_not_known(changes: dict, message: str) -> None:
    error = refused(**changes)

    assert isinstance(error, UnsupportedModelError)
    assert error.message == message
    assert error.hint is not None
    assert error.hint.startswith("supported: ")
    assert error.exit_code == 10


@pytest.mark.parametrize(
    ("pre", "kind"), [("gpt-2", transformers.GPT2Tokenizer), ("qwen2", transformers.Qwen2Tokenizer)]
)
def test_ids_are_those_of_the_publishers_own_tokenizer(pre: str, kind: type, smollm: GgufFile, tmp_path: Path) -> None:
    """transformers' code in Python for the family, which shares nothing with tokenizers but the vocabulary."""
    real = smollm.vocabulary
    ids = {token: number for number, token in enumerate(real.tokens)}
    (tmp_path / "vocab.json").write_text(json.dumps(ids), encoding="utf-8")
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + "\n".join(real.merges), encoding="utf-8")
    own = kind(str(tmp_path / "vocab.json"), str(tmp_path / "merges.txt"), unk_token="<|endoftext|>")

    tokenizer = make_tokenizer(dataclasses.replace(real, splitting=pre))

    for text in [*calibration_texts().texts[::4], *HARD, *COMPARED]:
        assert tokenizer.encode(text).ids == own.convert_tokens_to_ids(own.tokenize(text)), text


@pytest.mark.parametrize("name", ["llama-bpe", "llama3", "llama-v3"])
def test_llama_3_cuts_text_as_the_publishers_pattern_does(name: str) -> None:
    """That of transformers' converter, by another engine for regular expressions."""
    pattern = inspect.signature(TikTokenConverter).parameters["pattern"].default
    splitter = make_tokenizer(vocabulary(pre=name)).pre_tokenizer

    for text in [*calibration_texts().texts[::4], *HARD, *COMPARED]:
        cuts = [text[start:end] for _, (start, end) in splitter.pre_tokenize_str(text)]
        assert cuts == regex.findall(pattern, text), text


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("tokenizer.ggml.add_eos_token", True),
        ("tokenizer.ggml.add_sep_token", True),
        ("tokenizer.ggml.remove_extra_whitespaces", True),
        ("tokenizer.ggml.precompiled_charsmap", [1, 2]),
        ("tokenizer.ggml.token_type_count", 2),
        ("tokenizer.ggml.normalizer", "nfkc"),
        ("tokenizer.rwkv.world", "x"),
        ("tokenizer.ggml.eos_token_ids", [1]),
    ],
)
def test_what_is_not_read_about_a_tokenizer_is_refused_by_name(key: str, value: object) -> None:
    fields = {f"tokenizer.ggml.{name}": own for name, own in TOKENIZER.items()}

    with pytest.raises(UnsupportedModelError) as caught:
        read_vocabulary("m.gguf", fields | {key: value})

    shown = "a list of " + str(len(value)) if isinstance(value, list) else value
    assert caught.value.message == f"`m.gguf` has `{key}` set to `{shown}`, which is not supported"
    assert caught.value.hint == "ignoring it would change the tokens; export the Hub's checkpoint instead"
    assert caught.value.exit_code == 10


def test_settings_of_other_kinds_of_tokenizers() -> None:
    error = refused(add_space_prefix=True)
    assert error.message == "`m.gguf` has `tokenizer.ggml.add_space_prefix` set in a tokenizer of the kind `gpt2`"
    assert error.exit_code == 10

    error = refused(**sentence_pieces(pre="llama-bpe"))
    assert error.message == (
        "`m.gguf` has `tokenizer.ggml.pre` set to `llama-bpe` in a tokenizer of the kind `llama`, which cuts no text "
        "before its pieces are merged"
    )
    assert error.exit_code == 10
    make_tokenizer(vocabulary(**sentence_pieces(pre="default")))


def test_settings_without_effect_and_tokens_that_there_are_none_of() -> None:
    found = vocabulary(
        add_eos_token=False, remove_extra_whitespaces=False, fim_pre_token_id=3, padding_token_id=2**32 - 1
    )

    assert found.ids == {"bos_token_id": 0, "eos_token_id": 2, "fim_pre_token_id": 3}


@pytest.mark.parametrize("number", [-2, len(TOKENS), 2**40])
@pytest.mark.parametrize("name", ["bos", "eos", "eot", "padding", "unknown"])
def test_tokens_that_are_not_there(name: str, number: int) -> None:
    error = refused(**{f"{name}_token_id": number})

    assert error.message == f"`m.gguf` has {len(TOKENS)} tokens, and `tokenizer.ggml.{name}_token_id` is {number}"
    assert error.exit_code == 7


def test_types_of_tokens_that_are_not_known() -> None:
    error = refused(token_type=[NORMAL] * (len(TOKENS) - 1) + [9])

    assert error.message == "`m.gguf` has a token of the type 9 (`tokenizer.ggml.token_type`); supported: 1 to 6"


def test_scores_that_are_no_numbers() -> None:
    fields = sentence_pieces()
    error = refused(**sentence_pieces(scores=[float("nan"), *fields["scores"][1:]]))

    assert error.message == "`m.gguf` has a number in `tokenizer.ggml.scores` that is not finite"
    assert error.exit_code == 7


def published(tokenizer: Tokenizer, **changes: object) -> Vocabulary:
    """The vocabulary of a file that has the publisher's tokenizer too."""
    return dataclasses.replace(vocabulary(**changes), published=tokenizer.to_str())


def test_a_file_with_two_tokenizers_is_exported_where_they_agree() -> None:
    own = make_tokenizer(vocabulary(pre="qwen2"))

    make_tokenizer(published(own, pre="qwen2"))

    with pytest.raises(UnsupportedModelError) as caught:
        make_tokenizer(published(own, pre="gpt-2"))
    assert caught.value.message.startswith("`m.gguf` has two tokenizers: its metadata makes [")
    assert "`tokenizer.huggingface.json` [" in caught.value.message
    assert caught.value.exit_code == 10


@pytest.mark.parametrize("content", ["", "{}", "[" * 100_000, '{"model": {"type": "BPE"}}'])
def test_a_published_tokenizer_that_cannot_be_used(content: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        make_tokenizer(dataclasses.replace(vocabulary(), published=content))

    assert caught.value.message.startswith("the tokenizer of `m.gguf` cannot be used: ")
    assert caught.value.exit_code == 7


def test_a_panic_of_tokenizers_is_said_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not an `Exception`."""

    class PanicException(BaseException):
        pass

    def panics(*_: object) -> None:
        raise PanicException("called `Option::unwrap()` on a `None` value")

    monkeypatch.setattr("ortkit.exporters.gguf.tokenizer.check", panics)

    error = refused()

    assert error.message == ("the tokenizer of `m.gguf` cannot be used: called `Option::unwrap()` on a `None` value")
    assert error.exit_code == 7
