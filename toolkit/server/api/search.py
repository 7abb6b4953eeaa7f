"""Search in indexes: `/v1/search`, and the same as OpenAI's `/v1/vector_stores/ID/search`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from time import monotonic
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ....runtime.bundle.manifest import Kind
from ....runtime.encoder.shared_batches import EmbedCall
from ....runtime.errors import TextTooLongError
from ....runtime.text.tokenizer import LongTexts
from ...search.hits import Hit, SearchMode
from ..errors import ContextLengthError, RequestError, UnsupportedFieldError, blaming, printable
from ..operation.request_record import note
from .embeddings import finished, opened
from .request_fields import Fields, kind_of, text_of
from .rerank import RerankRequest, rank

if TYPE_CHECKING:
    from ..operation.metrics import Metrics
    from ..served.indexes import ServedIndex, ServedIndexes
    from ..served.models import ServedModel, ServedModels

MOST_RESULTS = 50
"""As in OpenAI's API, and not more than CANDIDATES."""
_DEFAULT_RESULTS = 10
CANDIDATES = 50
"""Passages that each of the rankings gives, and that a reranker scores: it takes milliseconds for each."""
MOST_PATHS = 64
LONGEST_PATH = 1024
LONGEST_QUERY = 1 << 15
"""Characters; more than any embedder reads."""
LONGEST_ATTRIBUTE = 512
"""Characters of a string among a result's attributes, as in OpenAI's API."""
_NO_RANKER = "none"
_ANY_RANKERS = ("auto", "default-2024-11-15")
"""OpenAI's names: here the only reranker that is served, if there is one."""
_CLASS = r"\[!?(?:a-z|A-Z|0-9|[^\[\]/!^\-])+\]"
_CHARACTER, _NO_DOT = rf"(?:[^/\[\]*]|{_CLASS})", rf"(?:[^/\[\]*.]|{_CLASS})"
_PART = rf"(?:\.*{_NO_DOT}{_CHARACTER}*|{_CHARACTER}*\*(?:{_CHARACTER}+\*)?{_CHARACTER}*)"
PATH_PATTERN = rf"^/?(?:{_PART}/)*(?:(?:\*\*/)?(?:{_PART}/)*{_PART}|\*\*)/?$"
"""Regular expression of the patterns of files that are accepted (`toolkit/search/globs.py` says what they match)."""
_PATH = re.compile(PATH_PATTERN)
_NO_FILE = "/\0"
"""A pattern that no file matches: names have no NUL."""


@dataclass(frozen=True)
class SearchOptions:
    """How to search, of `/v1/search` and of the tool `file_search`."""

    top_n: int = _DEFAULT_RESULTS
    paths: tuple[str, ...] = ()
    """Patterns, of which a file's name must match one."""
    mode: SearchMode = SearchMode.HYBRID
    reranker: str | None = None
    """Name of a served reranker; `auto`: the only one, if there is one."""
    reranker_field: str = "reranker"
    score_threshold: float | None = None


@dataclass(frozen=True)
class SearchRequest:
    """A request to search in an index."""

    index: str | None
    query: str
    options: SearchOptions


def read_search(fields: Fields, index: str | None = None) -> SearchRequest:
    """Read a request; `index` is the one in its path. Raises RequestError, which names the field at fault."""
    if index is None:
        index = fields.text("index")
    query = _query_of(fields)
    options = read_options(fields)
    mode = fields.choice("mode", [mode.value for mode in SearchMode])
    reranker = fields.text("reranker", empty=False)
    if reranker is not None:
        if options.reranker_field != "reranker":
            raise RequestError("`reranker` and `ranking_options.ranker` contradict each other", param="reranker")
        options = replace(options, reranker=reranker, reranker_field="reranker")
    options = replace(options, mode=SearchMode.HYBRID if mode is None else SearchMode(mode))
    # One of 0 excludes nothing, and clients send it by default.
    if options.score_threshold and options.mode is SearchMode.BM25:
        raise RequestError(
            "`score_threshold` is a similarity, and `mode` `bm25` computes none",
            param="ranking_options.score_threshold",
        )
    fields.finish()
    return SearchRequest(index, query, options)


def read_options(fields: Fields, *, results: int = _DEFAULT_RESULTS) -> SearchOptions:
    """The fields that `/v1/search` and the tool `file_search` share; `results` is the default of their number."""
    top_n = fields.integer("max_num_results", least=1, most=MOST_RESULTS)
    given = fields.texts("paths", most=MOST_PATHS, empty=False)
    paths = tuple(given or ())
    for place, path in enumerate(paths):
        _check_path(path, f"{fields.path('paths')}[{place}]")
    filters = fields.fields("filters")
    if filters is not None:
        if given is not None:
            raise RequestError("`filters` and `paths` contradict each other", param=fields.path("filters"))
        paths = tuple(_paths_of(filters))
    fields.refuse("rewrite_query", "the query is used as it is", allowed=(False,))
    ranking = fields.fields("ranking_options")
    options = SearchOptions(results if top_n is None else top_n, paths)
    if ranking is None:
        return options
    ranker = ranking.text("ranker", empty=False)
    threshold = ranking.number("score_threshold", least=0, most=1)
    ranking.refuse("hybrid_search", "the two rankings have fixed weights; `mode` selects one of them")
    ranking.finish()
    if ranker is not None:
        options = replace(
            options, reranker=None if ranker == _NO_RANKER else ranker, reranker_field=ranking.path("ranker")
        )
    return replace(options, score_threshold=threshold)


def _query_of(fields: Fields) -> str:
    """The query: a text, or an array of a single one."""
    found = fields.value("query", required=True)
    path = "query"
    if isinstance(found, list):
        if len(found) != 1:
            raise UnsupportedFieldError("`query` must be one text: several are not supported", param="query")
        found, path = found[0], "query[0]"
    if not isinstance(found, str):
        raise RequestError(f"`{path}` must be a string, not {kind_of(found)}", param=path)
    query = text_of(found, path)
    if not query.strip():
        raise RequestError(f"`{path}` must not be empty", param=path)
    if len(query) > LONGEST_QUERY:
        raise RequestError(f"`{path}` has {len(query)} characters, and the limit is {LONGEST_QUERY}", param=path)
    return query


def _check_path(path: str, field: str) -> None:
    """Raise RequestError for a pattern that is not valid, or whose search would take long.

    Patterns become regular expressions, and the time for one grows with the power of the number of its `*`.
    """
    if len(path) > LONGEST_PATH:
        raise RequestError(f"`{field}` has {len(path)} characters, and the limit is {LONGEST_PATH}", param=field)
    if not _PATH.fullmatch(path):
        raise RequestError(
            f"`{field}` is not a pattern of files",
            param=field,
            hint="such as `*.md`, `manuals/` or `manuals/**/*.txt`: at most two `*` in a name and one `**`",
        )


def _paths_of(filters: Fields) -> list[str]:
    """The files that OpenAI's filters allow: `filename` is the only attribute that is compared, and for equality."""
    if filters.value("type") != "or":
        return _names_of(filters)
    found = filters.objects("filters", required=True, least=1, most=MOST_PATHS) or []
    names = [name for one in found for name in _names_of(one)]
    filters.finish()
    if len(names) > MOST_PATHS:
        raise RequestError(
            f"`{filters.path('filters')}` has {len(names)} names, and the limit is {MOST_PATHS}",
            param=filters.path("filters"),
        )
    return names


def _names_of(filters: Fields) -> list[str]:
    """The patterns for the names of a comparison; a name with `/` before it matches from the top of the folder."""
    kind = filters.required_text("type")
    if kind not in ("eq", "in"):
        raise UnsupportedFieldError(
            f"`{filters.path('type')}` must be `eq` or `in`, or `or` over these, not `{printable(kind)}`",
            param=filters.path("type"),
            hint="`paths` takes patterns, such as `manuals/**`",
        )
    key = filters.required_text("key")
    if key != "filename":
        raise UnsupportedFieldError(
            f"`{filters.path('key')}` must be `filename`: other attributes cannot be filtered",
            param=filters.path("key"),
        )
    if kind == "in":
        names = filters.texts("value", required=True, least=1, most=MOST_PATHS, empty=False) or []
    else:
        names = [filters.required_text("value", empty=False)]
    filters.finish()
    return [_pattern_of(name) for name in names]


def _pattern_of(name: str) -> str:
    """The pattern that this name alone matches; one that matches nothing for what cannot be the name of a file."""
    if any(part in ("", ".", "..") for part in name.split("/")):
        return _NO_FILE
    return "/" + "".join(f"[{character}]" if character in "*?[" else character for character in name)


class Searcher:
    """Searches in indexes for requests: with the queues of the models, and the threads of the indexes."""

    def __init__(self, indexes: ServedIndexes, models: ServedModels, metrics: Metrics) -> None:
        self.indexes = indexes
        self._models = models
        self._metrics = metrics

    def check(self, index: str | None, field: str, options: SearchOptions) -> None:
        """Raise RequestError for an index or a reranker that is not served."""
        self.indexes.get(index, field)
        with ExitStack() as stack:
            self._reranker_of(options, stack)

    async def find(self, options: SearchOptions, query: str, field: str, served: ServedIndex) -> list[Hit]:
        """The best passages for a query, which stands in `field` of the request, in an index that is in use."""
        begun = monotonic()
        with ExitStack() as stack:
            reranker = self._reranker_of(options, stack)
            vector = None if options.mode is SearchMode.BM25 else await self._embedded(query, field, served.embedder)

            def find() -> list[Hit]:
                with blaming(field):
                    return served.index.search(
                        query,
                        vector=vector,
                        top_n=options.top_n if reranker is None else CANDIDATES,
                        candidates=CANDIDATES,
                        paths=options.paths,
                        mode=options.mode,
                    )

            hits = await self.indexes.run(served, find)
            if reranker is not None:
                hits = await self._reranked(query, hits, reranker, options.reranker_field)
        threshold = options.score_threshold
        found = [hit for hit in hits if not threshold or score_of(hit) >= threshold][: options.top_n]
        self._metrics.searched(served.name, len(found), monotonic() - begun)
        return found

    def _reranker_of(self, options: SearchOptions, stack: ExitStack) -> ServedModel | None:
        """The reranker of a request, which stays open until the end of the stack."""
        name = options.reranker
        if name is None:
            return None
        if name in _ANY_RANKERS and name not in self._models.names:
            rerankers = self._models.of_kind(Kind.RERANKER)
            if len(rerankers) != 1:
                return None
            name = rerankers[0].name
        with _blaming_model(options.reranker_field):
            return stack.enter_context(self._models.using(name, Kind.RERANKER))

    async def _embedded(self, query: str, field: str, served: ServedModel) -> NDArray[np.float32]:
        """The embedding of a query, from a batch that it shares with other requests."""

        def open_call() -> EmbedCall:
            with blaming(field):
                try:
                    return served.embedder.open_query_call(query, long=LongTexts.ERROR)
                except TextTooLongError as error:
                    most = served.embedder.max_length
                    raise ContextLengthError(
                        f"`{field}` has more tokens than the {most} that the embedder of the index reads",
                        param=field,
                        hint="ask in fewer words",
                    ) from error

        call = await opened(open_call, len(query))
        vectors = (await finished(served, call)).result().vectors
        self._metrics.encoded(served.name, call.tokens)
        return np.asarray(vectors[0])

    async def _reranked(self, query: str, hits: list[Hit], served: ServedModel, field: str) -> list[Hit]:
        """Hits in the order of a reranker, with its scores from 0 to 1; equal ones in the order of before."""
        if not hits:
            return []
        with _blaming_model(field):
            request = RerankRequest(None, query, [hit.embedded_text for hit in hits], "query")
            ranking, _ = await rank(request, served, self._metrics)
        if ranking.truncated:
            note(truncated=len(ranking.truncated))
        return [
            replace(
                hits[ranked.index],
                rank=place,
                score=ranked.score,
                scores=replace(hits[ranked.index].scores, reranked=ranked.score),
            )
            for place, ranked in enumerate(ranking.ranked, 1)
        ]


@contextmanager
def _blaming_model(field: str) -> Iterator[None]:
    """Name this field where an error names `model`."""
    try:
        yield
    except RequestError as error:
        if error.param == "model":
            error.param = field
        raise


def score_of(hit: Hit) -> float:
    """The score of a result: the reranker's or the cosine similarity, from 0 to 1; in the mode `bm25` that of BM25."""
    scores = hit.scores
    if scores.reranked is not None:
        return scores.reranked
    if scores.similarity is not None:
        return min(1.0, max(0.0, scores.similarity))
    return hit.score


def file_id(index: str, hit: Hit) -> str:
    """What identifies a file among those of all indexes."""
    return f"{index}/{shown_name(hit.file)}"


def shown_name(name: str) -> str:
    """The name of a file; bytes that are not UTF-8, which JSON does not have, are replaced."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def result_json(index: str, hit: Hit) -> dict[str, Any]:
    """A result as OpenAI's API has it; the place in the file and the scores of all stages are its attributes."""
    place, scores = hit.place, hit.scores
    first, last = place.lines if place.lines is not None else (None, None)
    attributes: dict[str, str | int | float | None] = {
        "title": shown_name(hit.title)[:LONGEST_ATTRIBUTE],
        "headings": " > ".join(place.headings)[:LONGEST_ATTRIBUTE] or None,
        "first_line": first,
        "last_line": last,
        "page": place.page,
        "similarity": scores.similarity,
        "similarity_rank": scores.similarity_rank,
        "bm25": scores.bm25,
        "bm25_rank": scores.bm25_rank,
        "fused": scores.fused,
        "reranked": scores.reranked,
    }
    return {
        "file_id": file_id(index, hit),
        "filename": shown_name(hit.file),
        "score": score_of(hit),
        "attributes": {name: value for name, value in attributes.items() if value is not None},
        "content": [{"type": "text", "text": hit.text}],
    }


def search_answer(request: SearchRequest, index: str, hits: Sequence[Hit]) -> dict[str, Any]:
    """The answer to a search, a page that has no next one."""
    return {
        "object": "vector_store.search_results.page",
        "search_query": [request.query],
        "data": [result_json(index, hit) for hit in hits],
        "has_more": False,
        "next_page": None,
    }


def index_entry(served: ServedIndex) -> dict[str, Any]:
    """An index as OpenAI's API lists a vector store; `chunks` and `model` are additions."""
    facts = served.facts
    counts = {"in_progress": 0, "completed": facts.files, "failed": 0, "cancelled": 0, "total": facts.files}
    return {
        "id": served.name,
        "object": "vector_store",
        "created_at": int(facts.built.timestamp()),
        "name": served.name,
        "status": "completed",
        "usage_bytes": facts.size,
        "file_counts": counts,
        "last_active_at": None,
        "metadata": {},
        "chunks": facts.chunks,
        "model": served.embedder.name,
    }


def indexes_list(indexes: ServedIndexes) -> dict[str, Any]:
    """All indexes, in one page."""
    data = [index_entry(served) for served in indexes.all()]
    ends = {"first_id": data[0]["id"], "last_id": data[-1]["id"]} if data else {"first_id": None, "last_id": None}
    return {"object": "list", "data": data, **ends, "has_more": False}
