from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import openai
import pytest

from ortkit.runtime.bundle.manifest import ChatFacts
from ortkit.toolkit.server.operation.metrics import Metrics
from ortkit.toolkit.server.served.models import ServedModels
from ortkit.toolkit.server.settings import ServerSettings
from tests.decoders import write_decoder
from tests.toolkit.server.conftest import LocalServer, running

HERMES = """{%- if tools %}{{ '<|im_start|>system
Call functions as <tool_call>{"name": ..., "arguments": ...}</tool_call>:
' }}{% for tool in tools %}{{ tool | tojson }}{% endfor %}{{ '<|im_end|>
' }}{% endif %}{% for message in messages %}{{ '<|im_start|>' + message['role'] + '
' + message['content'] }}{% for call in message.tool_calls or [] %}{{ '<tool_call>' }}{{ call.function | tojson }}{{
 '</tool_call>' }}{% endfor %}{% if message['role'] == 'tool' %}{{ message.tool_call_id }}{% endif %}{{ '<|im_end|>
' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant
' }}{% endif %}"""


def tool(**function: object) -> dict[str, object]:
    return {"type": "function", "function": function}


def chosen(name: str) -> dict[str, object]:
    return tool(name=name)


PARAMETERS = {
    "type": "object",
    "properties": {"city": {"enum": ["Berlin", "Paris"]}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
    "required": ["city", "days"],
    "additionalProperties": False,
}
TOOLS: list[Any] = [
    tool(name="weather", description="The weather", parameters=PARAMETERS),
    tool(name="time"),
]
MESSAGES: list[Any] = [{"role": "user", "content": "The weather in Berlin?"}]
CHOICE: Any = chosen("weather")


@pytest.fixture(scope="module")
def tools_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalServer]:
    """A server with an LLM whose template describes tools."""
    folder: Path = tmp_path_factory.mktemp("tools") / "decoder"
    write_decoder(folder, chat=ChatFacts(HERMES, {}))
    settings, metrics = ServerSettings(slots=4, threads=1), Metrics()
    models = ServedModels.open({"tiny": folder}, settings, metrics)
    with running(models, settings, metrics) as found:
        yield found
    models.close()


@pytest.fixture(scope="module")
def tools_client(tools_server: LocalServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(
        base_url=f"{tools_server.url}/v1", api_key="none", max_retries=0, timeout=60, _strict_response_validation=True
    ) as found:
        yield found


def test_a_call_that_must_be_made_follows_its_schema(tools_client: openai.OpenAI) -> None:
    answer = tools_client.chat.completions.create(model="tiny", messages=MESSAGES, tools=TOOLS, tool_choice=CHOICE)
    [choice] = answer.choices
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content is None
    assert choice.message.tool_calls
    for call in choice.message.tool_calls:
        assert (call.type, call.function.name) == ("function", "weather")
        jsonschema.validate(json.loads(call.function.arguments), PARAMETERS)


def test_a_streamed_call_comes_in_pieces(tools_client: openai.OpenAI) -> None:
    options: dict[str, Any] = {"model": "tiny", "messages": MESSAGES, "tools": TOOLS, "tool_choice": CHOICE}
    [whole] = tools_client.chat.completions.create(**options).choices
    names: dict[int, str] = {}
    arguments: dict[int, str] = {}
    reasons = []
    for chunk in tools_client.chat.completions.create(stream=True, **options):
        [choice] = chunk.choices
        reasons.append(choice.finish_reason)
        for call in choice.delta.tool_calls or []:
            if call.id:
                assert call.type == "function"
                names[call.index] = call.function.name
            arguments[call.index] = arguments.get(call.index, "") + (call.function.arguments or "")
    assert reasons[-1] == "tool_calls"
    assert [(names[n], arguments[n]) for n in sorted(names)] == [
        (call.function.name, call.function.arguments) for call in whole.message.tool_calls
    ]


def test_the_clients_own_helper_collects_a_stream(tools_client: openai.OpenAI) -> None:
    with tools_client.chat.completions.stream(
        model="tiny", messages=MESSAGES, tools=TOOLS, tool_choice=CHOICE
    ) as stream:
        final = stream.get_final_completion()
    jsonschema.validate(json.loads(final.choices[0].message.tool_calls[0].function.arguments), PARAMETERS)


def test_a_conversation_with_calls_and_their_results(tools_client: openai.OpenAI, tools_server: LocalServer) -> None:
    call = {"id": "call00001", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Paris"}'}}
    messages: list[Any] = [
        *MESSAGES,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call00001", "content": "It rains."},
    ]
    answer = tools_client.chat.completions.create(
        model="tiny", messages=messages, tools=TOOLS, tool_choice="none", max_tokens=8
    )
    decoder = tools_server.models.find("tiny").decoder
    assert answer.choices[0].message.content == decoder.chat(messages, max_tokens=8).text
    assert answer.choices[0].message.tool_calls is None


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({"tool_choice": chosen("x")}, "tool_choice.function.name", "`tool_choice` names `x`, "),
        ({"tools": [tool(name="a b")]}, "tools[0].function.name", "`tools[0].function.name` must"),
        ({"tools": [tool()]}, "tools[0].function.name", "the field `tools[0].function.name` is missing"),
        ({"tools": [TOOLS[1], TOOLS[1]]}, "tools[1].function.name", "two tools have the name `time`"),
        (
            {"tools": [{"type": "retrieval"}]},
            "tools[0].type",
            "`tools[0].type` must be `function` or `file_search`, not `retrieval`",
        ),
        ({"response_format": {"type": "json_object"}}, "response_format", "`response_format` and `tools` contradict"),
        (
            {"tools": [tool(name="a", parameters={"type": "string"})]},
            "tools[0].function.parameters.type",
            "`tools[0].function.parameters.type` must be `object`, not `string`",
        ),
        (
            {"tools": [tool(name="a", strict=True, parameters={"type": "object", "not": {}})]},
            "tools",
            "the arguments of the tool `a`: the JSON schema cannot be compiled: ",
        ),
    ],
)  # fmt: skip
def test_invalid_tools_are_named(
    tools_server: LocalServer, fields: dict[str, object], param: str, message: str
) -> None:
    body = {"model": "tiny", "messages": MESSAGES, "tools": TOOLS} | fields
    answer = tools_server.post("/v1/chat/completions", body)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, param)
    assert error["message"].startswith(message)


def test_a_model_without_tools_refuses_them(server: LocalServer) -> None:
    body = {"model": "tiny-decoder", "messages": MESSAGES, "tools": TOOLS}
    answer = server.post("/v1/chat/completions", body)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, "tools")
    assert error["message"].startswith("the model's chat template does not use tools")
    # With nothing to call, they are not rendered either.
    assert server.post("/v1/chat/completions", body | {"tool_choice": "none", "max_tokens": 2}).status_code == 200
