from __future__ import annotations

import gzip
import json
import re
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import openai
import pytest

from ortkit.toolkit.server.api.openapi import numbers_below, openapi_document
from ortkit.toolkit.server.app import create_app
from ortkit.toolkit.server.operation.metrics import Metrics
from ortkit.toolkit.server.served.models import ServedModels
from ortkit.toolkit.server.settings import ServerSettings
from tests.tiny_bundles import write_embedder
from tests.toolkit.server.conftest import LONG, LocalServer, running

BODY = {"model": "tiny-embedder", "input": "a"}
JSON = {"content-type": "application/json"}


def send(server: LocalServer, content: bytes) -> httpx.Response:
    return server.connection.post("/v1/embeddings", content=content, headers=JSON)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the body is not valid JSON: "),
        (b"{", "the body is not valid JSON: "),
        (b'{"input": "\xff"}', "the body is not valid UTF-8: invalid start byte at byte 11"),
        (b"\xef\xbb\xbf{}", "the body is not valid JSON: "),
        (b'{"input": NaN}', "the body has `NaN`, which cannot be written as a JSON number"),
        (b'{"input": 1e999}', "the body has `1e999`, which cannot be written as a JSON number"),
        (b'{"input": ' + b"9" * 5000 + b"}", "the body has `9999"),
        (b'{"input": "a", "input": "b"}', "the body has the field `input` more than once"),
        (b"[" * 100_000, "the JSON in the body is nested too deeply"),
        (b'{"a":' * 100_000, "the JSON in the body is nested too deeply"),
        (b"[]", "the body must be an object, not an array"),
        (b"null", "the body must be an object, not null"),
    ],
)
def test_what_is_not_a_json_object_is_refused(server: LocalServer, content: bytes, message: str) -> None:
    answer = send(server, content)
    error = answer.json()["error"]
    assert (answer.status_code, error["type"], error["param"]) == (400, "invalid_request_error", None)
    assert error["message"].startswith(message)


def test_lone_surrogates_are_refused(server: LocalServer) -> None:
    answer = send(server, b'{"model": "tiny-embedder", "input": ["a", "\\ud800"]}')
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "input[1]")
    assert answer.json()["error"]["message"].startswith("`input[1]` is not valid Unicode")
    # Nothing of an error has to be valid either.
    assert send(server, b'{"\\ud800": 1, "model": "tiny-embedder", "input": "a"}').status_code == 400
    assert send(server, b'{"model": "\\ud800", "input": "a"}').status_code == 400


def test_a_body_of_another_type_is_refused(server: LocalServer) -> None:
    """A page of another site may send text without asking, and not JSON."""
    answer = server.connection.post("/v1/embeddings", content=json.dumps(BODY), headers={"content-type": "text/plain"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (415, "unsupported_media_type")
    charset = {"content-type": "Application/JSON; charset=utf-8"}
    answer = server.connection.post("/v1/embeddings", content=json.dumps(BODY), headers=charset)
    assert answer.status_code == 200


@pytest.mark.parametrize("encoding", ["gzip", "br", "identity, GZIP"])
def test_a_compressed_body_is_refused(server: LocalServer, encoding: str) -> None:
    content = gzip.compress(json.dumps(BODY).encode())
    answer = server.connection.post("/v1/embeddings", content=content, headers={**JSON, "content-encoding": encoding})
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (415, "unsupported_media_type")
    assert error["message"] == (
        f"the body must not be compressed, and `Content-Encoding` is `{encoding.lower()}` "
        "(send it as it is, without `Content-Encoding`)"
    )
    headers = {**JSON, "content-encoding": "Identity"}
    assert server.connection.post("/v1/embeddings", content=json.dumps(BODY), headers=headers).status_code == 200


def test_unknown_paths_and_methods(server: LocalServer) -> None:
    answer = server.get("/v1/images")
    assert (answer.status_code, answer.json()["error"]["message"]) == (404, "there is no such path")
    assert server.post("/v1/embeddings/", BODY).status_code == 404
    answer = server.get("/v1/embeddings")
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")
    assert answer.json()["error"]["type"] == "invalid_request_error"


def test_models_are_listed(client: openai.OpenAI, server: LocalServer) -> None:
    models = client.models.list().data
    assert [model.id for model in models] == ["tiny-embedder", "tiny-reranker", "tiny-decoder"]
    found = client.models.retrieve("tiny-decoder")
    assert (found.id, found.owned_by, found.kind, found.max_model_len) == ("tiny-decoder", "ortkit", "decoder", 1024)
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("org/model")
    assert caught.value.code == "model_not_found"
    info = server.get("/info").json()
    assert (info["model_id"], info["model_type"], info["max_input_length"]) == (
        "tiny-embedder",
        {"embedding": {"pooling": "mean"}},
        4096,
    )
    assert server.get("/info?model=tiny-reranker").json()["model_type"].keys() == {"reranker"}
    assert server.get("/info?model=x").status_code == 404


def test_health_and_readiness(server: LocalServer) -> None:
    assert server.get("/health").json() == {"status": "ok"}
    assert server.get("/ready").json()["status"] == "ready"
    assert server.get("/ready").json()["indexes"] == ["manuals"]
    server.models.draining = True
    try:
        assert (server.get("/ready").status_code, server.get("/health").status_code) == (503, 200)
    finally:
        server.models.draining = False


def test_metrics_count_tokens_and_batches(server: LocalServer) -> None:
    server.post("/v1/embeddings", BODY)
    text = server.get("/metrics").text
    assert 'ortkit_prompt_tokens_total{model_name="tiny-embedder"}' in text
    assert 'ortkit_encoder_batch_size_count{model_name="tiny-embedder"}' in text


@pytest.mark.parametrize(
    ("fields", "special"),
    [
        ({"prompt": "The fox"}, True),
        ({"content": "The fox"}, True),
        ({"prompt": "The fox", "add_special_tokens": False}, False),
    ],
)
def test_tokenize(server: LocalServer, fields: dict[str, object], *, special: bool) -> None:
    decoder = server.models.find("tiny-decoder").decoder
    ids = decoder.encode("The fox") if special else decoder.encode_exactly("The fox")
    answer = server.post("/tokenize", fields | {"model": "tiny-decoder"}).json()
    assert answer == {"count": len(ids), "max_model_len": 1024, "tokens": ids}
    # Without a name it is the LLM's.
    assert server.post("/tokenize", fields).json() == answer


def test_tokenize_messages_and_texts_of_an_embedder(server: LocalServer) -> None:
    decoder = server.models.find("tiny-decoder").decoder
    messages = [{"role": "user", "content": "fox"}]
    ids = decoder.encode_exactly(decoder.apply_chat_template(messages))
    assert server.post("/tokenize", {"messages": messages}).json()["tokens"] == ids
    answer = server.post("/tokenize", {"model": "tiny-embedder", "prompt": LONG}).json()
    [count] = server.models.find("tiny-embedder").embedder.count_tokens([LONG])
    assert (answer["count"], answer["max_model_len"]) == (count, 4096)
    for fields in ({}, {"prompt": "a", "content": "a"}, {"model": "tiny-reranker", "prompt": "a"}):
        assert server.post("/tokenize", fields).status_code == 400


def test_the_document_is_valid_openapi_and_names_what_is_served(server: LocalServer) -> None:
    document = server.get("/openapi.json").json()
    assert document["openapi"] == "3.1.0"
    for path in document["paths"].values():
        for operation in path.values():
            for body in operation.get("requestBody", {}).get("content", {}).values():
                jsonschema.Draft202012Validator.check_schema(body["schema"])
    schema = document["paths"]["/v1/embeddings"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert schema["properties"]["model"] == {"type": "string", "enum": ["tiny-embedder"]}
    assert document["paths"].keys() == {
        route.path.replace("{model:path}", "{model}")
        for route in create_app(server.models, server.settings, server.metrics).routes
    }


def test_the_document_is_made_again_where_a_model_is_replaced(
    tmp_path: Path, bundles: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []

    def counted(*arguments: Any) -> dict[str, Any]:
        made.append(openapi_document(*arguments))
        return made[-1]

    monkeypatch.setattr("ortkit.toolkit.server.app.openapi_document", counted)
    settings, metrics = ServerSettings(threads=1), Metrics()
    models = ServedModels.open({"one": bundles["tiny-embedder"]}, settings, metrics)
    with running(models, settings, metrics) as server:
        first = server.get("/openapi.json")
        assert (first.headers["content-type"], first.json()) == ("application/json", made[0])
        assert server.get("/openapi.json").content == first.content
        assert len(made) == 1
        models.replace("one", write_embedder(tmp_path / "other", dense=True).path)
        second = server.get("/openapi.json").json()
        assert (len(made), second) == (2, made[1])
    models.close()
    assert second != first.json(), "the dimensions differ"


def test_the_document_asks_for_a_key_where_the_server_does(server: LocalServer) -> None:
    assert "securitySchemes" not in server.get("/openapi.json").json()["components"]
    document = openapi_document(server.models, ServerSettings(api_keys=Path("keys")))
    assert document["paths"]["/v1/models"]["get"]["security"] == [{"key": []}]
    assert "security" not in document["paths"]["/health"]["get"]


def test_a_bug_is_answered_without_its_message(server: LocalServer, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("the text of a user")

    monkeypatch.setattr("ortkit.toolkit.server.api.embeddings.read_openai", broken)
    answer = server.post("/v1/embeddings", BODY)
    assert (answer.status_code, answer.json()["error"]["type"]) == (500, "server_error")
    assert answer.json()["error"]["message"] == "the server failed; its log says why"


@pytest.mark.parametrize("limit", [1, 2, 10, 11, 100, 320, 1000, 49_152])
def test_numbers_below_a_limit(limit: int) -> None:
    pattern = re.compile(numbers_below(limit))
    for number in {*range(200), *range(max(0, limit - 300), limit + 300), 10 * limit}:
        assert bool(pattern.match(str(number))) == (number < limit), number
    assert not any(pattern.match(text) for text in ("", "00", "01", "-1", "1.0", "a"))
