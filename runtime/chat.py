"""Conversations with a decoder: its chat template, and what was said before kept in its cache."""

from __future__ import annotations

import os
from collections.abc import Sequence

from runtime.chat_template import ChatTemplate
from runtime.decoder import Decoder
from runtime.detokenizer import Detokenizer
from runtime.errors import BundleError, InputError
from runtime.messages import ASSISTANT, SYSTEM, USER, Message
from runtime.sampler import Sampling
from runtime.saved_cache import Conversation, load_cache, save_cache
from runtime.steps import FinishReason
from runtime.stream import Stream


class Chat:
    """A conversation. Each answer is a stream, and what it has said when the next message is sent is what it said.

    Only what the cache does not hold is read: the new message, or after an edit all from there on. The options of an
    answer are those of `Decoder.stream`.
    """

    def __init__(self, decoder: Decoder, *, system: str | None = None) -> None:
        """Begin a conversation, with a message to the system where there is one.

        Raises BundleError for a model without a chat template. A template that knows no system messages refuses one
        when the first message is sent.
        """
        if decoder.facts.chat is None:
            raise BundleError(
                f"`{decoder.bundle.path}` has no chat template, so it does not tell who says what",
                hint="continue raw text with `decoder.stream(prompt)`, or export a model made for conversations",
            )
        self.decoder = decoder
        self.template = ChatTemplate(decoder.facts.chat)
        self.system = system
        self.cache = decoder.new_cache()
        self.said: list[Message] = []
        self.stream: Stream | None = None
        """The last answer, which is no message while more of it may come."""
        self.read_text = ""
        self.read_ids: list[int] = []
        """The text of the conversation up to the last answer's end, and the ids that were read and chosen for it."""
        self.reset()

    @property
    def messages(self) -> tuple[Message, ...]:
        """What was said, with as much of the last answer as has come."""
        return tuple(self.said) if self.stream is None else (*self.said, Message(ASSISTANT, self.stream.text))

    def send(
        self,
        text: str,
        *,
        max_tokens: int | None = None,
        sampling: Sampling | None = None,
        stop: Sequence[str] = (),
        top_logprobs: int = 0,
        lookup: bool = True,
    ) -> Stream:
        """Say something, and stream the answer.

        Where a message or an option is refused, the conversation stays as it was.
        """
        self.settle()
        return self.answer(
            [*self.said, Message(USER, text)],
            max_tokens=max_tokens,
            sampling=sampling,
            stop=stop,
            top_logprobs=top_logprobs,
            lookup=lookup,
        )

    def regenerate(
        self,
        *,
        max_tokens: int | None = None,
        sampling: Sampling | None = None,
        stop: Sequence[str] = (),
        top_logprobs: int = 0,
        lookup: bool = True,
    ) -> Stream:
        """Forget the last answer, and stream another; without a seed, sampling gives another one."""
        self.settle()
        messages = self.said
        if not messages or messages[-1].role != ASSISTANT:
            raise InputError("there is no answer yet to give again", hint="say something with `chat.send(text)`")
        return self.answer(
            messages[:-1],
            max_tokens=max_tokens,
            sampling=sampling,
            stop=stop,
            top_logprobs=top_logprobs,
            lookup=lookup,
        )

    def edit(
        self,
        index: int,
        text: str,
        *,
        max_tokens: int | None = None,
        sampling: Sampling | None = None,
        stop: Sequence[str] = (),
        top_logprobs: int = 0,
        lookup: bool = True,
    ) -> Stream:
        """Say something else in place of message `index`, forget what came after, and stream the answer."""
        self.settle()
        messages = self.said
        if not 0 <= index < len(messages) or messages[index].role != USER:
            users = [str(place) for place, message in enumerate(messages) if message.role == USER]
            raise InputError(
                f"message {index} is none of the user's", hint=f"those are {', '.join(users)}" if users else None
            )
        return self.answer(
            [*messages[:index], Message(USER, text)],
            max_tokens=max_tokens,
            sampling=sampling,
            stop=stop,
            top_logprobs=top_logprobs,
            lookup=lookup,
        )

    def reset(self) -> None:
        """Begin anew, with the same message to the system."""
        self.settle()
        self.said = [] if self.system is None else [Message(SYSTEM, self.system)]

    def save(self, path: str | os.PathLike[str]) -> None:
        """End the last answer, and write the conversation and what was read of it to a file; raises OutputError."""
        self.settle()
        conversation = Conversation(tuple(self.said), self.read_text, tuple(self.read_ids))
        save_cache(path, self.cache, bundle=self.decoder.bundle, conversation=conversation)

    @classmethod
    def load(cls, path: str | os.PathLike[str], decoder: Decoder) -> Chat:
        """Go on with a conversation that was saved with the same bundle; raises as `Decoder.load` does."""
        chat = cls(decoder)
        conversation = load_cache(path, chat.cache, bundle=decoder.bundle).conversation
        if conversation is None:
            raise InputError(
                f"`{path}` holds what was read of a prompt, and no conversation",
                hint="load it with `decoder.load(path)`, or `edgekit generate --load-prefix`",
            )
        chat.said = list(conversation.messages)
        chat.read_text, chat.read_ids = conversation.text, list(conversation.ids)
        if chat.said and chat.said[0].role == SYSTEM:
            chat.system = chat.said[0].content
        return chat

    def answer(
        self,
        messages: list[Message],
        *,
        max_tokens: int | None,
        sampling: Sampling | None,
        stop: Sequence[str],
        top_logprobs: int,
        lookup: bool,
    ) -> Stream:
        """Stream the answer to these messages, which become the conversation."""
        prompt = self.template.render(messages)
        ids = self.ids_of(prompt)
        stream = self.decoder.stream(
            ids,
            max_tokens=max_tokens,
            sampling=sampling,
            stop=stop,
            top_logprobs=top_logprobs,
            cache=self.cache,
            lookup=lookup,
        )
        self.said, self.stream = messages, stream
        self.read_text, self.read_ids = prompt, ids
        return stream

    def ids_of(self, prompt: str) -> list[int]:
        """The ids of a rendered conversation, those of the last answer as the model chose them.

        An answer need not be made of the tokens that its text would be cut into, and would be read again if it were cut
        anew. Where a special token follows it, tokens end there in any case.
        """
        rest = prompt.removeprefix(self.read_text) if self.read_ids else prompt
        if len(rest) < len(prompt) and any(rest.startswith(text) for text in self.decoder.vocabulary.special_texts):
            return [*self.read_ids, *self.decoder.encode_exactly(rest)]
        return self.decoder.encode_exactly(prompt)

    def settle(self) -> None:
        """Make what the last answer has said a message, and end it where it still comes."""
        stream, self.stream = self.stream, None
        if stream is None:
            return
        stream.close()
        self.said = [*self.said, Message(ASSISTANT, stream.text)]
        ids = stream.steps.ids
        if ids and stream.steps.finish_reason is FinishReason.STOP:
            ids = ids[:-1]
        # What a stop string cut off, half a character or a special token within is not what the template will write.
        detokenizer = Detokenizer(self.decoder.vocabulary, self.read_ids)
        as_written = detokenizer.push_all(ids) + detokenizer.end() == stream.text
        special = self.decoder.vocabulary.special.intersection(ids)
        self.read_text += stream.text
        self.read_ids = [*self.read_ids, *ids] if as_written and not special else []
