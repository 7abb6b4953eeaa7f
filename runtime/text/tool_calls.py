"""Calls of tools in an answer: the form that a model was trained to write, its parser, and a grammar for it."""

from __future__ import annotations

import ast
import json
import re
import secrets
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from .tools import Tool, ToolCall, parsed_arguments

_ID_LETTERS = string.ascii_letters + string.digits
_ID_LENGTH = 9
"""Mistral's templates refuse ids of any other length."""
_HEAD = re.compile(r'\s*\{\s*"name"\s*:\s*("(?:[^"\\]|\\.)*")\s*,\s*"(?:arguments|parameters)"\s*:\s*(?=\{)', re.DOTALL)
"""The beginning of a call whose name comes first, up to its arguments."""


class ToolForm(StrEnum):
    """How a model writes calls."""

    HERMES = "hermes"
    """`<tool_call>` object `</tool_call>`: Hermes, Qwen 2.5 and 3, SmolLM3, Granite 3.1."""
    MISTRAL = "mistral"
    """`[TOOL_CALLS]` and an array of objects."""
    LLAMA_3 = "llama3"
    """The whole answer is an object with `name` and `parameters`, perhaps after `<|python_tag|>`."""
    GRANITE = "granite"
    """`<|tool_call|>` and an array of objects: Granite 3.0."""
    PYTHONIC = "pythonic"
    """The whole answer is a list of calls in Python's syntax: `[f(a=1), g()]`."""


_MARKERS = {
    ToolForm.HERMES: "<tool_call>",
    ToolForm.MISTRAL: "[TOOL_CALLS]",
    ToolForm.GRANITE: "<|tool_call|>",
    ToolForm.LLAMA_3: "<|python_tag|>",
}
_HERMES_END = "</tool_call>"
_OPENING = {ToolForm.LLAMA_3: "{", ToolForm.PYTHONIC: "["}
"""What an answer that is a call as a whole begins with."""


def form_of(template: str) -> ToolForm | None:
    """The form that a chat template names; None where it names none that is supported."""
    # The newest models of Mistral write a name, `[ARGS]` and the arguments; those of Qwen 3 Coder XML.
    if "[ARGS]" in template or "<function=" in template:
        return None
    for form in (ToolForm.HERMES, ToolForm.MISTRAL, ToolForm.GRANITE):
        if _MARKERS[form] in template:
            return form
    if "<|python_tag|>" in template or re.search(
        r'"parameters\\?"\s*:|\{"name": function name, "parameters"', template
    ):
        return ToolForm.LLAMA_3
    if re.search(r"\[\s*func\w*\(|\bpythonic\b|Pythonic", template):
        return ToolForm.PYTHONIC
    return None


@dataclass(frozen=True)
class ToolDelta:
    """What one more piece of an answer adds: text, or a part of a call."""

    text: str = ""
    """Text of the answer beside its calls."""
    index: int | None = None
    """Number of the call; None for text."""
    id: str | None = None
    name: str | None = None
    """With the first part of a call."""
    arguments: str = ""
    """The next piece of the JSON text of the call's arguments."""


class ToolCallParser:
    """Divides an answer into text and calls, as its tokens come.

    `special` maps the ids of special tokens, which have no text in an answer, to their texts.
    """

    def __init__(self, form: ToolForm, special: Mapping[int, str] | None = None) -> None:
        self.form = form
        self._special = special or {}
        self._marker = _MARKERS.get(form)
        self._held = ""
        """Text that is not certain yet."""
        self._within = False
        """Whether the held text is in a call."""
        self._object: _Object | None = None
        self._texts: list[str] = []
        self._calls: list[ToolCall] = []

    @property
    def text(self) -> str:
        """The text beside the calls, without whitespace around it where there are calls."""
        text = "".join(self._texts)
        return text.strip() if self._calls else text

    @property
    def calls(self) -> tuple[ToolCall, ...]:
        """The complete calls so far."""
        return tuple(self._calls)

    def push(self, text: str, token_id: int | None = None) -> list[ToolDelta]:
        """The next token of the answer: its text, and its id, which tells special tokens."""
        special = "" if token_id is None else self._special.get(token_id, "")
        self._held += text + special
        return self._read(ended=False)

    def end(self) -> list[ToolDelta]:
        """What was held back, at the end of the answer; a call that is not complete is text."""
        return self._read(ended=True)

    def _read(self, *, ended: bool) -> list[ToolDelta]:
        found: list[ToolDelta] = []
        while self._step(found, ended=ended):
            pass
        if ended and self._held:
            found += self._text(self._held)
            self._held = ""
        return found

    def _step(self, found: list[ToolDelta], *, ended: bool) -> bool:
        """Read on by one part; False where more text is needed."""
        if self.form is ToolForm.PYTHONIC:
            return ended and self._read_python(found)
        if not self._within:
            return self._find_call(found, ended=ended)
        return self._read_object(found)

    def _find_call(self, found: list[ToolDelta], *, ended: bool) -> bool:
        """Pass on text up to the beginning of a call."""
        held, marker = self._held, self._marker
        place = -1 if marker is None else held.find(marker)
        if place >= 0 and marker is not None:
            found += self._text(held[:place])
            self._held, self._within = held[place + len(marker) :], True
            return True
        opening = _OPENING.get(self.form)
        if opening is not None and not self._texts and not self._calls:
            begun = held.lstrip()
            if begun.startswith(opening):
                self._held, self._within = begun, True
                return True
            if not begun:
                return False
        certain = len(held) if ended or marker is None else len(held) - _overlap(held, marker)
        found += self._text(held[:certain])
        self._held = held[certain:]
        return False

    def _read_object(self, found: list[ToolDelta]) -> bool:
        """Read on in a call."""
        if self._object is None:
            begun = self._held.lstrip()
            # Between calls, and after the last one.
            between = "[," if self.form in (ToolForm.MISTRAL, ToolForm.GRANITE) else ""
            begun = begun.lstrip(between + string.whitespace)
            if not begun:
                return False
            if not begun.startswith("{"):
                return self._leave(begun)
            self._held = ""
            self._object = _Object(len(self._calls))
            deltas, rest = self._object.push(begun)
        else:
            deltas, rest = self._object.push(self._held)
            self._held = ""
        found += deltas
        if rest is None:
            return False
        ended, self._object, self._held = self._object, None, rest
        call, last = ended.call()
        if call is None:
            # An object, but not a call: it is text as it stands.
            self._within = False
            found += self._text(ended.text)
            return True
        found += last
        self._calls.append(call)
        self._within = self.form is not ToolForm.LLAMA_3
        return True

    def _leave(self, begun: str) -> bool:
        """End the calls where something else follows."""
        ending = {ToolForm.HERMES: _HERMES_END, ToolForm.MISTRAL: "]", ToolForm.GRANITE: "]"}.get(self.form)
        if ending is not None and ending.startswith(begun) and begun != ending:
            self._held = begun
            return False
        self._held = begun.removeprefix(ending) if ending is not None else begun
        self._within = False
        return True

    def _read_python(self, found: list[ToolDelta]) -> bool:
        calls = python_calls(self._held)
        if not calls:
            return False
        self._held = ""
        for call in calls:
            found.append(ToolDelta(index=len(self._calls), id=call.id, name=call.name, arguments=call.arguments))
            self._calls.append(call)
        return False

    def _text(self, text: str) -> list[ToolDelta]:
        if not text:
            return []
        self._texts.append(text)
        return [ToolDelta(text=text)]


class _Object:
    """One call, as its text comes: an object with a name and arguments."""

    def __init__(self, index: int) -> None:
        self.text = ""
        self._index = index
        self._id = new_id()
        self._name: str | None = None
        """Set once the call has begun to be passed on."""
        self._arguments = ""
        self._depth = 0
        self._quoted = self._escaped = False
        self._passed = 0
        """Characters of the arguments that were passed on."""
        self._in_arguments = False

    def push(self, text: str) -> tuple[list[ToolDelta], str | None]:
        """The parts of the call in more of its text, and what follows its end; None before that."""
        found: list[ToolDelta] = []
        for place, character in enumerate(text):
            self.text += character
            if character == "{" and not self._quoted and self._depth == 1 and self._name is None:
                found += self._begin()
            if self._in_arguments:
                self._arguments += character
            self._scan(character)
            if self._in_arguments and self._depth == 1:
                self._in_arguments = False
            if self._depth == 0:
                return found + self._rest(), text[place + 1 :]
        return found + self._rest(), None

    def _begin(self) -> list[ToolDelta]:
        """Begin to pass the call on where its arguments begin, if its name came before."""
        head = _HEAD.match(self.text)
        if head is None or head.end() != len(self.text) - 1:
            return []
        name = parsed_arguments(head[1])
        if not isinstance(name, str):
            return []
        self._name, self._in_arguments = name, True
        return [ToolDelta(index=self._index, id=self._id, name=name)]

    def _rest(self) -> list[ToolDelta]:
        piece = self._arguments[self._passed :]
        self._passed = len(self._arguments)
        return [ToolDelta(index=self._index, arguments=piece)] if piece else []

    def _scan(self, character: str) -> None:
        """Follow strings and nesting."""
        if self._quoted:
            if self._escaped:
                self._escaped = False
            elif character == "\\":
                self._escaped = True
            elif character == '"':
                self._quoted = False
        elif character == '"':
            self._quoted = True
        elif character in "{[":
            self._depth += 1
        elif character in "}]":
            self._depth -= 1

    def call(self) -> tuple[ToolCall | None, list[ToolDelta]]:
        """The call, None for an object that is none, and what of it was not passed on yet."""
        if self._name is not None:
            return ToolCall(self._id, self._name, self._arguments), []
        value = parsed_arguments(self.text)
        if not isinstance(value, dict) or not isinstance(value.get("name"), str):
            return None, []
        arguments = value.get("arguments", value.get("parameters", {}))
        # Some models write the arguments as a string.
        if isinstance(arguments, str):
            arguments = parsed_arguments(arguments)
        if not isinstance(arguments, dict):
            return None, []
        call = ToolCall(self._id, value["name"], json.dumps(arguments, ensure_ascii=False))
        return call, [ToolDelta(index=self._index, id=call.id, name=call.name, arguments=call.arguments)]


def python_calls(text: str) -> list[ToolCall]:
    """The calls in a list in Python's syntax; empty for anything else. JSON's true, false and null are values too."""
    try:
        tree = ast.parse(text.strip(), mode="eval").body
        return [_python_call(node) for node in tree.elts] if isinstance(tree, ast.List) else []
    except (SyntaxError, TypeError, ValueError, RecursionError, MemoryError):
        return []


def _python_call(node: ast.expr) -> ToolCall:
    """A call; raises ValueError for any other expression."""
    if not isinstance(node, ast.Call) or node.args or not isinstance(node.func, (ast.Name, ast.Attribute)):
        raise ValueError("not a call with named arguments")
    arguments = {}
    for keyword in node.keywords:
        if keyword.arg is None:
            raise ValueError("`**` in a call")
        arguments[keyword.arg] = _value_of(keyword.value)
    return ToolCall(new_id(), ast.unparse(node.func), json.dumps(arguments, ensure_ascii=False, allow_nan=False))


def _value_of(node: ast.expr) -> object:
    """The value of a literal; raises ValueError for anything else."""
    constants: Mapping[str, object] = {"true": True, "false": False, "null": None}
    if isinstance(node, ast.Name) and node.id in constants:
        return constants[node.id]
    if isinstance(node, (ast.List, ast.Tuple)):
        return [_value_of(item) for item in node.elts]
    if isinstance(node, ast.Dict):
        keys = [None if key is None else ast.literal_eval(key) for key in node.keys]
        if not all(isinstance(key, str) for key in keys):
            raise ValueError("keys must be strings")
        return dict(zip(keys, map(_value_of, node.values), strict=True))
    return ast.literal_eval(node)


def new_id() -> str:
    """A random id of a call."""
    return "".join(secrets.choice(_ID_LETTERS) for _ in range(_ID_LENGTH))


def _overlap(text: str, marker: str) -> int:
    """Length of the longest suffix of `text` that is a proper prefix of `marker`."""
    longest = min(len(text), len(marker) - 1)
    return next((length for length in range(longest, 0, -1) if text.endswith(marker[:length])), 0)


def markers_of(form: ToolForm) -> list[str]:
    """The texts around calls, which may be special tokens."""
    return [_MARKERS[form], *([_HERMES_END] if form is ToolForm.HERMES else [])] if form in _MARKERS else []


def lark_of(
    form: ToolForm, tools: Sequence[Tool], schemas: Sequence[str], *, must: bool, tokens: Mapping[str, int]
) -> str:
    """A Lark grammar of an answer with calls of these tools; `must`: of calls alone, and at least one.

    `schemas` are the JSON schemas of the tools' arguments as texts, and `tokens` the ids of special tokens. Not for
    the pythonic form, which is parsed only.
    """
    key = "parameters" if form is ToolForm.LLAMA_3 else "arguments"
    rules = [
        f'tool_{number}: {json.dumps(_head(tool.name, key))} %json {schema} "}}"'
        for number, (tool, schema) in enumerate(zip(tools, schemas, strict=True))
    ]
    rules.append("tool: " + " | ".join(f"tool_{number}" for number in range(len(tools))))
    marker = _MARKERS[form]
    begin = f"<[{tokens[marker]}]>" if marker in tokens else json.dumps(marker)
    if form is ToolForm.LLAMA_3:
        python = f"({begin})? " if marker in tokens else ""
        start = f"{python}tool" if must else f"{python}tool | text"
        # Text that begins like a call would be one.
        rules += [f"start: {start}", *([] if must else [r"text: /([^{ \t\r\n](.|\n)*)?/"])]
        return "\n".join(rules)
    if form is ToolForm.HERMES:
        close = f"<[{tokens[_HERMES_END]}]>" if _HERMES_END in tokens else json.dumps(_HERMES_END)
        rules.append(f'body: "\\n" tool "\\n" {close}')
    else:
        rules.append('body: / ?/ "[" tool (", " tool)* "]"')
    if must:
        many = f'start: {begin} body ("\\n" {begin} body)*' if form is ToolForm.HERMES else f"start: {begin} body"
        rules.append(many)
    else:
        rules += ["start: part* TEXT", r"TEXT: /(.|\n)*/"]
        if marker in tokens:
            rules.append(f"part: TEXT {begin} body")
        else:
            rules += ["part: until body", f"until[lazy]: TEXT {begin}"]
    return "\n".join(rules)


def _head(name: str, key: str) -> str:
    return f'{{"name": {json.dumps(name)}, "{key}": '
