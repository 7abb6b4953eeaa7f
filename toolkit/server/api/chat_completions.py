"""`/v1/chat/completions` of OpenAI's API: answers to a conversation, whole or as a stream of events."""

from __future__ import annotations

import secrets
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from time import time
from typing import Any

from ....runtime.decoder.decoder import Decoder
from ....runtime.decoder.stream import Token
from ....runtime.errors import BundleError
from ....runtime.text.messages import Message
from ...search.hits import Hit
from ..errors import RequestError, blaming, error_response
from ..operation.metrics import Metrics
from ..operation.request_record import note
from ..served.indexes import ServedIndex
from ..served.models import ServedModel
from ..settings import ServerSettings
from .answers import Answers, submitted, usage_json
from .chat_deltas import ChatDeltas
from .chat_messages import read_messages, read_response_format, read_tool_choice, read_tools
from .file_search import FileSearch, GroundedDeltas, NothingFound, ground, passages
from .generation_request import MOST_TOKENS, GenerationRequest, check_biases, read_generation
from .request_fields import Fields
from .search import Searcher
from .sse import DONE, EventTemplate, event
from .token_logprobs import chat_logprobs

MOST_LOGPROBS = 20


@dataclass(frozen=True)
class ChatRequest:
    """A request to `/v1/chat/completions`."""

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]]
    file_search: FileSearch | None
    is_grounded: bool
    """Whether `file_search` is used: `tool_choice` can be `none`."""
    tool_choice: str | dict[str, Any]
    response_format: dict[str, Any] | None
    logprobs: bool
    max_tokens_field: str
    generation: GenerationRequest


def read_chat(fields: Fields, settings: ServerSettings) -> ChatRequest:
    """Read the fields of a request; raises RequestError, which names the field at fault."""
    logprobs = fields.flag("logprobs")
    top_logprobs = fields.integer("top_logprobs", least=0, most=MOST_LOGPROBS)
    if top_logprobs is not None and not logprobs:
        raise RequestError("`top_logprobs` needs `logprobs`: true", param="top_logprobs")
    limits = {name: fields.integer(name, least=1, most=MOST_TOKENS) for name in ("max_completion_tokens", "max_tokens")}
    given = {name: limit for name, limit in limits.items() if limit is not None}
    if len(set(given.values())) > 1:
        raise RequestError("`max_tokens` and `max_completion_tokens` contradict each other", param="max_tokens")
    messages = read_messages(fields)
    tools, file_search = read_tools(fields)
    for name, why in _REFUSED.items():
        fields.refuse(name, why, allowed=_ALLOWED.get(name, ()))
    tool_choice = read_tool_choice(fields, tools, file_search)
    response_format = read_response_format(fields)
    if response_format is not None and tool_choice != "none" and (tools or file_search is not None):
        raise RequestError(
            "`response_format` and `tools` contradict each other",
            param="response_format",
            hint="leave one of them out, or send `tool_choice`: `none`",
        )
    request = ChatRequest(
        messages=messages,
        tools=tools,
        file_search=file_search,
        is_grounded=file_search is not None and tool_choice != "none",
        tool_choice=tool_choice if tools else "none",
        response_format=response_format,
        logprobs=logprobs,
        max_tokens_field=next(iter(given), "max_completion_tokens"),
        generation=read_generation(
            fields, settings, max_tokens=next(iter(given.values()), None), top_logprobs=top_logprobs
        ),
    )
    fields.finish()
    return request


_REFUSED = {
    "audio": "the model writes text only",
    "modalities": "the model writes text only",
    "functions": "use `tools`",
    "function_call": "use `tool_choice`",
    "web_search_options": "the server reaches no other",
    "moderation": "the server has no moderation",
    "reasoning_effort": "the model has no levels of reasoning",
    "verbosity": "the model has no levels of verbosity",
}
_ALLOWED: dict[str, tuple[object, ...]] = {"modalities": (["text"],)}


class ChatCompletion:
    """One request being answered."""

    def __init__(
        self,
        request: ChatRequest,
        served: ServedModel,
        metrics: Metrics,
        settings: ServerSettings,
        searcher: Searcher,
    ) -> None:
        self._request = request
        self._served = served
        self._answers = Answers(served, metrics, settings)
        self._searcher = searcher
        self._deltas: Sequence[ChatDeltas | GroundedDeltas] = []
        """What converts the tokens of each answer."""
        self._nothing: NothingFound | None = None
        """The answer where `file_search` has found nothing."""
        self._id = f"chatcmpl-{secrets.token_hex(12)}"
        self._created = int(time())

    async def submit(self) -> None:
        """Render, tokenize and queue the request; raises OrtkitError for one that cannot be answered."""
        search = self._request.file_search
        if search is not None:
            self._searcher.check(search.index, search.index_field, search.options)
        if search is None or not self._request.is_grounded:
            await submitted(self._answers, self._prepare)
            return
        with self._searcher.indexes.using(search.index, search.index_field) as index:
            hits = await passages(search, self._request.messages, index, self._searcher)
            await submitted(self._answers, lambda: self._prepare_grounded(search, hits, index))

    def cancel(self) -> None:
        self._answers.cancel()

    def _prepare(self) -> None:
        decoder, request = self._served.decoder, self._request
        generation = request.generation
        self._answers.check_count(generation.n, "n")
        with blaming("tools"):
            use = decoder.tool_use(request.tools, tool_choice=request.tool_choice)
        ids = prompt_of(decoder, request.messages, None if use is None else request.tools)
        check_biases(generation.options, decoder)
        extra: dict[str, Any] = {}
        if use is not None and use.grammar is not None:
            extra["grammar"] = use.grammar
        elif request.response_format is not None:
            extra["response_format"] = request.response_format
        self._deltas = [ChatDeltas(None if use is None else use.parser()) for _ in range(generation.n)]
        self._submit(ids, extra, "response_format" if "response_format" in extra else "messages")

    def _prepare_grounded(self, search: FileSearch, hits: list[Hit], index: ServedIndex) -> None:
        """As `_prepare`, with passages in the prompt; submits nothing where none was found."""
        request, generation = self._request, self._request.generation
        self._answers.check_count(generation.n, "n")
        check_biases(generation.options, self._served.decoder)
        grounding = ground(search, request.messages, hits, index, self._served, generation.max_tokens)
        if not grounding.found:
            note(model=self._served.name)
            self._nothing = NothingFound(grounding, index.name)
            return
        self._deltas = [GroundedDeltas(grounding, index.name) for _ in range(generation.n)]
        self._submit(prompt_of(self._served.decoder, list(grounding.messages), None), {}, "messages")

    def _submit(self, ids: list[int], extra: dict[str, Any], field: str) -> None:
        generation = self._request.generation
        room = self._answers.context - len(ids)
        prompts = [(ids, generation.options_of(answer, room=room) | extra) for answer in range(generation.n)]
        with blaming(field):
            self._answers.submit(prompts)

    async def whole(self) -> dict[str, Any]:
        """The complete answer."""
        tokens: list[list[Token]] = [[] for _ in range(self._request.generation.n)]
        while arrived := await self._answers.arrivals():
            for index, token in arrived:
                tokens[index].append(token)
        choices = [self._choice(index, found) for index, found in enumerate(tokens)]
        usage = usage_json(self._answers.usage(self._request.generation.n))
        return self._envelope("chat.completion", choices) | {"usage": usage}

    def _choice(self, index: int, tokens: list[Token]) -> dict[str, Any]:
        logprobs = chat_logprobs(tokens, self._served.decoder) if self._request.logprobs else None
        if self._nothing is not None:
            message = self._nothing.message()
            return {"index": index, "message": message, "logprobs": logprobs, "finish_reason": "stop"}
        deltas = self._deltas[index]
        for token in tokens:
            deltas.push(token)
        return {
            "index": index,
            "message": deltas.message(),
            "logprobs": logprobs,
            "finish_reason": deltas.finish_reason(tokens[-1]),
        }

    async def events(self) -> AsyncGenerator[bytes, None]:
        """The answer as server-sent events; an error in the middle of it is the last one."""
        template = self._template()
        try:
            start = [self._delta(index, {"role": "assistant", "content": ""}) for index in self._indices]
            yield b"".join(template.event([choice]) for choice in start)
            if self._nothing is not None:
                yield b"".join(template.event([choice]) for choice in self._nothing_parts(self._nothing))
            while arrived := await self._answers.arrivals():
                parts = [template.event([choice]) for one in arrived for choice in self._parts(*one)]
                if parts:
                    yield b"".join(parts)
            if self._request.generation.include_usage:
                usage = usage_json(self._answers.usage(self._request.generation.n))
                yield event(self._envelope("chat.completion.chunk", []) | {"usage": usage})
            yield DONE
        except Exception as error:  # noqa: BLE001 - the status has been sent
            yield event(error_response(error)[1])
        finally:
            self._answers.cancel()

    @property
    def _indices(self) -> range:
        return range(self._request.generation.n)

    def _parts(self, index: int, token: Token) -> list[dict[str, Any]]:
        """What a token adds to the stream: nothing where its text is held back, a chunk of its own for the end."""
        deltas = self._deltas[index]
        found = [self._delta(index, delta) for delta in deltas.push(token)]
        if self._request.logprobs:
            logprobs = chat_logprobs([token], self._served.decoder)
            if logprobs["content"]:
                # One chunk of a token has them, even where its text is held back.
                found = found or [self._delta(index, {"content": ""})]
                found[0]["logprobs"] = logprobs
        if token.finish_reason is not None:
            found.append(self._delta(index, deltas.last(), finish_reason=deltas.finish_reason(token)))
        return found

    def _nothing_parts(self, nothing: NothingFound) -> Iterator[dict[str, Any]]:
        for index in self._indices:
            yield from (self._delta(index, delta) for delta in nothing.deltas())
            yield self._delta(index, nothing.last(), finish_reason="stop")

    def _delta(self, index: int, delta: dict[str, Any], *, finish_reason: str | None = None) -> dict[str, Any]:
        return {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish_reason}

    def _template(self) -> EventTemplate:
        """The events of the stream, which differ in their choices."""
        usage = {"usage": None} if self._request.generation.include_usage else {}
        return EventTemplate(self._envelope("chat.completion.chunk", []) | usage, "choices")

    def _envelope(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self._id,
            "object": kind,
            "created": self._created,
            "model": self._served.name,
            "system_fingerprint": self._served.fingerprint,
            "choices": choices,
        }


def prompt_of(
    decoder: Decoder, messages: Sequence[Mapping[str, Any] | Message], tools: list[dict[str, Any]] | None
) -> list[int]:
    """The token ids of a conversation; raises RequestError for one that the model's template refuses."""
    with blaming("messages"):
        try:
            return decoder.encode_exactly(decoder.apply_chat_template(messages, tools=tools))
        except BundleError as error:
            # The template has answered other messages.
            raise RequestError(error.message, param="messages", hint=error.hint) from error
