"""Searches as they come to `ortkit rerank`, each a record with a query and its documents."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ...runtime.errors import InputError
from .inputs import FailedRecord, InputFormat, Item, ItemReader, Place, Source, quoted
from .prompts import placed
from .record_options import refuse_search_options
from .texts import FIELD, Reading, TextRecord, check_unicode, field_of

_QUERY, _DOCUMENTS = "query", "documents"


@dataclass(frozen=True)
class SearchRecord:
    """A record that holds a query and its documents, with the JSON fields that came with them."""

    query: str
    documents: tuple[TextRecord, ...]
    fields: dict[str, Any]
    where: str
    size: int
    """Bytes that it took in the input."""


def searches_of(source: Source, reading: Reading) -> Iterator[SearchRecord]:
    """Read JSON objects with `query` and `documents`, a list of texts or of objects with a field that holds one."""
    # What is not JSON is refused by its line: a search is never plain text, and its fields are not those of a table.
    place = Reading(reading.format, name=reading.name).begin(source, tables=False)
    if place.format is InputFormat.TEXT and reading.format is InputFormat.AUTO:
        place = Place(InputFormat.JSONL)
    for item in ItemReader(source, place):
        if isinstance(item, FailedRecord):
            raise item.error
        yield _search_of(item, reading.field or FIELD)


def _search_of(item: Item, field: str) -> SearchRecord:
    fields = item.value if isinstance(item.value, dict) else {}
    where = item.where
    query, documents = fields.get(_QUERY), fields.get(_DOCUMENTS)
    there = f"; its fields are {quoted(fields)}" if fields else ""
    if not isinstance(query, str):
        raise InputError(
            f"{where} has no text in a field `query`{there if query is None else ''}",
            hint='name one query for all lines with `--query`, or give lines like {"query": "...", "documents": [...]}',
        )
    if not query.strip():
        raise InputError(f"the query in {where} is empty")
    if not isinstance(documents, list):
        raise InputError(
            f"{where} has no list in a field `documents`{there if documents is None else ''}",
            hint='give lines like {"query": "...", "documents": ["...", "..."]}',
        )
    with placed(where):
        refuse_search_options(fields, taken=(_QUERY, _DOCUMENTS))
    records = [
        _document_of(document, field, f"document {place} in {where}") for place, document in enumerate(documents, 1)
    ]
    check_unicode(query, f"the query in {where}")
    return SearchRecord(query, tuple(records), fields, where, item.size)


def _document_of(document: object, field: str, where: str) -> TextRecord:
    if not isinstance(document, (str, dict)):
        raise InputError(f"{where} is not a text and has none in a field `{field}`")
    text = document if isinstance(document, str) else field_of(document, field, where)
    check_unicode(text, where)
    return TextRecord(text, document if isinstance(document, dict) else {"text": text}, where, 0)
