"""The parts of the serving benchmark that results hang on, with a server whose every byte is known."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing, suppress
from dataclasses import asdict
from pathlib import Path

import pytest

from benchmarks import llama_server, serving
from benchmarks.chat_worker import answer_in_turn
from benchmarks.http_load import BrokenResponseError, Connection, Load, Reply, Response, reply_of, run_load
from benchmarks.results import Spread
from benchmarks.servers import HOST, llama_command, ortkit_command, running
from ortkit import Bundle, Decoder
from tests.decoders import write_decoder

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
USAGE = {"prompt_tokens": 9, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 4}}


def event(message: object) -> bytes:
    return b"data: " + (message if isinstance(message, bytes) else json.dumps(message).encode()) + b"\n\n"


def delta(**choice: object) -> bytes:
    return event({"choices": [{"index": 0, "finish_reason": None, **choice}], "usage": None})


EVENTS = [
    delta(delta={"role": "assistant", "content": ""}),
    delta(delta={"content": "Größe "}),
    b": keep-alive\n\n",
    delta(delta={"content": "0\r\n\r\n"}),
    delta(delta={}, finish_reason="length"),
    event({"choices": [], "usage": USAGE}),
    event(b"[DONE]"),
]


def chunked(parts: list[bytes]) -> bytes:
    return b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"


def received(pieces: list[bytes]) -> Response:
    """What a connection makes of the pieces that arrive, one each second."""

    async def receive() -> Response:
        connection = Connection()
        connection._whole = asyncio.get_running_loop().create_future()
        for piece in pieces:
            assert not connection._whole.done()
            connection.data_received(piece)
        assert connection._whole.done()
        return connection._whole.result()

    found = asyncio.run(receive())
    arrivals = tuple((count, float(second)) for second, (count, _) in enumerate(found.arrivals, start=1))
    return Response(found.head, found.body, arrivals)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, 10_000])
def test_a_stream_is_read_however_it_is_cut(size: int) -> None:
    wire = HEAD + chunked(EVENTS)
    pieces = [wire[start : start + size] for start in range(0, len(wire), size)]

    response = received(pieces)

    assert response.content() == b"".join(EVENTS)
    assert [each.data for each in response.events()] == [
        part.removeprefix(b"data: ").decode().strip() for part in EVENTS if part.startswith(b"data")
    ]
    reply = reply_of(response)
    assert (reply.text, reply.finish_reason) == ("Größe 0\r\n\r\n", "length")
    assert (reply.tokens, reply.prompt_tokens, reply.cached_tokens) == (3, 9, 4)
    # The piece with the last byte of an event is the one that brings it, counted from the sizes on the wire.
    place = len(HEAD) + sum(len(b"%x\r\n%s\r\n" % (len(part), part)) for part in EVENTS[:2]) - len(b"\r\n")
    assert reply.first_seconds == -(-place // size)
    assert reply.seconds == len(pieces)


def test_events_of_one_chunk_and_an_event_of_many_have_the_time_of_their_last_byte() -> None:
    one, two, three = (event({"choices": [{"index": 0, "text": text, "finish_reason": None}]}) for text in "abc")
    wire = chunked([one + two[:9], two[9:], three, event(b"[DONE]")])
    cut = wire.index(two[9:]) + len(two[9:])

    response = received([HEAD, wire[: len(one) + 30], wire[len(one) + 30 : cut], wire[cut:]])

    assert [each.seconds for each in response.events()] == [2, 3, 4, 4]
    assert reply_of(response).text == "abc"


def test_a_response_of_known_length_is_whole_with_its_last_byte() -> None:
    body = json.dumps({"data": [{"embedding": "AACAPw=="}] * 3, "usage": {"prompt_tokens": 7}}).encode()
    head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\ncontent-type: application/json\r\n\r\n" % len(body)

    reply = reply_of(received([head[:20], head[20:] + body[:5], body[5:]]))

    assert (reply.vectors, reply.prompt_tokens, reply.tokens, reply.seconds) == (3, 7, 0, 3)


@pytest.mark.parametrize(
    ("wire", "said"),
    [
        (b"HTTP/1.1 429 Too Many\r\nContent-Length: 4\r\n\r\nfull", "status 429: full"),
        (HEAD + chunked(EVENTS[:-1]), "a stream without its end"),
        (HEAD + chunked([event({"error": {"message": "out of memory"}}), EVENTS[-1]]), "out of memory"),
    ],
)
def test_an_error_is_never_a_figure(wire: bytes, said: str) -> None:
    with pytest.raises(BrokenResponseError, match=said):
        reply_of(received([wire]))


@asynccontextmanager
async def server_of(answer: Callable[[str, bytes], AsyncIterator[bytes]]) -> AsyncIterator[int]:
    """A server at a free port: `answer` takes path and body, and yields the bytes of the response."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while head := await reader.readuntil(b"\r\n\r\n"):
            length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
            async for part in answer(head.split(b" ")[1].decode(), await reader.readexactly(length)):
                if not part:
                    return
                writer.write(part)

    ended = []

    async def guarded(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        end = asyncio.Event()
        ended.append(end)
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            await serve(reader, writer)
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()
        end.set()

    server = await asyncio.start_server(guarded, HOST, 0)
    async with server:
        yield server.sockets[0].getsockname()[1]
        for end in ended:
            await end.wait()


def json_response(message: object) -> bytes:
    body = json.dumps(message).encode()
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)


def test_clients_work_at_the_same_time_and_replies_stay_in_order() -> None:
    running_now, most, paths = 0, 0, set()

    async def answer(path: str, body: bytes) -> AsyncIterator[bytes]:
        nonlocal running_now, most
        paths.add(path)
        running_now += 1
        most = max(most, running_now)
        texts = json.loads(body)["input"]
        await asyncio.sleep(0.02 if texts[0] == "first" else 0.005)
        running_now -= 1
        yield json_response({"data": texts, "usage": {}})

    bodies = serving.embedding_bodies("m", ["first", *"abcdefgh"], 2)

    async def load() -> Load:
        async with server_of(answer) as port:
            return await run_load(HOST, port, "/v1/embeddings", bodies, 3)

    found = asyncio.run(load())

    assert most == 3
    assert paths == {"/v1/embeddings"}
    assert [reply.vectors for reply in found.replies] == [2, 2, 2, 2, 1]
    assert all(reply.first_seconds == reply.last_seconds == reply.seconds for reply in found.replies)
    assert max(reply.seconds for reply in found.replies) <= found.seconds
    assert 0 < found.cpu_seconds < 10


def test_a_connection_that_ends_early_is_an_error_and_no_answer() -> None:
    async def answer(_path: str, _body: bytes) -> AsyncIterator[bytes]:
        yield HEAD + chunked(EVENTS)[:40]
        yield b""

    async def load() -> None:
        async with server_of(answer) as port:
            await run_load(HOST, port, "/v1/chat/completions", [{}], 1)

    with pytest.raises(ExceptionGroup) as raised:
        asyncio.run(load())
    [error] = raised.value.exceptions
    assert isinstance(error, BrokenResponseError)
    assert "the connection ended after" in str(error)


def test_a_connection_that_ends_between_two_requests_is_made_again() -> None:
    asked = []

    async def answer(_path: str, body: bytes) -> AsyncIterator[bytes]:
        asked.append(json.loads(body))
        yield HEAD + chunked(EVENTS)
        yield b""

    async def load() -> Load:
        async with server_of(answer) as port:
            return await run_load(HOST, port, "/v1/chat/completions", [1, 2, 3], 1)

    assert [reply.tokens for reply in asyncio.run(load()).replies] == [3, 3, 3]
    assert asked == [1, 2, 3]


def test_a_client_that_goes_away_closes_its_connection() -> None:

    async def answer(_path: str, _body: bytes) -> AsyncIterator[bytes]:
        yield HEAD + b"5\r\nhello\r\n"
        await asyncio.sleep(0.2)

    async def leave() -> None:
        # The server waits at its end for all connections to be closed.
        async with server_of(answer) as port:
            connection = await Connection.open(HOST, port)
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05):
                    await connection.request("POST", "/", b"{}")
            with pytest.raises(BrokenResponseError, match="the connection is closed"):
                await connection.request("POST", "/", b"{}")

    asyncio.run(leave())


def test_a_load_generator_that_fails_is_named(capfd: pytest.CaptureFixture[str]) -> None:
    target = serving.Target("nobody", HOST, 9, "m")

    with (
        closing(serving.load_generator(target)) as generator,
        pytest.raises(SystemExit, match=r"^the load of nobody failed; its messages are above$"),
    ):
        generator.load(path="/v1/embeddings", bodies=[{}], clients=1)
    assert f"{HOST}:9/v1/embeddings: " in capfd.readouterr().err


def test_a_server_is_awaited_and_ended_and_one_that_fails_is_named(capfd: pytest.CaptureFixture[str]) -> None:
    command = [sys.executable, "-m", "http.server", "{port}", "--bind", HOST]
    with running("files", command, ready="/README.md") as server:
        assert server.resident_bytes() > 2**20
        assert server.cpu_seconds() >= 0
        pid = server.pid
    assert not Path(f"/proc/{pid}").exists()

    with (
        pytest.raises(SystemExit, match=r"^broken does not answer; its messages are above$"),
        running("broken", [sys.executable, "-c", "raise SystemExit('no such model')"]),
    ):
        pass
    assert "no such model" in capfd.readouterr().err

    with pytest.raises(KeyError), running("files", command, ready="/README.md"):
        raise KeyError("one of ours")
    assert "GET /README.md" in capfd.readouterr().err


def test_servers_get_the_same_slots_and_threads() -> None:
    command = llama_command(Path("llama-server"), Path("m.gguf"), threads=2, slots=8, context=1024)

    assert command[command.index("--parallel") + 1] == "8"
    # A slot's share of the context is what ortkit's slots have.
    assert command[command.index("--ctx-size") + 1] == "8192"
    assert command[command.index("--threads") + 1] == command[command.index("--threads-batch") + 1] == "2"
    assert ortkit_command({"small": Path("/b")}, "--slots", "8")[1:5] == ["-m", "ortkit", "serve", "small=/b"]


def test_the_source_of_llama_cpp_is_the_pinned_one() -> None:
    assert llama_server.pinned().startswith("llama-cpp-python==")


def test_questions_differ_between_rounds_and_are_the_same_every_time() -> None:
    options = serving.parse_options(["--repeats", "3", "--questions-of-stream", "2"])

    rounds = serving.rounds_of_questions(4, options)

    assert [len(asked) for asked in rounds] == [8] * 4
    assert len({question for asked in rounds for question in asked}) == 32
    assert rounds == serving.rounds_of_questions(4, options)


@pytest.fixture(scope="module")
def tiny_decoder(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_decoder(tmp_path_factory.mktemp("decoders") / "tiny")[0]


def test_the_librarys_stream_is_that_of_chat(tiny_decoder: Bundle) -> None:
    decoder = Decoder(tiny_decoder, threads=1)
    questions = ["Where is the fox?", "And the dog?"]

    load = answer_in_turn(decoder, questions, 6, lookup=False)

    expected = [
        decoder.chat([{"role": "user", "content": question}], max_tokens=6, temperature=0.0) for question in questions
    ]
    assert [reply.text for reply in load.replies] == [answer.text for answer in expected]
    assert [reply.tokens for reply in load.replies] == [answer.usage.completion_tokens for answer in expected]
    assert [reply.finish_reason for reply in load.replies] == [answer.finish_reason.value for answer in expected]
    assert all(0 < reply.first_seconds <= reply.last_seconds <= reply.seconds < load.seconds for reply in load.replies)
    assert Reply(**asdict(load.replies[0])) == load.replies[0]


def test_answers_have_the_same_length_where_no_token_may_end_them(tiny_decoder: Bundle) -> None:
    ends = serving.end_tokens(tiny_decoder.path)
    decoder = Decoder(tiny_decoder, threads=1)
    messages = [{"role": "user", "content": "Where?"}]
    answer = decoder.chat(messages, max_tokens=8, temperature=0.0)
    # The token that comes first, if it may.
    never = answer.tokens[0].id

    [reply] = answer_in_turn(decoder, ["Where?"], 8, lookup=False, never=[never]).replies

    other = decoder.chat(messages, max_tokens=8, temperature=0.0, logit_bias={never: -100.0})
    assert reply.text == other.text != answer.text
    assert never not in [token.id for token in other.tokens]
    assert tuple(ends) == decoder.facts.eos_ids
    [body] = serving.chat_bodies("m", ["Where?"], 5, never=ends)
    assert body["logit_bias"] == {str(id_): -100.0 for id_ in ends}


def measured(name: str, clients: int, seconds: list[float]) -> serving.Measured:
    """Rounds of two replies of 11 tokens, whose last one comes at the end."""
    loads = [Load(taken, 0.1 * taken, (Reply(taken, 0.1, taken, 11, 20, 5, 0, "length", ""),) * 2) for taken in seconds]
    return serving.Measured(name, clients, loads)


MEASURED = [
    measured(serving.LIBRARY, 1, [2.0, 4.0]),
    measured(serving.ORTKIT, 8, [1.0, 1.0]),
    measured(serving.LLAMA, 8, [2.0, 1.5]),
]


def test_the_table_of_chat_gives_rates_and_the_ratio_of_each_round() -> None:
    header, rows = serving.chat_rows(MEASURED)

    assert header[:6] == [
        "system",
        "streams",
        "tokens/s",
        f"system / {serving.LIBRARY}",
        "ortkit serve / system",
        "TTFT ms p50",
    ]
    assert rows == [
        [serving.LIBRARY, "1", "8", "1", "", "100.0", "100.0", "190.0", "390.0", "25%", "0.10"],
        [serving.ORTKIT, "8", "22", "3.00 (2.00 to 4.00)", "1", "100.0", "100.0", "90.0", "90.0", "25%", "0.10"],
        [
            serving.LLAMA,
            "8",
            "13",
            "1.83 (1.00 to 2.67)",
            "1.75 (1.50 to 2.00)",
            "100.0",
            "100.0",
            "140.0",
            "190.0",
            "25%",
            "0.10",
        ],
    ]
    assert serving.notes_of(MEASURED[2:], 12) == [f"{serving.LLAMA}: 4 of 4 answers ended before 12 tokens"]
    [curve] = serving.curves_of(MEASURED[1:2], serving.tokens_of)
    assert (curve.name, curve.ours, curve.places) == (serving.ORTKIT, True, [(8, 22.0)])


def test_the_figures_of_chat_are_those_of_the_table() -> None:
    found = {figure.key: figure for figure in serving.chat_figures(MEASURED)}

    assert found["chat, 8 streams", serving.LLAMA].ratio == Spread(1.75, 1.5, 2, (2, 1.5))
    assert found["chat, 8 streams", serving.ORTKIT].value == Spread(22, 22, 22, (22, 22))
    # One stream of the library has no peer here: ortkit serve was measured with eight alone.
    assert found["chat, 1 stream", serving.LIBRARY].ratio is None
    assert found["chat TTFT p95, 8 streams", serving.LLAMA].value == Spread(100)


def test_the_table_of_embeddings_gives_the_share_of_the_library() -> None:
    library = serving.Measured(serving.LIBRARY, 1, [serving.vectors_load(2.0, 100), serving.vectors_load(1.0, 100)])
    reply = Reply(0.02, 0.02, 0.02, 0, 9, 0, 50, None, "")
    served = serving.Measured(
        "ortkit serve, 1 a request", 32, [Load(2.5, 0.5, (reply,) * 2), Load(1.25, 0.25, (reply,) * 2)]
    )

    _, rows = serving.embedding_rows(library, [served])

    assert rows == [
        [serving.LIBRARY, "1", "75", "1", "", "", ""],
        ["ortkit serve, 1 a request", "32", "60", "0.80 (0.80 to 0.80)", "20.0", "20.0", "0.20"],
    ]
    alone, own, share = serving.embedding_figures(library, [served])
    assert (alone.key, alone.value) == (("embed served, library", serving.LIBRARY), Spread(75, 50, 100, (50, 100)))
    measure = "embed served, 1 a request, 32 clients"
    assert (own.key, own.value) == ((measure, serving.ORTKIT), Spread(60, 40, 80, (40, 80)))
    assert (share.key, share.ratio) == ((measure, serving.LIBRARY), Spread(0.8, 0.8, 0.8, (0.8, 0.8)))


def test_a_percentile_is_a_value_that_was_measured() -> None:
    values = [float(number) for number in range(1, 21)]

    assert [serving.percentile(values, percent) for percent in (0, 50, 95, 99, 100)] == [1, 10, 19, 20, 20]
    assert serving.percentile([3.0], 95) == 3.0


def test_a_server_that_runs_already_is_named_by_its_address(capsys: pytest.CaptureFixture[str]) -> None:
    options = serving.parse_options(["--url", "other=127.0.0.1:8080/some/model"])

    assert options.url == [serving.Target("other", "127.0.0.1", 8080, "some/model")]
    with pytest.raises(SystemExit):
        serving.parse_options(["--url", "127.0.0.1:8080"])
    assert "is not NAME=HOST:PORT/MODEL" in capsys.readouterr().err
