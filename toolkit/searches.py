"""Searches as they come to `edgekit rerank`, each a line of JSON with a query and its documents."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from runtime.errors import InputError
from toolkit.texts import TextRecord, check_unicode, decode, parse_object


@dataclass(frozen=True)
class SearchRecord:
    """A line that holds a query and its documents, with the JSON fields that came with them."""

    query: str
    documents: tuple[TextRecord, ...]
    fields: dict[str, Any]
    where: str
    size: int
    """Bytes that it took in the input."""


def searches_of(lines: Iterable[bytes]) -> Iterator[SearchRecord]:
    """Read JSON objects with `query` and `documents`, a list of texts or of objects with a field `text`."""
    for number, raw in enumerate(lines, start=1):
        line = decode(raw, number)
        if line.strip():
            yield search_of(parse_object(line, number), f"line {number}", len(raw))


def search_of(fields: dict[str, Any], where: str, size: int) -> SearchRecord:
    query, documents = fields.get("query"), fields.get("documents")
    if not isinstance(query, str):
        raise InputError(
            f"{where} has no text in a field `query`",
            hint='name one query for all lines with `--query`, or give lines like {"query": "...", "documents": [...]}',
        )
    if not query.strip():
        raise InputError(f"the query in {where} is empty")
    if not isinstance(documents, list):
        raise InputError(f"{where} has no list in a field `documents`")
    records = [document_of(document, f"document {place} in {where}") for place, document in enumerate(documents, 1)]
    check_unicode(query, f"the query in {where}")
    return SearchRecord(query, tuple(records), fields, where, size)


def document_of(document: object, where: str) -> TextRecord:
    text = document.get("text") if isinstance(document, dict) else document
    if not isinstance(text, str):
        raise InputError(f"{where} is no text and has none in a field `text`")
    check_unicode(text, where)
    return TextRecord(text, document if isinstance(document, dict) else {"text": text}, where, 0)
