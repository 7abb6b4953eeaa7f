"""What requests to `/v1/chat/completions` and `/v1/completions` have in common: sampling, length, stop, streaming."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ....runtime.decoder.decoder import Decoder
from ..errors import RequestError, printable
from ..settings import ServerSettings
from .request_fields import Fields, integer_of, number_of, text_of, texts_of

MOST_ANSWERS = 16
"""Largest `n`."""
MOST_STOPS = 16
"""Stop strings; OpenAI's API takes 4."""
MOST_BIASES = 1024
MOST_TOKENS = (1 << 31) - 1
_SEED = 1 << 63
_TOKEN_ID = re.compile(r"0|[1-9][0-9]{0,8}")
_TINY = 1.2e-38
"""Numbers below it are not float32 normal numbers, and 0 for logits."""
IGNORED = (
    "user",
    "metadata",
    "store",
    "service_tier",
    "prompt_cache_key",
    "prompt_cache_retention",
    "prompt_cache_options",
    "safety_identifier",
    "prediction",
)
"""Fields of OpenAI's API that never change an answer here: whose it is, where it is kept, how it is billed."""


@dataclass(frozen=True)
class GenerationRequest:
    """The fields of a request that decide how an answer is generated."""

    model: str
    n: int = 1
    stream: bool = False
    include_usage: bool = False
    """Whether a stream ends with the token counts."""
    max_tokens: int | None = None
    seed: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    """Other options of `Batch.submit`."""

    def options_of(self, answer: int, *, room: int) -> dict[str, Any]:
        """The options of one of the `n` answers, which have different seeds.

        `room` is the number of tokens that fit after the prompt; `max_tokens` is an upper bound, so that a larger one
        counts as this: such an answer ends with `length`.
        """
        options = dict(self.options)
        if self.max_tokens is not None and self.max_tokens < room:
            options["max_tokens"] = self.max_tokens
        if self.seed is not None:
            options["seed"] = (self.seed + answer) % (1 << 64)
        return options


def read_generation(
    fields: Fields, settings: ServerSettings, *, max_tokens: int | None, top_logprobs: int | None
) -> GenerationRequest:
    """Read the common fields; `max_tokens` and `top_logprobs` are those that the endpoint has read."""
    options: dict[str, Any] = {"stop": _stop_of(fields)}
    options |= _sampling_of(fields)
    if top_logprobs:
        options["top_logprobs"] = top_logprobs
    if settings.max_tokens is not None:
        max_tokens = settings.max_tokens if max_tokens is None else min(max_tokens, settings.max_tokens)
    stream = fields.flag("stream")
    streaming = fields.fields("stream_options")
    include_usage = False
    if streaming is not None:
        if not stream:
            raise RequestError("`stream_options` needs `stream`: true", param="stream_options")
        include_usage = streaming.flag("include_usage")
        streaming.ignore("include_obfuscation")
        streaming.finish()
    n = fields.integer("n", least=1, most=MOST_ANSWERS)
    fields.ignore(*IGNORED)
    return GenerationRequest(
        model=fields.required_text("model"),
        n=1 if n is None else n,
        stream=stream,
        include_usage=include_usage,
        max_tokens=max_tokens,
        seed=fields.integer("seed", least=-_SEED, most=_SEED - 1),
        options={name: value for name, value in options.items() if value is not None},
    )


def check_biases(options: Mapping[str, Any], decoder: Decoder) -> None:
    """Raise RequestError for a token of `logit_bias` that the model does not have."""
    biases: Mapping[int, float] = options.get("logit_bias", {})
    vocabulary = decoder.facts.vocabulary
    for token in biases:
        if token >= vocabulary:
            raise RequestError(
                f"`logit_bias` names the token {token}, and the vocabulary has {vocabulary} tokens", param="logit_bias"
            )
    if len(biases) == vocabulary and all(bias <= -100 for bias in biases.values()):
        raise RequestError("`logit_bias` excludes every token of the vocabulary", param="logit_bias")


def _sampling_of(fields: Fields) -> dict[str, Any]:
    """Sampling parameters; None where the model's default applies."""
    top_p = fields.number("top_p", least=0, most=1)
    repetition = fields.number("repetition_penalty", least=0.01, most=100)
    return {
        "temperature": _normal(fields.number("temperature", least=0, most=2)),
        # The most probable token alone, which is the limit for 0.
        "top_p": None if top_p is None else max(top_p, _TINY),
        "top_k": fields.integer("top_k", least=0, most=MOST_TOKENS),
        "min_p": fields.number("min_p", least=0, most=1),
        "presence_penalty": _normal(fields.number("presence_penalty", least=-2, most=2)),
        "frequency_penalty": _normal(fields.number("frequency_penalty", least=-2, most=2)),
        "repetition_penalty": repetition,
        "logit_bias": _biases_of(fields),
    }


def _normal(number: float | None) -> float | None:
    return 0.0 if number is not None and abs(number) < _TINY else number


def _biases_of(fields: Fields) -> dict[int, float] | None:
    """Token id -> bias; -100 excludes the token, as OpenAI's API says."""
    found = fields.value("logit_bias")
    if found is None:
        return None
    if not isinstance(found, dict):
        raise RequestError("`logit_bias` must be an object of token ids and numbers", param="logit_bias")
    if len(found) > MOST_BIASES:
        raise RequestError(f"`logit_bias` has {len(found)} tokens, and the limit is {MOST_BIASES}", param="logit_bias")
    biases = {}
    for token, bias in found.items():
        if not _TOKEN_ID.fullmatch(token):
            raise RequestError(
                f"`logit_bias` must have token ids as names, not `{printable(token)}`", param="logit_bias"
            )
        number = _normal(number_of(bias, f"logit_bias.{token}", least=-100, most=100)) or 0.0
        biases[int(token)] = -float("inf") if number <= -100 else number
    return biases


def _stop_of(fields: Fields) -> list[str] | None:
    found = fields.value("stop")
    if found is None:
        return None
    if not isinstance(found, list):
        return [text_of(found, fields.path("stop"), empty=False)]
    if len(found) > MOST_STOPS:
        raise RequestError(f"`stop` has {len(found)} strings, and the limit is {MOST_STOPS}", param="stop")
    return texts_of(found, "stop", empty=False)


def prompt_ids(found: list[Any], path: str, decoder: Decoder) -> list[int]:
    """Token ids of a prompt; raises RequestError for one that the model does not have."""
    most = decoder.facts.vocabulary - 1
    return [integer_of(one, f"{path}[{place}]", least=0, most=most) for place, one in enumerate(found)]
