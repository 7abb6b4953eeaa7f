"""The tool `file_search` of a chat completion: the answer is made from passages of an index, and cites them.

The passages are found with the last message as the query. What the model is told, and what becomes of its citations, is
that of `ortkit ask` (`toolkit/search/answers.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ....runtime.decoder.stream import Token
from ....runtime.errors import BundleError, TextTooLongError
from ....runtime.text.messages import USER, messages_of
from ...search.answers import ANSWER_TOKENS, Answerer, Grounding, Source, nothing_found
from ...search.citations import CitationReader, citations_of
from ...search.hits import Hit
from ..errors import ContextLengthError, RequestError, blaming
from .request_fields import Fields
from .search import CANDIDATES, Searcher, SearchOptions, file_id, read_options, result_json, shown_name

if TYPE_CHECKING:
    from ..served.indexes import ServedIndex
    from ..served.models import ServedModel

FILE_SEARCH = "file_search"
_DEFAULT_SOURCES = 5
"""Passages in a prompt, as of `ortkit ask`; the context of a small model has no room for OpenAI's 20."""


@dataclass(frozen=True)
class FileSearch:
    """The tool as a request has it."""

    index: str | None
    index_field: str
    options: SearchOptions


def read_file_search(tool: Fields) -> FileSearch:
    """Read the tool, whose fields are beside `type` as in OpenAI's Responses API, or in an object `file_search`."""
    nested = tool.fields(FILE_SEARCH)
    fields = tool if nested is None else nested
    ids = fields.texts("vector_store_ids", least=1, most=1, empty=False)
    options = read_options(fields, results=_DEFAULT_SOURCES)
    if nested is not None:
        nested.finish()
    return FileSearch(None if ids is None else ids[0], fields.path("vector_store_ids"), options)


def question_of(messages: Sequence[Mapping[str, Any]]) -> tuple[str, str]:
    """The last message and its field; raises RequestError where that is not a question of the user."""
    field = f"messages[{len(messages) - 1}]"
    if messages[-1]["role"] != USER:
        raise RequestError(
            f"`{FILE_SEARCH}` answers the last message, which must be of the role `{USER}`", param=f"{field}.role"
        )
    question: str = messages[-1]["content"]
    if not question.strip():
        raise RequestError(f"`{field}.content` must not be empty with `{FILE_SEARCH}`", param=f"{field}.content")
    return question, f"{field}.content"


async def passages(
    request: FileSearch, messages: Sequence[Mapping[str, Any]], index: ServedIndex, searcher: Searcher
) -> list[Hit]:
    """The passages for the last message, best first: more than are shown to the model."""
    question, field = question_of(messages)
    return await searcher.find(replace(request.options, top_n=CANDIDATES), question, field, index)


def ground(
    request: FileSearch,
    messages: Sequence[Mapping[str, Any]],
    hits: Sequence[Hit],
    index: ServedIndex,
    served: ServedModel,
    max_tokens: int | None,
) -> Grounding:
    """The prompt with the best passages that fit into the context; the messages before the question stay in it."""
    question, field = question_of(messages)
    with blaming("messages"):
        before = messages_of(messages[:-1])
        answerer = Answerer(
            index.index,
            served.decoder,
            # A reranker's score has nothing to do with similarities; it has left out what is below the threshold.
            min_similarity=request.options.score_threshold if request.options.reranker is None else None,
            answer_tokens=None if max_tokens is None else min(max_tokens, ANSWER_TOKENS, served.context // 4),
            context=served.context,
            before=before,
        )
    with blaming(field):
        try:
            return answerer.ground(question, hits, top_n=request.options.top_n)
        except TextTooLongError as error:
            hint = "shorten the conversation, or use an LLM with a longer context, or an index with shorter chunks"
            raise ContextLengthError(error.message, param=field, hint=hint) from error
        except BundleError as error:
            # The template has answered other messages.
            raise RequestError(error.message, param="messages", hint=error.hint) from error


class GroundedDeltas:
    """The parts of an answer that cites sources, as `ChatDeltas` has those of others."""

    def __init__(self, grounding: Grounding, index: str) -> None:
        self._sources = {source.number: source for source in grounding.sources}
        self._citations = CitationReader(len(grounding.sources))
        self._index = index
        self._text: list[str] = []

    def push(self, token: Token) -> list[dict[str, Any]]:
        """What the next token adds; a citation comes when it is complete."""
        text = self._citations.push(token.text)
        if token.finish_reason is not None:
            text += self._citations.end()
        self._text.append(text)
        return [{"content": text}] if text else []

    def message(self) -> dict[str, Any]:
        """The complete message."""
        return {"role": "assistant", "content": "".join(self._text), "refusal": None, **self.last()}

    def finish_reason(self, token: Token) -> str:
        return "" if token.finish_reason is None else token.finish_reason.value

    def last(self) -> dict[str, Any]:
        """What the last delta has: the citations of the text, and all passages that the model was shown."""
        text = "".join(self._text)
        found = [
            self._annotation(self._sources[number], start, end)
            for start, end, numbers in citations_of(text)
            for number in numbers
            if number in self._sources
        ]
        return {"annotations": found, "file_search_results": [self._result(one) for one in self._sources.values()]}

    def _annotation(self, source: Source, start: int, end: int) -> dict[str, Any]:
        """A citation as OpenAI's Responses API has it; `start_index`, `end_index` and `source` are additions."""
        return {
            "type": "file_citation",
            "file_id": file_id(self._index, source.hit),
            "filename": shown_name(source.hit.file),
            "index": start,
            "start_index": start,
            "end_index": end,
            "source": source.number,
        }

    def _result(self, source: Source) -> dict[str, Any]:
        found = result_json(self._index, source.hit)
        found["attributes"]["source"] = source.number
        return found


class NothingFound:
    """The answer where no passage is about the question; the LLM does not run."""

    def __init__(self, grounding: Grounding, index: str) -> None:
        self._text = nothing_found(f"`{index}`", grounding)

    def deltas(self) -> list[dict[str, Any]]:
        return [{"content": self._text}]

    def last(self) -> dict[str, Any]:
        return {"annotations": [], "file_search_results": []}

    def message(self) -> dict[str, Any]:
        return {"role": "assistant", "content": self._text, "refusal": None, **self.last()}
