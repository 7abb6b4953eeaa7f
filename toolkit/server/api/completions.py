"""`/v1/completions` of OpenAI's API: texts that continue prompts, without a chat template."""

from __future__ import annotations

import secrets
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from time import time
from typing import Any

from ....runtime.decoder.decoder import Decoder
from ....runtime.decoder.prompt import Prompt
from ....runtime.decoder.stream import Token
from ....runtime.text.detokenizer import Detokenizer
from ..errors import RequestError, blaming, error_response
from ..operation.metrics import Metrics
from ..served.models import ServedModel
from ..settings import ServerSettings
from .answers import Answers, submitted, usage_json
from .generation_request import MOST_TOKENS, GenerationRequest, check_biases, prompt_ids, read_generation
from .request_fields import Fields, check_count, kind_of, text_of
from .sse import DONE, EventTemplate, event
from .token_logprobs import completion_logprobs

_MAX_TOKENS = 16
"""The default of OpenAI's API and of vLLM."""
_MOST_LOGPROBS = 5


@dataclass(frozen=True)
class CompletionRequest:
    """A request to `/v1/completions`."""

    prompts: list[Any]
    """Texts, or lists of token ids."""
    echo: bool
    logprobs: int | None
    """Number of most probable tokens to report; None for no log-probabilities."""
    generation: GenerationRequest


def read_completion(fields: Fields, settings: ServerSettings) -> CompletionRequest:
    """Read the fields of a request; raises RequestError, which names the field at fault."""
    max_tokens = fields.integer("max_tokens", least=1, most=MOST_TOKENS)
    logprobs = fields.integer("logprobs", least=0, most=_MOST_LOGPROBS)
    echo = fields.flag("echo")
    if echo and logprobs is not None:
        raise RequestError("`echo` with `logprobs` is not supported: those of the prompt are not kept", param="echo")
    fields.refuse("suffix", "the model only continues texts", allowed=("",))
    fields.refuse("best_of", "use `n`", allowed=(1,))
    request = CompletionRequest(
        prompts=_prompts_of(fields, settings.max_inputs),
        echo=echo,
        logprobs=logprobs,
        generation=read_generation(
            fields, settings, max_tokens=_MAX_TOKENS if max_tokens is None else max_tokens, top_logprobs=logprobs
        ),
    )
    fields.finish()
    return request


def _prompts_of(fields: Fields, most: int) -> list[Any]:
    """The prompts of a request, one or several."""
    found = fields.value("prompt", required=True)
    if isinstance(found, str):
        return [text_of(found, "prompt", empty=False)]
    if not isinstance(found, list):
        raise RequestError(f"`prompt` must be a string or an array, not {kind_of(found)}", param="prompt")
    check_count(found, "prompt", least=1)
    if isinstance(found[0], (int, float)):
        return [found]
    check_count(found, "prompt", most=most)
    for place, one in enumerate(found):
        if isinstance(one, list):
            check_count(one, f"prompt[{place}]", least=1)
        else:
            text_of(one, f"prompt[{place}]", empty=False)
    return found


class Completion:
    """One request being answered. Its choices are the answers to the first prompt, then those to the next one."""

    def __init__(
        self, request: CompletionRequest, served: ServedModel, metrics: Metrics, settings: ServerSettings
    ) -> None:
        self._request = request
        self._served = served
        self._answers = Answers(served, metrics, settings)
        self._id = f"cmpl-{secrets.token_hex(12)}"
        self._created = int(time())
        self._echoed: list[str] = []
        """The text of each choice before its answer."""
        self._offsets: list[int] = []
        """Number of characters of each choice so far."""

    async def submit(self) -> None:
        """Tokenize and queue the request; raises OrtkitError for one that cannot be answered."""
        await submitted(self._answers, self._prepare)

    def cancel(self) -> None:
        self._answers.cancel()

    def _prepare(self) -> None:
        decoder, generation = self._served.decoder, self._request.generation
        self._answers.check_count(len(self._request.prompts) * generation.n, "prompt")
        check_biases(generation.options, decoder)
        prompts = []
        for place, prompt in enumerate(self._request.prompts):
            ids = _ids_of(prompt, f"prompt[{place}]" if len(self._request.prompts) > 1 else "prompt", decoder)
            text = (prompt if isinstance(prompt, str) else _text_of(ids, decoder)) if self._request.echo else ""
            for answer in range(generation.n):
                prompts.append((ids, generation.options_of(answer, room=self._answers.context - len(ids))))
                self._echoed.append(text)
        self._offsets = [len(text) for text in self._echoed]
        with blaming("prompt"):
            self._answers.submit(prompts)

    async def whole(self) -> dict[str, Any]:
        """The complete answer."""
        tokens: list[list[Token]] = [[] for _ in self._echoed]
        while arrived := await self._answers.arrivals():
            for index, token in arrived:
                tokens[index].append(token)
        choices = [
            self._choice(index, self._echoed[index] + "".join(token.text for token in found), found)
            for index, found in enumerate(tokens)
        ]
        return self._envelope(choices) | {"usage": usage_json(self._answers.usage(self._request.generation.n))}

    async def events(self) -> AsyncGenerator[bytes, None]:
        """The answer as server-sent events; an error in the middle of it is the last one."""
        template = self._template()
        try:
            if self._request.echo:
                choices = [self._choice(index, text, []) for index, text in enumerate(self._echoed)]
                yield b"".join(template.event([choice]) for choice in choices)
            while arrived := await self._answers.arrivals():
                parts = [
                    template.event([self._choice(index, token.text, [token])])
                    for index, token in arrived
                    if token.text or token.finish_reason is not None or self._request.logprobs is not None
                ]
                if parts:
                    yield b"".join(parts)
            if self._request.generation.include_usage:
                usage = usage_json(self._answers.usage(self._request.generation.n))
                yield event(self._envelope([]) | {"usage": usage})
            yield DONE
        except Exception as error:  # noqa: BLE001 - the status has been sent
            yield event(error_response(error)[1])
        finally:
            self._answers.cancel()

    def _choice(self, index: int, text: str, tokens: list[Token]) -> dict[str, Any]:
        """A choice, or the part of it that these tokens are."""
        logprobs = None
        if self._request.logprobs is not None:
            logprobs = completion_logprobs(
                tokens, self._served.decoder, top=self._request.logprobs, offset=self._offsets[index]
            )
            self._offsets[index] += sum(len(token.text) for token in tokens)
        reason = tokens[-1].finish_reason if tokens else None
        return {
            "index": index,
            "text": text,
            "logprobs": logprobs,
            "finish_reason": None if reason is None else reason.value,
        }

    def _template(self) -> EventTemplate:
        """The events of the stream, which differ in their choices."""
        usage = {"usage": None} if self._request.generation.include_usage else {}
        return EventTemplate(self._envelope([]) | usage, "choices")

    def _envelope(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self._id,
            "object": "text_completion",
            "created": self._created,
            "model": self._served.name,
            "system_fingerprint": self._served.fingerprint,
            "choices": choices,
        }


def _ids_of(prompt: Prompt, path: str, decoder: Decoder) -> list[int]:
    """The token ids of a prompt; raises RequestError."""
    with blaming(path):
        return decoder.encode(prompt) if isinstance(prompt, str) else prompt_ids(list(prompt), path, decoder)


def _text_of(ids: list[int], decoder: Decoder) -> str:
    detokenizer = Detokenizer(decoder.vocabulary)
    return detokenizer.push_all(ids) + detokenizer.end()
