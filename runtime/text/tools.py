"""Tools (functions that a model may call) and calls of them, in the shape of OpenAI's chat completions API."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from itertools import islice
from typing import Any

from ..errors import InputError
from .tokenizer import checked_text

_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
EXAMPLE = '{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}'
MOST_TOOLS = 128
"""OpenAI's limit too: each tool's schema is compiled."""
ToolChoice = str | Mapping[str, object]
"""`auto`, `none`, `required`, or `{"type": "function", "function": {"name": "..."}}`."""


@dataclass(frozen=True)
class Tool:
    """A function that the model may call."""

    name: str
    parameters: Mapping[str, Any]
    """JSON schema of its arguments, an object."""
    strict: bool
    """Whether a schema that cannot be enforced is an error."""
    record: Mapping[str, Any]
    """As it was given: templates render it."""


@dataclass(frozen=True)
class ToolCall:
    """A call of a function by the model."""

    id: str
    name: str
    arguments: str
    """JSON text of an object."""

    def as_message(self) -> dict[str, object]:
        """The call in OpenAI's shape, as `tool_calls` of the assistant's message has it."""
        function = {"name": self.name, "arguments": self.arguments}
        return {"id": self.id, "type": "function", "function": function}


def tools_of(tools: object) -> list[Tool]:
    """Check tools; raises InputError that names the first one that cannot be used."""
    if isinstance(tools, (str, bytes, Mapping)) or not isinstance(tools, Iterable):
        raise InputError(f"`tools` must be a list of tools, not {type(tools).__name__}", hint=EXAMPLE)
    given = list(islice(tools, MOST_TOOLS + 1))
    if len(given) > MOST_TOOLS:
        raise InputError(f"`tools` has more than {MOST_TOOLS} tools")
    found: dict[str, Tool] = {}
    for index, given_tool in enumerate(given):
        tool = _tool_of(given_tool, index)
        if found.setdefault(tool.name, tool) is not tool:
            raise InputError(f"two tools have the name `{tool.name}`")
    return list(found.values())


def _tool_of(tool: object, index: int) -> Tool:
    if not isinstance(tool, Mapping) or tool.get("type") != "function":
        raise InputError(f"tool {index} must be an object of type `function`", hint=EXAMPLE)
    function = tool.get("function")
    if not isinstance(function, Mapping):
        raise InputError(f"tool {index} has no `function`", hint=EXAMPLE)
    name = function.get("name")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise InputError(
            f"tool {index} must have a name of 1 to 64 letters, digits, `_` and `-`, not {name!r}", hint=EXAMPLE
        )
    parameters = function.get("parameters")
    if parameters is None:
        parameters = {"type": "object", "properties": {}}
    if not isinstance(parameters, Mapping):
        raise InputError(f"`parameters` of the tool `{name}` must be a JSON schema, as an object", hint=EXAMPLE)
    if parameters.get("type", "object") != "object":
        raise InputError(f"`parameters` of the tool `{name}` must be a schema of type `object`")
    strict = function.get("strict")
    if strict is not None and not isinstance(strict, bool):
        raise InputError(f"`strict` of the tool `{name}` must be a bool, not {type(strict).__name__}")
    try:
        # Templates get plain values.
        record = json.loads(checked_text(json.dumps(tool, ensure_ascii=False, allow_nan=False), f"tool {index}"))
    except InputError:
        raise
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(f"tool {index} is not a JSON value: {error}") from error
    return Tool(name, parameters, bool(strict), record)


class Calls(StrEnum):
    """How many calls an answer may have."""

    ANY = "any"
    ONE = "one"
    """Exactly one, and no text."""
    SEVERAL = "several"
    """At least one, and no text."""


def chosen_tools(tools: list[Tool], choice: ToolChoice | None) -> tuple[list[Tool], Calls]:
    """The tools that may be called, and how often; raises InputError for a choice that is not valid."""
    if choice is None or choice == "auto":
        return tools, Calls.ANY
    if choice == "none":
        return [], Calls.ANY
    if not tools:
        raise InputError("`tool_choice` needs `tools`")
    if choice == "required":
        return tools, Calls.SEVERAL
    function = choice.get("function") if isinstance(choice, Mapping) and choice.get("type") == "function" else None
    name = function.get("name") if isinstance(function, Mapping) else None
    if name is None:
        raise InputError(
            f"`tool_choice` must be `none`, `auto`, `required` or a function, not {choice!r}",
            hint='{"type": "function", "function": {"name": "..."}}',
        )
    named = [tool for tool in tools if tool.name == name]
    if not named:
        raise InputError(
            f"`tool_choice` names `{name}`, which is not one of the tools",
            hint=f"the tools are {', '.join(f'`{tool.name}`' for tool in tools)}",
        )
    return named, Calls.ONE


def calls_of(calls: object, index: int) -> tuple[ToolCall, ...]:
    """The calls of an assistant's message; raises InputError for one that is not valid."""
    if not isinstance(calls, Iterable) or isinstance(calls, (str, bytes, Mapping)):
        raise InputError(f"`tool_calls` of message {index} must be a list, not {type(calls).__name__}")
    return tuple(_call_of(call, f"call {place} of message {index}") for place, call in enumerate(calls))


def _call_of(call: object, name: str) -> ToolCall:
    if isinstance(call, ToolCall):
        call = call.as_message()
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(call, Mapping) or not isinstance(function, Mapping):
        raise InputError(f"{name} must be an object with `id` and `function`")
    if call.get("type", "function") != "function":
        raise InputError(f"{name} must have the type `function`")
    arguments = function.get("arguments")
    if isinstance(arguments, Mapping):
        try:
            arguments = json.dumps(arguments, ensure_ascii=False, allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            raise InputError(f"the arguments of {name} are not a JSON value: {error}") from error
    text = checked_text(arguments, f"the arguments of {name}")
    if not isinstance(parsed_arguments(text), dict):
        raise InputError(f"the arguments of {name} must be the JSON text of an object")
    id_ = call.get("id")
    return ToolCall(
        "" if id_ is None else checked_text(id_, f"the id of {name}"),
        checked_text(function.get("name"), f"the function's name of {name}"),
        text,
    )


def parsed_arguments(text: str) -> object:
    """The value of a JSON text; None where it is not valid."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
