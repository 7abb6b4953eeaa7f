"""What `search` and `ask` show of a passage: a line with its place, and the fields of its JSON."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from ..console.hyperlinks import linked
from ..console.terminal import escaped, styled
from ..console.word_wrap import width_of
from ..search.snippets import heading_of

if TYPE_CHECKING:
    from ..search.hits import Hit
    from ..search.snippets import Snippet


def place_of(hit: Hit) -> str:
    """File and first line, as compilers and grep write them: `pump.md:12`; `manual.pdf, page 3`."""
    if hit.place.lines is not None:
        return f"{hit.file}:{hit.place.lines[0]}"
    return hit.file if hit.place.page is None else f"{hit.file}, page {hit.place.page}"


def place_line(hit: Hit, *, plain: bool = False) -> str:
    """Place and headings of a passage for a person; the place is a link if stdout is a terminal, unless `plain`."""
    line = hit.place.lines[0] if hit.place.lines is not None else None
    place = escaped(place_of(hit))
    if not plain:
        place = styled(linked(place_of(hit), hit.path, line=line), err=False, fg="cyan")
    heading = heading_of(hit)
    return f"{place}  {escaped(heading)}" if heading else place


def marked(snippet: Snippet, columns: int | None) -> Iterator[str]:
    """The lines of a snippet, wrapped at words to a number of columns, with its sentence in bold on a terminal."""
    start, end = snippet.match
    for first, last in _wrapped(snippet.text, columns):
        bounds = [first, min(max(start, first), last), min(max(end, first), last), last]
        before, match, after = (escaped(snippet.text[low:high]) for low, high in pairwise(bounds))
        yield f"{before}{styled(match, err=False, bold=True) if match else ''}{after}"


def _wrapped(text: str, columns: int | None) -> Iterator[tuple[int, int]]:
    """Where the lines of a text begin and end, without the spaces between them."""
    if columns is None:
        yield 0, len(text)
        return
    first = last = width = 0
    for word in re.finditer(r"\S+", text):
        between = sum(map(width_of, text[last : word.start()]))
        size = sum(map(width_of, word[0]))
        if last > first and width + between + size > columns:
            yield first, last
            first, width = word.start(), 0
        else:
            width += between
        last, width = word.end(), width + size
    yield first, last


def hit_fields(hit: Hit) -> dict[str, Any]:
    """The JSON fields of a passage."""
    return {
        "rank": hit.rank,
        "file": hit.file,
        "path": str(hit.path),
        "lines": list(hit.place.lines) if hit.place.lines is not None else None,
        "page": hit.place.page,
        "title": hit.title,
        "headings": list(hit.place.headings),
        "text": hit.text,
        "score": hit.score,
        "scores": dataclasses.asdict(hit.scores),
    }
