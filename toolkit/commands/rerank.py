"""`ortkit rerank`."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, BinaryIO

import click

from ...runtime.errors import InputError, TextError, TextTooLongError
from ..console.help import ExampleCommand
from ..console.progress import NoProgress, Progress, bar
from ..io.input_format import InputFormat, Source
from ..io.pipes import check_inputs
from ..io.searches import SearchRecord, searches_of
from ..io.streams import open_input, open_output, refuse_input
from ..io.texts import InputOptions, TextRecord, check_argument, from_arguments, from_stream, refuse_file_path
from ..io.warnings_report import DocumentWarnings
from ..io.writers import object_to_json
from .bundle_names import bundle_argument
from .options import Text, field_option, input_format_option, literal_option, max_memory_option, once

if TYPE_CHECKING:
    from ...runtime.encoder.ranking import Ranked, Ranking

    Rank = Callable[[Iterable[tuple[str, Iterable[TextRecord]]]], Iterator[Ranking[TextRecord]]]


@click.command(
    cls=ExampleCommand,
    sections={
        "Input": "--query --input --input-format --field --literal",
        "Output": "--output --top-n",
        "Scores": "--scores --label --no-truncate",
    },
    examples=[
        'ortkit rerank ms-marco-MiniLM-L-12-v2-int8 --query "pump does not start" --input notes.txt --top-n 3',
        'ortkit rerank ms-marco-MiniLM-L-12-v2-int8 --query "capital of France" "Paris is ..." "Lyon is ..."',
        "ortkit rerank ms-marco-MiniLM-L-12-v2-int8 < searches.jsonl > ranked.jsonl",
    ],
)
@bundle_argument()
@click.argument("documents", nargs=-1, type=Text())
@once("--query", type=Text(), metavar="Q", help="Query for all documents.  [default: each input line has its own]")
@once("--input", "source", metavar="FILE", help="Read documents from FILE, `-` for stdin.")
@input_format_option(
    "With --query: one document per line, or one per record in --field; other fields are copied to the output."
)
@field_option
@literal_option
@once("--output", metavar="FILE", help="Write to FILE atomically.")
@click.option("--top-n", type=click.IntRange(min=1), metavar="N", help="Return the best N documents.  [default: all]")
@click.option(
    "--scores",
    type=click.Choice(["raw", "sigmoid", "softmax"]),
    help="Activation of the logits; it does not change the order.  [default: the model's]",
)
@once("--label", type=Text(), metavar="NAME", help="Label to rank by, for models with several.")
@click.option(
    "--no-truncate", is_flag=True, help="Fail if a document does not fit with its query, instead of truncating it."
)
@max_memory_option
def rerank(
    *,
    bundle: str,
    documents: tuple[str, ...],
    query: str | None,
    source: str | None,
    input_format: str,
    field: str | None,
    literal: bool,
    output: str | None,
    top_n: int | None,
    scores: str | None,
    label: str | None,
    no_truncate: bool,
    max_memory: int | None,
) -> None:
    """Rank documents by their relevance to a query, best first.

    With --query, documents are arguments, lines of a file or of a pipe; each output line is JSON with the document's
    `index` (from 0) and `score`. Without --query, each input line is a search of its own,
    {"query": "...", "documents": [...]}, and each output line has its `results`.
    """
    if documents and query is None:
        raise InputError("no query", hint=f'ortkit rerank {bundle} --query "some question" DOCUMENT...')
    if not documents and source is None and sys.stdin.isatty():
        raise InputError(
            "no documents to rank",
            hint=f'ortkit rerank {bundle} --query "some question" DOCUMENT..., or `--input FILE`, or a pipe',
        )
    if query is not None:
        check_argument(query, "the query")
        refuse_file_path(query, "--query", literal=literal)
    check_inputs(documents, source, noun="document", field=field, literal=literal)

    from ...runtime.encoder.reranker import Reranker

    input_options = InputOptions(InputFormat(input_format), field, source)
    with open_input(source) as stream:
        if not documents:
            refuse_input(stream, output)
        reranker = Reranker(bundle, max_memory=max_memory)

        pending = _PendingDocuments(sized=query is not None)

        def rank(searches: Iterable[tuple[str, Iterable[TextRecord]]]) -> Iterator[Ranking[TextRecord]]:
            try:
                yield from reranker.rank_many_with_report(
                    searches,
                    top_n=top_n,
                    scores=scores,
                    label=label,
                    long="error" if no_truncate else "truncate",
                    text=pending.text_of,
                    progress=pending.scored,
                )
            except TextError as error:
                if not error.texts:
                    raise
                raise pending.located(error, reranker.max_length) from error

        with (
            open_output(output, keeps=True) as file,
            bar(stream, enabled=not documents, output=output, verb="ranking") as shown,
        ):
            pending.shown = shown
            if query is None:
                warnings = _rank_lines(rank, searches_of(Source(stream), input_options), file, shown)
            else:
                records = from_arguments(documents) if documents else from_stream(Source(stream), input_options)
                warnings = _rank_one(rank, query, records, file)
    warnings.print(reranker.max_length)


class _PendingDocuments:
    """Documents that are read but not scored yet, in order."""

    def __init__(self, *, sized: bool) -> None:
        """With `sized`, progress advances as documents are scored; else with each finished search."""
        self.waiting: deque[TextRecord] = deque()
        self.sized = sized
        self.shown: Progress = NoProgress()

    def text_of(self, record: TextRecord) -> str:
        self.waiting.append(record)
        return record.text

    def scored(self, count: int) -> None:
        """Count more scored documents; called from several threads."""
        size = sum(self.waiting.popleft().size for _ in range(count))
        if self.sized:
            self.shown.advance(size, count)
        else:
            self.shown.within(count)

    def located(self, error: TextError, max_length: int) -> InputError:
        """The error with the document's place in the input; pending are the documents of the failed call."""
        where = self.waiting[error.texts[0]].where
        if not isinstance(error, TextTooLongError):
            return InputError(f"{where} with its query {error.fault}", hint=error.hint)
        return TextTooLongError(
            f"{where} and its query are longer than the model's limit of {max_length} tokens",
            hint="split it, or leave out `--no-truncate` to truncate it",
        )


def _rank_one(rank: Rank, query: str, records: Iterable[TextRecord], file: BinaryIO) -> DocumentWarnings:
    """Write a line per document, best first."""
    warnings = DocumentWarnings()
    for ranking in rank([(query, records)]):
        file.writelines(object_to_json(_fields_of(one)) + b"\n" for one in ranking.ranked)
        warnings = warnings.with_ranking(ranking)
    return warnings


def _rank_lines(rank: Rank, searches: Iterable[SearchRecord], file: BinaryIO, shown: Progress) -> DocumentWarnings:
    """Write a line with the results of each search as soon as it is ranked."""
    warnings = DocumentWarnings()
    begun: deque[SearchRecord] = deque()

    def handed_over() -> Iterator[tuple[str, Iterable[TextRecord]]]:
        for search in searches:
            begun.append(search)
            yield search.query, search.documents

    for ranking in rank(handed_over()):
        search = begun.popleft()
        fields = {name: value for name, value in search.fields.items() if name != "documents"}
        file.write(object_to_json(fields | {"results": [_fields_of(one) for one in ranking.ranked]}) + b"\n")
        file.flush()
        shown.advance(search.size, ranking.documents)
        warnings = warnings.with_ranking(ranking, prefix=f"{search.where}: ")
    return warnings


def _fields_of(one: Ranked[TextRecord]) -> dict[str, Any]:
    """The output fields of a document: its input fields, its index in the input, and its score."""
    return {**one.document.fields, "index": one.index, "score": one.score}
