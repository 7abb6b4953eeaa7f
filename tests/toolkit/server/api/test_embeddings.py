from __future__ import annotations

import asyncio
import base64

import numpy as np
import openai
import pytest

from ortkit import Embedder
from tests.toolkit.server.conftest import LONG, LocalServer

TEXTS = ["The quick brown fox", "jumps over", "the lazy dog", "and the dog sleeps", "東京"]


@pytest.fixture(scope="session")
def embedder(server: LocalServer) -> Embedder:
    return server.models.find("tiny-embedder").embedder


def vectors_of(answer: openai.types.CreateEmbeddingResponse) -> np.ndarray:
    return np.array([one.embedding for one in answer.data], np.float32)


def test_vectors_are_those_of_the_library(
    client: openai.OpenAI, lenient_client: openai.OpenAI, embedder: Embedder
) -> None:
    expected = embedder.embed(TEXTS)
    answer = client.embeddings.create(model="tiny-embedder", input=TEXTS, encoding_format="float")
    assert vectors_of(answer).tobytes() == expected.tobytes()
    assert [one.index for one in answer.data] == list(range(len(TEXTS)))
    assert answer.model == "tiny-embedder"
    tokens = int(embedder.count_tokens(TEXTS).sum())
    assert (answer.usage.prompt_tokens, answer.usage.total_tokens) == (tokens, tokens)
    # Where its caller names no format, the client asks for base64, and decodes it.
    assert (
        vectors_of(lenient_client.embeddings.create(model="tiny-embedder", input=TEXTS)).tobytes() == expected.tobytes()
    )


def test_a_single_text(client: openai.OpenAI, embedder: Embedder) -> None:
    answer = client.embeddings.create(model="tiny-embedder", input=TEXTS[0], encoding_format="float", user="ada")
    assert vectors_of(answer).tobytes() == embedder.embed(TEXTS[:1]).tobytes()


def test_base64_is_float32_in_little_endian(server: LocalServer, embedder: Embedder) -> None:
    body = {"model": "tiny-embedder", "input": TEXTS, "encoding_format": "base64"}
    data = server.post("/v1/embeddings", body).json()["data"]
    found = b"".join(base64.b64decode(one["embedding"]) for one in data)
    assert found == embedder.embed(TEXTS).astype("<f4").tobytes()


def test_dimensions_and_prompts_are_each_requests_own(server: LocalServer, embedder: Embedder) -> None:
    wanted = [{}, {"dimensions": 4}, {"prompt_name": "query"}, {"prompt_name": "query", "dimensions": 3}] * 4
    library = [{}, {"dim": 4}, {"prompt": "query"}, {"prompt": "query", "dim": 3}] * 4

    async def ask() -> list[openai.types.CreateEmbeddingResponse]:
        async with openai.AsyncOpenAI(
            base_url=f"{server.url}/v1", api_key="none", timeout=60, _strict_response_validation=True
        ) as client:
            return await asyncio.gather(
                *(
                    client.embeddings.create(
                        model="tiny-embedder", input=TEXTS[: 1 + n % 5], encoding_format="float", extra_body=extra
                    )
                    for n, extra in enumerate(wanted)
                )
            )

    for n, (answer, options) in enumerate(zip(asyncio.run(ask()), library, strict=True)):
        assert vectors_of(answer).tobytes() == embedder.embed(TEXTS[: 1 + n % 5], **options).tobytes(), n


def test_long_texts_are_refused_unless_truncation_is_asked_for(server: LocalServer, embedder: Embedder) -> None:
    answer = server.post("/v1/embeddings", {"model": "tiny-embedder", "input": ["a", LONG]})
    error = answer.json()["error"]
    tokens = int(embedder.count_tokens([LONG])[0])
    assert (answer.status_code, error["param"], error["code"]) == (400, "input[1]", "context_length_exceeded")
    assert error["message"] == (
        f"text 1 has {tokens} tokens, and the model's limit is 4096 (split it, or pass `truncate`: true)"
    )
    body = {"model": "tiny-embedder", "input": ["a", LONG], "truncate": True}
    data = server.post("/v1/embeddings", body).json()["data"]
    expected = embedder.embed_with_report(["a", LONG]).vectors
    assert np.array([one["embedding"] for one in data], np.float32).tobytes() == expected.tobytes()


@pytest.mark.parametrize(
    ("fields", "status", "param", "message"),
    [
        ({}, 400, "input", "the field `input` is missing"),
        ({"input": None}, 400, "input", "`input` must not be null"),
        ({"input": ""}, 400, "input", "`input` must not be empty"),
        ({"input": ["a", ""]}, 400, "input[1]", "`input[1]` must not be empty"),
        ({"input": []}, 400, "input", "`input` must not be empty"),
        ({"input": [1, 2]}, 400, "input", "`input` must be texts, not token ids"),
        ({"input": [[1, 2]]}, 400, "input", "check_embedding_ctx_length=False"),
        ({"input": ["a", 5.5]}, 400, "input[1]", "`input[1]` must be a string, not a number"),
        ({"input": True}, 400, "input", "`input` must be a string or an array of strings, not a boolean"),
        ({"input": ["a"] * 101}, 400, "input", "`input` has 101 items, and the limit is 100"),
        ({"input": "a", "dimensions": 0}, 400, "dimensions", "`dimensions` must be from 1 to 65536, not 0"),
        ({"input": "a", "dimensions": 9}, 400, "dimensions", "`dimensions` must be from 1 to 8, the model's, not 9"),
        ({"input": "a", "dimensions": "4"}, 400, "dimensions", "`dimensions` must be an integer, not a string"),
        ({"input": "a", "dimensions": True}, 400, "dimensions", "`dimensions` must be an integer, not a boolean"),
        ({"input": "a", "encoding_format": "hex"}, 400, "encoding_format", "must be `float` or `base64`, not `hex`"),
        ({"input": "a", "prompt_name": "x"}, 400, "prompt_name", "no prompt of this name (supported: `query`)"),
        ({"input": "a", "dimesions": 4}, 400, "dimesions", "unknown field `dimesions` (supported: "),
        ({"input": "a", "model": None}, 400, "model", "`model` must not be null"),
        ({"input": "a", "model": "gpt-4"}, 404, "model", "there is no model `gpt-4` (served: `tiny-embedder`, "),
        (
            {"input": "a", "model": "tiny-decoder"},
            400,
            "model",
            "`tiny-decoder` is a decoder, not an embedder; it answers at /v1/chat/completions (models of kind ",
        ),
    ],
)  # fmt: skip
def test_invalid_fields_are_named(
    server: LocalServer, fields: dict[str, object], status: int, param: str, message: str
) -> None:
    answer = server.post("/v1/embeddings", {"model": "tiny-embedder", **fields})
    error = answer.json()["error"]
    assert (answer.status_code, error["param"], error["type"]) == (status, param, "invalid_request_error")
    assert message in error["message"]


def test_tei_embeds(server: LocalServer, embedder: Embedder) -> None:
    answer = server.post("/embed", {"inputs": TEXTS, "prompt_name": "query"})
    assert np.array(answer.json(), np.float32).tobytes() == embedder.embed(TEXTS, prompt="query").tobytes()
    assert len(server.post("/embed", {"inputs": "one text"}).json()) == 1


@pytest.mark.parametrize(
    ("fields", "status", "kind"),
    [
        ({"inputs": LONG}, 413, "Validation"),
        ({"inputs": 5}, 422, "Validation"),
        ({"inputs": "a", "model": "tiny-reranker"}, 424, "Backend"),
        ({"inputs": "a", "normalize": False}, 422, "Validation"),
        ({"inputs": "a", "truncate": True, "truncation_direction": "Left"}, 422, "Validation"),
    ],
)
def test_tei_errors_have_its_shape(server: LocalServer, fields: dict[str, object], status: int, kind: str) -> None:
    answer = server.post("/embed", fields)
    assert (answer.status_code, answer.json()["error_type"]) == (status, kind)
    assert isinstance(answer.json()["error"], str)
