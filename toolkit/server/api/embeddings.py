"""Embeddings: `/v1/embeddings` of OpenAI's API, and `/embed` of text-embeddings-inference (TEI)."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from ....runtime.encoder.embeddings import Embeddings
from ....runtime.encoder.pooling import normalize
from ....runtime.encoder.shared_batches import SharedCall
from ....runtime.errors import InputError
from ....runtime.text.tokenizer import LongTexts
from ..errors import RequestError, UnsupportedFieldError, blaming_text, listed
from ..operation.metrics import Metrics
from ..served.models import ServedModel
from ..settings import ServerSettings
from .request_fields import Fields, check_count, kind_of, text_of, texts_of

_Call = TypeVar("_Call", bound=SharedCall)
_SHORT = 4096
"""Characters up to which texts are tokenized on the event loop: a thread would take longer to begin."""
_MOST_DIMENSIONS = 1 << 16
_TOO_LONG = "split it, or pass `truncate`: true"


@dataclass(frozen=True)
class EmbedRequest:
    """A request for embeddings."""

    model: str | None
    texts: list[str]
    field: str
    """The field of the texts."""
    single: bool = False
    """Whether the field is one text, not an array."""
    prompt: str | None = None
    dimensions: int | None = None
    long: LongTexts = LongTexts.ERROR
    as_base64: bool = False
    normalize: bool = True

    def path(self, index: int) -> str:
        return self.field if self.single else f"{self.field}[{index}]"


def read_openai(fields: Fields, settings: ServerSettings) -> EmbedRequest:
    """Read a request to `/v1/embeddings`; raises RequestError, which names the field at fault.

    `prompt_name` and `truncate` are TEI's. Texts over the model's limit are refused unless `truncate` is true.
    """
    texts, single = _texts_of(fields, "input", settings.max_inputs)
    request = EmbedRequest(
        model=fields.required_text("model"),
        texts=texts,
        field="input",
        single=single,
        prompt=fields.text("prompt_name"),
        dimensions=fields.integer("dimensions", least=1, most=_MOST_DIMENSIONS),
        long=LongTexts.TRUNCATE if fields.flag("truncate") else LongTexts.ERROR,
        as_base64=fields.choice("encoding_format", ("float", "base64")) == "base64",
    )
    fields.ignore("user")
    fields.finish()
    return request


def read_tei(fields: Fields, settings: ServerSettings) -> EmbedRequest:
    """Read a request to `/embed`."""
    texts, single = _texts_of(fields, "inputs", settings.max_inputs)
    direction = fields.choice("truncation_direction", ("Left", "Right", "left", "right"), default="Right")
    request = EmbedRequest(
        model=fields.text("model"),
        texts=texts,
        field="inputs",
        single=single,
        prompt=fields.text("prompt_name"),
        dimensions=fields.integer("dimensions", least=1, most=_MOST_DIMENSIONS),
        long=LongTexts.TRUNCATE if fields.flag("truncate") else LongTexts.ERROR,
        normalize=fields.flag("normalize", default=True),
    )
    fields.finish()
    if direction in ("Left", "left") and request.long is LongTexts.TRUNCATE:
        raise UnsupportedFieldError(
            "`truncation_direction` is not supported: the bundle has the model's own", param="truncation_direction"
        )
    return request


def _texts_of(fields: Fields, name: str, most: int) -> tuple[list[str], bool]:
    """The texts of a request, and whether it has a single one; an empty text is refused, as in both APIs."""
    found = fields.value(name, required=True)
    if isinstance(found, str):
        return [text_of(found, name, empty=False)], True
    if not isinstance(found, list):
        raise RequestError(f"`{name}` must be a string or an array of strings, not {kind_of(found)}", param=name)
    check_count(found, name, least=1, most=most)
    for one in found:
        first = one[0] if isinstance(one, list) and one else one
        if isinstance(first, int) and not isinstance(first, bool):
            raise UnsupportedFieldError(
                f"`{name}` must be texts, not token ids, which clients make with the tokenizer of another model",
                param=name,
                hint="for LangChain's OpenAIEmbeddings, pass `check_embedding_ctx_length=False`",
            )
    return texts_of(found, name, empty=False), False


async def embed(request: EmbedRequest, served: ServedModel, metrics: Metrics) -> tuple[NDArray[np.float32], int]:
    """The embeddings (texts, dimension) of a request, and the number of their tokens."""
    embedder = served.embedder
    if request.dimensions is not None and request.dimensions > embedder.dimension:
        raise RequestError(
            f"`dimensions` must be from 1 to {embedder.dimension}, the model's, not {request.dimensions}",
            param="dimensions",
        )
    if request.prompt is not None and request.prompt not in embedder.facts.prompts:
        raise RequestError(
            "the model has no prompt of this name",
            param="prompt_name",
            hint=f"supported: {listed(embedder.facts.prompts)}",
        )

    def open_call() -> Any:
        with blaming_text(request.path, request.field, too_long=_TOO_LONG):
            return embedder.open_call(request.texts, prompt=request.prompt, dim=request.dimensions, long=request.long)

    call = await opened(open_call, sum(map(len, request.texts)))
    found: Embeddings = (await finished(served, call)).result()
    tokens = int(found.tokens.sum())
    metrics.encoded(served.name, tokens)
    return found.vectors, tokens


async def opened(open_call: Callable[[], _Call], characters: int) -> _Call:
    """Open a call, in a thread where its texts are long."""
    return open_call() if characters <= _SHORT else await asyncio.to_thread(open_call)


async def finished(served: ServedModel, call: _Call) -> _Call:
    """Wait for a call in the queue of its model; cancelling this takes it out."""
    if served.queue is None:
        raise InputError(f"`{served.name}` has no queue")
    future: Future[_Call] = served.queue.submit(call)
    return await asyncio.wrap_future(future)


async def openai_answer(request: EmbedRequest, served: ServedModel, metrics: Metrics) -> dict[str, Any]:
    """The answer of `/v1/embeddings`."""
    vectors, tokens = await embed(request, served, metrics)
    encoded: list[Any] = vectors.tolist()
    if request.as_base64:
        encoded = [base64.b64encode(vector.astype("<f4").tobytes()).decode("ascii") for vector in vectors]
    return {
        "object": "list",
        "model": served.name,
        "data": [{"object": "embedding", "index": index, "embedding": vector} for index, vector in enumerate(encoded)],
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }


async def tei_answer(request: EmbedRequest, served: ServedModel, metrics: Metrics) -> list[list[float]]:
    """The answer of `/embed`."""
    facts = served.embedder.facts
    if not request.normalize and facts.normalize:
        raise UnsupportedFieldError(
            "`normalize` must be true: the model's publisher normalizes its embeddings", param="normalize"
        )
    vectors, _ = await embed(request, served, metrics)
    found: list[list[float]] = (vectors if facts.normalize or not request.normalize else normalize(vectors)).tolist()
    return found
