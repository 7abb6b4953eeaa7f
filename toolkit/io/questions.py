"""Read the queries of `ortkit search` and the questions of `ortkit ask`: one per line or record."""

from __future__ import annotations

import sys
from collections.abc import Iterator

from ...runtime.errors import InputError
from .input_format import Source
from .inputs import FailedRecord, ItemReader
from .pipes import refuse_pipe_beside
from .texts import InputOptions, TextRecord, check_argument, check_unicode, field_of, refuse_file_name


def check_question(
    text: str | None, source: str | None, *, noun: str, field: str | None, literal: bool, example: str
) -> None:
    """Raises InputError without a question, for an empty one, one that names a file, and one beside an input."""
    if text is None and source is None and sys.stdin.isatty():
        raise InputError(f"no {noun}", hint=f"{example}, or `--input FILE`, or a pipe")
    if text is not None:
        check_argument(text, f"the {noun}")
        if not text.strip():
            raise InputError(f"the {noun} is empty", hint=example)
        if source is not None:
            raise InputError(f"the {noun} is given as an argument, and `--input` too: give one of the two")
        if field is not None:
            raise InputError(
                f"`--field` is for an input, and the {noun} is given as an argument", hint="leave out `--field`"
            )
        if not literal:
            refuse_file_name(text, noun)
        refuse_pipe_beside(f"the {noun} is given as an argument")
    elif source is not None:
        refuse_pipe_beside(f"the input is `{source}`", source)


def questions_of(source: Source, options: InputOptions, *, noun: str) -> Iterator[TextRecord]:
    """The questions of an input, with the fields of their records; raises InputError for the first without one.

    `noun` is what they are, `query` or `question`, and the name of the field that holds them by default.
    """
    for item in ItemReader(source, options.begin(source)):
        if isinstance(item, FailedRecord):
            raise item.error
        if isinstance(item.value, str):
            text, fields = item.value, {noun: item.value}
        else:
            text, fields = field_of(item.value, options.field or noun, item.where), item.value
        if not text.strip():
            raise InputError(f"the {noun} in {item.where} is empty")
        check_unicode(text, f"the {noun} in {item.where}")
        yield TextRecord(text, fields, item.where, item.size)
