"""What is known of the request that is being answered, for its line in the log."""

from __future__ import annotations

from contextvars import ContextVar
from typing import Any

RECORD: ContextVar[dict[str, Any] | None] = ContextVar("record", default=None)
"""The fields of the request of this task; tasks that it starts share them. No texts, and no keys."""


def note(**fields: object) -> None:
    """Add fields to the log's line of the request; does nothing outside of one."""
    record = RECORD.get()
    if record is not None:
        record.update(fields)


def count(**numbers: int) -> None:
    """Add to fields that are sums, such as those of the `n` answers of a request."""
    record = RECORD.get()
    if record is not None:
        for name, number in numbers.items():
            record[name] = record.get(name, 0) + number
