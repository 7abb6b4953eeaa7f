# ruff: noqa: E501 - templates stand here in the shape that their publishers write
"""Tools in chat templates, as transformers renders them, and messages with calls."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping

import jinja2
import pytest
import tokenizers
import transformers

from ortkit import InputError, Message
from ortkit.runtime.bundle.manifest import ChatFacts
from ortkit.runtime.text.chat_template import ChatTemplate
from ortkit.runtime.text.messages import messages_of
from ortkit.runtime.text.tool_calls import ToolForm, form_of
from ortkit.runtime.text.tools import Calls, ToolCall, chosen_tools, tools_of
from tests import mistral

TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": 'The weather "now" <in> a city, & elsewhere',
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "description": "größe"}, "days": {"type": "integer"}},
            "required": ["city"],
        },
    },
}
TIME = {"type": "function", "function": {"name": "time", "description": "The time", "parameters": {"type": "object"}}}

# The parts of the publishers' templates that concern tools, in their order and with their filters.
HERMES = """{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}{{- messages[0].content + '\\n\\n' }}{%- endif %}
    {{- "# Tools\\n\\nYou may call functions. They are within <tools></tools> XML tags:\\n<tools>" }}
    {%- for tool in tools %}{{- "\\n" }}{{- tool | tojson }}{%- endfor %}
    {{- "\\n</tools>\\n\\nReturn calls as JSON:\\n<tool_call>\\n{\\"name\\": <function-name>, \\"arguments\\": <args-json-object>}\\n</tool_call><|im_end|>\\n" }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role in ('user', 'system') and not (message.role == 'system' and loop.first and tools) or (message.role == 'assistant' and not message.tool_calls) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
    {%- elif message.role == "assistant" %}
        {{- '<|im_start|>' + message.role }}
        {%- if message.content %}{{- '\\n' + message.content }}{%- endif %}
        {%- for tool_call in message.tool_calls %}
            {%- if tool_call.function is defined %}{%- set tool_call = tool_call.function %}{%- endif %}
            {{- '\\n<tool_call>\\n{"name": "' }}{{- tool_call.name }}{{- '", "arguments": ' }}{{- tool_call.arguments | tojson }}{{- '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == "tool" %}
        {{- '<|im_start|>user\\n<tool_response>\\n' + message.content + '\\n</tool_response><|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"""
MISTRAL = """{{- bos_token }}
{%- for message in messages %}
    {%- if message["role"] == "user" %}
        {%- if tools is not none and loop.last %}{{- "[AVAILABLE_TOOLS] [" }}
            {%- for tool in tools %}{%- set tool = tool.function %}{{- '{"type": "function", "function": {' }}
                {%- for key, val in tool.items() if key != "return" %}
                    {%- if val is string %}{{- '"' + key + '": "' + val + '"' }}{%- else %}{{- '"' + key + '": ' + val|tojson }}{%- endif %}
                    {%- if not loop.last %}{{- ", " }}{%- endif %}
                {%- endfor %}{{- "}}" }}{%- if not loop.last %}{{- ", " }}{%- else %}{{- "]" }}{%- endif %}
            {%- endfor %}{{- "[/AVAILABLE_TOOLS]" }}
        {%- endif %}{{- "[INST] " + message["content"] + "[/INST]" }}
    {%- elif message.tool_calls is defined and message.tool_calls is not none %}
        {{- "[TOOL_CALLS] [" }}
        {%- for tool_call in message.tool_calls %}
            {%- set out = tool_call.function|tojson %}{{- out[:-1] }}
            {%- if not tool_call.id is defined or tool_call.id|length != 9 %}{{- raise_exception("Tool call IDs should be alphanumeric strings with length 9!") }}{%- endif %}
            {{- ', "id": "' + tool_call.id + '"}' }}{%- if not loop.last %}{{- ", " }}{%- else %}{{- "]" + eos_token }}{%- endif %}
        {%- endfor %}
    {%- elif message["role"] == "assistant" %}{{- " " + message["content"]|trim + eos_token }}
    {%- elif message["role"] == "tool" %}{{- '[TOOL_RESULTS] {"content": ' + message.content|string + ', "call_id": "' + message.tool_call_id + '"}[/TOOL_RESULTS]' }}
    {%- endif %}
{%- endfor %}"""
LLAMA_3 = """{{- bos_token }}
{%- if tools is not none %}{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
    {{- 'Respond in the format {"name": function name, "parameters": dictionary of argument name and its value}.\\n\\n' }}
    {%- for t in tools %}{{- t | tojson(indent=4) }}{{- "\\n\\n" }}{%- endfor %}{{- "<|eot_id|>" }}
{%- endif %}
{%- for message in messages %}
    {%- if 'tool_calls' in message %}
        {%- if not message.tool_calls|length == 1 %}{{- raise_exception("This model only supports single tool-calls at once!") }}{%- endif %}
        {%- set tool_call = message.tool_calls[0].function %}
        {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n{"name": "' + tool_call.name + '", "parameters": ' }}{{- tool_call.arguments | tojson }}{{- "}<|eot_id|>" }}
    {%- elif message.role == "tool" %}
        {{- "<|start_header_id|>ipython<|end_header_id|>\\n\\n" }}{%- if message.content is mapping or message.content is iterable %}{{- message.content | tojson }}{%- endif %}{{- "<|eot_id|>" }}
    {%- else %}{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim + '<|eot_id|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}"""
GRANITE = """{%- if tools %}{{- '<|start_of_role|>available_tools<|end_of_role|>\\n' }}
    {%- for tool in tools %}{{- tool | tojson(indent=4) }}{%- if not loop.last %}{{- '\\n\\n' }}{%- endif %}{%- endfor %}{{- '<|end_of_text|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if message['role'] == 'assistant_tool_call' %}{{- '<|start_of_role|>assistant<|end_of_role|><|tool_call|>' + message['content'] + '<|end_of_text|>\\n' }}
    {%- elif message['role'] == 'tool' %}{{- '<|start_of_role|>tool_response<|end_of_role|>' + message['content'] + '<|end_of_text|>\\n' }}
    {%- else %}{{- '<|start_of_role|>' + message['role'] + '<|end_of_role|>' + message['content'] + '<|end_of_text|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_of_role|>assistant<|end_of_role|>' }}{%- endif %}"""
PYTHONIC = """{%- if tools %}{{- "Write calls as [func_name1(params_name1=params_value1), func_name2(params)]\\n" }}{%- for t in tools %}{{- t | tojson(indent=4, sort_keys=true) }}{%- endfor %}{%- endif %}
{%- for message in messages %}{{- '<' + message.role + '>' + message.content }}{%- endfor %}"""
TEMPLATES = {"hermes": HERMES, "mistral": MISTRAL, "llama3": LLAMA_3, "granite": GRANITE, "pythonic": PYTHONIC}

CALL = {
    "id": "abcdef123",
    "type": "function",
    "function": {"name": "weather", "arguments": '{"city": "Köln", "days": 2}'},
}
ASKED = [{"role": "user", "content": "How warm is it in Köln?"}]
CONVERSATIONS: list[list[Mapping[str, object]]] = [
    ASKED,
    [{"role": "system", "content": "Be brief."}, *ASKED],
    [
        *ASKED,
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "abcdef123", "name": "weather", "content": '{"warm": 21.5}'},
    ],
    [*ASKED, {"role": "assistant", "content": "A moment.", "tool_calls": [CALL, {**CALL, "id": "123456789"}]}],
]


@pytest.fixture(scope="module")
def reference() -> transformers.PreTrainedTokenizerFast:
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizers.Tokenizer(tokenizers.models.BPE()), **TOKENS
    )


def as_transformers_wants(message: Mapping[str, object]) -> dict[str, object]:
    """Arguments as an object, as its documentation says, and no content as an empty text."""
    found = {**message, "content": message["content"] or ""}
    if "tool_calls" in found:
        found["tool_calls"] = [
            {**call, "function": {**call["function"], "arguments": json.loads(call["function"]["arguments"])}}
            for call in found["tool_calls"]
        ]
    return found


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("tools", [None, [WEATHER], [WEATHER, TIME]], ids=["none", "one", "two"])
def test_tools_are_rendered_as_transformers_renders_them(
    name: str, tools: list[Mapping[str, object]] | None, reference: transformers.PreTrainedTokenizerFast
) -> None:
    template = ChatTemplate(ChatFacts(TEMPLATES[name], TOKENS))
    rendered = 0
    for messages in CONVERSATIONS:
        if any("tool_calls" in message for message in messages) and "tool_calls" not in TEMPLATES[name]:
            continue
        tool_objects = None if tools is None else tools_of(tools)
        expected = refusal = None
        try:
            expected = reference.apply_chat_template(
                [as_transformers_wants(message) for message in messages],
                tools=tools,
                chat_template=TEMPLATES[name],
                tokenize=False,
                add_generation_prompt=True,
            )
        except jinja2.TemplateError as error:
            refusal = str(error)
        if refusal is not None:
            with pytest.raises(InputError) as caught:
                template.render(messages_of(messages), tools=tool_objects)
            assert caught.value.message == f"the model's chat template refuses these messages: {refusal}"
            continue
        found = template.render(messages_of(messages), tools=tool_objects)
        assert found == expected
        assert tools is None or '"weather"' in found
        rendered += 1
    assert rendered >= 2


def test_the_form_of_calls_follows_from_the_template() -> None:
    assert {name: form_of(text) for name, text in TEMPLATES.items()} == {form.value: form for form in ToolForm}
    assert form_of(mistral.CHAT_TEMPLATE) is None
    assert form_of("{{ tools }}") is None
    assert form_of(MISTRAL + "[ARGS]") is None
    assert form_of(HERMES + "<function=name>") is None


def test_a_template_that_does_not_use_tools_refuses_them() -> None:
    template = ChatTemplate(ChatFacts(mistral.CHAT_TEMPLATE, TOKENS))
    with pytest.raises(InputError, match="the model's chat template does not use tools"):
        template.render([Message("user", "Hello")], tools=tools_of([WEATHER]))
    with pytest.raises(InputError, match="message 1 has `tool_calls`, which the model's chat template does not use"):
        template.render(messages_of(CONVERSATIONS[2]))
    with pytest.raises(InputError, match="message 0 has the role `tool`, which the model's chat template does not"):
        template.render(messages_of([{"role": "tool", "content": "5"}]))


def test_messages_with_calls() -> None:
    found = messages_of(CONVERSATIONS[2])
    assert found[1] == Message("assistant", "", (ToolCall("abcdef123", "weather", '{"city": "Köln", "days": 2}'),))
    assert found[2] == Message("tool", '{"warm": 21.5}', (), "abcdef123", "weather")
    assert messages_of(found) == found
    assert repr(found[2]) == (
        "Message(role='tool', content='{\"warm\": 21.5}', tool_call_id='abcdef123', name='weather')"
    )
    given = {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {"ä": [1]}}}]}
    assert messages_of([given])[0].tool_calls == (ToolCall("", "f", '{"ä": [1]}'),)
    assert found[1].tool_calls[0].as_message() == CALL


@pytest.mark.parametrize(
    ("message", "error"),
    [
        (
            {"role": "user", "content": "a", "tool_calls": [CALL]},
            "message 0 has the field `tool_calls`; supported: `role`, `content`",
        ),
        ({"role": "assistant", "content": None, "tool_calls": []}, "message 0 has no `content`"),
        ({"role": "assistant", "tool_calls": CALL}, "`tool_calls` of message 0 must be a list, not dict"),
        ({"role": "assistant", "tool_calls": [5]}, "call 0 of message 0 must be an object with `id` and `function`"),
        (
            {"role": "assistant", "tool_calls": [{**CALL, "type": "x"}]},
            "call 0 of message 0 must have the type `function`",
        ),
        (
            {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]},
            "the arguments of call 0 of message 0 must be the JSON text of an object",
        ),
        (
            {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "[1]"}}]},
            "the arguments of call 0 of message 0 must be the JSON text of an object",
        ),
        (
            {"role": "assistant", "tool_calls": [{"function": {"arguments": "{}"}}]},
            "the function's name of call 0 of message 0 must be a string, not NoneType",
        ),
        ({"role": "tool", "content": None}, "message 0 has no `content`"),
        ({"role": "tool", "content": "a", "tool_call_id": 5}, "`tool_call_id` of message 0 must be a string, not int"),
    ],
)
def test_calls_that_are_not_valid(message: Mapping[str, object], error: str) -> None:
    with pytest.raises(InputError) as caught:
        messages_of([message])
    assert caught.value.message == error


@pytest.mark.parametrize(
    ("tools", "error"),
    [
        ("weather", "`tools` must be a list of tools, not str"),
        (WEATHER, "`tools` must be a list of tools, not dict"),
        ([{"type": "retrieval"}], "tool 0 must be an object of type `function`"),
        ([{"type": "function"}], "tool 0 has no `function`"),
        (
            [{"type": "function", "function": {}}],
            "tool 0 must have a name of 1 to 64 letters, digits, `_` and `-`, not None",
        ),
        (
            [{"type": "function", "function": {"name": "a b"}}],
            "tool 0 must have a name of 1 to 64 letters, digits, `_` and `-`, not 'a b'",
        ),
        (
            [{"type": "function", "function": {"name": "a", "parameters": []}}],
            "`parameters` of the tool `a` must be a JSON schema, as an object",
        ),
        (
            [{"type": "function", "function": {"name": "a", "parameters": {"type": "array"}}}],
            "`parameters` of the tool `a` must be a schema of type `object`",
        ),
        (
            [{"type": "function", "function": {"name": "a", "strict": 1}}],
            "`strict` of the tool `a` must be a bool, not int",
        ),
        (
            [{"type": "function", "function": {"name": "a", "description": "\ud800"}}],
            "tool 0 is not valid Unicode: surrogates not allowed at character 63",
        ),
        ([WEATHER, WEATHER], "two tools have the name `weather`"),
        (itertools.repeat(WEATHER), "`tools` has more than 128 tools"),
    ],
)
def test_tools_that_are_not_valid(tools: object, error: str) -> None:
    with pytest.raises(InputError) as caught:
        tools_of(tools)
    assert caught.value.message == error


def test_the_choice_of_a_tool() -> None:
    tools = tools_of([WEATHER, TIME])
    assert chosen_tools(tools, None) == chosen_tools(tools, "auto") == (tools, Calls.ANY)
    assert chosen_tools(tools, "none") == ([], Calls.ANY)
    assert chosen_tools(tools, "required") == (tools, Calls.SEVERAL)
    assert chosen_tools(tools, {"type": "function", "function": {"name": "time"}}) == ([tools[1]], Calls.ONE)
    for choice, error in [
        ("any", "`tool_choice` must be `none`, `auto`, `required` or a function, not 'any'"),
        (
            {"type": "function"},
            "`tool_choice` must be `none`, `auto`, `required` or a function, not {'type': 'function'}",
        ),
        ({"type": "function", "function": {"name": "x"}}, "`tool_choice` names `x`, which is not one of the tools"),
    ]:
        with pytest.raises(InputError) as caught:
            chosen_tools(tools, choice)
        assert caught.value.message == error
    with pytest.raises(InputError, match="`tool_choice` needs `tools`"):
        chosen_tools([], "required")
