"""`ortkit ask`."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, BinaryIO

import click

from ..console.help import ExampleCommand
from ..console.progress import Progress, bar, counted
from ..console.terminal import escaped, say
from ..io.answer_options import AnswerOptions
from ..io.answer_output import GenerationStats, answer_fields, complete_answer, write_text
from ..io.input_format import InputFormat, Source
from ..io.prompts import located
from ..io.questions import check_question, questions_of
from ..io.streams import open_input, open_output, refuse_input
from ..io.texts import InputOptions, TextRecord
from ..io.writers import object_to_json
from .bundle_names import BundleType
from .memory_note import print_what_fits
from .options import (
    LENGTH_OPTIONS,
    PERFORMANCE_OPTIONS,
    SAMPLING_OPTIONS,
    Text,
    answer_options,
    decoder_options,
    once,
    passage_options,
    question_options,
)
from .query_warnings import said_of
from .search import NOTHING_FOUND

if TYPE_CHECKING:
    from ...runtime.decoder.cache.kv_cache import KVCache
    from ...runtime.decoder.generation import Rates
    from ..search.answers import Answerer, CitedStream, Grounding
    from ..search.answers import Source as PassageSource


@click.command(
    cls=ExampleCommand,
    sections={
        "Models": "--llm --reranker --bundle",
        "Input": "--input --input-format --field --literal",
        "Passages": "--top-n --min-similarity --path --mode",
        "Output": "--show-context --json --output",
        "Length": LENGTH_OPTIONS,
        "Sampling": SAMPLING_OPTIONS,
        "Performance": PERFORMANCE_OPTIONS,
    },
    examples=[
        'ortkit ask manuals.index "How is the pump started by hand?" --llm SmolLM2-135M-Instruct-int4',
        'ortkit ask manuals.index "What do the lamps mean?" --llm SmolLM2-135M-Instruct-int4 --show-context --top-n 3',
        "ortkit ask manuals.index --llm SmolLM2-135M-Instruct-int4 < questions.jsonl > answers.jsonl",
    ],
)
@click.argument("index", metavar="INDEX")
@click.argument("question", required=False, type=Text())
@click.option("--llm", type=BundleType(), metavar="BUNDLE", required=True, help="The LLM that answers.")
@question_options("question", "questions")
@click.option(
    "--top-n",
    type=click.IntRange(min=1),
    default=5,
    show_default=True,
    metavar="N",
    help="Passages that the LLM gets; fewer where its context has no room for them.",
)
@click.option(
    "--min-similarity",
    type=float,
    metavar="S",
    help="Say that nothing was found if no passage has a cosine similarity of S; -1 always answers.  "
    "[default: 0.27 for all-MiniLM-L6-v2, else none]",
)
@passage_options
@click.option("--show-context", is_flag=True, help="Print the passages that the LLM gets before its answer.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object with answer, sources and citations.")
@once("--output", metavar="FILE", help="Write to FILE atomically.")
@answer_options(length="512, at most a quarter of the context")
@decoder_options
def ask(
    *,
    index: str,
    question: str | None,
    llm: str,
    source: str | None,
    input_format: str,
    field: str | None,
    literal: bool,
    top_n: int,
    min_similarity: float | None,
    reranker: str | None,
    paths: tuple[str, ...],
    mode: str,
    bundle: str | None,
    show_context: bool,
    as_json: bool,
    output: str | None,
    threads: int | None,
    context: int | None,
    max_memory: int | None,
    prefill: str,
    rates: bool,
) -> None:
    """Answer a question from an index that `ortkit index` made, with numbered sources.

    The LLM gets the best passages and is asked to cite them as [1]; its sources are listed after the answer. Where no
    passage is similar enough, this says that nothing was found, without running the LLM, and the exit code is 1. An
    answer has up to 512 tokens, or --max-tokens. What an LLM writes may be wrong: look at the sources. Without
    QUESTION, each input line is a question of its own, and each output line is JSON.
    """
    check_question(
        question,
        source,
        noun="question",
        field=field,
        literal=literal,
        example=f'ortkit ask {index} "some question" --llm {llm}',
    )

    from ...runtime.decoder.decoder import Decoder
    from ...runtime.encoder.reranker import Reranker
    from ..search.answers import Answerer
    from ..search.index import Index

    options = AnswerOptions.from_command_line()
    with open_input(source) as stream, Index.open(index, embedder=bundle) as opened:
        decoder = Decoder(llm, threads=threads, context=context, max_memory=max_memory, prefill=prefill)
        print_what_fits(decoder)
        answerer = Answerer(
            opened,
            decoder,
            reranker=None if reranker is None else Reranker(reranker),
            min_similarity=min_similarity,
            answer_tokens=options.max_tokens,
        )
        asker = Asker(answerer, options, top_n, paths, mode, decoder.new_cache())
        if question is None:
            refuse_input(stream, output)
            input_options = InputOptions(InputFormat(input_format), field, source)
            with (
                open_output(output, keeps=True) as file,
                bar(stream, enabled=True, output=output, verb="answering") as shown,
            ):
                stats = _answer_lines(asker, questions_of(Source(stream), input_options, noun="question"), file, shown)
            stats.print(requested=rates)
            _note_threshold(answerer, mode)
            return
        grounding = asker.prepare(question)
        with open_output(output, keeps=True) as file:
            if as_json:
                answered = asker.answered(grounding)
                file.write(object_to_json(answered.fields) + b"\n")
            else:
                answered = _write_answer(
                    asker, grounding, file, name=index, show_context=show_context, plain=output is not None
                )
        answered.add_to(GenerationStats()).print(requested=rates)
        if grounding.found:
            _note_threshold(answerer, mode)
    _end(answered)


def _note_threshold(answerer: Answerer, mode: str) -> None:
    """Say on stderr where nothing tells a question that no passage answers."""
    if answerer.min_similarity is None and mode != "bm25":
        say(
            f"note: no threshold of similarity is known for the embedder `{answerer.index.facts.bundle}`, so the "
            "nearest passages are used, however far they are; `--min-similarity` sets one",
            err=True,
        )


@dataclass(frozen=True)
class Answered:
    """An answer that was written."""

    grounding: Grounding
    fields: dict[str, Any]
    rates: Rates | None = None
    cancelled: bool = False

    def add_to(self, stats: GenerationStats) -> GenerationStats:
        """The token counts and speed of this answer and others."""
        return stats if self.rates is None else stats.with_answer(self.rates)


@dataclass(frozen=True)
class Asker:
    """An answerer with the options of its answers."""

    answerer: Answerer
    options: AnswerOptions
    top_n: int
    paths: tuple[str, ...]
    mode: str
    cache: KVCache
    """Shared by all answers: the instructions are prefilled once."""

    def prepare(self, question: str) -> Grounding:
        with said_of("question", self.answerer.index.embedder.max_length):
            return self.answerer.prepare(question, top_n=self.top_n, paths=self.paths, mode=self.mode)

    def start(self, grounding: Grounding) -> CitedStream:
        """Start an answer: greedy, unless the command line samples."""
        from ..search.answers import CitedStream

        options = replace(
            self.options,
            max_tokens=grounding.answer_tokens,
            temperature=0.0 if self.options.temperature is None else self.options.temperature,
        )
        stream = self.answerer.decoder.stream_chat(grounding.messages, cache=self.cache, **vars(options))
        return CitedStream(stream, len(grounding.sources))

    def answered(self, grounding: Grounding) -> Answered:
        """The complete answer; none where nothing was found."""
        fields = _grounding_fields(grounding)
        if not grounding.found:
            return Answered(grounding, {"found": False, "answer": None, "citations": []} | fields)
        stream = self.start(grounding)
        answer = answer_fields(complete_answer(stream), stream, self.answerer.decoder, tokens=False)
        _note_citations(stream)
        fields = {
            "found": True,
            "answer": answer.pop("text"),
            "citations": sorted(stream.citations.cited),
            **fields,
            **answer,
        }
        return Answered(grounding, fields, stream.rates, _is_cancelled(stream))


def _write_answer(
    asker: Asker, grounding: Grounding, file: BinaryIO, *, name: str, show_context: bool, plain: bool
) -> Answered:
    """Write an answer as it is generated, and its sources; `plain` is for a file, which has no links."""
    from ..search.answers import nothing_found

    if not grounding.found:
        file.write(f"{escaped(nothing_found(name, grounding))}\n".encode())
        return Answered(grounding, {})
    if show_context:
        file.writelines(f"{line}\n".encode() for line in _context_lines(grounding, plain=plain))
        file.flush()
    if grounding.left_out:
        say(
            f"note: the context of {asker.answerer.context} tokens has room for {len(grounding.sources)} of "
            f"{counted(len(grounding.sources) + grounding.left_out, 'passage')}",
            err=True,
        )
    stream = asker.start(grounding)
    write_text(stream, file, wrap=True)
    file.writelines(f"{line}\n".encode() for line in _source_lines(grounding, stream.citations.cited, plain=plain))
    file.flush()
    _note_citations(stream)
    return Answered(grounding, {}, stream.rates, _is_cancelled(stream))


def _context_lines(grounding: Grounding, *, plain: bool) -> Iterable[str]:
    from .found_passages import place_line

    for source in grounding.sources:
        yield f"[{source.number}] {place_line(source.hit, plain=plain)}"
        for line in source.text.strip().splitlines():
            yield f"    {escaped(line)}"
        yield ""


def _source_lines(grounding: Grounding, cited: Iterable[int], *, plain: bool) -> Iterable[str]:
    """The cited sources, then the others."""
    from .found_passages import place_line

    sources = {source.number: source for source in grounding.sources}
    named = sorted(cited)
    if named:
        yield ""
        yield "Sources:"
        yield from (f"[{number}] {place_line(sources[number].hit, plain=plain)}" for number in named)
    if others := [number for number in sources if number not in named]:
        yield ""
        yield "Also given to the LLM:" if named else "The answer cites no source. Given to the LLM:"
        yield from (f"[{number}] {place_line(sources[number].hit, plain=plain)}" for number in others)


def _note_citations(stream: CitedStream) -> None:
    """Say on stderr where a citation names no source."""
    if unknown := stream.citations.unknown:
        named = ", ".join(f"[{number}]" for number in unknown)
        say(f"note: the answer cites {named}, and there is no such source; it is shown as [?]", err=True)


def _answer_lines(asker: Asker, questions: Iterable[TextRecord], file: BinaryIO, shown: Progress) -> GenerationStats:
    """Write a line per question as soon as it is answered, except an answer that Ctrl-C ended."""
    stats = GenerationStats()
    for question in questions:
        with located(question.where):
            answered = asker.answered(asker.prepare(question.text))
        if answered.cancelled:
            raise click.Abort
        file.write(object_to_json(question.fields | answered.fields) + b"\n")
        file.flush()
        shown.advance(question.size, 1)
        stats = answered.add_to(stats)
    return stats


def _grounding_fields(grounding: Grounding) -> dict[str, Any]:
    return {
        "question": grounding.question,
        "best_similarity": grounding.best_similarity,
        "min_similarity": grounding.min_similarity,
        "sources": [_source_fields(source) for source in grounding.sources],
    }


def _source_fields(source: PassageSource) -> dict[str, Any]:
    from .found_passages import hit_fields

    return {"number": source.number, **hit_fields(source.hit), "cut": source.cut}


def _is_cancelled(stream: CitedStream) -> bool:
    from ...runtime.decoder.token_choice import FinishReason

    return stream.finish_reason is FinishReason.CANCELLED


def _end(answered: Answered) -> None:
    """Exit with 1 where nothing was found; raises click.Abort after Ctrl-C."""
    if answered.cancelled:
        raise click.Abort
    if not answered.grounding.found:
        sys.stdout.flush()
        click.get_current_context().exit(NOTHING_FOUND)
