# ruff: noqa: RUF001 - letters that look alike are what is tested
"""Mistral-7B-Instruct-v0.1 in small, from checkpoint to answer: its real tokenizer over seeded weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import sentencepiece
import transformers
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from ortkit import Bundle, Chat, Decoder, Sampling
from ortkit.exporters import export
from ortkit.runtime.decoder.token_choice import FinishReason
from ortkit.runtime.text.chat_template import ChatTemplate
from ortkit.runtime.text.detokenizer import Detokenizer
from ortkit.runtime.text.messages import Message
from tests.assets import vocabulary_path
from tests.commands import Finished
from tests.seeded_checkpoints import Shape, write_seeded

BOS, EOS, FIRST_BYTE, SPACE = 1, 2, 3, 28705
TEXTS = [
    "Hello world",
    " a space first",
    "   three spaces,  two, and one at the end ",
    " ",
    "\n",
    "\na line\n\n\nand another\r\n\tindented  \n",
    "naïve café, Größe, e\u0301, ﬁ, １２３",
    "🙂",
    "👩‍👩‍👧 and 🧀 are of bytes",
    "𝕳𝖊𝖑𝖑𝖔 \ue000 \x00 \u200b\u00a0",
    "東京は日本の首都です。人口は約1400万人。",
    "नमस्ते, مرحبا, שלום",
    "def f(x):\n    return x**2  # squared\n\n\nprint(f'{f(3):>8}')\n",
    "<0x0A> is not a byte here, and [INST] not a token",
    "a▁b",
]
CONVERSATIONS = {
    ("What is a pump?",): [1, 733, 16289, 28793, 1824, 349, 264, 12048, 28804, 733, 28748, 16289, 28793],
    ("  two spaces,\n\na line\n and 東京 🧀  ",): [
        *(1, 733, 16289, 28793, 259, 989, 10599, 28725, 13, 13, 28708, 1407, 13, 304, 28705, 30366, 29936, 28705, 243),
        *(162, 170, 131, 259, 733, 28748, 16289, 28793),
    ],
    ("def f(x):\n    return x",): [
        *(1, 733, 16289, 28793, 801, 285, 28732, 28744, 1329, 13, 2287, 604, 1318, 733, 28748, 16289, 28793),
    ],
    ("What is a pump?", "It moves water.", "And a valve?"): [
        *(1, 733, 16289, 28793, 1824, 349, 264, 12048, 28804, 733, 28748, 16289, 28793, 661, 11662, 2130, 28723, 2),
        *(733, 16289, 28793, 1015, 264, 1414, 333, 28804, 733, 28748, 16289, 28793),
    ],
    ("Wie heißt das?", "Käse 🧀", "Und das?\n", "東京", "Ja."): [
        *(1, 733, 16289, 28793, 394, 412, 400, 21395, 28707, 2846, 28804, 733, 28748, 16289, 28793, 524, 28830, 331),
        *(28705, 243, 162, 170, 131, 2, 733, 16289, 28793, 19870, 2846, 28804, 13, 733, 28748, 16289, 28793, 28705),
        *(30366, 29936, 2, 733, 16289, 28793, 15789, 28723, 733, 28748, 16289, 28793),
    ],
}
"""What user and assistant say by turns, and the ids of `MistralTokenizer.v1()` for it in mistral-common 1.13.1."""
Ortkit = Callable[..., Finished]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    shape = Shape(2, 64, 96, 4, 2, window=64, positions=512)
    return write_seeded(tmp_path_factory.mktemp("mistral") / "small-mistral", shape)


@pytest.fixture(scope="module")
def bundle(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    with pytest.MonkeyPatch.context() as patch:
        # Probabilities of 32,000 tokens at 2,048 places would take most of the time, and say little about tokens.
        patch.setattr("ortkit.exporters.decoder.reference.MAX_PROBE_TOKENS", 256)
        return export(str(checkpoint), out=tmp_path_factory.mktemp("bundles") / "small-mistral-int4").bundle


@pytest.fixture(scope="module")
def decoder(bundle: Bundle) -> Decoder:
    return Decoder(bundle)


@pytest.fixture(scope="module")
def pytorchs(checkpoint: Path) -> transformers.PreTrainedTokenizerFast:
    return transformers.AutoTokenizer.from_pretrained(checkpoint, local_files_only=True)


@pytest.fixture(scope="module")
def pieces() -> sentencepiece.SentencePieceProcessor:
    return sentencepiece.SentencePieceProcessor(model_file=str(vocabulary_path()))


def messages(said: tuple[str, ...]) -> list[Message]:
    return [Message(("user", "assistant")[place % 2], text) for place, text in enumerate(said)]


def chat_ids(decoder: Decoder, said: tuple[str, ...]) -> list[int]:
    assert decoder.facts.chat is not None
    return decoder.encode_exactly(ChatTemplate(decoder.facts.chat).render(messages(said)))


def test_what_the_manifest_says(decoder: Decoder) -> None:
    facts = decoder.facts

    assert (facts.vocabulary, facts.sliding_window, facts.context_length) == (32000, 64, 512)
    assert (facts.bos_id, facts.add_bos, facts.eos_ids) == (BOS, True, (EOS,))
    assert decoder.sampling == Sampling()


@pytest.mark.parametrize("text", TEXTS)
def test_texts_have_the_ids_of_sentencepiece_and_of_transformers(
    text: str,
    decoder: Decoder,
    pieces: sentencepiece.SentencePieceProcessor,
    pytorchs: transformers.PreTrainedTokenizerFast,
) -> None:
    ids = decoder.encode(text)

    assert ids == [BOS, *pieces.encode(text)] == pytorchs(text)["input_ids"]
    assert ids.count(BOS) == 1


@settings(max_examples=300)
@given(
    text=st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
    | st.text(st.sampled_from("ab \n\t▁<>0xAé🧀東"), max_size=30)
)
def test_any_text_has_the_ids_of_sentencepiece(
    text: str, decoder: Decoder, pieces: sentencepiece.SentencePieceProcessor
) -> None:
    assume(not any(special in text for special in ("<unk>", "<s>", "</s>")))
    ids = decoder.encode_exactly(text)

    assert ids == pieces.encode(text)
    assert streamed(decoder, [], ids) == pieces.decode(ids)


@pytest.mark.parametrize("said", [said for said in CONVERSATIONS if len(said) == 1])
def test_a_first_question_has_the_ids_of_mistral_common(
    said: tuple[str], decoder: Decoder, pytorchs: transformers.PreTrainedTokenizerFast
) -> None:
    ids = chat_ids(decoder, said)

    assert ids == CONVERSATIONS[said] == pytorchs.apply_chat_template([{"role": "user", "content": said[0]}])
    assert ids.count(BOS) == 1


@pytest.mark.parametrize("said", [said for said in CONVERSATIONS if len(said) > 1])
def test_a_later_question_differs_from_mistral_common_by_the_space_that_the_template_writes(
    said: tuple[str, ...], decoder: Decoder, pytorchs: transformers.PreTrainedTokenizerFast
) -> None:
    """Answers keep the space that they begin with; without it, they would begin with other tokens than the model's."""
    with_space = tuple(text if place % 2 == 0 else f" {text}" for place, text in enumerate(said))
    ids = chat_ids(decoder, with_space)

    expected = []
    for id_ in CONVERSATIONS[said]:
        expected += [EOS, SPACE] if id_ == EOS else [id_]
    assert ids == expected
    for answers in (said, with_space):
        written = [{"role": message.role, "content": message.content} for message in messages(answers)]
        assert chat_ids(decoder, answers) == pytorchs.apply_chat_template(written)


@pytest.mark.parametrize("sampling", [None, Sampling(temperature=1, seed=2, logit_bias={EOS: 8.0})])
def test_a_conversation_is_read_on_after_the_tokens_of_its_answers(sampling: Sampling | None, decoder: Decoder) -> None:
    """Those of an interrupted answer, and of one that ended by itself."""
    chat = Chat(decoder)
    first = chat.send("What is a pump?", max_tokens=40, sampling=sampling)
    answer = first.answer()
    second = chat.send("And a valve?", max_tokens=4)

    before, ids = CONVERSATIONS["What is a pump?",], [id_ for id_ in first.steps.ids if id_ != EOS]
    assert first.steps.prompt == before
    assert answer.finish_reason is (FinishReason.LENGTH if sampling is None else FinishReason.STOP)
    assert len(ids) > 2
    assert answer.text == streamed(decoder, before, ids)
    assert second.steps.prompt == [*before, *ids, *decoder.encode_exactly("</s> [INST] And a valve? [/INST]")]
    assert second.steps.prompt.count(BOS) == second.steps.prompt.count(EOS) == 1


def test_a_text_that_begins_itself_is_not_begun_again(decoder: Decoder) -> None:
    assert decoder.encode("<s>Hello world") == decoder.encode("Hello world")


@pytest.mark.parametrize("command", [["generate", "{}", "Hello", "--max-tokens", "4"], ["chat", "{}"]])
def test_a_message_to_the_system_is_refused(command: list[str], ortkit: Ortkit, bundle: Bundle) -> None:
    arguments = [argument.format(bundle.path) for argument in command]

    finished = ortkit(*arguments, "--system", "Be brief.", stdin=b"Hello\n")

    assert (finished.code, finished.out) == (2, b"")
    assert finished.err == (
        "error: the model's chat template refuses these messages: "
        "Conversation roles must alternate user/assistant/user/assistant/...\n\n"
        "hint: their roles are `system`, `user`\n"
    )


def streamed(decoder: Decoder, prompt: list[int], ids: list[int]) -> str:
    detokenizer = Detokenizer(decoder.vocabulary, prompt)
    return detokenizer.push_all(ids) + detokenizer.end()


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_comes_in_whole_characters(
    text: str, decoder: Decoder, pieces: sentencepiece.SentencePieceProcessor
) -> None:
    """As an answer, where nothing is lost of it: the tokenizer's own space is the one that it begins with."""
    ids = decoder.encode_exactly(text)
    detokenizer = Detokenizer(decoder.vocabulary, CONVERSATIONS["What is a pump?",])

    parts = [*map(detokenizer.push, ids), detokenizer.end()]

    assert "".join(parts) == " " + text.replace("▁", " ") == " " + pieces.decode(ids)
    assert not any("\ufffd" in part for part in parts)


def test_a_character_of_bytes_comes_at_once(decoder: Decoder) -> None:
    prompt, cheese = CONVERSATIONS["What is a pump?",], [FIRST_BYTE + byte for byte in "🧀".encode()]
    detokenizer = Detokenizer(decoder.vocabulary, prompt)
    comma = 28725

    parts = [detokenizer.push(id_) for id_ in (SPACE, *cheese, comma)]

    assert parts == [" ", "", "", "", "", "🧀,"]


@settings(max_examples=200)
@given(
    ids=st.lists(
        st.integers(FIRST_BYTE, FIRST_BYTE + 255)
        | st.sampled_from([FIRST_BYTE + byte for byte in "🧀é".encode()])
        | st.integers(0, 31999),
        max_size=30,
    )
)
def test_any_answer_is_the_text_that_transformers_decodes(
    ids: list[int], decoder: Decoder, pytorchs: transformers.PreTrainedTokenizerFast
) -> None:
    """Bytes that are not characters among them, and special tokens."""
    prompt = CONVERSATIONS["What is a pump?",]
    before = pytorchs.decode(prompt, skip_special_tokens=True)

    assert before + streamed(decoder, prompt, ids) == pytorchs.decode([*prompt, *ids], skip_special_tokens=True)
    assert streamed(decoder, [], ids) == pytorchs.decode(ids, skip_special_tokens=True)


def test_an_answer_of_bytes_streams_as_it_decodes(
    decoder: Decoder, pytorchs: transformers.PreTrainedTokenizerFast
) -> None:
    prompt = CONVERSATIONS["What is a pump?",]
    favoured = dict.fromkeys([SPACE, *(FIRST_BYTE + byte for byte in "é".encode())], 14.0)
    sampling = Sampling(temperature=1, seed=3, logit_bias=favoured)

    stream = decoder.stream(prompt, max_tokens=300, sampling=sampling)
    tokens = list(stream)

    ids = [token.id for token in tokens]
    whole = pytorchs.decode([*prompt, *ids], skip_special_tokens=True)
    assert "".join(token.text for token in tokens) == stream.text
    assert pytorchs.decode(prompt, skip_special_tokens=True) + stream.text == whole
    assert {"é", "\ufffd", " "} <= set(stream.text)
