from __future__ import annotations

import json

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, trainers

from ortkit import BundleError
from ortkit.runtime.text.detokenizer import Detokenizer, Vocabulary

TEXTS = [
    "Hello world, the quick brown fox. ",
    "Grüße aus Köln — 東京 🙂👩‍👩‍👧 naïve café\n\n  indented\ttext",
    "न मस् ते",
] * 3
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
ADDED = [AddedToken("<|end|>", special=True), AddedToken("<think> é", special=False)]


def byte_level() -> tokenizers.Tokenizer:
    """As SmolLM2's and GPT-2's."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.add_tokens(ADDED)
    return tokenizer


def sentence_piece(decoder: decoders.Decoder) -> tokenizers.Tokenizer:
    pieces = [
        "<unk>",
        *BYTES,
        "▁",
        "▁▁",
        "▁the",
        "▁Paris",
        "H",
        "e",
        "l",
        "o",
        "▁H",
        "▁wor",
        "ld",
        "é",
        ".",
        "▁a▁b",
        "\n",
    ]
    vocabulary = {piece: place for place, piece in enumerate(pieces)}
    tokenizer = tokenizers.Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoder
    tokenizer.add_tokens(ADDED)
    return tokenizer


def llama_2() -> tokenizers.Tokenizer:
    """As Llama-2's and Mistral-7B-v0.1's."""
    return sentence_piece(
        decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        )
    )


def gemma() -> tokenizers.Tokenizer:
    return sentence_piece(decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]))


def phi_3() -> tokenizers.Tokenizer:
    return sentence_piece(
        decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace("▁", "first"), decoders.Fuse()])
    )


def replaced_last() -> tokenizers.Tokenizer:
    return sentence_piece(decoders.Sequence([decoders.ByteFallback(), decoders.Fuse(), decoders.Replace("▁", " ")]))


def metaspace() -> tokenizers.Tokenizer:
    return sentence_piece(decoders.Metaspace("▁", "always"))


def metaspace_without_prefix() -> tokenizers.Tokenizer:
    return sentence_piece(decoders.Metaspace("▁", "never"))


TOKENIZERS = {
    make.__name__: make()
    for make in (byte_level, llama_2, gemma, phi_3, replaced_last, metaspace, metaspace_without_prefix)
}
VOCABULARIES = {name: Vocabulary(tokenizer) for name, tokenizer in TOKENIZERS.items()}
every_tokenizer = pytest.mark.parametrize("name", TOKENIZERS)


@every_tokenizer
@settings(max_examples=60)
@given(data=st.data())
def test_streamed_text_equals_the_decoding_of_tokenizers(name: str, data: st.DataObject) -> None:
    """Any ids at all, as a model may give them: broken characters, runs of bytes, special and added tokens."""
    tokenizer = TOKENIZERS[name]
    bytes_too = st.integers(0, min(260, tokenizer.get_vocab_size() - 1))
    ids = data.draw(st.lists(bytes_too | st.integers(0, tokenizer.get_vocab_size() - 1), max_size=30))
    detokenizer = Detokenizer(VOCABULARIES[name])

    pieces = [*map(detokenizer.push, ids), detokenizer.end()]

    assert "".join(pieces) == tokenizer.decode(ids)


@every_tokenizer
@settings(max_examples=60)
@given(data=st.data())
def test_an_answer_continues_its_prompt(name: str, data: st.DataObject) -> None:
    tokenizer = TOKENIZERS[name]
    ids = st.lists(st.integers(0, tokenizer.get_vocab_size() - 1), max_size=12)
    # A prompt does not end within a character, and its first token is not a special one alone.
    prompt = [*tokenizer.encode("Hello", add_special_tokens=False).ids, *data.draw(ids), *tokenizer.encode("lo").ids]
    answer = data.draw(ids)
    whole, before = tokenizer.decode(prompt + answer), tokenizer.decode(prompt)
    detokenizer = Detokenizer(VOCABULARIES[name], prompt)

    assert detokenizer.push_all(answer) + detokenizer.end() == whole[len(before) :]


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=40))
def test_no_piece_contains_a_partial_character(text: str) -> None:
    tokenizer = TOKENIZERS["byte_level"]
    detokenizer = Detokenizer(VOCABULARIES["byte_level"])

    pieces = [detokenizer.push(id_) for id_ in tokenizer.encode(text).ids]

    assert "".join(pieces) == text.replace("<|end|>", "")
    assert "\ufffd" in text or not any("\ufffd" in piece for piece in pieces)


def test_a_character_comes_with_its_last_byte() -> None:
    tokenizer = TOKENIZERS["byte_level"]
    first_byte, *others = tokenizer.encode("🙃").ids
    detokenizer = Detokenizer(VOCABULARIES["byte_level"])

    assert [detokenizer.push(id_) for id_ in (first_byte, *others)] == [*[""] * len(others), "🙃"]


@every_tokenizer
def test_the_first_word_of_an_answer_keeps_its_space(name: str) -> None:
    tokenizer = TOKENIZERS[name]
    prompt = tokenizer.encode("Hello the world").ids
    space = next(id_ for id_ in range(tokenizer.get_vocab_size()) if tokenizer.id_to_token(id_) in {"▁the", "Ġ"})

    assert Detokenizer(VOCABULARIES[name], prompt).push(space).startswith(" ")
    assert Detokenizer(VOCABULARIES[name], prompt * 50).push(space).startswith(" ")


def test_bytes_at_the_end_of_a_prompt_are_not_part_of_the_answer() -> None:
    tokenizer = TOKENIZERS["llama_2"]
    d, first, second = (tokenizer.token_to_id(f"<0x{byte:02X}>") for byte in (0x64, *"é".encode()))

    assert Detokenizer(VOCABULARIES["llama_2"], [d]).push_all([d, tokenizer.token_to_id(".")]) == "d."
    # A character that the prompt left open is shown whole, and what cannot be one is forgotten.
    assert Detokenizer(VOCABULARIES["llama_2"], [d, first]).push_all([second, tokenizer.token_to_id(".")]) == "é."
    assert Detokenizer(VOCABULARIES["llama_2"], [second, d]).push_all([d, tokenizer.token_to_id(".")]) == "d."


@every_tokenizer
def test_the_bytes_of_tokens_add_up_to_the_text(name: str) -> None:
    """For log-probabilities, which clients put together from the bytes of each token."""
    tokenizer, vocabulary = TOKENIZERS[name], VOCABULARIES[name]
    prompt = tokenizer.encode("Hello", add_special_tokens=False).ids
    ids = tokenizer.encode("Hello the world é. 🙂 <think> é", add_special_tokens=False).ids
    expected = tokenizer.decode(prompt + ids)[len(tokenizer.decode(prompt)) :]

    assert b"".join(map(vocabulary.bytes_of, ids)).decode("utf-8") == expected
    end = tokenizer.token_to_id("<|end|>")
    assert (vocabulary.bytes_of(end), vocabulary.bytes_of(10**6)) == (b"<|end|>", b"")


def test_an_id_beyond_the_vocabulary_has_no_text() -> None:
    assert Detokenizer(VOCABULARIES["byte_level"]).push(10**6) == ""


@pytest.mark.parametrize(
    ("decoder", "name"),
    [
        (decoders.WordPiece(), "WordPiece"),
        (None, "none"),
        (decoders.Sequence([decoders.Fuse(), decoders.Strip(" ", 0, 1)]), "Strip"),
        (decoders.Sequence([decoders.Fuse(), decoders.Replace("ab", "c")]), "Replace"),
        (decoders.Sequence([decoders.ByteFallback(), decoders.Fuse(), decoders.ByteLevel()]), "ByteLevel"),
    ],
)
def test_a_decoder_that_cannot_be_followed(decoder: decoders.Decoder | None, name: str) -> None:
    content = json.loads(TOKENIZERS["metaspace"].to_str())
    tokenizer = tokenizers.Tokenizer.from_str(json.dumps(content | {"decoder": None}))
    if decoder is not None:
        tokenizer.decoder = decoder

    with pytest.raises(BundleError) as caught:
        Vocabulary(tokenizer)

    assert caught.value.message == f"the decoder `{name}` in `tokenizer.json` is not supported"


def test_why_decode_stream_is_not_used() -> None:
    """Its defects in tokenizers 0.22; take it instead of our own detokenizer when this test fails."""
    ids = [TOKENIZERS["llama_2"].token_to_id(token) for token in ("<0x48>", "<0xC3>", ".")]
    detokenizer = Detokenizer(VOCABULARIES["llama_2"])
    stream = decoders.DecodeStream(skip_special_tokens=True)

    assert detokenizer.push_all(ids) == TOKENIZERS["llama_2"].decode(ids) == "\ufffd\ufffd."
    assert [stream.step(TOKENIZERS["llama_2"], id_) for id_ in ids[:2]] == ["H", None]
    with pytest.raises(Exception, match="Invalid prefix encountered while decoding stream"):
        stream.step(TOKENIZERS["llama_2"], ids[2])

    half = [TOKENIZERS["byte_level"].token_to_id("Ã")]
    detokenizer = Detokenizer(VOCABULARIES["byte_level"])
    assert detokenizer.push_all(half) + detokenizer.end() == TOKENIZERS["byte_level"].decode(half) == "\ufffd"
    assert decoders.DecodeStream(skip_special_tokens=True).step(TOKENIZERS["byte_level"], half[0]) is None
    assert not hasattr(decoders.DecodeStream, "end")
