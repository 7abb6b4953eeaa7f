"""Schemas of messages, tools and response formats for the OpenAPI document."""

from __future__ import annotations

from typing import Any

_TEXT = {"type": "string"}
_NAME = {"type": "string", "minLength": 1}
_FUNCTION_NAME = {"type": "string", "pattern": "^[A-Za-z0-9_-]{1,64}$"}
_PARAMETERS = {
    "type": ["object", "null"],
    "properties": {"type": {"enum": ["object", None]}},
    "description": "A JSON schema.",
}
_NULL = {"type": "null"}


def _closed(properties: dict[str, Any], *required: str) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(required), "additionalProperties": False}


def _content() -> dict[str, Any]:
    part = _closed(
        {"type": {"const": "text"}, "text": _TEXT, "cache_control": {}, "prompt_cache_breakpoint": {}}, "type", "text"
    )
    return {"anyOf": [_TEXT, {"type": "array", "items": part, "minItems": 1}]}


def message_schema(*, tools: bool) -> dict[str, Any]:
    """A message of a conversation, with calls of `tools`; the model's template may refuse an order of roles."""
    name = {"type": ["string", "null"], "description": "Accepted, and not shown to the model."}
    call = _closed(
        {
            "id": _TEXT,
            "type": {"const": "function"},
            "function": _closed(
                {"name": _NAME, "arguments": {"type": "string", "contentMediaType": "application/json"}},
                "name",
                "arguments",
            ),
            "index": {},
        },
        "id",
        "type",
        "function",
    )
    said = {"role": {"enum": ["system", "developer", "user"]}, "content": _content(), "name": name}
    answered = {
        "role": {"const": "assistant"},
        "content": _content(),
        "name": name,
        "refusal": _NULL,
        "function_call": _NULL,
        "audio": _NULL,
        "annotations": {},
        "tool_calls": {"anyOf": [{"type": "array", "items": call, "maxItems": 128 if tools else 0}, _NULL]},
    }
    spoken = [_closed(said, "role", "content"), _closed(answered, "role", "content")]
    if not tools:
        return {"anyOf": spoken}
    called = answered | {
        "content": {"anyOf": [_content(), _NULL]},
        "tool_calls": {"type": "array", "items": call, "minItems": 1, "maxItems": 128},
    }
    result = {"role": {"const": "tool"}, "content": _content(), "tool_call_id": _TEXT, "name": name}
    return {
        "anyOf": [
            *spoken,
            _closed(called, "role", "tool_calls"),
            _closed(result, "role", "content", "tool_call_id"),
        ]
    }


def tool_schema() -> dict[str, Any]:
    """A function that the model may call."""
    function = _closed(
        {
            "name": _FUNCTION_NAME,
            "description": {"type": ["string", "null"]},
            "parameters": _PARAMETERS,
            "strict": {"type": ["boolean", "null"]},
        },
        "name",
    )
    return _closed({"type": {"const": "function"}, "function": function}, "type", "function")


def tool_choice_schema() -> dict[str, Any]:
    """Whether the model calls a function, and which one; it must be one of `tools`."""
    chosen = _closed({"type": {"const": "function"}, "function": _closed({"name": _NAME}, "name")}, "type", "function")
    return {"anyOf": [{"enum": ["none", "auto", "required"]}, chosen]}


def tool_rules(*, calls: bool) -> list[dict[str, Any]]:
    """What the fields `tools`, `tool_choice` and `response_format` ask of one another.

    `calls`: whether a model can call functions; where none can, they are accepted with `tool_choice` `none` alone.
    """
    some = {"type": "array", "minItems": 1}
    structured = {"type": "object", "properties": {"type": {"not": {"const": "text"}}}}
    free = {"not": {"const": "none"}}
    functions = some | {"contains": {"type": "object", "properties": {"type": {"const": "function"}}}}
    uncalled = {"not": {"required": ["tools"], "properties": {"tools": functions, "tool_choice": free}}}
    return [
        *([] if calls else [uncalled]),
        {
            "if": {"required": ["tool_choice"], "properties": {"tool_choice": {"not": {"enum": ["none", None]}}}},
            "then": {"required": ["tools"], "properties": {"tools": some}},
        },
        {
            "not": {
                "required": ["tools", "response_format"],
                "properties": {"tools": some, "response_format": structured, "tool_choice": free},
            }
        },
    ]


def response_format_schema() -> dict[str, Any]:
    """The form of the answer."""
    described = _closed(
        {
            "name": _NAME,
            "description": {"type": ["string", "null"]},
            "schema": {"type": "object", "description": "A JSON schema; refused where it cannot be enforced."},
            "strict": {"type": ["boolean", "null"]},
        },
        "name",
        "schema",
    )
    return {
        "anyOf": [
            _closed({"type": {"enum": ["text", "json_object"]}}, "type"),
            _closed({"type": {"const": "json_schema"}, "json_schema": described}, "type", "json_schema"),
        ]
    }
