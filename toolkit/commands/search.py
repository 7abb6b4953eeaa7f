"""`ortkit search`."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, BinaryIO

import click

from ..console.help import ExampleCommand
from ..console.progress import Progress, bar
from ..console.terminal import say
from ..io.input_format import InputFormat, Source
from ..io.questions import check_question, questions_of
from ..io.streams import open_input, open_output, refuse_input
from ..io.texts import InputOptions, TextRecord
from ..io.writers import object_to_json
from .options import Text, once, passage_options, question_options
from .query_warnings import said_of, without_truncation_warnings

if TYPE_CHECKING:
    from ...runtime.encoder.reranker import Reranker
    from ..search.hits import Hit
    from ..search.index import Index
    from ..search.snippets import Snippet

NOTHING_FOUND = 1
"""Exit code where nothing was found, as grep's."""
_INDENT = "    "
_WIDEST = 100
"""Columns of a snippet: longer lines are hard to read."""


@click.command(
    cls=ExampleCommand,
    sections={
        "Input": "--input --input-format --field --literal",
        "Search": "--top-n --reranker --path --mode --bundle",
        "Output": "--json --output",
    },
    examples=[
        'ortkit search manuals.index "pump does not start"',
        'ortkit search manuals.index "pump does not start" --path "pumps/**" --top-n 3 --json',
        "ortkit search manuals.index < queries.jsonl > found.jsonl",
    ],
)
@click.argument("index", metavar="INDEX")
@click.argument("query", required=False, type=Text())
@question_options("query", "queries")
@click.option(
    "--top-n", type=click.IntRange(min=1), default=5, show_default=True, metavar="N", help="Show the best N passages."
)
@passage_options
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object per passage, with the scores of each stage.")
@once("--output", metavar="FILE", help="Write JSON to FILE atomically.")
def search(
    *,
    index: str,
    query: str | None,
    source: str | None,
    input_format: str,
    field: str | None,
    literal: bool,
    top_n: int,
    reranker: str | None,
    paths: tuple[str, ...],
    mode: str,
    bundle: str | None,
    as_json: bool,
    output: str | None,
) -> None:
    """Search in an index that `ortkit index` made.

    Shows the best passages with their file and line, and the sentence that fits best; the exit code is 1 where nothing
    was found. Without QUERY, each input line is a query of its own, and each output line is JSON with its `results`.
    """
    check_question(
        query, source, noun="query", field=field, literal=literal, example=f'ortkit search {index} "some words"'
    )

    from ...runtime.encoder.reranker import Reranker
    from ..search.index import Index

    with open_input(source) as stream, Index.open(index, embedder=bundle) as opened:
        finder = Finder(opened, None if reranker is None else Reranker(reranker), top_n, paths, mode)
        if query is None:
            refuse_input(stream, output)
            options = InputOptions(InputFormat(input_format), field, source)
            with (
                open_output(output, keeps=True) as file,
                bar(stream, enabled=True, output=output, verb="searching") as shown,
            ):
                _search_lines(finder, questions_of(Source(stream), options, noun="query"), file, shown)
            return
        hits = finder.find(query)
        shown_snippets = finder.snippets(query, hits)
    with open_output(output) as file:
        if as_json or output is not None:
            file.writelines(
                object_to_json(_fields_of(hit, snippet)) + b"\n"
                for hit, snippet in zip(hits, shown_snippets, strict=True)
            )
        else:
            file.writelines(f"{line}\n".encode() for line in _lines_of(hits, shown_snippets))
    if not hits:
        say(f"nothing was found in {index}", err=True)
        click.get_current_context().exit(NOTHING_FOUND)


class Finder:
    """An index with the options of its searches."""

    def __init__(self, index: Index, reranker: Reranker | None, top_n: int, paths: Sequence[str], mode: str) -> None:
        self.index = index
        self.reranker = reranker
        self.top_n = top_n
        self.paths = paths
        self.mode = mode

    def find(self, query: str) -> list[Hit]:
        with said_of("query", self.index.embedder.max_length):
            return self.index.search(query, top_n=self.top_n, paths=self.paths, mode=self.mode, reranker=self.reranker)

    def snippets(self, query: str, hits: Sequence[Hit]) -> list[Snippet]:
        from ..search.snippets import snippets

        with without_truncation_warnings():
            return snippets(query, hits, None if self.mode == "bm25" else self.index.embedder)


def _search_lines(finder: Finder, queries: Iterable[TextRecord], file: BinaryIO, shown: Progress) -> None:
    """Write a line with the results of each query as soon as they are found."""
    for query in queries:
        hits = finder.find(query.text)
        results = [
            _fields_of(hit, snippet) for hit, snippet in zip(hits, finder.snippets(query.text, hits), strict=True)
        ]
        file.write(object_to_json(query.fields | {"results": results}) + b"\n")
        file.flush()
        shown.advance(query.size, 1)


def _fields_of(hit: Hit, snippet: Snippet) -> dict[str, Any]:
    from .found_passages import hit_fields

    return hit_fields(hit) | {"snippet": snippet.text, "match": list(snippet.match)}


def _lines_of(hits: Sequence[Hit], found: Sequence[Snippet]) -> Iterable[str]:
    """What a person sees: for each passage a line with its place, and its snippet."""
    from .found_passages import marked, place_line

    # In a pipe, a snippet is one line, for grep.
    columns = min(_WIDEST, shutil.get_terminal_size().columns) - len(_INDENT) if sys.stdout.isatty() else None
    for hit, snippet in zip(hits, found, strict=True):
        yield f"{hit.rank:>2}  {place_line(hit)}"
        yield from (f"{_INDENT}{line}" for line in marked(snippet, columns))
        if hit.rank < len(hits):
            yield ""
