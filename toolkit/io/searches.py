"""Read the searches of `ortkit rerank`: records with a query and its documents."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ...runtime.errors import InputError
from .input_format import InputFormat, Position, Source
from .inputs import FailedRecord, Item, ItemReader
from .json_values import quoted
from .prompts import located
from .record_options import refuse_search_options
from .texts import FIELD, InputOptions, TextRecord, check_unicode, field_of

_QUERY, _DOCUMENTS = "query", "documents"


@dataclass(frozen=True)
class SearchRecord:
    """A query and its documents, with the fields of their record."""

    query: str
    documents: tuple[TextRecord, ...]
    fields: dict[str, Any]
    where: str
    size: int
    """Bytes in the input."""


def searches_of(source: Source, input_options: InputOptions) -> Iterator[SearchRecord]:
    """Read JSON objects with `query` and `documents`, a list of strings or of objects with a text field."""
    # Searches are always JSON: other lines are refused one by one.
    position = InputOptions(input_options.format, name=input_options.name).begin(source, tables=False)
    if position.format is InputFormat.TEXT and input_options.format is InputFormat.AUTO:
        position = Position(InputFormat.JSONL)
    for item in ItemReader(source, position):
        if isinstance(item, FailedRecord):
            raise item.error
        yield _search_of(item, input_options.field or FIELD)


def _search_of(item: Item, field: str) -> SearchRecord:
    fields = item.value if isinstance(item.value, dict) else {}
    where = item.where
    query, documents = fields.get(_QUERY), fields.get(_DOCUMENTS)
    there = f"; its fields are {quoted(fields)}" if fields else ""
    if not isinstance(query, str):
        raise InputError(
            f"{where} has no string in a field `query`{there if query is None else ''}",
            hint='give one query for all lines with `--query`, or lines like {"query": "...", "documents": [...]}',
        )
    if not query.strip():
        raise InputError(f"the query in {where} is empty")
    if not isinstance(documents, list):
        raise InputError(
            f"{where} has no list in a field `documents`{there if documents is None else ''}",
            hint='give lines like {"query": "...", "documents": ["...", "..."]}',
        )
    with located(where):
        refuse_search_options(fields, taken=(_QUERY, _DOCUMENTS))
    records = [
        _document_of(document, field, f"document {place} in {where}") for place, document in enumerate(documents, 1)
    ]
    check_unicode(query, f"the query in {where}")
    return SearchRecord(query, tuple(records), fields, where, item.size)


def _document_of(document: object, field: str, where: str) -> TextRecord:
    if not isinstance(document, (str, dict)):
        raise InputError(f"{where} must be a string, or an object with a field `{field}`")
    text = document if isinstance(document, str) else field_of(document, field, where)
    check_unicode(text, where)
    return TextRecord(text, document if isinstance(document, dict) else {"text": text}, where, 0)
