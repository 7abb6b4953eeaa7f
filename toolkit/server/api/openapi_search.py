"""Schemas of requests to search in indexes for the OpenAPI document."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ...search.hits import SearchMode
from .search import LONGEST_PATH, LONGEST_QUERY, MOST_PATHS, MOST_RESULTS, PATH_PATTERN

Schema = dict[str, Any]
_NULL: Schema = {"type": "null"}
_NAME: Schema = {"type": "string", "minLength": 1}


def _closed(required: Mapping[str, Schema], optional: Mapping[str, Schema]) -> Schema:
    """An object that has no other fields; the optional ones may be null."""
    properties = {**required, **{name: {"anyOf": [schema, _NULL]} for name, schema in optional.items()}}
    return {"type": "object", "properties": properties, "required": list(required), "additionalProperties": False}


def _array(items: Schema, least: int, most: int) -> Schema:
    return {"type": "array", "items": items, "minItems": least, "maxItems": most}


def _options(rerankers: Sequence[str]) -> dict[str, Schema]:
    """The optional fields that `/v1/search` and the tool `file_search` share; `filters` excludes `paths`."""
    path = {"type": "string", "minLength": 1, "maxLength": LONGEST_PATH, "pattern": PATH_PATTERN}
    return {
        "max_num_results": {"type": "integer", "minimum": 1, "maximum": MOST_RESULTS},
        "paths": _array(path, 0, MOST_PATHS) | {"description": "Patterns, of which a file's name must match one."},
        "filters": _NULL,
        "ranking_options": _closed(
            {},
            {
                "ranker": {"enum": ["none", "auto", "default-2024-11-15", *rerankers]},
                "score_threshold": {"type": "number", "minimum": 0, "maximum": 1},
            },
        ),
        "rewrite_query": {"const": False},
    }


def _filters() -> Schema:
    """OpenAI's filters, as far as they compare names of files."""
    key = {"const": "filename"}
    equal = _closed({"type": {"const": "eq"}, "key": key, "value": _NAME}, {})
    among = _closed({"type": {"const": "in"}, "key": key, "value": _array(_NAME, 1, MOST_PATHS)}, {})
    either = _closed({"type": {"const": "or"}, "filters": _array(equal, 1, MOST_PATHS)}, {})
    return {"anyOf": [equal, among, either]}


def _with_filters(fields: dict[str, Schema]) -> list[dict[str, Schema]]:
    """The fields with `paths`, and those with `filters`."""
    return [fields, fields | {"filters": _filters(), "paths": _NULL}]


def _contradict(field: str, value: Schema, option: str, chosen: Schema) -> Schema:
    """The rule that a field with such a value excludes a ranking option with such a one."""
    options = {"type": "object", "required": [option], "properties": {option: {"not": _NULL} | chosen}}
    return {"not": {"required": [field, "ranking_options"], "properties": {field: value, "ranking_options": options}}}


def search_request(rerankers: Sequence[str], indexes: Sequence[str] | None = None) -> Schema:
    """The body of a search in one of `indexes`; None where the path names it."""
    text = {"type": "string", "pattern": "\\S", "maxLength": LONGEST_QUERY}
    required: dict[str, Schema] = {"query": {"anyOf": [text, _array(text, 1, 1)]}}
    optional = _options(rerankers) | {"mode": {"enum": [mode.value for mode in SearchMode]}}
    if indexes is not None:
        index: Schema = {"type": "string", "enum": list(indexes)} if indexes else {"type": "string"}
        required, optional = (
            (required, optional | {"index": index}) if len(indexes) == 1 else (required | {"index": index}, optional)
        )
    if rerankers:
        optional |= {"reranker": {"enum": list(rerankers)}}
    rules = [
        _contradict("reranker", {"type": "string"}, "ranker", {"type": "string"}),
        _contradict("mode", {"const": SearchMode.BM25.value}, "score_threshold", {"exclusiveMinimum": 0}),
    ]
    return {"anyOf": [_closed(required, fields) for fields in _with_filters(optional)], "allOf": rules}


def file_search_schemas(rerankers: Sequence[str], indexes: Sequence[str]) -> list[Schema]:
    """The forms of the tool `file_search`: that of chat completions, and that of OpenAI's Responses API."""
    if not indexes:
        return []
    ids = _array({"type": "string", "enum": list(indexes)}, 1, 1)
    kind: dict[str, Schema] = {"type": {"const": "file_search"}}
    named: dict[str, Schema] = {} if len(indexes) == 1 else {"vector_store_ids": ids}
    optional: dict[str, Schema] = {} if named else {"vector_store_ids": ids}
    found: list[Schema] = []
    for fields in _with_filters(_options(rerankers) | optional):
        nested, beside = kind | {"file_search": _closed(named, fields)}, fields | {"file_search": _NULL}
        found += [_closed(nested, {}), _closed(kind | named, beside)]
    return found
