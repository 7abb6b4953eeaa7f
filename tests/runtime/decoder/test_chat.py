from __future__ import annotations

from pathlib import Path

import pytest

from ortkit import Chat, Decoder, FinishReason, InputError, Message, Sampling
from ortkit.runtime.bundle.manifest import ChatFacts
from ortkit.runtime.text.chat_template import ChatTemplate
from tests.decoders import CHATML, with_facts

GREEDY = Sampling()


def read_tokens(chat: Chat) -> int:
    """How many tokens of the last prompt were read, not found in the cache."""
    rates = chat._stream.rates
    return rates.prompt_tokens - rates.cached_tokens


def expected_answer(decoder: Decoder, messages: list[Message], max_tokens: int) -> str:
    """What the decoder says to a conversation that it reads from the beginning."""
    prompt = ChatTemplate(decoder.facts.chat).render(messages)
    return decoder.generate(decoder.encode_exactly(prompt), max_tokens=max_tokens).text


def said(chat: Chat, text: str, max_tokens: int = 12) -> str:
    return chat.send(text, max_tokens=max_tokens).answer().text


def test_an_answer_is_that_to_the_rendered_conversation(decoder: Decoder) -> None:
    chat = Chat(decoder, system="Be brief.")
    messages = [Message("system", "Be brief."), Message("user", "Hello")]

    answer = said(chat, "Hello")

    assert answer == expected_answer(decoder, messages, 12)
    assert chat.messages == (*messages, Message("assistant", answer))


def test_only_the_new_message_is_read(decoder: Decoder) -> None:
    chat = Chat(decoder)
    said(chat, "The quick brown fox jumps over the lazy dog. " * 5)
    before = list(chat.cache.ids)

    said(chat, "And then?")

    new = decoder.encode_exactly("<|im_end|>\n<|im_start|>user\nAnd then?<|im_end|>\n<|im_start|>assistant\n")
    # The last token of the answer was chosen and not read yet.
    assert read_tokens(chat) == 1 + len(new)
    assert chat.cache.ids[: len(before)] == before


def test_an_end_token_is_not_read_twice(decoder: Decoder) -> None:
    chat = Chat(decoder)
    stream = chat.send("Hello", sampling=Sampling(logit_bias={2: 1000.0}))
    assert [token.id for token in stream] == [2]

    said(chat, "Hm")

    prompt = decoder.encode_exactly("<|im_end|>\n<|im_start|>user\nHm<|im_end|>\n<|im_start|>assistant\n")
    assert read_tokens(chat) == len(prompt)
    assert chat.messages[1] == Message("assistant", "")


def test_the_tokens_of_an_answer_stay_as_the_model_chose_them(decoder: Decoder) -> None:
    """The text of this answer would be cut into other tokens than those that it was made of."""
    h, e = (decoder.tokenizer.token_to_id(text) for text in "he")
    chat = Chat(decoder)
    stream = chat.send(
        "Hello", sampling=Sampling(logit_bias={h: 1000.0, e: 990.0}, frequency_penalty=30.0), max_tokens=6
    )
    ids = [token.id for token in stream]
    assert decoder.encode_exactly(stream.text) != ids

    said(chat, "More")

    place = len(stream.steps.prompt)
    assert chat._stream.steps.prompt[place : place + 6] == ids
    assert chat._stream.steps.prompt[:place] == stream.steps.prompt


@pytest.mark.parametrize("options", [{"stop": ["zzz"]}, {}], ids=["stop strings that never come", "none"])
def test_a_second_answer_is_that_of_a_fresh_conversation(decoder: Decoder, options: dict) -> None:
    chat = Chat(decoder)
    first = chat.send("Hello fox", max_tokens=9, **options).answer().text

    second = said(chat, "And?")

    messages = [Message("user", "Hello fox"), Message("assistant", first), Message("user", "And?")]
    fresh = expected_answer(decoder, messages, 12)
    # Equal where the answer's text is cut into the tokens that it was made of.
    whole = decoder.encode_exactly(decoder.apply_chat_template(messages))
    assert second == fresh or chat._stream.steps.prompt != whole


def test_after_a_stop_string_the_message_is_the_visible_text(decoder: Decoder) -> None:
    whole = said(Chat(decoder), "Hello", 30)
    stop = whole[5:7]
    chat = Chat(decoder)
    stream = chat.send("Hello", max_tokens=30, stop=[stop])
    shown = stream.answer().text
    assert stream.finish_reason is FinishReason.STOP

    said(chat, "And?")

    assert chat.messages[1] == Message("assistant", shown)
    assert chat._stream.steps.prompt == decoder.encode_exactly(
        decoder.apply_chat_template([Message("user", "Hello"), Message("assistant", shown), Message("user", "And?")])
    )


def test_an_unfinished_answer_becomes_a_message(decoder: Decoder) -> None:
    chat = Chat(decoder)
    stream = chat.send("Hello", max_tokens=50)
    pieces = [next(stream).text for _ in range(5)]
    assert chat.messages == (Message("user", "Hello"), Message("assistant", "".join(pieces)))

    said(chat, "Go on")

    assert stream.finish_reason is FinishReason.CANCELLED
    assert list(stream) == []
    assert chat.messages[1] == Message("assistant", "".join(pieces))


def test_another_answer_to_the_same_message(decoder: Decoder) -> None:
    chat = Chat(decoder)
    first = said(chat, "Hello fox")

    again = chat.regenerate(max_tokens=12).answer()
    other = chat.regenerate(max_tokens=12, sampling=Sampling(temperature=2, seed=1)).answer()

    assert again.text == first != other.text
    assert again.rates.prompt_tokens - again.rates.cached_tokens == 1, "only the last token, for its logits"
    assert chat.messages == (Message("user", "Hello fox"), Message("assistant", other.text))


def test_an_edited_message_is_read_from_where_it_differs(decoder: Decoder) -> None:
    chat = Chat(decoder, system="Be brief and kind.")
    said(chat, "The quick brown fox")
    said(chat, "And?")

    answer = chat.edit(1, "The quick brown dog", max_tokens=12).answer()

    messages = [Message("system", "Be brief and kind."), Message("user", "The quick brown dog")]
    assert answer.text == expected_answer(decoder, messages, 12)
    assert chat.messages == (*messages, Message("assistant", answer.text))
    common = decoder.encode_exactly(decoder.apply_chat_template(messages[:1], add_generation_prompt=False))
    assert answer.rates.cached_tokens > len(common)


def test_reset_keeps_the_cached_system_message(decoder: Decoder) -> None:
    chat = Chat(decoder, system="Be brief and kind. " * 10)
    first = said(chat, "Hello")

    chat.reset()

    assert chat.messages == (Message("system", "Be brief and kind. " * 10),)
    assert said(chat, "Hello") == first
    assert read_tokens(chat) == 1


def test_a_refused_message_changes_nothing(decoder: Decoder) -> None:
    chat = Chat(decoder)
    said(chat, "Hello")
    before = chat.messages

    for text, options in [("\ud800", {}), ("x" * 5000, {}), ("Hello", {"stop": [""]}), ("Hello", {"max_tokens": 0})]:
        with pytest.raises(InputError):
            chat.send(text, **options)
        assert chat.messages == before
    said(chat, "And?")
    assert chat.messages[:2] == before


def test_a_template_without_system_messages(decoder: Decoder) -> None:
    template = "{% if messages[0].role == 'system' %}{{ raise_exception('No system role') }}{% endif %}" + CHATML
    chat = Chat(with_facts(decoder, chat=ChatFacts(template, {})), system="Be brief.")

    with pytest.raises(InputError) as caught:
        chat.send("Hello")

    assert caught.value.message == "the model's chat template refuses these messages: No system role"


def test_a_template_writes_the_beginning_of_the_text_itself(decoder: Decoder) -> None:
    facts = ChatFacts("{{ bos_token }}" + CHATML, {"bos_token": "<|endoftext|>"})
    beginning = with_facts(decoder, chat=facts, add_bos=True, bos_id=0)

    stream = Chat(beginning).send("Hello")

    assert stream.steps.prompt[:2] == [0, 1]


def test_a_model_without_a_template(decoder: Decoder) -> None:
    other = with_facts(decoder, chat=None)

    for use in (lambda: Chat(other), lambda: other.chat([{"role": "user", "content": "Hello"}])):
        with pytest.raises(InputError) as caught:
            use()
        assert caught.value.message == f"`{decoder.bundle.path}` has no chat template, so it cannot answer messages"
        assert caught.value.hint == ("continue a text with `generate`, or use a model that was trained for chat")


def test_there_must_be_something_to_answer_again(decoder: Decoder) -> None:
    with pytest.raises(InputError) as caught:
        Chat(decoder).regenerate()

    assert caught.value.message == "the conversation has no answer yet"


def test_only_user_messages_can_be_edited(decoder: Decoder) -> None:
    chat = Chat(decoder, system="Be brief.")
    said(chat, "Hello")

    for index in (-1, 0, 2, 3):
        with pytest.raises(InputError) as caught:
            chat.edit(index, "Hi")
        assert caught.value.message == f"message {index} is not a user message"
        assert caught.value.hint == "user messages: 1"
    for index in ("1", 1.0, True, None):
        with pytest.raises(InputError) as caught:
            chat.edit(index, "Hi")
        assert caught.value.message == f"`index` must be an integer, not {type(index).__name__}"


def test_a_saved_conversation_continues_without_prefill(decoder: Decoder, tmp_path: Path) -> None:
    chat = Chat(decoder, system="Be brief.")
    said(chat, "The quick brown fox")
    chat.save(tmp_path / "talk")
    expected = said(chat, "And?")
    read = read_tokens(chat)

    loaded = Chat.load(tmp_path / "talk", decoder)

    assert loaded.messages == chat.messages[:3]
    assert loaded.system == "Be brief."
    assert said(loaded, "And?") == expected
    assert read_tokens(loaded) == read


def test_a_saved_prompt_is_not_a_conversation(decoder: Decoder, tmp_path: Path) -> None:
    decoder.save_cache(tmp_path / "prompt", decoder.prefill("Hello"))

    with pytest.raises(InputError) as caught:
        Chat.load(tmp_path / "prompt", decoder)

    assert caught.value.message == f"`{tmp_path / 'prompt'}` is the prompt cache of a prompt, not of a conversation"


def test_a_conversation_continues_from_messages(decoder: Decoder) -> None:
    messages = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hm"}]
    chat = Chat(decoder, system="Be brief.", messages=messages)
    expected = [Message("system", "Be brief."), Message("user", "Hello"), Message("assistant", "Hm")]
    assert chat.messages == tuple(expected)

    assert said(chat, "And?") == expected_answer(decoder, [*expected, Message("user", "And?")], 12)
    chat.reset()
    assert chat.messages == tuple(expected[:1])


def test_a_message_without_an_answer_gets_its_first(decoder: Decoder) -> None:
    chat = Chat(decoder, messages=[{"role": "user", "content": "Hello"}])

    answer = chat.regenerate(max_tokens=12).answer().text

    assert answer == expected_answer(decoder, [Message("user", "Hello")], 12)
    assert chat.messages == (Message("user", "Hello"), Message("assistant", answer))


def test_messages_keep_their_own_system_message(decoder: Decoder) -> None:
    chat = Chat(decoder, system="Be brief.", messages=[{"role": "system", "content": "Be kind."}])

    assert chat.messages == (Message("system", "Be kind."),)
    assert chat.system == "Be kind."
    with pytest.raises(InputError, match="the conversation has no answer yet"):
        chat.regenerate()


def test_a_closed_conversation_keeps_its_messages_and_reads_them_again(decoder: Decoder) -> None:
    with Chat(decoder) as chat:
        said(chat, "Hello fox")
        assert repr(chat) == f"<Chat of 2 messages, {chat.cache.length} cached tokens>"
    before = chat.messages
    assert chat.cache.length == 0

    said(chat, "And?")

    assert chat.messages[:2] == before
    assert read_tokens(chat) == len(chat._stream.steps.prompt)


def test_options_are_keywords_as_in_the_decoder(decoder: Decoder) -> None:
    chat = Chat(decoder)
    sampled = chat.send("Hello", max_tokens=9, temperature=2.0, seed=1).answer().text

    again = chat.regenerate(max_tokens=9, sampling=Sampling(temperature=2, seed=1)).answer().text

    assert again == sampled
    with pytest.raises(TypeError, match="unexpected keyword argument `temprature`; did you mean `temperature`"):
        chat.send("Hello", temprature=1)


def test_a_conversation_needs_an_open_decoder(decoder: Decoder, tmp_path: Path) -> None:
    for misuse in (
        lambda: Chat("bundles/smol"),  # type: ignore[arg-type]
        lambda: Chat.load(decoder, tmp_path / "saved"),  # type: ignore[arg-type]
    ):
        with pytest.raises(InputError, match="`decoder` must be a Decoder, not ") as caught:
            misuse()
        assert caught.value.hint == "open one with `Decoder(bundle)`"
    with pytest.raises(InputError, match="`system` must be a string, not int"):
        Chat(decoder, system=5)  # type: ignore[arg-type]
