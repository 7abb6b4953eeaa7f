"""Real processes on the loopback: signals, drain, reload, sockets of systemd, clients that misbehave."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ortkit import Bundle, Embedder
from ortkit.runtime.bundle.bundle import GRAPH
from ortkit.toolkit.commands.serve import plan_of
from ortkit.toolkit.search.index import Index
from ortkit.toolkit.server import lifecycle
from tests.decoders import write_decoder
from tests.served import ServedProcess, ask, read_all, serving, wait_until
from tests.tiny_bundles import write_embedder

KEY, OTHER_KEY = "k" * 32, "o" * 32
TEXT = "the secret is in the quick brown fox"
CHAT = {"model": "writer", "messages": [{"role": "user", "content": TEXT}]}
LONG = {**CHAT, "stream": True, "n": 8, "max_tokens": 500, "logit_bias": {"2": -100}}


@pytest.fixture(scope="module")
def writer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_decoder(tmp_path_factory.mktemp("served") / "writer")[0].path


@pytest.fixture(scope="module")
def searcher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_embedder(tmp_path_factory.mktemp("served") / "searcher").path


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("keys") / "keys"
    path.write_text(f"line4: sha256:{hashlib.sha256(KEY.encode()).hexdigest()}\n")
    return path


@pytest.fixture(scope="module")
def served(
    tmp_path_factory: pytest.TempPathFactory, searcher: Path, writer: Path, keys: Path
) -> Iterator[ServedProcess]:
    folder = tmp_path_factory.mktemp("server")
    arguments = [searcher, writer, "--api-keys", keys, "--max-body", "64K", "--header-seconds", "1.5"]
    with serving(folder, *arguments, "--max-connections", "200", "--idle-seconds", 2) as process:
        yield process


BEARER = {"Authorization": f"Bearer {KEY}"}


class Streaming:
    """An answer that is read on a thread."""

    def __init__(self, url: str, body: dict[str, Any]) -> None:
        request = urllib.request.Request(
            f"{url}/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        self._response = urllib.request.urlopen(request, timeout=120)
        self.lines = [self._response.readline()]
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        with self._response, contextlib.suppress(OSError):
            self.lines += self._response.readlines()

    def end(self) -> list[str]:
        self._thread.join(120)
        return [line.decode().removeprefix("data: ").strip() for line in self.lines if line.strip()]


def test_models_answer_and_pages_are_open(served: ServedProcess) -> None:
    assert served.ask("/health").json() == {"status": "ok"}
    assert served.ask("/ready").json()["models"] == ["searcher", "writer"]
    assert served.ask("/").headers["content-type"].startswith("text/html")
    answer = served.ask("/v1/embeddings", {"model": "searcher", "input": TEXT}, headers=BEARER)
    assert answer.status == 200
    assert [line.split()[0] for line in served.shown] == ["model", "model", "keys", "memory", "address"]


def test_a_key_is_needed(served: ServedProcess) -> None:
    for headers in ({}, {"Authorization": f"Bearer {OTHER_KEY}"}, {"Authorization": f"Basic {KEY}"}):
        for path in ("/v1/models", "/metrics", "/v1/nowhere"):
            refused = served.ask(path, headers=headers)
            assert (refused.status, refused.code) == (401, "invalid_api_key")
            assert refused.headers["www-authenticate"] == "Bearer"
    problem = served.ask("/v1/models").json()["error"]["message"]
    assert problem == "an API key is needed: send the header `Authorization: Bearer KEY`"
    assert served.ask("/v1/models", headers=BEARER).status == 200


def test_the_log_has_neither_texts_nor_keys(served: ServedProcess) -> None:
    served.ask("/v1/embeddings", {"model": "searcher", "input": TEXT}, headers=BEARER)
    answer = served.ask("/v1/chat/completions", {**CHAT, "max_tokens": 3}, headers=BEARER)
    served.ask(f"/{OTHER_KEY}?q={OTHER_KEY}", headers={"Authorization": f"Bearer {OTHER_KEY}"})
    served.ask(f"/v1/models/{OTHER_KEY}", headers=BEARER)
    wait_until(lambda: answer.headers["x-request-id"] in served.log_text())
    line = next(line for line in served.events("request") if line["id"] == answer.headers["x-request-id"])

    assert line["key"] == "line4"
    assert (line["model"], line["endpoint"], line["status"]) == ("writer", "/v1/chat/completions", 200)
    assert (line["answer_tokens"], line["finish_reason"], line["client"]) == (3, "length", "127.0.0.1")
    assert line["prompt_tokens"] > 3
    text = served.log_text()
    for secret in (KEY, OTHER_KEY, "quick", "secret", hashlib.sha256(KEY.encode()).hexdigest()):
        assert secret not in text


def test_bodies_are_bounded(served: ServedProcess) -> None:
    declared = served.ask("/v1/embeddings", {"model": "searcher", "input": "x" * 70_000}, headers=BEARER)
    with served.raw() as connection:
        head = f"POST /v1/embeddings HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {KEY}\r\n"
        connection.sendall(f"{head}Transfer-Encoding: chunked\r\n\r\n".encode())
        connection.sendall(b"8000\r\n" + b"x" * 0x8000 + b"\r\n" + b"9000\r\n" + b"x" * 0x9000 + b"\r\n")
        counted = read_all(connection)

    assert (declared.status, declared.code) == (413, "body_too_large")
    assert declared.json()["error"]["message"] == (
        "the body of the request has more than 65536 bytes, the limit of this server"
    )
    assert counted.startswith(b"HTTP/1.1 413 ")
    assert b'"code": "body_too_large"' in counted


def test_slow_clients_are_cut_off(served: ServedProcess) -> None:
    """Slow-loris: headers and bodies that come byte by byte; others are served meanwhile."""
    begun = time.monotonic()
    slow = [served.raw() for _ in range(30)]
    head = f"POST /v1/embeddings HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {KEY}\r\nContent-Length: 500\r\n"
    for index, connection in enumerate(slow):
        # Half of them send headers, half a body.
        connection.sendall(head.encode() if index % 2 else f"{head}\r\n".encode())
    answers: list[bytes] = []

    def trickle(connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            while time.monotonic() - begun < 60:
                connection.sendall(b"x")
                time.sleep(0.1)

    threads = [threading.Thread(target=trickle, args=(connection,)) for connection in slow[2:]]
    for thread in threads:
        thread.start()
    for _ in range(5):
        assert served.ask("/v1/models", headers=BEARER).status == 200
    answers += [read_all(connection) for connection in slow[:2]]
    for connection in slow[:2]:
        connection.close()
    for thread in threads:
        thread.join(60)

    assert answers[0].startswith(b"HTTP/1.1 408 ")
    assert b'"code": "body_too_slow"' in answers[0]
    assert answers[1] == b""
    assert time.monotonic() - begun < 50


def test_idle_connections_make_room(served: ServedProcess) -> None:
    """Five times as many as may be open: the longest idle ones are closed, and requests are answered."""
    idle = [served.raw() for _ in range(1000)]
    try:
        assert served.ask("/v1/embeddings", {"model": "searcher", "input": TEXT}, headers=BEARER).status == 200
        metrics = served.ask("/metrics", headers=BEARER).body.decode()
        count = next(line for line in metrics.splitlines() if line.startswith("ortkit_num_connections "))
        assert 150 < float(count.split()[1]) <= 200
    finally:
        for connection in idle:
            connection.close()


def test_it_drains_at_sigterm(tmp_path: Path, writer: Path) -> None:
    with serving(tmp_path, writer, "--slots", 2, "--threads", 1) as server:
        answer = Streaming(server.url, LONG)
        with server.raw() as kept:
            kept.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
            answered = b""
            while not answered.endswith(b'{"status":"ok"}'):
                answered += kept.recv(65536)
            server.signal(signal.SIGTERM)
            assert read_all(kept) == b"", "an idle connection is closed"
        wait_until(lambda: not is_open(server.port))
        assert server.process.poll() is None, "the answer was complete before; make it longer"
        lines = answer.end()

        assert lines[-1] == "[DONE]"
        reasons = [choice["finish_reason"] for line in lines[:-1] for choice in json.loads(line)["choices"]]
        assert reasons.count("length") == 8
        assert server.end() == 0
    assert [line["event"] for line in server.log()] == ["started", "stopping", "request", "stopped"]


def test_the_drain_has_a_limit(tmp_path: Path, writer: Path) -> None:
    with serving(tmp_path, writer, "--slots", 1, "--threads", 1, "--drain-seconds", 0.2) as server:
        answer = Streaming(server.url, {**LONG, "n": 16})
        server.signal(signal.SIGTERM)
        lines = answer.end()

        assert json.loads(lines[-1])["error"]["code"] == "stopping"
        assert server.end() == 0


def test_ctrl_c_drains_and_ends_with_130(tmp_path: Path, searcher: Path) -> None:
    with serving(tmp_path, searcher) as server:
        server.signal(signal.SIGINT)

        assert server.end() == 130
    assert server.events("stopping")[0]["signal"] == "SIGINT"
    assert server.log_text().endswith("\ninterrupted\n")


def is_open(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=5):
        return True
    return False


def test_a_request_has_a_time_limit(tmp_path: Path, writer: Path) -> None:
    with serving(tmp_path, writer, "--slots", 1, "--threads", 1, "--request-seconds", 0.3) as server:
        lines = Streaming(server.url, {**LONG, "n": 16}).end()
        whole = server.ask("/v1/chat/completions", {**LONG, "n": 16, "stream": False})

        assert json.loads(lines[-1])["error"] == {
            "message": "the request took longer than 0.3 seconds",
            "type": "timeout_error",
            "param": None,
            "code": "request_timeout",
        }
        assert (whole.status, whole.code, whole.headers["x-should-retry"]) == (504, "request_timeout", "false")
        # Its slot is free again.
        assert server.ask("/v1/chat/completions", {**CHAT, "max_tokens": 2}).status == 200


def test_sighup_replaces_keys_and_bundles(tmp_path: Path, searcher: Path) -> None:
    """A broken bundle or file of keys leaves the old one; requests are answered all the time."""
    bundle, keys = tmp_path / "searcher", tmp_path / "keys"
    shutil.copytree(searcher, bundle)
    keys.write_text(f"first: {KEY}\n")
    keys.chmod(0o600)
    with serving(tmp_path, bundle, "--api-keys", keys) as server:
        stop, statuses = threading.Event(), []

        def embed(key: str = KEY) -> Any:
            body = {"model": "searcher", "input": TEXT, "encoding_format": "float"}
            return server.ask("/v1/embeddings", body, headers={"Authorization": f"Bearer {key}"})

        def keep_asking() -> None:
            while not stop.is_set():
                statuses.append(embed().status)

        asking = threading.Thread(target=keep_asking)
        asking.start()
        before = embed().json()["data"][0]["embedding"]

        replacement = write_embedder(tmp_path / "new", dense=True).path
        bundle.rename(tmp_path / "old")
        replacement.rename(bundle)
        keys.write_text(f"first: {KEY}\nsecond: {OTHER_KEY}\n")
        server.signal(signal.SIGHUP)
        replaced = server.wait_for("bundle replaced")[0]
        after = embed(OTHER_KEY).json()["data"][0]["embedding"]

        assert replaced["digest"] == Bundle.open(bundle).digest
        with Embedder(bundle) as reference:
            assert np.array_equal(np.float32(after), reference.embed(TEXT))
        assert before != after

        (bundle / GRAPH).write_bytes(b"broken")
        keys.write_text("one two three")
        server.signal(signal.SIGHUP)
        broken = server.wait_for("bundle not replaced")[0]
        refused = server.wait_for("keys not replaced")[0]

        assert broken["message"].startswith("`model.onnx` ")
        assert refused["message"].startswith(f"line 1 of `{keys}` is not an API key")
        assert embed(OTHER_KEY).json()["data"][0]["embedding"] == after
        seen = set(statuses)
        stop.set()
        asking.join()
        assert seen == {200}
        assert len(statuses) > 3
        metrics = server.ask("/metrics", headers=BEARER).body.decode()
        assert 'ortkit_reloads_total{result="failure",what="bundle"} 1.0' in metrics
    text = server.log_text()
    assert KEY not in text
    assert OTHER_KEY not in text


def test_keys_are_read_again_when_they_change(tmp_path: Path, searcher: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text(KEY)
    keys.chmod(0o600)
    with serving(tmp_path, searcher, "--api-keys", keys) as server:
        keys.write_text(OTHER_KEY)
        server.wait_for("keys read")

        assert server.ask("/v1/models", headers={"Authorization": f"Bearer {OTHER_KEY}"}).status == 200
        assert server.ask("/v1/models", headers={"Authorization": f"Bearer {KEY}"}).status == 401


def test_an_index_is_followed(tmp_path: Path, searcher: Path) -> None:
    """Its bundle is served too; a newer generation is used without a signal, and a broken one is not."""
    folder, path = tmp_path / "texts", tmp_path / "manuals.index"
    folder.mkdir()
    (folder / "a.txt").write_text("The secret of the quick brown fox.")
    Index.build(path, folder, searcher).close()
    keys = tmp_path / "keys"
    keys.write_text(KEY)
    keys.chmod(0o600)
    with serving(tmp_path, "--index", path, "--api-keys", keys) as server:
        assert server.shown[0].startswith(f"model    {searcher.name}: embedder, ")
        assert server.shown[1].startswith("index    manuals: 1 files, 1 chunks, built ")
        assert server.shown[1].endswith(f" UTC with {searcher.name}, {path}")
        assert server.ask("/v1/search", {"query": "fox"}).status == 401
        assert server.ask("/v1/vector_stores").status == 401
        answer = server.ask("/v1/search", {"query": "fox"}, headers=BEARER)
        assert [one["filename"] for one in answer.json()["data"]] == ["a.txt"]

        (folder / "b.txt").write_text("A lazy dog.")
        Index.build(path, folder, searcher).close()
        [event] = server.wait_for("index replaced")
        assert (event["index"], event["generation"], event["files"], event["chunks"]) == ("manuals", 2, 2, 2)
        answer = server.ask("/v1/vector_stores/manuals/search", {"query": "fox"}, headers=BEARER)
        assert {one["filename"] for one in answer.json()["data"]} == {"a.txt", "b.txt"}

        (path / "index.json").write_text("{}")
        [event] = server.wait_for("index not replaced")
        assert event["message"].startswith(f"`{path}/index.json` is not valid")
        assert server.ask("/v1/search", {"query": "fox"}, headers=BEARER).status == 200
        server.signal(signal.SIGHUP)
        server.wait_for("keys read")
        wait_until(lambda: len(server.events("request")) == 5)
        line = server.events("request")[2]
        server.signal(signal.SIGTERM)
        assert server.end() == 0
    assert (line["endpoint"], line["index"], line["results"]) == ("/v1/search", "manuals", 1)
    assert (line["model"], line["key"]) == (searcher.name, "key-1")
    assert line["prompt_tokens"] > 0
    assert "quick" not in server.log_text()
    assert server.events("bundle kept") == []


def test_socket_activation_and_notifications(tmp_path: Path, searcher: Path) -> None:
    """As systemd does it: an open socket at descriptor 3, and datagrams about the state."""
    notified = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    notified.bind(str(tmp_path / "notify"))
    notified.settimeout(120)
    seen: list[str] = []

    def next_notice(start: str) -> str:
        while True:
            seen.append(notified.recv(4096).decode())
            if seen[-1].startswith(start):
                return seen[-1]

    listening = socket.create_server(("127.0.0.1", 0))
    port = listening.getsockname()[1]
    # `exec` with the descriptor at 3 and the pid of the process itself.
    launcher = ["bash", "-c", f'exec 3<&{listening.fileno()}; export LISTEN_PID=$$ LISTEN_FDS=1; exec "$0" "$@"']
    environment = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "3000000"}
    with notified, listening:
        with serving(
            tmp_path,
            searcher,
            environment=environment,
            pass_fds=[listening.fileno()],
            launcher=[*launcher, sys.executable],
        ) as server:
            assert server.url == f"http://127.0.0.1:{port}"
            assert next_notice("READY=1") == f"READY=1\nSTATUS=serving searcher at http://127.0.0.1:{port}"
            assert any(one.startswith("STATUS=opening") and "EXTEND_TIMEOUT_USEC=" in one for one in seen)
            next_notice("WATCHDOG=1")
            assert server.ask("/health").status == 200
            server.signal(signal.SIGHUP)
            assert "MONOTONIC_USEC=" in next_notice("RELOADING=1")
            next_notice("READY=1")
            server.signal(signal.SIGTERM)
            next_notice("STOPPING=1")
            assert server.end() == 0
        # systemd's socket is open still: the next connection starts the server again.
        with socket.create_connection(("127.0.0.1", port), timeout=5):
            pass


def test_a_unix_socket(tmp_path: Path, searcher: Path, ortkit: Callable[..., Any]) -> None:
    path = tmp_path / "ortkit.sock"
    with serving(tmp_path, searcher, "--unix-socket", path) as server:
        assert path.stat().st_mode & 0o777 == 0o660
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(60)
            connection.connect(str(path))
            connection.sendall(b"GET /v1/models HTTP/1.1\r\nHost: anything\r\nConnection: close\r\n\r\n")
            assert read_all(connection).startswith(b"HTTP/1.1 200 ")
        taken = ortkit("serve", searcher, "--unix-socket", path)
        assert taken.code == 1
        assert taken.err == (
            f"error: another process listens at `{path}`\n\nhint: stop it, or name another `--unix-socket`\n"
        )
        server.signal(signal.SIGKILL)
        server.end()
    assert path.exists(), "left over by SIGKILL"
    with serving(tmp_path, searcher, "--unix-socket", path) as server:
        server.signal(signal.SIGTERM)
        assert server.end() == 0
    assert not path.exists()


def test_texts_are_logged_if_asked(tmp_path: Path, writer: Path) -> None:
    with serving(tmp_path, writer, "--log-texts") as server:
        answer = server.ask("/v1/chat/completions", {**CHAT, "max_tokens": 3})
        line = server.wait_for("request")[0]

        assert TEXT in line["request_text"]
        assert json.loads(line["answer_text"])["choices"][0] == answer.json()["choices"][0]


def test_the_memory_is_bounded_over_all_models(searcher: Path) -> None:
    command = [sys.executable, "-m", "ortkit", "serve", searcher, "--max-memory", "40M", "--check"]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)

    assert finished.returncode == 9
    assert finished.stderr.startswith("error: ")
    assert "`max_memory` is 40 MiB" in finished.stderr
    assert finished.stdout == ""


@pytest.mark.parametrize("seconds", [0.0, 0.08])
def test_sigterm_while_opening(tmp_path: Path, searcher: Path, seconds: float) -> None:
    """After 0.08 s it comes while onnxruntime is imported, which makes an error of its own of it."""
    command = [sys.executable, "-m", "ortkit", "serve", searcher, "--unix-socket", tmp_path / "socket"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        wait_until((tmp_path / "socket").exists)
        time.sleep(seconds)
        process.terminate()
        try:
            _, err = process.communicate(timeout=120)
        finally:
            process.kill()

    assert process.returncode == 0
    assert json.loads(err.splitlines()[-1])["event"] == "stopped"
    assert not (tmp_path / "socket").exists()


def test_sigterm_whose_error_python_drops(
    tmp_path: Path, searcher: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """It comes in `__del__`, after the models were opened and before the loop handles signals."""
    prepare = lifecycle._Service.__init__

    class Stopping:
        def __del__(self) -> None:
            signal.raise_signal(signal.SIGTERM)

    def prepare_and_stop(*arguments: Any) -> None:
        prepare(*arguments)
        Stopping()

    monkeypatch.setattr(lifecycle._Service, "__init__", prepare_and_stop)

    plan = plan_of((str(searcher),), None, {"unix_socket": tmp_path / "socket"})
    assert lifecycle.run(plan, started=lambda _: pytest.fail("it serves")) == 0
    events = [json.loads(line)["event"] for line in capfd.readouterr().err.splitlines()]
    assert events[-1] == "stopped"
    assert not (tmp_path / "socket").exists()


MALFORMED: list[bytes] = [
    b"",
    b"\r\n\r\n",
    b"GET\r\n\r\n",
    b"GET / HTTP/9.9\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    b"GET /v1/models HTTP/1.1\r\n\r\n",
    b"GET /v1/models HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
    b"GET /v1/models HTTP/1.1\r\nHost : a\r\n\r\n",
    b"GET /\xff\xfe HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET /%ff%00%0a HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"POST /v1/embeddings HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
    b"POST /v1/embeddings HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n{}",
    b"POST /v1/embeddings HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: gzip\r\n\r\n{}",
    b"POST /v1/embeddings HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    b"POST /v1/embeddings HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999999999999999999\r\n\r\n{}",
    b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"X-Long: " + b"a" * 70_000 + b"\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
    b"CONNECT localhost:80 HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"OPTIONS * HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"TRACE / HTTP/1.1\r\nHost: localhost\r\n\r\n",
]
BODIES: list[bytes] = [
    b"",
    b"{",
    b"null",
    b"[]",
    b"{}",
    b'"text"',
    b"[" * 60_000,
    b'{"model": "\\ud800"}',
    b"\xff\xfe\x00",
    b'{"model": NaN}',
    b'{"model": "searcher", "input": 1e999}',
    b'{"model": "searcher", "model": "writer"}',
    b'{"model": "writer", "messages": [{"role": "user", "content": [{"type": "image_url"}]}]}',
    b'{"model": "writer", "messages": [], "n": 0}',
    b'{"model": "writer", "prompt": "a", "max_tokens": -1}',
    b'{"model": "searcher", "input": [[]]}',
    b'{"model": "searcher", "input": ["a", 1]}',
]
PATHS = ("/v1/embeddings", "/v1/chat/completions", "/v1/completions", "/v1/rerank", "/v2/rerank", "/rerank", "/embed")


def malformed(count: int) -> Iterator[bytes]:
    """Requests that are wrong in different ways: those above, and mutations of a good one."""
    random = np.random.default_rng(22)
    good = json.dumps({**CHAT, "max_tokens": 2}).encode()
    made = 0
    while made < count:
        if made < len(MALFORMED):
            yield MALFORMED[made]
        else:
            body = BODIES[made % len(BODIES)] if made % 3 else mutated(good, random)
            path = PATHS[made % len(PATHS)]
            request = (
                f"POST {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {KEY}\r\n"
                f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
            ).encode()
            yield (mutated(request, random) if made % 5 == 0 else request) + body
        made += 1


def mutated(content: bytes, random: np.random.Generator) -> bytes:
    changed = bytearray(content)
    for _ in range(random.integers(1, 6)):
        place = int(random.integers(0, len(changed)))
        changed[place : place + int(random.integers(0, 3))] = random.bytes(int(random.integers(0, 3)))
    return bytes(changed)


def check_malformed(server: ServedProcess, count: int) -> None:
    statuses = set()
    for request in malformed(count):
        with server.raw() as connection:
            with contextlib.suppress(OSError):
                connection.sendall(request)
                # No more follows, so that an incomplete request is not waited for.
                connection.shutdown(socket.SHUT_WR)
            answer = read_all(connection)
            if answer:
                status = int(answer.split(b" ", 2)[1])
                assert status < 500, (request, answer)
                statuses.add(status)
    assert {400, 401} <= statuses
    assert server.process.poll() is None
    assert server.ask("/v1/models", headers=BEARER).status == 200
    assert server.events("internal error") == []


def test_malformed_requests(served: ServedProcess) -> None:
    check_malformed(served, 300)


@pytest.mark.slow
def test_ten_thousand_malformed_requests(served: ServedProcess) -> None:
    check_malformed(served, 10_000)


def test_another_process_at_the_port(served: ServedProcess, searcher: Path, ortkit: Callable[..., Any]) -> None:
    finished = ortkit("serve", searcher, "--port", served.port)

    assert finished.code == 1
    assert finished.err == (
        f"error: another process listens at `127.0.0.1:{served.port}`\n\n"
        "hint: stop it, or choose another port with `--port`\n"
    )


def test_a_host_that_is_not_this_machine(served: ServedProcess) -> None:
    """DNS rebinding: the name of another site that resolves to 127.0.0.1."""
    rebound = ask(f"{served.url}/health", headers={"Host": f"evil.example:{served.port}"})

    assert (rebound.status, rebound.code) == (403, "host_not_allowed")
    assert served.ask("/health", headers={"Host": "localhost"}).status == 200
