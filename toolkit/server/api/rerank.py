"""Reranking: Cohere's `/v2/rerank`, Jina's and vLLM's `/v1/rerank`, and `/rerank` of these and of TEI."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import Any

from ....runtime.bundle.manifest import Scores
from ....runtime.encoder.ranking import Ranking
from ....runtime.text.tokenizer import LongTexts
from ..errors import RequestError, UnsupportedFieldError, blaming_text
from ..operation.metrics import Metrics
from ..served.models import ServedModel
from ..settings import ServerSettings
from .embeddings import finished, opened
from .request_fields import Fields, kind_of, text_of

_MOST = (1 << 31) - 1
_TOO_LONG = "split the document, or pass `truncate`: true"


@dataclass(frozen=True)
class RerankRequest:
    """A request to rank documents for a query."""

    model: str | None
    query: str
    documents: list[str]
    field: str
    """The field of the documents."""
    top_n: int | None = None
    long: LongTexts = LongTexts.TRUNCATE
    raw_scores: bool = False
    with_documents: bool = False
    max_tokens: int | None = None
    """Largest number of tokens of a document that the request asks for."""


def is_tei(fields: Fields) -> bool:
    """Whether the body of a request to `/rerank` is TEI's, which has `texts` where the others have `documents`."""
    return fields.given("texts") and not fields.given("documents")


def read_cohere(fields: Fields, settings: ServerSettings) -> RerankRequest:
    """Read a request of Cohere's, Jina's or vLLM's API; raises RequestError, which names the field at fault."""
    query = _query_of(fields)
    found = fields.array("documents", required=True, least=1, most=settings.max_inputs) or []
    request = RerankRequest(
        model=fields.required_text("model"),
        query=query,
        documents=[_document_of(one, f"documents[{place}]") for place, one in enumerate(found)],
        field="documents",
        top_n=fields.integer("top_n", least=1, most=_MOST),
        with_documents=fields.flag("return_documents"),
        max_tokens=fields.integer("max_tokens_per_doc", least=1, most=_MOST),
    )
    fields.refuse("relevant_spans", "the model scores whole documents")
    fields.refuse("rank_fields", "documents are texts")
    fields.ignore("priority", "user")
    fields.finish()
    return request


def read_tei(fields: Fields, settings: ServerSettings) -> RerankRequest:
    """Read a request of TEI's API."""
    direction = fields.choice("truncation_direction", ("Left", "Right", "left", "right"), default="Right")
    request = RerankRequest(
        model=fields.text("model"),
        query=_query_of(fields),
        documents=fields.texts("texts", required=True, least=1, most=settings.max_inputs) or [],
        field="texts",
        long=LongTexts.TRUNCATE if fields.flag("truncate") else LongTexts.ERROR,
        raw_scores=fields.flag("raw_scores"),
        with_documents=fields.flag("return_text"),
    )
    fields.finish()
    if direction in ("Left", "left") and request.long is LongTexts.TRUNCATE:
        raise UnsupportedFieldError(
            "`truncation_direction` is not supported: the bundle has the model's own", param="truncation_direction"
        )
    return request


def _query_of(fields: Fields) -> str:
    query = fields.required_text("query")
    if not query.strip():
        raise RequestError("`query` must not be empty", param="query")
    return query


def _document_of(found: object, path: str) -> str:
    """A document: a text, or Jina's object with one."""
    if isinstance(found, dict):
        document = Fields(found, path)
        text = document.required_text("text")
        document.finish()
        return text
    if not isinstance(found, str):
        raise RequestError(f"`{path}` must be a string, not {kind_of(found)}", param=path)
    return text_of(found, path)


async def rank(request: RerankRequest, served: ServedModel, metrics: Metrics) -> tuple[Ranking[str], int]:
    """The ranking of the documents of a request, and the number of tokens of all pairs."""
    reranker = served.reranker
    if len(reranker.facts.labels) > 1:
        raise RequestError(
            f"`{served.name}` has {len(reranker.facts.labels)} labels, and a ranking needs a model with one",
            param="model",
        )
    if request.max_tokens is not None and request.max_tokens < reranker.max_length:
        raise UnsupportedFieldError(
            f"`max_tokens_per_doc` below {reranker.max_length} is not supported: that is the model's limit of a query "
            "and a document, at which documents are truncated",
            param="max_tokens_per_doc",
        )
    scores = Scores.RAW if request.raw_scores else Scores.SIGMOID

    def open_call() -> Any:
        with blaming_text(lambda index: f"{request.field}[{index}]", request.field, too_long=_TOO_LONG):
            return reranker.open_call(
                request.query, request.documents, top_n=request.top_n, scores=scores, long=request.long
            )

    call = await opened(open_call, len(request.query) + sum(map(len, request.documents)))
    found: Ranking[str] = (await finished(served, call)).result()
    metrics.encoded(served.name, call.tokens)
    return found, call.tokens


async def cohere_answer(request: RerankRequest, served: ServedModel, metrics: Metrics) -> dict[str, Any]:
    """The answer of `/v2/rerank`, `/v1/rerank` and `/rerank`: what Cohere's clients, Jina's and vLLM's read."""
    ranking, tokens = await rank(request, served, metrics)
    results = []
    for ranked in ranking.ranked:
        result: dict[str, Any] = {"index": ranked.index, "relevance_score": ranked.score}
        if request.with_documents:
            result["document"] = {"text": ranked.document}
        results.append(result)
    meta: dict[str, Any] = {"api_version": {"version": "2"}, "tokens": {"input_tokens": tokens}}
    warnings = _warnings_of(ranking)
    if warnings:
        meta["warnings"] = warnings
    return {
        "id": str(uuid.uuid4()),
        "model": served.name,
        "results": results,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        "meta": meta,
    }


def _warnings_of(ranking: Ranking[str]) -> list[str]:
    """What was truncated."""
    found = []
    if ranking.truncated:
        found.append(f"{len(ranking.truncated)} of {ranking.documents} documents were truncated to the model's limit")
    if ranking.query_dropped:
        found.append(f"the query was truncated by up to {ranking.query_dropped} tokens")
    return found


async def tei_answer(request: RerankRequest, served: ServedModel, metrics: Metrics) -> list[dict[str, Any]]:
    """The answer of TEI's `/rerank`."""
    ranking, _ = await rank(request, served, metrics)
    return [
        {"index": ranked.index, "score": ranked.score} | ({"text": ranked.document} if request.with_documents else {})
        for ranked in ranking.ranked
    ]
