"""The messages and tools of a chat completion, checked before the model's chat template renders them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from ....runtime.text.messages import ASSISTANT, SYSTEM, USER
from ..errors import RequestError, UnsupportedFieldError
from .file_search import FILE_SEARCH, FileSearch, read_file_search
from .request_fields import Fields, text_of

TOOL = "tool"
_ROLES = (SYSTEM, "developer", USER, ASSISTANT, TOOL)
MOST_MESSAGES = 4096
MOST_TOOLS = 128
"""As in OpenAI's API."""
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
"""The names of functions in OpenAI's API."""
_PARTS = {"image_url": "images", "input_audio": "audio", "file": "files", "video_url": "videos"}
"""Types of content that other models take."""


def read_messages(fields: Fields) -> list[dict[str, Any]]:
    """The messages for `Decoder.apply_chat_template`; raises RequestError for what cannot be answered."""
    found = fields.objects("messages", required=True, least=1, most=MOST_MESSAGES) or []
    return [_message_of(message) for message in found]


def _message_of(message: Fields) -> dict[str, Any]:
    role = message.required_choice("role", _ROLES)
    name = message.text("name")
    read: dict[str, Any] = {"role": SYSTEM if role == "developer" else role}
    if role == ASSISTANT:
        calls = message.objects("tool_calls", most=MOST_TOOLS)
        if calls:
            read["tool_calls"] = [_call_of(call) for call in calls]
        message.refuse("function_call", "use `tool_calls`")
        message.refuse("audio", "the model reads text only")
        message.refuse("refusal", "put it into `content`")
        message.ignore("annotations")
    if role == TOOL:
        # The function; that of a person is not for any template.
        read["name"] = name
        read["tool_call_id"] = message.required_text("tool_call_id")
    content = message.value("content", required="tool_calls" not in read)
    read["content"] = "" if content is None else _text_of(content, message.path("content"))
    message.finish()
    return read


def _text_of(content: object, path: str) -> str:
    """The text of a message; its parts are joined with line breaks, as llama.cpp's and vLLM's servers do."""
    if not isinstance(content, list):
        if not isinstance(content, str):
            raise RequestError(f"`{path}` must be a string or an array of parts", param=path)
        return text_of(content, path)
    if not content:
        raise RequestError(f"`{path}` must not be empty", param=path)
    texts = []
    for place, value in enumerate(content):
        part = Fields(value, f"{path}[{place}]")
        kind = part.required_text("type")
        if kind in _PARTS:
            raise UnsupportedFieldError(
                f"`{part.path('type')}` is `{kind}`: {_PARTS[kind]} are not supported, the model reads text only",
                param=part.path("type"),
            )
        if kind != "text":
            raise RequestError(f"`{part.path('type')}` must be `text`", param=part.path("type"))
        texts.append(part.required_text("text"))
        part.ignore("cache_control", "prompt_cache_breakpoint")
        part.finish()
    return "\n".join(texts)


def _call_of(call: Fields) -> dict[str, Any]:
    call.required_choice("type", ("function",))
    function = call.required_fields("function")
    name = function.required_text("name", empty=False)
    arguments = function.required_text("arguments")
    function.finish()
    identity = call.required_text("id")
    call.ignore("index")
    call.finish()
    return {"id": identity, "type": "function", "function": {"name": name, "arguments": arguments}}


def read_tools(fields: Fields) -> tuple[list[dict[str, Any]], FileSearch | None]:
    """The functions that the model may call, as they were sent, and the search that its answer is made from."""
    functions: list[dict[str, Any]] = []
    found: FileSearch | None = None
    for tool in fields.objects("tools", most=MOST_TOOLS) or []:
        kind = tool.required_choice("type", ("function", FILE_SEARCH))
        if kind == FILE_SEARCH and found is not None:
            raise RequestError(f"`tools` has more than one `{FILE_SEARCH}`", param=tool.path("type"))
        if kind == FILE_SEARCH:
            found = read_file_search(tool)
        else:
            functions.append(_function_of(tool, [function["function"]["name"] for function in functions]))
        tool.finish()
        if found is not None and functions:
            raise RequestError(
                f"`{FILE_SEARCH}` and functions cannot be combined: the answer is made from the passages alone",
                param=tool.path("type"),
                hint="send two requests",
            )
    return functions, found


def _function_of(tool: Fields, names: Sequence[str]) -> dict[str, Any]:
    """A function as it was sent; `names` are those of the functions before it."""
    function = tool.required_fields("function")
    name = _function_name(function)
    if name in names:
        raise RequestError(f"two tools have the name `{name}`", param=function.path("name"))
    read: dict[str, Any] = {"name": name}
    description = function.text("description")
    if description is not None:
        read["description"] = description
    parameters = function.fields("parameters")
    if parameters is not None:
        parameters.choice("type", ("object",))
        read["parameters"] = function.value("parameters")
    if function.flag("strict"):
        read["strict"] = True
    function.finish()
    return {"type": "function", "function": read}


def _function_name(function: Fields) -> str:
    name = function.required_text("name", empty=False)
    if not _NAME.fullmatch(name):
        raise RequestError(
            f"`{function.path('name')}` must be 1 to 64 letters, digits, `_` and `-`", param=function.path("name")
        )
    return name


def read_tool_choice(
    fields: Fields, tools: list[dict[str, Any]], file_search: FileSearch | None = None
) -> str | dict[str, Any]:
    """`none`, `auto`, `required`, or the tool that has to be used; raises RequestError without such a tool."""
    fields.ignore("parallel_tool_calls")
    found = fields.value("tool_choice")
    has_tools = bool(tools) or file_search is not None
    if found is None:
        return "auto" if has_tools else "none"
    if isinstance(found, str):
        choice = fields.choice("tool_choice", ("none", "auto", "required")) or "auto"
        if choice != "none" and not has_tools:
            raise RequestError("`tool_choice` needs `tools`", param="tool_choice")
        return choice
    chosen = fields.required_fields("tool_choice")
    kind = chosen.required_choice("type", ("function",) if file_search is None else ("function", FILE_SEARCH))
    if kind == FILE_SEARCH:
        chosen.finish()
        return "required"
    function = chosen.required_fields("function")
    name = function.required_text("name", empty=False)
    function.finish()
    chosen.finish()
    if name not in [tool["function"]["name"] for tool in tools]:
        raise RequestError(f"`tool_choice` names `{name}`, which is not one of `tools`", param=function.path("name"))
    return {"type": "function", "function": {"name": name}}


def read_response_format(fields: Fields) -> dict[str, Any] | None:
    """OpenAI's `response_format`, checked as far as that needs no grammar; None for text."""
    form = fields.fields("response_format")
    if form is None:
        return None
    kind = form.required_choice("type", ("text", "json_object", "json_schema"))
    if kind == "json_schema":
        schema = form.required_fields("json_schema")
        schema.required_text("name", empty=False)
        schema.text("description")
        schema.flag("strict")
        if schema.value("schema", required=True) is not None and not isinstance(schema.value("schema"), (dict, bool)):
            raise RequestError(f"`{schema.path('schema')}` must be an object", param=schema.path("schema"))
        schema.finish()
    form.finish()
    return None if kind == "text" else fields.value("response_format")
