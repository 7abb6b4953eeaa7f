"""The JSON Schema of `manifest.json`, from the records that read it; `python -m tests.manifest_schema` writes it."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import json
import types
import typing
from enum import Enum
from pathlib import Path
from typing import Any

from ortkit.runtime.bundle import manifest as manifests
from ortkit.runtime.bundle.manifest import SCHEMA, Manifest
from ortkit.runtime.bundle.manifest_json import RENAMED_IN
from ortkit.runtime.bundle.records import WITHIN

PATH = Path(__file__).parent.parent / "docs" / "manifest.schema.json"
Schema = dict[str, Any]
_SCALARS = {str: "string", int: "integer", float: "number", bool: "boolean"}


def manifest_schema() -> Schema:
    """The schema, draft 2020-12, with a definition for each record and enumeration."""
    texts = docstrings()
    definitions: dict[str, Schema] = {}
    described = record_schema(Manifest, texts, definitions)
    described["properties"]["schema"] |= {
        "description": "Version of the manifest: earlier ones have other names for some fields.",
        "minimum": RENAMED_IN,
        "maximum": SCHEMA,
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "manifest.json of an ortkit bundle",
        **described,
        "$defs": dict(sorted(definitions.items())),
    }


def record_schema(record: type, texts: dict[str, str], definitions: dict[str, Schema]) -> Schema:
    """The schema of an object, which has no other fields than these."""
    hints = typing.get_type_hints(record)
    properties, required = {}, []
    for field in dataclasses.fields(record):
        found = value_schema(hints[field.name], field.metadata.get(WITHIN), texts, definitions)
        text = texts.get(f"{record.__name__}.{field.name}")
        properties[field.name] = found | ({"description": text} if text else {})
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            required.append(field.name)
    return {
        "description": texts[record.__name__],
        "type": "object",
        "properties": properties,
        "required": required,
        "additionalProperties": False,
    }


def value_schema(hint: Any, within: range | None, texts: dict[str, str], definitions: dict[str, Schema]) -> Schema:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is types.UnionType:
        (present,) = (argument for argument in arguments if argument is not type(None))
        return {"anyOf": [value_schema(present, within, texts, definitions), {"type": "null"}]}
    if origin is tuple:
        return {"type": "array", "items": value_schema(arguments[0], within, texts, definitions)}
    if origin is dict:
        return {"type": "object", "additionalProperties": value_schema(arguments[1], within, texts, definitions)}
    if hint in _SCALARS:
        bounds = {} if within is None else {"minimum": within.start, "maximum": within.stop - 1}
        return {"type": _SCALARS[hint], **bounds}
    if hint.__name__ not in definitions:
        definitions[hint.__name__] = {}
        made = enum_schema(hint, texts) if issubclass(hint, Enum) else record_schema(hint, texts, definitions)
        definitions[hint.__name__] = made
    return {"$ref": f"#/$defs/{hint.__name__}"}


def enum_schema(choices: type[Enum], texts: dict[str, str]) -> Schema:
    members = {choice.value: texts.get(f"{choices.__name__}.{choice.name}") for choice in choices}
    meanings = [f"`{value}`: {text}" for value, text in members.items() if text]
    return {"description": "\n".join([texts[choices.__name__], *meanings]), "enum": list(members)}


def docstrings() -> dict[str, str]:
    """Docstrings of the classes in the manifest's module, and of their fields as `Class.field`."""
    found = {}
    for definition in ast.parse(inspect.getsource(manifests)).body:
        if not isinstance(definition, ast.ClassDef):
            continue
        found[definition.name] = ast.get_docstring(definition) or ""
        for statement, text in zip(definition.body, definition.body[1:], strict=False):
            target = statement.targets[0] if isinstance(statement, ast.Assign) else getattr(statement, "target", None)
            if isinstance(target, ast.Name) and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
                found[f"{definition.name}.{target.id}"] = " ".join(str(text.value.value).split())
    return found


def schema_text() -> str:
    return json.dumps(manifest_schema(), indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    PATH.write_text(schema_text(), encoding="utf-8")
