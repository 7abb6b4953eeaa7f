"""The log: one JSON object a line, without texts, whatever happens."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import threading
from typing import Any

import pytest

from ortkit.toolkit.server.operation import request_record
from ortkit.toolkit.server.operation.metrics import OTHER, Metrics
from ortkit.toolkit.server.operation.request_log import LibraryLog, RequestLog, ServerLog

SECRET = "the text of a request"


class Lines(io.StringIO):
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.getvalue().splitlines()]


def logged(
    app: Any, *, path: str = "/v1/embeddings", log_texts: bool = False
) -> tuple[list[dict[str, Any]], list[Any], Metrics]:
    """The log and the answer of one request."""
    stream, sent, metrics = Lines(), [], Metrics()

    async def receive() -> Any:
        return {"type": "http.request", "body": SECRET.encode(), "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    with ServerLog(stream) as log:
        wrapped = RequestLog(
            app,
            log,
            metrics,
            endpoint_of=lambda path: path if path.startswith("/v1") or path == "/health" else OTHER,
            log_texts=log_texts,
        )
        scope = {"type": "http", "method": "POST", "path": path, "headers": [], "client": ("127.0.0.1", 5)}
        asyncio.run(wrapped(scope, receive, send))
    return stream.lines(), sent, metrics


async def answers(scope: Any, receive: Any, send: Any) -> None:
    await receive()
    status = 200 if scope["path"] != "/health" or scope["method"] == "GET" else 405
    await send({"type": "http.response.start", "status": status, "headers": []})
    await send({"type": "http.response.body", "body": SECRET.encode(), "more_body": True})
    # In a task of its own, as the APIs do it.
    await asyncio.create_task(asyncio.to_thread(request_record.note, model="small"))
    request_record.count(answer_tokens=2)
    request_record.count(answer_tokens=3)
    await send({"type": "http.response.body", "body": b""})


def test_a_request() -> None:
    [line], sent, metrics = logged(answers)

    assert line.pop("time").endswith("Z")
    assert 0 <= line.pop("seconds") < 60
    identity = line.pop("id")
    assert (b"x-request-id", identity.encode()) in sent[0]["headers"]
    assert line == {
        "level": "info",
        "event": "request",
        "method": "POST",
        "endpoint": "/v1/embeddings",
        "status": 200,
        "client": "127.0.0.1",
        "bytes": len(SECRET),
        "model": "small",
        "answer_tokens": 5,
    }
    assert b'ortkit_http_requests_total{endpoint="/v1/embeddings",status="200"} 1.0' in metrics.render()


def test_texts_if_asked() -> None:
    [line], _, _ = logged(answers, log_texts=True)

    assert (line["request_text"], line["answer_text"]) == (SECRET, SECRET)


def test_unknown_paths_and_failed_probes() -> None:
    [unknown], _, metrics = logged(answers, path="/a-key-in-the-path")
    [failed], _, _ = logged(answers, path="/health")

    assert unknown["endpoint"] == OTHER
    assert b"a-key-in-the-path" not in metrics.render()
    assert failed["status"] == 405


@pytest.mark.parametrize("begun", [False, True])
def test_a_bug_is_answered_and_logged_without_its_message(*, begun: bool) -> None:
    async def fails(_scope: Any, _receive: Any, send: Any) -> None:
        if begun:
            await send({"type": "http.response.start", "status": 200, "headers": []})
        raise ValueError(SECRET)

    [failure, request], sent, _ = logged(fails)

    assert (failure["event"], failure["error"], failure["level"]) == ("internal error", "ValueError", "error")
    assert failure["where"][-1].endswith(" fails")
    assert failure["id"] == request["id"]
    assert SECRET not in json.dumps([failure, request])
    if begun:
        assert request["complete"] is False
    else:
        assert sent[0]["status"] == request["status"] == 500
        assert json.loads(sent[1]["body"])["error"]["message"] == f"internal error; request id {request['id']}"


def test_a_client_that_has_gone() -> None:
    async def nobody(_scope: Any, _receive: Any, _send: Any) -> None:
        pass

    [line], _, _ = logged(nobody)

    assert (line["status"], line["complete"]) == (499, False)


def test_errors_of_libraries() -> None:
    stream = Lines()
    logger = logging.getLogger("uvicorn.error")
    before = logger.handlers, logger.propagate, logger.level
    with ServerLog(stream) as log:
        LibraryLog.install(log)
        logger.warning("a warning")
        logger.error("failed for %s", SECRET)
        logger.error(SECRET, exc_info=RuntimeError(SECRET))
    logger.handlers, logger.propagate, logger.level = before

    error, failure = stream.lines()
    assert (error["event"], error["message"]) == ("library error", "failed for %s")
    assert (failure["event"], failure["error"]) == ("internal error", "RuntimeError")
    assert SECRET not in stream.getvalue()


def test_a_reader_that_stalls_delays_nothing() -> None:
    """Lines that cannot be written are dropped and counted, and a closed pipe is not an error."""
    free = threading.Event()

    class Stalled(Lines):
        def write(self, text: str) -> int:
            free.wait(60)
            return super().write(text)

    stream = Stalled()
    log = ServerLog(stream)
    for number in range(10_100):
        log.event("line", number=number)
    free.set()
    while stream.getvalue().count("\n") < 10_000:
        free.wait(0.01)
    log.event("last")
    log.close()

    lines = stream.lines()
    assert sum(line["event"] == "line" for line in lines) + sum(line.get("lines", 0) for line in lines) == 10_100
    assert sum(line.get("lines", 0) for line in lines) >= 90
    assert lines[-1]["event"] in {"last", "lines dropped"}

    closed = Lines()
    log = ServerLog(closed)
    closed.close()
    log.event("nobody reads it")
    log.close()


def test_a_request_that_the_stop_has_ended_is_no_error() -> None:
    stream = io.StringIO()
    with ServerLog(stream) as log:
        for error in (asyncio.CancelledError(), ValueError()):
            record = logging.LogRecord("uvicorn.error", logging.ERROR, "", 0, "failed", (), (type(error), error, None))
            LibraryLog(log).emit(record)
    assert [json.loads(line)["error"] for line in stream.getvalue().splitlines()] == ["ValueError"]
