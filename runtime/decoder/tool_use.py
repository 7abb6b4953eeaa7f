"""Tools in a conversation: what the chat template gets, the grammar of the answer, and the parser of its calls."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass

from ..errors import InputError
from ..text.tool_calls import ToolCallParser, ToolForm, lark_of
from ..text.tools import Tool
from .date_formats import with_exact_dates
from .grammar import JSON_OPTIONS, Grammar, GrammarCompiler
from .stream import Answer

_ANY_ARGUMENTS = {"type": "object"}


@dataclass(frozen=True)
class ToolUse:
    """How one answer uses tools: made by `decoder.tool_use`."""

    form: ToolForm
    grammar: Grammar | None
    """What the answer follows, so that its calls are valid; None where they are parsed only."""
    special: dict[int, str]

    def parser(self) -> ToolCallParser:
        """The parser of one answer: push the text and the id of each of its tokens."""
        return ToolCallParser(self.form, self.special)


def with_calls(answer: Answer, use: ToolUse) -> Answer:
    """The answer with its text divided into text and calls."""
    parser = use.parser()
    for token in answer.tokens:
        parser.push(token.text, token.id)
    parser.end()
    return dataclasses.replace(answer, text=parser.text, tool_calls=parser.calls)


def tool_grammar(
    compiler: GrammarCompiler, form: ToolForm, tools: list[Tool], tokens: dict[str, int], *, must: bool
) -> Grammar:
    """The grammar of an answer with calls; arguments follow the tools' schemas. `tokens`: ids of markers that have one.

    Where a schema cannot be enforced, they are any object, unless the tool is strict: raises InputError then.
    """
    schemas = [json.dumps(_enforceable(compiler, tool), ensure_ascii=False) for tool in tools]
    named = {text: id_ for text, id_ in tokens.items() if compiler.is_special(id_)}
    return compiler.compile(lark=lark_of(form, tools, schemas, must=must, tokens=named))


def _enforceable(compiler: GrammarCompiler, tool: Tool) -> dict[str, object]:
    try:
        compiler.compile(json_schema=tool.parameters)
    except InputError as error:
        if tool.strict:
            raise InputError(f"the arguments of the tool `{tool.name}`: {error.message}", hint=error.hint) from error
        return {**_ANY_ARGUMENTS, "x-guidance": JSON_OPTIONS}
    schema = with_exact_dates(tool.parameters)
    plain: dict[str, object] = json.loads(json.dumps(schema))
    # Arguments are an object, whatever else their schema allows.
    return {**plain, "type": "object", "x-guidance": JSON_OPTIONS}
