"""`/tokenize`: the token ids of a text, in the shapes of vLLM (`prompt`) and llama.cpp (`content`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ....runtime.bundle.manifest import Kind
from ..errors import MissingFieldError, RequestError, WrongModelError, blaming
from ..served.models import ServedModel
from .chat_messages import read_messages
from .request_fields import Fields


@dataclass(frozen=True)
class TokenizeRequest:
    """A text, or the messages of a conversation, to tokenize."""

    model: str | None
    text: str | None
    field: str
    messages: list[dict[str, Any]] | None
    add_special_tokens: bool = True


def read_tokenize(fields: Fields) -> TokenizeRequest:
    """Read the fields of a request; raises RequestError, which names the field at fault."""
    given = [name for name in ("prompt", "content", "messages") if fields.given(name)]
    if not given:
        raise MissingFieldError("the field `prompt` is missing", param="prompt")
    if len(given) > 1:
        raise RequestError(f"`{given[0]}` and `{given[1]}` contradict each other", param=given[1])
    special = [fields.flag(name, default=True) for name in ("add_special_tokens", "add_special")]
    messages = read_messages(fields) if given == ["messages"] else None
    fields.ignore("messages")
    text = fields.text("prompt")
    content = fields.text("content")
    request = TokenizeRequest(fields.text("model"), content if text is None else text, given[0], messages, all(special))
    fields.finish()
    return request


def tokenize_answer(request: TokenizeRequest, served: ServedModel) -> dict[str, Any]:
    """The token ids, their number, and the model's limit."""
    if served.kind is Kind.RERANKER:
        raise WrongModelError(f"`{served.name}` is a reranker, which reads pairs of texts", param="model")
    with blaming(request.field):
        if served.kind is Kind.EMBEDDER:
            if request.messages is not None:
                raise RequestError(f"`{served.name}` is an embedder, which reads no messages", param="messages")
            tokenizer = served.embedder.tokenizer
            ids = tokenizer.ids_of(request.text or "", special=request.add_special_tokens)
            return _answer(ids, served.embedder.max_length)
        decoder = served.decoder
        if request.messages is not None:
            ids = decoder.encode_exactly(decoder.apply_chat_template(request.messages))
        elif request.add_special_tokens:
            ids = decoder.encode(request.text or "")
        else:
            ids = decoder.encode_exactly(request.text or "")
        return _answer(ids, served.context)


def _answer(ids: list[int], limit: int) -> dict[str, Any]:
    return {"count": len(ids), "max_model_len": limit, "tokens": ids}
