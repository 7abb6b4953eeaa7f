"""The OpenAPI 3.1 document of a server: its paths, with the models that it serves and its limits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ....runtime.bundle.manifest import Kind
from ....runtime.text.tool_calls import form_of
from ....runtime.version import __version__
from ..served.models import ServedModels
from ..settings import ServerSettings
from .chat_messages import MOST_MESSAGES, MOST_TOOLS
from .generation_request import MOST_ANSWERS, MOST_BIASES, MOST_STOPS, MOST_TOKENS
from .openapi_answers import ANSWERS, ERRORS, TEI_ERRORS, reference
from .openapi_chat import message_schema, response_format_schema, tool_choice_schema, tool_rules, tool_schema
from .openapi_search import file_search_schemas, search_request

_SEED = 1 << 63
Schema = dict[str, Any]
_TEXT: Schema = {"type": "string"}
_FLAG: Schema = {"type": "boolean"}
_ANYTHING: Schema = {}


def openapi_document(models: ServedModels, settings: ServerSettings, indexes: Sequence[str] = ()) -> dict[str, Any]:
    """The document; `/openapi.json` answers it. `indexes` are the names of the search indexes."""
    document: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {
            "title": "ortkit",
            "version": __version__,
            "description": "Embeddings, reranking, text generation and search, in the shapes of OpenAI's API, "
            "Cohere's, Jina's and Hugging Face's text-embeddings-inference.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": _paths(models, settings, indexes),
        "components": {"schemas": dict(ANSWERS)},
    }
    if settings.api_keys is not None:
        document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        for path in document["paths"].values():
            for operation in path.values():
                if not operation.pop("x-open", False):
                    operation["security"] = [{"key": []}]
    else:
        for path in document["paths"].values():
            for operation in path.values():
                operation.pop("x-open", None)
    return document


def _paths(models: ServedModels, settings: ServerSettings, indexes: Sequence[str]) -> dict[str, Any]:
    decoder, embedder, reranker = (_names(models, kind) for kind in (Kind.DECODER, Kind.EMBEDDER, Kind.RERANKER))
    cohere = _cohere_request(models, reranker, settings)
    chat = _chat_request(models, decoder, indexes)
    tei_embed = _tei_embed_request(models, embedder, settings)
    return {
        "/v1/models": {"get": _get("List the models", "ModelList")},
        "/v1/models/{model}": {
            "get": _get("Describe a model", "Model", statuses=(404,))
            | {"parameters": [{"name": "model", "in": "path", "required": True, "schema": _TEXT}]}
        },
        "/v1/chat/completions": {"post": _post("Answer a conversation", chat, "ChatCompletion", "ChatCompletionChunk")},
        "/v1/completions": {
            "post": _post("Continue texts", _completion_request(models, decoder, settings), "Completion", "Completion")
        },
        "/v1/embeddings": {"post": _post("Embed texts", _embedding_request(models, embedder, settings), "Embeddings")},
        "/v1/rerank": {"post": _post("Rank documents (Jina, vLLM)", cohere, "Ranking")},
        "/v2/rerank": {"post": _post("Rank documents (Cohere)", cohere, "Ranking")},
        "/rerank": {"post": _any_rerank(cohere, reranker, settings)},
        "/embed": {"post": _tei_post("Embed texts (TEI)", tei_embed, "TeiVectors")},
        "/tokenize": {"post": _post("Tokenize a text or a conversation", _tokenize_request(models), "Tokens")},
        **_search_paths(models, indexes),
        "/info": {
            "get": _get("Describe the embedder or reranker (TEI)", "TeiInfo", statuses=(404,), errors=TEI_ERRORS)
            | {"parameters": [{"name": "model", "in": "query", "required": False, "schema": _TEXT}]}
        },
        "/health": {"get": _get("Whether the server runs", "Health") | {"x-open": True}},
        "/ready": {"get": _ready()},
        "/metrics": {"get": _plain("Metrics for Prometheus", "text/plain", _TEXT)},
        "/openapi.json": {"get": _plain("This document", "application/json", {"type": "object"}) | {"x-open": True}},
    }


def _search_paths(models: ServedModels, indexes: Sequence[str]) -> dict[str, Any]:
    rerankers = [served.name for served in models.of_kind(Kind.RERANKER)]
    name: Schema = {"name": "index", "in": "path", "required": True, "schema": _one_of(indexes)}
    found = _post("Search in an index", search_request(rerankers, indexes), "SearchResults")
    of_a_path = _post("Search in an index (OpenAI)", search_request(rerankers), "SearchResults")
    return {
        "/v1/search": {"post": found},
        "/v1/vector_stores": {"get": _get("List the indexes", "IndexList")},
        "/v1/vector_stores/{index}": {
            "get": _get("Describe an index", "Index", statuses=(404,)) | {"parameters": [name]}
        },
        "/v1/vector_stores/{index}/search": {"post": of_a_path | {"parameters": [name]}},
    }


def _one_of(names: Sequence[str]) -> Schema:
    """One of these names; any string where there is none."""
    return {"type": "string", "enum": list(names)} if names else _TEXT


def _names(models: ServedModels, kind: Kind) -> Schema:
    """The names of the models of a kind; any string where there is none."""
    return _one_of([served.name for served in models.of_kind(kind)])


def _nullable(schema: Schema) -> Schema:
    """What an optional field may be: clients write null for one that they do not use."""
    if "enum" in schema:
        return {"enum": [*schema["enum"], None]}
    if isinstance(schema.get("type"), str):
        return schema | {"type": [schema["type"], "null"]}
    return {"anyOf": [schema, {"type": "null"}]} if schema else schema


def _integer(least: int, most: int) -> Schema:
    return {"type": "integer", "minimum": least, "maximum": most}


def _number(least: float, most: float) -> Schema:
    return {"type": "number", "minimum": least, "maximum": most}


def _array(items: Schema, least: int = 0, most: int | None = None) -> Schema:
    return {"type": "array", "items": items, "minItems": least} | ({} if most is None else {"maxItems": most})


def _object(required: Mapping[str, Schema], optional: Mapping[str, Schema]) -> Schema:
    """An object that has no other fields."""
    return {
        "type": "object",
        "properties": {**required, **{name: _nullable(schema) for name, schema in optional.items()}},
        "required": list(required),
        "additionalProperties": False,
    }


def _get(
    summary: str, answer: str, *, statuses: Sequence[int] = (), errors: Mapping[int, Any] = ERRORS
) -> dict[str, Any]:
    return {
        "summary": summary,
        "responses": {
            "200": {"description": "OK", "content": {"application/json": {"schema": reference(answer)}}},
            **_refusals((*statuses, 401, 403, 429, 500, 503), errors),
        },
    }


def _plain(summary: str, media_type: str, schema: Schema) -> dict[str, Any]:
    ok = {"description": "OK", "content": {media_type: {"schema": schema}}}
    return {"summary": summary, "responses": {"200": ok, **_refusals((401, 403, 429, 500, 503), ERRORS)}}


def _ready() -> dict[str, Any]:
    found = _get("Whether the server takes requests", "Readiness") | {"x-open": True}
    found["responses"]["503"] = {
        "description": "The server is ending",
        "content": {"application/json": {"schema": reference("Readiness")}},
    }
    return found


_POST_STATUSES = (400, 401, 403, 404, 408, 413, 415, 429, 500, 503, 504)


def _refusals(statuses: Sequence[int], errors: Mapping[int, Any]) -> dict[str, Any]:
    return {str(status): errors[status] for status in sorted(set(statuses))}


def _post(summary: str, request: Schema, answer: str, event: str | None = None) -> dict[str, Any]:
    content: dict[str, Any] = {"application/json": {"schema": reference(answer)}}
    if event is not None:
        content["text/event-stream"] = {"schema": _event(event)}
    return {
        "summary": summary,
        "requestBody": {"required": True, "content": {"application/json": {"schema": request}}},
        "responses": {"200": {"description": "OK", "content": content}, **_refusals(_POST_STATUSES, ERRORS)},
    }


def _event(schema: str) -> Schema:
    """An event of a stream; in OpenAPI 3.1 the schema of a stream is that of each event."""
    written = {
        "type": "string",
        "contentMediaType": "application/json",
        "contentSchema": {"anyOf": [reference(schema), reference("Error")]},
    }
    data = {"anyOf": [{"const": "[DONE]", "description": "The last one."}, written]}
    return {"type": "object", "properties": {"data": data}, "required": ["data"]}


def _tei_post(summary: str, request: Schema, answer: str) -> dict[str, Any]:
    return _post(summary, request, answer) | {
        "responses": {
            "200": {"description": "OK", "content": {"application/json": {"schema": reference(answer)}}},
            **_refusals((*_POST_STATUSES, 422, 424), TEI_ERRORS),
        }
    }


def _any_rerank(cohere: Schema, reranker: Schema, settings: ServerSettings) -> dict[str, Any]:
    tei = _object(
        {"query": _query(), "texts": _array(_TEXT, 1, settings.max_inputs)},
        {
            "model": reranker,
            "truncate": _FLAG,
            "truncation_direction": {"type": "string", "enum": ["Right", "right"]},
            "raw_scores": _FLAG,
            "return_text": _FLAG,
        },
    )
    found = _tei_post("Rank documents (Cohere, Jina) or texts (TEI)", {"anyOf": [cohere, tei]}, "AnyRanking")
    found["requestBody"]["content"]["application/json"]["schema"] = {"anyOf": [cohere, tei]}
    return found


def _query() -> Schema:
    return {"type": "string", "pattern": "\\S"}


_IGNORED: Mapping[str, Schema] = {
    "user": _ANYTHING,
    "metadata": _ANYTHING,
    "store": _ANYTHING,
    "service_tier": _ANYTHING,
    "prompt_cache_key": _ANYTHING,
    "prompt_cache_retention": _ANYTHING,
    "prompt_cache_options": _ANYTHING,
    "safety_identifier": _ANYTHING,
    "prediction": _ANYTHING,
}


def _vocabulary(models: ServedModels) -> int:
    """Number of token ids that all LLMs have."""
    return min((served.decoder.facts.vocabulary for served in models.of_kind(Kind.DECODER)), default=MOST_TOKENS)


def numbers_below(limit: int) -> str:
    """A regular expression for the numbers from 0 to below `limit`, without leading zeros."""
    most = str(limit - 1)
    forms = [most]
    for place, digit in enumerate(most):
        first = 1 if place == 0 and len(most) > 1 else 0
        if int(digit) > first:
            rest = len(most) - place - 1
            forms.append(f"{most[:place]}[{first}-{int(digit) - 1}]" + (f"[0-9]{{{rest}}}" if rest else ""))
    forms += ["[1-9]" + (f"[0-9]{{{length - 1}}}" if length > 1 else "") for length in range(1, len(most))]
    if len(most) > 1:
        forms.append("0")
    return f"^(?:{'|'.join(forms)})$"


def _generation(models: ServedModels) -> dict[str, Schema]:
    """The optional fields of both endpoints of an LLM."""
    stop = {"type": "string", "minLength": 1}
    return {
        "n": _integer(1, MOST_ANSWERS),
        "stream": _FLAG,
        "stream_options": _object({}, {"include_usage": _FLAG, "include_obfuscation": _ANYTHING}),
        "max_tokens": _integer(1, MOST_TOKENS),
        "stop": {"anyOf": [stop, _array(stop, 0, MOST_STOPS)]},
        "seed": _integer(-_SEED, _SEED - 1),
        "temperature": _number(0, 2),
        "top_p": _number(0, 1),
        "top_k": _integer(0, MOST_TOKENS),
        "min_p": _number(0, 1),
        "presence_penalty": _number(-2, 2),
        "frequency_penalty": _number(-2, 2),
        "repetition_penalty": _number(0.01, 100),
        "logit_bias": {
            "type": "object",
            "propertyNames": {"pattern": numbers_below(_vocabulary(models))},
            "additionalProperties": _number(-100, 100),
            "maxProperties": MOST_BIASES,
        },
        **_IGNORED,
    }


def _needs(field: str, other: str, value: object) -> Schema:
    """The rule that a field needs another one with a value."""
    return {
        "if": {"required": [field], "properties": {field: {"not": {"type": "null"}}}},
        "then": {"required": [other], "properties": {other: {"const": value}}},
    }


def _calls_tools(models: ServedModels) -> bool:
    """Whether the template of a model describes calls of tools in a form that is supported."""
    chats = [served.decoder.facts.chat for served in models.of_kind(Kind.DECODER)]
    return any(chat is not None and form_of(chat.template) is not None for chat in chats)


def _messages(models: ServedModels) -> Schema:
    # So many fit into no context that is common, and the limit of a prompt is one of tokens.
    limit = {"description": f"At most {MOST_MESSAGES}, and as many tokens as the context of the model."}
    return _array(message_schema(tools=_calls_tools(models)), 1) | limit


def _chat_request(models: ServedModels, names: Schema, indexes: Sequence[str]) -> Schema:
    functions = _array(tool_schema(), 0, MOST_TOOLS)
    rerankers = [served.name for served in models.of_kind(Kind.RERANKER)]
    searches = [_array(tool, 1, 1) for tool in file_search_schemas(rerankers, indexes)]
    fields = _object(
        {"model": names, "messages": _messages(models)},
        {
            **_generation(models),
            "max_completion_tokens": _integer(1, MOST_TOKENS),
            "logprobs": _FLAG,
            "top_logprobs": _integer(0, 20),
            "response_format": response_format_schema(),
            "tools": {"anyOf": [functions, *searches]},
            "tool_choice": tool_choice_schema(),
            "parallel_tool_calls": _ANYTHING,
            "modalities": {"const": ["text"]},
        },
    )
    return fields | {
        "allOf": [
            _needs("top_logprobs", "logprobs", value=True),
            _needs("stream_options", "stream", value=True),
            *tool_rules(calls=_calls_tools(models)),
        ]
    }


def _completion_request(models: ServedModels, names: Schema, settings: ServerSettings) -> Schema:
    text = {"type": "string", "minLength": 1}
    ids = _array(_integer(0, _vocabulary(models) - 1), 1)
    # Each prompt is an answer at least, and more than ever fit are refused.
    most = min(settings.max_inputs, settings.requests_per_model)
    fields = _object(
        {
            "model": names,
            "prompt": {
                "anyOf": [text, _array({"anyOf": [text, ids]}, 1, most), ids],
                "description": "A text, token ids, or several of them.",
            },
        },
        {
            **_generation(models),
            "logprobs": _integer(0, 5),
            "echo": _FLAG,
            "suffix": {"const": ""},
            "best_of": {"const": 1},
        },
    )
    # Those of the prompt are not kept.
    echoed = {
        "required": ["echo", "logprobs"],
        "properties": {"echo": {"const": True}, "logprobs": {"type": "integer"}},
    }
    return fields | {"allOf": [_needs("stream_options", "stream", value=True), {"not": echoed}]}


def _prompts(models: ServedModels) -> Schema:
    names = sorted({name for served in models.of_kind(Kind.EMBEDDER) for name in served.embedder.facts.prompts})
    return {"type": "string", "enum": names} if names else {"type": "null"}


def _dimensions(models: ServedModels) -> Schema:
    found = [served.embedder.dimension for served in models.of_kind(Kind.EMBEDDER)]
    return _integer(1, max(found, default=1))


def _texts(settings: ServerSettings) -> Schema:
    text = {"type": "string", "minLength": 1}
    return {"anyOf": [text, _array(text, 1, settings.max_inputs)]}


def _embedding_request(models: ServedModels, names: Schema, settings: ServerSettings) -> Schema:
    return _object(
        {"model": names, "input": _texts(settings)},
        {
            "encoding_format": {"type": "string", "enum": ["float", "base64"]},
            "dimensions": _dimensions(models),
            "user": _ANYTHING,
            "prompt_name": _prompts(models),
            "truncate": _FLAG | {"description": "Truncate texts over the model's limit, which are refused otherwise."},
        },
    )


def _tei_embed_request(models: ServedModels, names: Schema, settings: ServerSettings) -> Schema:
    normalized = all(served.embedder.facts.normalize for served in models.of_kind(Kind.EMBEDDER))
    return _object(
        {"inputs": _texts(settings)},
        {
            "model": names,
            "dimensions": _dimensions(models),
            "prompt_name": _prompts(models),
            "normalize": {"const": True} if normalized else _FLAG,
            "truncate": _FLAG,
            "truncation_direction": {"type": "string", "enum": ["Right", "right"]},
        },
    )


def _cohere_request(models: ServedModels, names: Schema, settings: ServerSettings) -> Schema:
    limit = max((served.reranker.max_length for served in models.of_kind(Kind.RERANKER)), default=1)
    document = {"anyOf": [_TEXT, _object({"text": _TEXT}, {})]}
    return _object(
        {"model": names, "query": _query(), "documents": _array(document, 1, settings.max_inputs)},
        {
            "top_n": _integer(1, MOST_TOKENS),
            "return_documents": _FLAG,
            "max_tokens_per_doc": _integer(limit, MOST_TOKENS)
            | {"description": "At least the model's limit, at which documents are truncated."},
            "priority": _ANYTHING,
            "user": _ANYTHING,
        },
    )


def _tokenize_request(models: ServedModels) -> Schema:
    names = [served.name for kind in (Kind.DECODER, Kind.EMBEDDER) for served in models.of_kind(kind)]
    optional: dict[str, Schema] = {
        "model": {"type": "string", "enum": names} if names else _TEXT,
        "add_special_tokens": _FLAG,
        "add_special": _FLAG,
    }
    of_messages = optional | {"model": _names(models, Kind.DECODER)}
    return {
        "anyOf": [
            _object({"prompt": _TEXT}, optional),
            _object({"content": _TEXT}, optional),
            _object({"messages": _messages(models)}, of_messages),
        ]
    }
