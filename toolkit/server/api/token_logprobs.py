"""Log-probabilities of tokens as the APIs have them: those of the model, before penalties, temperature and grammar."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ....runtime.decoder.decoder import Decoder
from ....runtime.decoder.stream import Token
from ....runtime.decoder.token_choice import FinishReason

_LOWEST = -9999.0
"""What OpenAI's API has for a very unlikely token, as JSON has no infinity."""


def shown_tokens(tokens: Iterable[Token], decoder: Decoder) -> list[Token]:
    """The tokens without the one that ends an answer, which has no text."""
    eos = frozenset(decoder.facts.eos_ids)
    return [token for token in tokens if not (token.finish_reason is FinishReason.STOP and token.id in eos)]


def chat_logprobs(tokens: Iterable[Token], decoder: Decoder) -> dict[str, Any]:
    """The field `logprobs` of a choice of a chat completion."""
    content = []
    for token in shown_tokens(tokens, decoder):
        top = [_entry(one.id, one.logprob, decoder) for one in token.top_logprobs]
        content.append({**_entry(token.id, token.logprob, decoder), "top_logprobs": top})
    return {"content": content, "refusal": None}


def _entry(token: int, logprob: float, decoder: Decoder) -> dict[str, Any]:
    content = decoder.vocabulary.bytes_of(token)
    return {
        "token": content.decode("utf-8", "replace"),
        "logprob": max(_LOWEST, logprob),
        "bytes": list(content),
    }


def completion_logprobs(tokens: Iterable[Token], decoder: Decoder, *, top: int, offset: int) -> dict[str, Any]:
    """The field `logprobs` of a choice of a text completion, whose first token begins at character `offset`."""
    found: dict[str, Any] = {"tokens": [], "token_logprobs": [], "top_logprobs": [] if top else None, "text_offset": []}
    for token in shown_tokens(tokens, decoder):
        found["tokens"].append(_name(token.id, decoder))
        found["token_logprobs"].append(max(_LOWEST, token.logprob))
        found["text_offset"].append(offset)
        if top:
            names = {_name(one.id, decoder): max(_LOWEST, one.logprob) for one in reversed(token.top_logprobs)}
            found["top_logprobs"].append(dict(reversed(names.items())))
        offset += len(token.text)
    return found


def _name(token: int, decoder: Decoder) -> str:
    """The text of a token; for a part of a character its bytes, as OpenAI's API writes them."""
    content = decoder.vocabulary.bytes_of(token)
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in content)
