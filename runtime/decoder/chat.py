"""Conversations of several turns, which keep their KV cache."""

from __future__ import annotations

import os
from types import TracebackType
from typing import Self, Unpack

from ..arguments import checked_integer, takes_keywords
from ..errors import InputError
from ..text.detokenizer import Detokenizer
from ..text.messages import ASSISTANT, SYSTEM, USER, Message, Messages, messages_of, with_system
from ..text.tokenizer import checked_text
from .cache.prompt_cache import Conversation, load_cache, save_cache
from .decoder import Decoder
from .generation_options import GenerationOptions
from .stream import Stream
from .token_choice import FinishReason


class Chat:
    """A conversation that keeps its KV cache: each turn prefills only the new tokens.

    Each answer is a `Stream`; sending the next message ends it. The keywords are those of `GenerationOptions`, as for
    `Decoder`. Not thread-safe.

        >>> chat = Chat(decoder, system="Answer in one sentence.")
        >>> answer = chat.send("Why is the sky blue?", max_tokens=8).answer()
        >>> [message.role for message in chat.messages]
        ['system', 'user', 'assistant']
    """

    def __init__(self, decoder: Decoder, *, system: str | None = None, messages: Messages = ()) -> None:
        """Begin a conversation, or continue the one in `messages`, in the format of OpenAI's API.

        `system` is a system message before them, unless they begin with one. Raises InputError for a model without a
        chat template. A template without support for system messages refuses one when a message is sent.
        """
        _check_decoder(decoder)
        decoder.check_chat_template()
        self.decoder = decoder
        given = messages_of(messages)
        self._said = with_system(given, None if system is None else checked_text(system, "`system`"))
        self.system = self._said[0].content if self._said and self._said[0].role == SYSTEM else None
        """The system message, also after `reset`; None without one."""
        self.cache = decoder.new_cache()
        self._stream: Stream | None = None
        """The last answer, while it is not a message yet: more of it may follow."""
        self._read_text = ""
        self._read_ids: list[int] = []
        """The rendered conversation up to the end of the last answer, and its token ids, prefilled and sampled."""

    def __repr__(self) -> str:
        return f"<Chat of {len(self.messages)} messages, {self.cache.length} cached tokens>"

    @property
    def messages(self) -> tuple[Message, ...]:
        """The messages, including the last answer so far."""
        if self._stream is None:
            return tuple(self._said)
        return (*self._said, Message(ASSISTANT, self._stream.text))

    @takes_keywords(GenerationOptions)
    def send(self, text: str, **options: Unpack[GenerationOptions]) -> Stream:
        """Send a message, and stream the answer.

        Raises InputError for a message or an option that is not valid, and TextTooLongError where the conversation does
        not fit in the context; the conversation is unchanged then.
        """
        self._settle()
        return self._answer([*self._said, Message(USER, text)], options)

    @takes_keywords(GenerationOptions)
    def regenerate(self, **options: Unpack[GenerationOptions]) -> Stream:
        """Replace the last answer with a new one, or answer a message that has no answer yet.

        Greedy decoding, or the same seed, gives the same answer again.
        """
        self._settle()
        messages = self._said
        if messages and messages[-1].role == ASSISTANT:
            messages = messages[:-1]
        if not messages or messages[-1].role == SYSTEM:
            raise InputError("the conversation has no answer yet", hint="send a message with `chat.send(text)`")
        return self._answer(messages, options)

    @takes_keywords(GenerationOptions)
    def edit(self, index: int, text: str, **options: Unpack[GenerationOptions]) -> Stream:
        """Replace user message `index`, drop the messages after it, and stream the answer."""
        self._settle()
        messages, index = self._said, checked_integer(index, "index", least=None)
        if not 0 <= index < len(messages) or messages[index].role != USER:
            users = [str(place) for place, message in enumerate(messages) if message.role == USER]
            raise InputError(
                f"message {index} is not a user message", hint=f"user messages: {', '.join(users)}" if users else None
            )
        return self._answer([*messages[:index], Message(USER, text)], options)

    def close(self) -> None:
        """End the last answer, and free the KV cache. The messages are kept; the next answer prefills them again."""
        self._settle()
        self._read_text, self._read_ids = "", []
        self.cache = self.decoder.new_cache()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def reset(self) -> None:
        """Start over with the same system message."""
        self._settle()
        self._said = [] if self.system is None else [Message(SYSTEM, self.system)]

    def save(self, path: str | os.PathLike[str]) -> None:
        """End the last answer, and save the conversation with its KV cache to a file; raises OutputError."""
        self._settle()
        conversation = Conversation(tuple(self._said), self._read_text, tuple(self._read_ids))
        save_cache(path, self.cache, bundle=self.decoder.bundle, conversation=conversation)

    @classmethod
    def load(cls, path: str | os.PathLike[str], decoder: Decoder) -> Chat:
        """Continue a conversation that was saved with the same bundle; raises as `Decoder.load_cache` does."""
        _check_decoder(decoder)
        cache = decoder.new_cache()
        conversation = load_cache(path, cache, bundle=decoder.bundle).conversation
        if conversation is None:
            raise InputError(
                f"`{path}` is the prompt cache of a prompt, not of a conversation",
                hint="load it with `decoder.load_cache(path)`, or `ortkit generate --load-prefix`",
            )
        chat = cls(decoder, messages=conversation.messages)
        chat.cache, chat._read_text, chat._read_ids = cache, conversation.text, list(conversation.ids)
        return chat

    def _answer(self, messages: list[Message], options: GenerationOptions) -> Stream:
        """Stream the answer to these messages, which become the conversation."""
        prompt = self.decoder.apply_chat_template(messages)
        ids = self._ids_of(prompt)
        stream = self.decoder.stream(ids, cache=self.cache, **options)
        self._said, self._stream = messages, stream
        self._read_text, self._read_ids = prompt, ids
        return stream

    def _ids_of(self, prompt: str) -> list[int]:
        """The token ids of a rendered conversation, with those of the last answer as the model generated them.

        Tokenizing an answer again may give other tokens, which are not in the KV cache. Its own ids are valid where a
        special token follows, because no token crosses a special token.
        """
        rest = prompt.removeprefix(self._read_text) if self._read_ids else prompt
        if len(rest) < len(prompt) and any(rest.startswith(text) for text in self.decoder.vocabulary.special_texts):
            return [*self._read_ids, *self.decoder.encode_exactly(rest)]
        return self.decoder.encode_exactly(prompt)

    def _settle(self) -> None:
        """End the last answer and make it a message."""
        stream, self._stream = self._stream, None
        if stream is None:
            return
        stream.close()
        self._said = [*self._said, Message(ASSISTANT, stream.text)]
        ids = stream.steps.ids
        # A grammar may end an answer without an end-of-sequence token.
        if ids and stream.steps.finish_reason is FinishReason.STOP and ids[-1] in self.decoder.facts.eos_ids:
            ids = ids[:-1]
        # Not where a stop string, an incomplete character or a special token makes the text differ from the ids.
        detokenizer = Detokenizer(self.decoder.vocabulary, self._read_ids)
        as_written = detokenizer.push_all(ids) + detokenizer.end() == stream.text
        special = self.decoder.vocabulary.special.intersection(ids)
        self._read_text += stream.text
        self._read_ids = [*self._read_ids, *ids] if as_written and not special else []


def _check_decoder(decoder: object) -> None:
    if not isinstance(decoder, Decoder):
        raise InputError(
            f"`decoder` must be a Decoder, not {type(decoder).__name__}", hint="open one with `Decoder(bundle)`"
        )
