"""Read and write `manifest.json`, also with the field names of older schemas."""

from __future__ import annotations

import json
import shlex
from typing import Any

from ..errors import BundleError
from ..strict_json import RepeatedKeyError, unique_keys
from .manifest import SCHEMA, Manifest
from .records import RecordError, read_record, write_record

OLDEST = 2
"""The oldest schema that can be read."""
RENAMED_IN = 6
_RENAMED = {
    "source": {"licence": "license"},
    "quantization": {
        "products": "matmuls",
        "exact_products": "float32_matmuls",
        "precise_first_token": "cls_16bit",
    },
    "blocks": {"products": "matmuls", "exact_products": "float32_matmuls"},
}
"""Section -> name of a field before schema 6 -> its name now."""


def manifest_from_json(text: str) -> Manifest:
    """Read a manifest; raises BundleError that names the first invalid field."""
    try:
        value = json.loads(text, object_pairs_hook=unique_keys)
    except RepeatedKeyError as error:
        raise BundleError(f"`manifest.json` is not valid: `{error.key}` is a duplicate key") from error
    except ValueError as error:
        raise BundleError(f"`manifest.json` is not valid JSON: {error}") from error
    except RecursionError as error:
        raise BundleError("`manifest.json` is nested too deeply") from error
    schema = value.get("schema") if isinstance(value, dict) else None
    # A boolean is an int in Python; `read_record` refuses it, and whatever else is not an integer.
    if type(schema) is int:
        _check_schema(schema, value)
        value = _with_new_names(value) if schema < RENAMED_IN else value
    try:
        return read_record(Manifest, value)
    except RecordError as error:
        raise BundleError(f"`manifest.json` is not valid: {error}") from error


def _check_schema(schema: int, value: dict[str, Any]) -> None:
    """Raise BundleError for a schema that this version cannot read."""
    if OLDEST <= schema <= SCHEMA:
        return
    newer = schema > SCHEMA
    raise BundleError(
        f"the bundle was made with {'a newer' if newer else 'an older'} ortkit: its schema is {schema}; "
        f"supported: {OLDEST} to {SCHEMA}",
        hint="update ortkit on this machine, or export the bundle again with the version that runs here"
        if newer
        else f"export it again with this version: `ortkit export {_source_of(value)}`",
    )


def _with_new_names(value: dict[str, Any]) -> dict[str, Any]:
    """A manifest of an older schema with the field names of this one."""
    return value | {
        section: {names.get(key, key): entry for key, entry in value[section].items()}
        for section, names in _RENAMED.items()
        if isinstance(value.get(section), dict) and not names.values() & value[section].keys()
    }


def _source_of(value: dict[str, Any]) -> str:
    """The model that a bundle was exported from, quoted for a shell; MODEL where the manifest does not say."""
    source = value.get("source")
    requested = source.get("requested") if isinstance(source, dict) else None
    return shlex.quote(requested) if isinstance(requested, str) and requested else "MODEL"


def manifest_to_json(manifest: Manifest) -> str:
    """The contents of `manifest.json`."""
    return json_of(manifest_fields(manifest))


def manifest_fields(manifest: Manifest) -> dict[str, Any]:
    """The JSON object of `manifest.json`, without what old versions do not know where it has none of it."""
    fields: dict[str, Any] = write_record(manifest)
    if manifest.release is None:
        del fields["release"]
    if manifest.prefill is None:
        del fields["prefill"]
    if manifest.quantization is not None and not manifest.quantization.ladder:
        del fields["quantization"]["ladder"]
    return fields


def json_of(fields: dict[str, Any]) -> str:
    return json.dumps(fields, indent=2, ensure_ascii=False) + "\n"
