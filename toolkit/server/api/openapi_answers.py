"""Schemas of answers and errors for the OpenAPI document."""

from __future__ import annotations

from typing import Any

_TEXT = {"type": "string"}
_INTEGER = {"type": "integer"}
_COUNT = {"type": "integer", "minimum": 0}
_NUMBER = {"type": "number"}


def reference(name: str) -> dict[str, str]:
    """A reference to a schema of ANSWERS."""
    return {"$ref": f"#/components/schemas/{name}"}


def _object(required: dict[str, Any], optional: dict[str, Any] | None = None) -> dict[str, Any]:
    return {"type": "object", "properties": {**required, **(optional or {})}, "required": list(required)}


def _array(items: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": items}


def _nullable(schema: dict[str, Any]) -> dict[str, Any]:
    return {"anyOf": [schema, {"type": "null"}]}


_LOGPROB = {"token": _TEXT, "logprob": _NUMBER, "bytes": _array(_INTEGER)}
_CHAT_LOGPROBS = _nullable(
    _object({"content": _array(_object(_LOGPROB | {"top_logprobs": _array(_object(_LOGPROB))}))}, {"refusal": {}})
)
_TEXT_LOGPROBS = _nullable(
    _object(
        {
            "tokens": _array(_TEXT),
            "token_logprobs": _array(_NUMBER),
            "top_logprobs": _nullable(_array({"type": "object", "additionalProperties": _NUMBER})),
            "text_offset": _array(_COUNT),
        }
    )
)
_USAGE = _object(
    {
        "prompt_tokens": _COUNT,
        "completion_tokens": _COUNT,
        "total_tokens": _COUNT,
        "prompt_tokens_details": _object({"cached_tokens": _COUNT}),
    }
)
_RESULT = _object(
    {
        "file_id": _TEXT,
        "filename": _TEXT,
        "score": _NUMBER,
        "attributes": {"type": "object", "additionalProperties": {"type": ["string", "number"]}},
        "content": _array(_object({"type": {"const": "text"}, "text": _TEXT})),
    }
)
_CITATION = _object(
    {
        "type": {"const": "file_citation"},
        "file_id": _TEXT,
        "filename": _TEXT,
        "index": _COUNT,
        "start_index": _COUNT,
        "end_index": _COUNT,
        "source": _COUNT,
    }
)
_INDEX = _object(
    {
        "id": _TEXT,
        "object": {"const": "vector_store"},
        "created_at": _INTEGER,
        "name": _TEXT,
        "status": {"const": "completed"},
        "usage_bytes": _COUNT,
        "file_counts": _object(dict.fromkeys(("in_progress", "completed", "failed", "cancelled", "total"), _COUNT)),
        "chunks": _COUNT,
        "model": _TEXT,
    }
)
_REASONS = ["stop", "length", "tool_calls"]
_ENVELOPE = {"id": _TEXT, "created": _INTEGER, "model": _TEXT, "system_fingerprint": _TEXT}
_TOOL_CALL = _object(
    {"id": _TEXT, "type": {"const": "function"}, "function": _object({"name": _TEXT, "arguments": _TEXT})}
)
_MODEL = _object(
    {
        "id": _TEXT,
        "object": {"const": "model"},
        "created": _INTEGER,
        "owned_by": _TEXT,
        "kind": {"enum": ["embedder", "reranker", "decoder"]},
        "max_model_len": _COUNT,
    },
    {"dimensions": _COUNT},
)
_RANKING = _object(
    {
        "id": _TEXT,
        "model": _TEXT,
        "results": _array(
            _object(
                {"index": _COUNT, "relevance_score": {"type": "number", "minimum": 0, "maximum": 1}},
                {"document": _object({"text": _TEXT})},
            )
        ),
        "usage": _object({"prompt_tokens": _COUNT, "total_tokens": _COUNT}),
        "meta": _object({"tokens": _object({"input_tokens": _COUNT})}, {"warnings": _array(_TEXT)}),
    }
)

ANSWERS: dict[str, Any] = {
    "Model": _MODEL,
    "ModelList": _object({"object": {"const": "list"}, "data": _array(reference("Model"))}),
    "ChatCompletion": _object(
        {
            **_ENVELOPE,
            "object": {"const": "chat.completion"},
            "choices": _array(
                _object(
                    {
                        "index": _COUNT,
                        "message": _object(
                            {"role": {"const": "assistant"}, "content": {"type": ["string", "null"]}},
                            {
                                "refusal": {"type": "null"},
                                "tool_calls": _array(_TOOL_CALL),
                                "annotations": _array(_CITATION),
                                "file_search_results": _array(_RESULT),
                            },
                        ),
                        "logprobs": _CHAT_LOGPROBS,
                        "finish_reason": {"enum": _REASONS},
                    }
                )
            ),
            "usage": _USAGE,
        }
    ),
    "ChatCompletionChunk": _object(
        {
            **_ENVELOPE,
            "object": {"const": "chat.completion.chunk"},
            "choices": _array(
                _object(
                    {
                        "index": _COUNT,
                        "delta": {"type": "object"},
                        "logprobs": _CHAT_LOGPROBS,
                        "finish_reason": {"enum": [*_REASONS, None]},
                    }
                )
            ),
        },
        {"usage": _nullable(_USAGE)},
    ),
    "Completion": _object(
        {
            **_ENVELOPE,
            "object": {"const": "text_completion"},
            "choices": _array(
                _object(
                    {
                        "index": _COUNT,
                        "text": _TEXT,
                        "logprobs": _TEXT_LOGPROBS,
                        "finish_reason": {"enum": ["stop", "length", None]},
                    }
                )
            ),
        },
        {"usage": _nullable(_USAGE)},
    ),
    "Embeddings": _object(
        {
            "object": {"const": "list"},
            "model": _TEXT,
            "data": _array(
                _object(
                    {
                        "object": {"const": "embedding"},
                        "index": _COUNT,
                        "embedding": {
                            "anyOf": [_array(_NUMBER), {"type": "string", "contentEncoding": "base64"}],
                            "description": "Numbers, or float32 in little-endian order.",
                        },
                    }
                )
            ),
            "usage": _object({"prompt_tokens": _COUNT, "total_tokens": _COUNT}),
        }
    ),
    "Ranking": _RANKING,
    "TeiRanking": _array(_object({"index": _COUNT, "score": _NUMBER}, {"text": _TEXT})),
    "AnyRanking": {"anyOf": [reference("Ranking"), reference("TeiRanking")]},
    "TeiVectors": _array(_array(_NUMBER)),
    "TeiInfo": _object(
        {
            "model_id": _TEXT,
            "model_dtype": _TEXT,
            "model_type": {"type": "object"},
            "max_concurrent_requests": _COUNT,
            "max_input_length": _COUNT,
            "max_batch_tokens": _COUNT,
            "max_client_batch_size": _COUNT,
            "auto_truncate": {"type": "boolean"},
            "tokenization_workers": _COUNT,
            "version": _TEXT,
        },
        {"model_sha": _TEXT},
    ),
    "SearchResults": _object(
        {
            "object": {"const": "vector_store.search_results.page"},
            "search_query": _array(_TEXT),
            "data": _array(_RESULT),
            "has_more": {"const": False},
            "next_page": {"type": "null"},
        }
    ),
    "Index": _INDEX,
    "IndexList": _object(
        {
            "object": {"const": "list"},
            "data": _array(reference("Index")),
            "first_id": {"type": ["string", "null"]},
            "last_id": {"type": ["string", "null"]},
            "has_more": {"const": False},
        }
    ),
    "Tokens": _object({"count": _COUNT, "max_model_len": _COUNT, "tokens": _array(_COUNT)}),
    "Health": _object({"status": {"const": "ok"}}),
    "Readiness": _object(
        {"status": {"enum": ["ready", "draining"]}}, {"models": _array(_TEXT), "indexes": _array(_TEXT)}
    ),
    "Error": _object(
        {
            "error": _object(
                {
                    "message": _TEXT,
                    "type": _TEXT,
                    "param": {"type": ["string", "null"], "description": "The field at fault, as a path."},
                    "code": {"type": ["string", "null"]},
                }
            )
        }
    ),
    "TeiError": _object({"error": _TEXT, "error_type": {"enum": ["Validation", "Backend", "Overloaded"]}}),
    "AnyError": {"anyOf": [reference("Error"), reference("TeiError")]},
}

_DESCRIPTIONS = {
    400: "The request is not valid; `param` names the field",
    401: "The API key is missing or not valid",
    403: "The Host or Origin header is not allowed",
    404: "There is no such model or index, or no such path",
    408: "The request took too long to arrive",
    413: "The body is too large, or there is too little memory for the request",
    415: "The body is not JSON",
    422: "The request is not valid",
    424: "The model is of another kind",
    429: "Too many requests wait; see `Retry-After`",
    500: "The server failed",
    503: "The server is ending",
    504: "The answer took too long",
}


def _error(status: int, schema: str) -> dict[str, Any]:
    return {
        "description": _DESCRIPTIONS[status],
        "content": {"application/json": {"schema": reference(schema)}},
    }


ERRORS = {status: _error(status, "Error") for status in _DESCRIPTIONS}
TEI_ERRORS = {status: _error(status, "AnyError") for status in _DESCRIPTIONS}
"""Of an endpoint with TEI's errors; what is refused before it has OpenAI's."""
