"""The ASGI application: which path is answered by what, and what all requests have in common."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from ...runtime.bundle.manifest import Kind
from .api import embeddings, rerank, search
from .api.chat_completions import ChatCompletion, read_chat
from .api.completions import Completion, read_completion
from .api.models_list import model_entry, models_list, tei_info
from .api.openapi import openapi_document
from .api.request_fields import Fields, parse_body
from .api.sse import EventStream, disconnected, json_bytes
from .api.tokenize import read_tokenize, tokenize_answer
from .errors import CLIENT_CLOSED, Api, MediaTypeError, error_response, openai_error, printable
from .operation.metrics import CONTENT_TYPE, Metrics
from .served.indexes import ServedIndexes
from .served.models import ServedModel, ServedModels
from .settings import ServerSettings

_LONG_BODY = 1 << 16
"""Bytes from which on a body is parsed, and an answer written, in a thread."""
_PARSER = ThreadPoolExecutor(1, "ortkit-json")
"""Parses long bodies one after another: as Python's objects a body may take ten times as much memory."""

Handler = Callable[..., Awaitable[Response]]
"""Takes the fields of the body, and the parameters of the path by their names."""


class JsonResponse(Response):
    """A JSON value."""

    media_type = "application/json"

    def render(self, content: object) -> bytes:
        return json_bytes(content)


def create_app(
    models: ServedModels, settings: ServerSettings, metrics: Metrics, indexes: ServedIndexes | None = None
) -> Starlette:
    """The application for these models and indexes; closing them is the caller's."""
    indexes = indexes if indexes is not None else ServedIndexes(models, settings, metrics)
    app = Starlette(routes=Endpoints(models, settings, metrics, indexes).routes(), exception_handlers=_HANDLERS)
    # Clients repeat no POST at the place where they are sent.
    app.router.redirect_slashes = False
    return app


class Endpoints:
    """The functions that answer requests."""

    def __init__(
        self, models: ServedModels, settings: ServerSettings, metrics: Metrics, indexes: ServedIndexes
    ) -> None:
        self._models = models
        self._settings = settings
        self._metrics = metrics
        self._indexes = indexes
        self._searcher = search.Searcher(indexes, models, metrics)
        self._document: tuple[int, bytes] | None = None
        """The OpenAPI document, and how many models had been replaced before it was made."""

    def routes(self) -> list[BaseRoute]:
        """All paths."""
        return [
            Route("/v1/models", self._models_list),
            Route("/v1/models/{model:path}", self._model),
            _post("/v1/chat/completions", self._chat),
            _post("/v1/completions", self._completion),
            _post("/v1/embeddings", self._embeddings),
            _post("/v1/rerank", self._rerank),
            _post("/v2/rerank", self._rerank),
            _post("/rerank", self._any_rerank),
            _post("/embed", self._tei_embed, Api.TEI),
            _post("/tokenize", self._tokenize),
            _post("/v1/search", self._search),
            Route("/v1/vector_stores", self._indexes_list),
            Route("/v1/vector_stores/{index}", self._index),
            _post("/v1/vector_stores/{index}/search", self._search),
            Route("/info", self._info),
            Route("/health", self._health),
            Route("/ready", self._ready),
            Route("/metrics", self._metrics_page),
            Route("/openapi.json", self._openapi),
        ]

    async def _models_list(self, _request: Request) -> Response:
        return JsonResponse(models_list(self._models))

    async def _model(self, request: Request) -> Response:
        try:
            return JsonResponse(model_entry(self._models.find(request.path_params["model"])))
        except Exception as error:  # noqa: BLE001 - it becomes the answer
            return _failed(error, Api.OPENAI)

    async def _chat(self, fields: Fields) -> Response:
        request = read_chat(fields, self._settings)
        with ExitStack() as stack:
            served = stack.enter_context(self._models.using(request.generation.model, Kind.DECODER))
            answer = ChatCompletion(request, served, self._metrics, self._settings, self._searcher)
            return await _answered(answer, stack, stream=request.generation.stream)

    async def _completion(self, fields: Fields) -> Response:
        request = read_completion(fields, self._settings)
        with ExitStack() as stack:
            served = stack.enter_context(self._models.using(request.generation.model, Kind.DECODER))
            answer = Completion(request, served, self._metrics, self._settings)
            return await _answered(answer, stack, stream=request.generation.stream)

    async def _embeddings(self, fields: Fields) -> Response:
        request = embeddings.read_openai(fields, self._settings)
        with self._models.using(request.model, Kind.EMBEDDER) as served:
            return await _written(await embeddings.openai_answer(request, served, self._metrics), len(request.texts))

    async def _tei_embed(self, fields: Fields) -> Response:
        request = embeddings.read_tei(fields, self._settings)
        with self._models.using(request.model, Kind.EMBEDDER) as served:
            return await _written(await embeddings.tei_answer(request, served, self._metrics), len(request.texts))

    async def _rerank(self, fields: Fields) -> Response:
        request = rerank.read_cohere(fields, self._settings)
        with self._models.using(request.model, Kind.RERANKER) as served:
            return JsonResponse(await rerank.cohere_answer(request, served, self._metrics))

    async def _any_rerank(self, fields: Fields) -> Response:
        if not rerank.is_tei(fields):
            return await self._rerank(fields)
        try:
            request = rerank.read_tei(fields, self._settings)
            with self._models.using(request.model, Kind.RERANKER) as served:
                return JsonResponse(await rerank.tei_answer(request, served, self._metrics))
        except Exception as error:  # noqa: BLE001 - it becomes the answer, in the shape of this API
            return _failed(error, Api.TEI)

    async def _search(self, fields: Fields, index: str | None = None) -> Response:
        request = search.read_search(fields, index)
        with self._indexes.using(request.index, "index") as served:
            hits = await self._searcher.find(request.options, request.query, "query", served)
            return JsonResponse(search.search_answer(request, served.name, hits))

    async def _indexes_list(self, _request: Request) -> Response:
        return JsonResponse(search.indexes_list(self._indexes))

    async def _index(self, request: Request) -> Response:
        try:
            return JsonResponse(search.index_entry(self._indexes.get(request.path_params["index"], "index")))
        except Exception as error:  # noqa: BLE001 - it becomes the answer
            return _failed(error, Api.OPENAI)

    async def _tokenize(self, fields: Fields) -> Response:
        request = read_tokenize(fields)
        served = self._only_model() if request.model is None else self._models.find(request.model)
        with self._models.using(served.name, served.kind) as used:
            return JsonResponse(await asyncio.to_thread(tokenize_answer, request, used))

    def _only_model(self) -> ServedModel:
        """The model where a request names none: the only LLM, or the only embedder."""
        kind = Kind.DECODER if self._models.of_kind(Kind.DECODER) else Kind.EMBEDDER
        return self._models.get(None, kind)

    async def _info(self, request: Request) -> Response:
        try:
            return JsonResponse(tei_info(self._models, self._settings, request.query_params.get("model")))
        except Exception as error:  # noqa: BLE001 - it becomes the answer
            return _failed(error, Api.TEI)

    async def _health(self, _request: Request) -> Response:
        return JsonResponse({"status": "ok"})

    async def _ready(self, _request: Request) -> Response:
        if self._models.draining:
            return JsonResponse({"status": "draining"}, 503)
        indexes = {"indexes": list(self._indexes.names)} if self._indexes.names else {}
        return JsonResponse({"status": "ready", "models": list(self._models.names), **indexes})

    async def _metrics_page(self, _request: Request) -> Response:
        return Response(await asyncio.to_thread(self._metrics.render), headers={"content-type": CONTENT_TYPE})

    async def _openapi(self, _request: Request) -> Response:
        replaced = self._models.replaced
        if self._document is None or self._document[0] != replaced:
            self._document = replaced, json_bytes(openapi_document(self._models, self._settings, self._indexes.names))
        return Response(self._document[1], media_type=JsonResponse.media_type)


def _post(path: str, handler: Handler, api: Api = Api.OPENAI) -> Route:
    """A path that takes a JSON object; errors have the shape of `api`."""

    async def respond(request: Request) -> Response:
        try:
            fields = await _fields_of(request)
            return await _until_disconnected(handler(fields, **request.path_params), request)
        except ClientDisconnect:
            return Response(status_code=CLIENT_CLOSED)
        except Exception as error:  # noqa: BLE001 - it becomes the answer
            return _failed(error, api)

    return Route(path, respond, methods=["POST"])


async def _fields_of(request: Request) -> Fields:
    """The JSON object of a request's body."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise MediaTypeError("the body must be JSON", hint="send `Content-Type: application/json`")
    encodings = [
        one.strip().lower() for value in request.headers.getlist("content-encoding") for one in value.split(",")
    ]
    if any(one not in ("", "identity") for one in encodings):
        raise MediaTypeError(
            f"the body must not be compressed, and `Content-Encoding` is `{printable(', '.join(encodings))}`",
            hint="send it as it is, without `Content-Encoding`",
        )
    body = await request.body()
    if len(body) < _LONG_BODY:
        return parse_body(body)
    return await asyncio.get_running_loop().run_in_executor(_PARSER, parse_body, body)


async def _until_disconnected(answering: Awaitable[Response], request: Request) -> Response:
    """Wait for an answer, and cancel it where the client goes away."""
    answer = asyncio.ensure_future(answering)
    gone = asyncio.ensure_future(disconnected(request.receive))
    try:
        await asyncio.wait((answer, gone), return_when=asyncio.FIRST_COMPLETED)
        if not answer.done():
            raise ClientDisconnect
        return answer.result()
    finally:
        gone.cancel()
        if not answer.done():
            answer.cancel()
            await asyncio.wait((answer,))
            if not answer.cancelled():
                # Nobody is left to hear of it.
                answer.exception()


async def _answered(answer: ChatCompletion | Completion, stack: ExitStack, *, stream: bool) -> Response:
    """An answer of an LLM, whole or as a stream, which takes over what is on the stack."""
    stack.callback(answer.cancel)
    await answer.submit()
    if stream:
        return EventStream(answer.events(), stack.pop_all().close)
    return JsonResponse(await answer.whole())


async def _written(answer: object, texts: int) -> Response:
    """A JSON answer with the vectors of texts, written in a thread where it is long."""
    return JsonResponse(answer) if texts < 32 else await asyncio.to_thread(JsonResponse, answer)


def _failed(error: Exception, api: Api) -> Response:
    status, body, headers = error_response(error, api)
    return JsonResponse(body, status, headers)


async def _http_error(_request: Request, error: Exception) -> Response:
    """An unknown path, or a method that a path does not have."""
    status, headers = 500, None
    if isinstance(error, HTTPException):
        status, headers = error.status_code, error.headers
    message = {404: "there is no such path", 405: "the path does not take this method"}.get(
        status, "the request failed"
    )
    return JsonResponse(openai_error(message, status), status, headers)


_HANDLERS: Mapping[Any, Any] = {HTTPException: _http_error, 500: _http_error}
