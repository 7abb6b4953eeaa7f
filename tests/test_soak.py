"""The soak test itself: it must find what it looks for."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pytest

from benchmarks import soak
from benchmarks.http_load import Response
from benchmarks.memory import Sample
from benchmarks.servers import ortkit_command, running
from ortkit import Decoder, FinishReason
from tests.decoders import write_decoder
from tests.tiny_bundles import write_embedder, write_reranker


def response_of(message: object) -> Response:
    body = json.dumps(message).encode()
    head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)
    return Response(head, body, ((len(head) + len(body), 0.1),))


def test_one_bit_of_a_vector_is_found() -> None:
    expected = np.array([[1, 0.1], [0, -1]], np.float32)
    other = expected.copy()
    other[1, 1] = np.nextafter(np.float32(-1), np.float32(0))
    check = soak.vectors_check(expected)

    def response(vectors: np.ndarray, form: str) -> Response:
        told = [base64.b64encode(row.tobytes()).decode() if form == "base64" else row.tolist() for row in vectors]
        return response_of({"data": [{"embedding": one} for one in told]})

    for form in ("base64", "float"):
        assert check(response(expected, form)) is None
        assert check(response(other, form)) == "vectors of shape (2, 2) differ from the library's"
        assert check(response(expected[::-1], form)) is not None
        assert "(1, 2)" in check(response(expected[:1], form))


def test_another_order_and_another_score_are_found() -> None:
    check = soak.ranking_check([(1, 0.75), (0, 0.5)])

    def response(*results: tuple[int, float]) -> Response:
        return response_of({"results": [{"index": index, "relevance_score": score} for index, score in results]})

    assert check(response((1, 0.75), (0, 0.5))) is None
    assert check(response((0, 0.75), (1, 0.5))) is not None
    assert check(response((1, 0.75), (0, 0.5000001))) is not None
    assert check(response((1, 0.75))) is not None


def test_another_text_end_count_and_log_probability_are_found(tmp_path: Path) -> None:
    with Decoder(write_decoder(tmp_path / "tiny")[0], threads=1) as decoder:
        answer = decoder.chat([{"role": "user", "content": "The fox"}], max_tokens=3, temperature=0.0, top_logprobs=2)
    content = [
        {"logprob": token.logprob, "top_logprobs": [{"logprob": one.logprob} for one in token.top_logprobs]}
        for token in answer.tokens
    ]

    def response(text: str, finish_reason: str, tokens: int, content: list[dict]) -> Response:
        choice = {"message": {"content": text}, "finish_reason": finish_reason, "logprobs": {"content": content}}
        return response_of({"choices": [choice], "usage": {"completion_tokens": tokens}})

    check = soak.logprobs_check(answer)
    assert check(response(answer.text, "length", 3, content)) is None
    assert "is not" in check(response(answer.text + "!", "length", 3, content))
    assert "is not" in check(response(answer.text, "stop", 3, content))
    assert "is not" in check(response(answer.text, "length", 2, content))
    assert "log-probabilities" in check(response(answer.text, "length", 3, content[:2]))
    assert "log-probabilities" in check(response(answer.text, "length", 3, [*content[:2], content[0]]))

    end = replace(answer.tokens[2], finish_reason=FinishReason.STOP)
    ended = soak.logprobs_check(replace(answer, tokens=(*answer.tokens[:2], end), finish_reason=FinishReason.STOP))
    assert ended(response(answer.text, "stop", 3, content[:2])) is None
    assert "log-probabilities" in ended(response(answer.text, "stop", 3, content))


def samples_of(mebibytes: list[float]) -> list[Sample]:
    return [Sample(1000 * second, int(size * 2**20)) for second, size in enumerate(mebibytes)]


def soak_with(outcomes: dict[str, soak.Outcome], samples: list[Sample]) -> soak.Soak:
    made = soak.Soak(9, [], leaving=0)
    made.outcomes, made.samples = outcomes, samples
    return made


FLAT = samples_of([50, 80, *[100] * 48])


def test_memory_that_grows_only_at_the_beginning_is_flat() -> None:
    assert soak.growth(FLAT) == pytest.approx(0)
    assert soak.growth(samples_of([100 + second for second in range(50)])) == pytest.approx(0.3125, abs=0.01)
    assert soak.memory_rows(FLAT)[:2] == [["at the start", "50.0"], ["after 20% of the time", "100.0"]]
    assert soak.memory_rows(FLAT)[-1] == ["the most", "100.0"]


def test_every_fault_is_told() -> None:
    good = soak.Outcome(seconds=[0.1, 0.2])

    assert soak.faults(soak_with({"chat": good}, FLAT), None) == []
    assert soak.faults(soak_with({"chat": replace(good, broken=["a", "a"])}, FLAT), None) == ["chat: a (2 times)"]
    assert soak.faults(soak_with({"chat": soak.Outcome()}, FLAT), None) == ["chat: no answer at all"]
    assert soak.faults(soak_with({"chat": good}, FLAT), "1 runs") == ["not idle after the last request: 1 runs"]
    grown = samples_of([*[100] * 40, *[110] * 10])
    assert soak.faults(soak_with({"chat": good}, grown), None) == [
        "memory grew by 10.0% after the first 20% of the time"
    ]
    many = replace(good, broken=[str(number) for number in range(12)])
    assert soak.faults(soak_with({"chat": many}, FLAT), None)[-1] == "and 2 others"


def test_the_table_counts_every_outcome() -> None:
    outcomes = {
        "chat": soak.Outcome(seconds=[0.1] * 99 + [0.5] * 2, left=3, full=1),
        "rerank": soak.Outcome(seconds=[0.3], broken=["x"]),
    }

    assert soak.outcome_rows(outcomes) == [
        ["chat", "101", "3", "1", "0", "100.0", "500.0"],
        ["rerank", "1", "0", "0", "1", "300.0", "300.0"],
        ["all", "102", "3", "1", "1", "100.0", "500.0"],
    ]


@contextmanager
def metrics_server(*pages: bytes) -> Iterator[int]:
    """A server that answers with one page after another, and then with the last."""
    waiting = list(pages)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            page = waiting.pop(0) if len(waiting) > 1 else waiting[0]
            self.send_response(200)
            self.send_header("Content-Length", str(len(page)))
            self.end_headers()
            self.wfile.write(page)

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_a_slot_that_stays_taken_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(soak, "IDLE_SECONDS", 0.3)
    idle = b'# HELP\nortkit_num_requests_running{model_name="m"} 0.0\nortkit_num_requests_waiting{model_name="m"} 0.0\n'
    busy = idle.replace(b"} 0.0", b"} 2.0", 1)

    with metrics_server(busy, idle) as port:
        assert asyncio.run(soak.is_idle(port)) is None
    with metrics_server(busy) as port:
        assert asyncio.run(soak.is_idle(port)) == 'ortkit_num_requests_running{model_name="m"} 2.0'
    with metrics_server(b"nothing\n") as port:
        assert asyncio.run(soak.is_idle(port)) == "`/metrics` has no gauge of the requests that run"


@pytest.mark.slow
def test_a_server_under_mixed_load_gives_the_librarys_answers_and_another_answer_is_found(tmp_path: Path) -> None:
    bundles = {
        soak.EMBEDDER: write_embedder(tmp_path / "embedder").path,
        soak.RERANKER: write_reranker(tmp_path / "reranker").path,
        soak.DECODER: write_decoder(tmp_path / "decoder")[0].path,
    }
    options = ("bundle", "reranker", "decoder")
    arguments = [f"--{option}={path}" for option, path in zip(options, bundles.values(), strict=True)]
    cases = soak.cases_of(soak.parse_options(arguments))
    chats = [case for case in cases if case.kind == "chat, seed"]
    mixed = [replace(case, check=chats[place - 1].check) for place, case in enumerate(chats)]

    async def both(port: int) -> tuple[soak.Soak, soak.Soak]:
        right, wrong = soak.Soak(port, cases, leaving=0.2), soak.Soak(port, mixed, leaving=0)
        await right.run(server, clients=8, seconds=4, seed=1)
        await wrong.run(server, clients=2, seconds=0.5, seed=1)
        return right, wrong

    with running("ortkit serve", ortkit_command(bundles, "--slots", "4", "--context", "1024")) as server:
        right, wrong = asyncio.run(both(server.port))
        assert asyncio.run(soak.is_idle(server.port)) is None

    assert [text for outcome in right.outcomes.values() for text in outcome.broken] == []
    assert sum(len(outcome.seconds) for outcome in right.outcomes.values()) > 50
    assert sum(outcome.left for outcome in right.outcomes.values()) > 0
    assert all("the answer" in text for text in wrong.outcomes["chat, seed"].broken)
    assert wrong.outcomes["chat, seed"].broken
