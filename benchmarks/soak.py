"""Many clients with mixed requests at once, for a long time: every answer is checked against the library's.

Some clients go away in the middle of an answer. The program fails for an answer that differs from the library's, is not
whole or does not come; for a server that ends, or keeps slots of clients that have gone; and for memory that grows. The
library's answers come from the same bundles before the server starts: those of an LLM one at a time and without a
prefix cache, so that neither neighbours nor cached prefixes have a part in them.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import cycle, islice
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from benchmarks.decoding import BUNDLE as DECODER_BUNDLE
from benchmarks.http_load import BrokenResponseError, Connection, Response, reply_of
from benchmarks.memory import MEBIBYTE, Sample, slope
from benchmarks.peers import BUNDLE, REPOSITORY
from benchmarks.processor import processor
from benchmarks.servers import HOST, Server, ortkit_command, running
from benchmarks.serving import milliseconds, percentile
from benchmarks.table import print_table
from benchmarks.texts import held_out_texts, questions_of, searches
from ortkit import Answer, Decoder, Embedder, FinishReason, Reranker
from ortkit.runtime.decoder.batch.batch import Batch

RERANKER_BUNDLE = REPOSITORY / ".cache" / "bundles" / "seeded-reranker-int8"
EMBEDDER, RERANKER, DECODER = "embedder", "reranker", "decoder"
SHORT_INSTRUCTIONS = "You are a helpful assistant. Answer in one short sentence."
LONG_INSTRUCTIONS = """You are a clerk in the archive of a newspaper. You answer questions about articles, and you never
make up names, dates or numbers. Where the article does not say, you say that it does not. You write plain English."""
SCHEMA = {
    "type": "object",
    "properties": {"title": {"type": "string", "maxLength": 40}, "positive": {"type": "boolean"}},
    "required": ["title", "positive"],
    "additionalProperties": False,
}
SCHEMA_KIND, LOGPROBS = "schema", "logprobs"
OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "greedy": {"temperature": 0},
    "seed": {"temperature": 0.9, "top_p": 0.95},
    "stop": {"temperature": 0, "stop": [".", "\n\n"]},
    "penalties": {"temperature": 0, "frequency_penalty": 0.5, "presence_penalty": 0.3},
    SCHEMA_KIND: {
        "temperature": 0,
        "response_format": {"type": "json_schema", "json_schema": {"name": "news", "strict": True, "schema": SCHEMA}},
    },
}
"""Options of generation, named as the library and OpenAI's API name them."""
CASES_OF_KIND = 4
WARM_UP = 0.2
"""Share of the time in which memory may grow: prefixes are cached, and the allocator takes what it needs."""
GROWTH = 0.05
"""Growth of memory after that, as a share, from which on it is not flat."""
BUSY = ("ortkit_num_requests_running", "ortkit_num_requests_waiting")
"""Gauges in `/metrics` of what is computed and of what waits."""
SHOWN = 10
LOST_SECONDS = 600.0
"""As long as the server works on a request."""
IDLE_SECONDS = 10.0


@dataclass(frozen=True)
class Case:
    """A request, and how its response is checked."""

    kind: str
    path: str
    body: Mapping[str, Any]
    check: Callable[[Response], str | None]
    """None for the library's answer; otherwise what is wrong."""
    can_stream: bool = False


@dataclass
class Outcome:
    """What became of the requests of a kind."""

    seconds: list[float] = field(default_factory=list)
    """Of whole answers."""
    left: int = 0
    """Answers that the client did not wait for."""
    full: int = 0
    """Requests that were answered 429."""
    broken: list[str] = field(default_factory=list)
    """Answers that were lost, truncated or wrong."""


def embedding_cases(embedder: Embedder, texts: Sequence[str]) -> Iterator[Case]:
    """Requests of 1 to 16 texts, in base64 and in floats; the vectors must have the library's bits."""
    waiting = iter(texts)
    for place, count in enumerate((1, 1, 2, 5, 16, 3, 1, 8)):
        own = list(islice(waiting, count))
        # Without it the API refuses texts that are longer than the model's limit.
        body: dict[str, Any] = {"model": EMBEDDER, "input": own, "truncate": True}
        if place % 2 == 0:
            body["encoding_format"] = "base64"
        yield Case("embeddings", "/v1/embeddings", body, vectors_check(embedder.embed_with_report(own).vectors))


def vectors_check(expected: Any) -> Callable[[Response], str | None]:
    def check(response: Response) -> str | None:
        found = np.stack([vector_of(one["embedding"]) for one in response.json()["data"]])
        if found.shape == expected.shape and np.array_equal(found, expected):
            return None
        return f"vectors of shape {found.shape} differ from the library's"

    return check


def vector_of(told: str | list[float]) -> Any:
    """An embedding of OpenAI's API: base64 of float32, or numbers."""
    return np.frombuffer(base64.b64decode(told), "<f4") if isinstance(told, str) else np.array(told, np.float32)


def ranking_cases(reranker: Reranker, found: Sequence[tuple[str, list[str]]]) -> Iterator[Case]:
    """Searches; order and scores must be the library's."""
    for query, documents in found:
        [ranking] = reranker.rank_many_with_report([(query, documents)], scores="sigmoid")
        expected = [(one.index, one.score) for one in ranking.ranked]
        body = {"model": RERANKER, "query": query, "documents": documents}
        yield Case("rerank", "/v2/rerank", body, ranking_check(expected))


def ranking_check(expected: Sequence[tuple[int, float]]) -> Callable[[Response], str | None]:
    def check(response: Response) -> str | None:
        found = [(one["index"], one["relevance_score"]) for one in response.json()["results"]]
        return None if found == list(expected) else f"the ranking {found} is not {list(expected)}"

    return check


def answer_cases(batch: Batch, asked: Sequence[str], passages: Sequence[str], choose: Random) -> Iterator[Case]:
    """Chats and completions with every kind of options; text, end and token count must be the library's."""
    endless, texts = cycle(asked), cycle(passages)
    for name, options in OPTIONS.items():
        for number in range(CASES_OF_KIND):
            own = {**options, "max_tokens": choose.randint(4, 48)}
            if name == "seed":
                own["seed"] = number
            messages = conversation(choose, islice(endless, 3))
            answer = batch.submit_chat(messages, **own).answer()
            body = {"model": DECODER, "messages": messages, **own}
            yield Case(f"chat, {name}", "/v1/chat/completions", body, answer_check(answer), can_stream=True)
            if name == SCHEMA_KIND:
                continue  # `/v1/completions` of OpenAI's API has none
            prompt = " ".join(next(texts).split()[: choose.randint(3, 90)])
            answer = batch.submit(prompt, **own).answer()
            body = {"model": DECODER, "prompt": prompt, **own}
            yield Case(f"completions, {name}", "/v1/completions", body, answer_check(answer), can_stream=True)
    for _ in range(CASES_OF_KIND):
        messages = conversation(choose, islice(endless, 3))
        answer = batch.submit_chat(messages, temperature=0.0, max_tokens=12, top_logprobs=2).answer()
        body = {"model": DECODER, "messages": messages, "temperature": 0, "max_tokens": 12}
        body |= {"logprobs": True, "top_logprobs": 2}
        yield Case(f"chat, {LOGPROBS}", "/v1/chat/completions", body, logprobs_check(answer))


def conversation(choose: Random, asked: Iterator[str]) -> list[dict[str, str]]:
    """One to three questions, with answers between them; most conversations begin with the same instructions."""
    system = choose.choice([SHORT_INSTRUCTIONS, LONG_INSTRUCTIONS, None])
    messages = [] if system is None else [{"role": "system", "content": system}]
    first, second, third = asked
    earlier = choose.randrange(3)
    for question in (first, second)[:earlier]:
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": "I do not know."}]
    return [*messages, {"role": "user", "content": third}]


def answer_check(expected: Answer) -> Callable[[Response], str | None]:
    told = (expected.text, expected.finish_reason.value, expected.usage.completion_tokens)

    def check(response: Response) -> str | None:
        reply = reply_of(response)
        found = (reply.text, reply.finish_reason, reply.tokens)
        return None if found == told else f"the answer {found} is not {told}"

    return check


def logprobs_check(expected: Answer) -> Callable[[Response], str | None]:
    same_answer = answer_check(expected)
    # The API leaves out the token that ends an answer, which has no text.
    shown = [token for token in expected.tokens if token.finish_reason is not FinishReason.STOP]
    told = [(token.logprob, [one.logprob for one in token.top_logprobs]) for token in shown]

    def check(response: Response) -> str | None:
        content = response.json()["choices"][0]["logprobs"]["content"]
        found = [(one["logprob"], [other["logprob"] for other in one["top_logprobs"]]) for one in content]
        return same_answer(response) or (None if found == told else f"the log-probabilities {found} are not {told}")

    return check


def cases_of(options: argparse.Namespace) -> list[Case]:
    """All requests with the library's answers."""
    choose = Random(options.seed)
    texts = held_out_texts(120)
    found: list[Case] = []
    with Embedder(options.bundle) as embedder:
        found += embedding_cases(embedder, texts)
    with Reranker(options.reranker) as reranker:
        found += ranking_cases(reranker, searches(4, 6, words=40))
    with Decoder(options.decoder) as decoder, Batch(decoder, slots=1, context=1024, prefix_bytes=0) as batch:
        found += answer_cases(batch, list(islice(questions_of(20, seed=options.seed), 40)), texts, choose)
    return found


class Soak:
    """Clients that send requests until a time, and what became of them."""

    def __init__(self, port: int, cases: Sequence[Case], *, leaving: float) -> None:
        self._port = port
        self._kinds = {kind: [case for case in cases if case.kind == kind] for kind in {case.kind for case in cases}}
        self._leaving = leaving
        self.outcomes: dict[str, Outcome] = {kind: Outcome() for kind in sorted(self._kinds)}
        self.samples: list[Sample] = []
        """Of the server's memory, with milliseconds for texts."""

    async def run(self, server: Server, *, clients: int, seconds: float, seed: int) -> None:
        end = time.monotonic() + seconds
        async with asyncio.TaskGroup() as group:
            for number in range(clients):
                group.create_task(self._client(Random(f"{seed} {number}"), end))
            group.create_task(self._watch_memory(server, end))

    async def _client(self, choose: Random, end: float) -> None:
        connection: Connection | None = None
        while time.monotonic() < end:
            kind = choose.choice(list(self.outcomes))
            case, outcome = choose.choice(self._kinds[kind]), self.outcomes[kind]
            try:
                if connection is None or connection.closed:
                    connection = await Connection.open(HOST, self._port)
                await self._request(connection, choose, case, outcome)
            except (OSError, BrokenResponseError, ValueError, LookupError, TypeError) as error:
                outcome.broken.append(f"{type(error).__name__}: {error}")
                if connection is not None:
                    connection.close()
                # A server that has ended would be asked a hundred thousand times.
                await asyncio.sleep(1)
        if connection is not None:
            connection.close()

    async def _request(self, connection: Connection, choose: Random, case: Case, outcome: Outcome) -> None:
        body = dict(case.body)
        if case.can_stream and choose.random() < 0.5:
            body |= {"stream": True, "stream_options": {"include_usage": True}}
        leaves = choose.random() < self._leaving
        patience = choose.expovariate(4) if leaves else LOST_SECONDS
        try:
            async with asyncio.timeout(patience):
                response = await connection.request("POST", case.path, json.dumps(body).encode())
        except TimeoutError:
            if leaves:
                outcome.left += 1
            else:
                outcome.broken.append(f"no answer in {LOST_SECONDS:.0f} s")
            return
        if response.status == 429:
            outcome.full += 1
            await asyncio.sleep(min(1.0, float(response.header("retry-after") or 1)))
            return
        outcome.seconds.append(response.seconds)
        wrong = case.check(response) if response.status == 200 else f"status {response.status}: {response.content()!r}"
        if wrong is not None:
            outcome.broken.append(wrong)

    async def _watch_memory(self, server: Server, end: float) -> None:
        start = time.monotonic()
        while time.monotonic() < end:
            with_time = int(1000 * (time.monotonic() - start))
            self.samples.append(Sample(with_time, server.resident_bytes()))
            await asyncio.sleep(1)


def growth(samples: Sequence[Sample]) -> float:
    """Growth of memory from the end of the warm-up to the end, as a share: means over a tenth of the time each."""
    tenth = max(1, len(samples) // 10)
    start = int(len(samples) * WARM_UP)
    first, last = samples[start : start + tenth], samples[-tenth:]
    return mean_memory(last) / mean_memory(first) - 1


def mean_memory(samples: Sequence[Sample]) -> float:
    return sum(sample.resident for sample in samples) / len(samples)


async def is_idle(port: int) -> str | None:
    """None when no answer is computed and none waits, within IDLE_SECONDS; otherwise what `/metrics` says."""
    end = time.monotonic() + IDLE_SECONDS
    busy: list[str] = []
    while time.monotonic() < end:
        connection = await Connection.open(HOST, port)
        lines = (await connection.request("GET", "/metrics")).content().decode().splitlines()
        connection.close()
        gauges = [
            line for line in lines if line.startswith(("ortkit_num_requests_running", "ortkit_num_requests_wait"))
        ]
        busy = [line for line in gauges if float(line.rpartition(" ")[2]) > 0]
        if gauges and not busy:
            return None
        await asyncio.sleep(0.2)
    return "; ".join(busy) or "`/metrics` has no gauge of the requests that run"


def outcome_rows(outcomes: Mapping[str, Outcome]) -> list[list[str]]:
    """Rows of each kind of requests, and of all."""
    every = Outcome(
        [seconds for one in outcomes.values() for seconds in one.seconds],
        sum(one.left for one in outcomes.values()),
        sum(one.full for one in outcomes.values()),
        [text for one in outcomes.values() for text in one.broken],
    )
    rows = []
    for kind, outcome in [*outcomes.items(), ("all", every)]:
        times = [milliseconds(percentile(outcome.seconds, share)) if outcome.seconds else "" for share in (50, 99)]
        counts = (len(outcome.seconds), outcome.left, outcome.full, len(outcome.broken))
        rows.append([kind, *(f"{count:,}" for count in counts), *times])
    return rows


def memory_rows(samples: Sequence[Sample]) -> list[list[str]]:
    """Rows of the server's memory in the course of the time."""
    rows = [["at the start", f"{samples[0].resident / MEBIBYTE:,.1f}"]]
    for share in (WARM_UP, 0.4, 0.6, 0.8, 1.0):
        sample = samples[max(0, int(len(samples) * share) - 1)]
        rows.append([f"after {share:.0%} of the time", f"{sample.resident / MEBIBYTE:,.1f}"])
    rows.append(["the most", f"{max(sample.resident for sample in samples) / MEBIBYTE:,.1f}"])
    return rows


def faults(soak: Soak, busy: str | None) -> list[str]:
    """What makes the run fail."""
    found = [f"{kind}: {text}" for kind, outcome in soak.outcomes.items() for text in outcome.broken]
    counts = Counter(found)
    shown = [f"{text} ({count} times)" for text, count in counts.most_common(SHOWN)]
    if len(counts) > SHOWN:
        shown.append(f"and {len(counts) - SHOWN} others")
    shown += [f"{kind}: no answer at all" for kind, outcome in soak.outcomes.items() if not outcome.seconds]
    if busy is not None:
        shown.append(f"not idle after the last request: {busy}")
    if growth(soak.samples) > GROWTH:
        shown.append(f"memory grew by {growth(soak.samples):.1%} after the first {WARM_UP:.0%} of the time")
    return shown


def parse_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__)
    parser.add_argument("--bundle", type=Path, default=BUNDLE, help="an embedder")
    parser.add_argument("--reranker", type=Path, default=RERANKER_BUNDLE)
    parser.add_argument("--decoder", type=Path, default=DECODER_BUNDLE)
    parser.add_argument("--seconds", type=float, default=1800)
    parser.add_argument("--clients", type=int, default=24, help="three for each of the server's slots by default")
    parser.add_argument("--slots", type=int, default=8)
    parser.add_argument("--leaving", type=float, default=0.15, help="share of requests whose client does not wait")
    parser.add_argument("--seed", type=int, default=22)
    return parser.parse_args(arguments)


def main() -> None:
    options = parse_options()
    cases = cases_of(options)
    print(f"{len(cases)} requests with the library's answers; {processor()}", flush=True)
    bundles = {EMBEDDER: options.bundle, RERANKER: options.reranker, DECODER: options.decoder}
    command = ortkit_command(bundles, "--slots", str(options.slots), "--context", "1024")
    with running("ortkit serve", command) as server:
        soak = Soak(server.port, cases, leaving=options.leaving)
        asyncio.run(soak.run(server, clients=options.clients, seconds=options.seconds, seed=options.seed))
        busy = asyncio.run(is_idle(server.port))
    header = ["requests", "answers", "client left", "429", "wrong, truncated or lost", "ms p50", "p99"]
    print_table(f"{options.clients} clients, {options.seconds:,.0f} s", header, outcome_rows(soak.outcomes))
    print_table("memory of the server", ["", "MiB"], memory_rows(soak.samples))
    late = soak.samples[int(len(soak.samples) * WARM_UP) :]
    if len(late) > 1:
        print(f"\nslope after the warm-up: {slope(late) * 1000 * 3600 / MEBIBYTE:,.1f} MiB an hour")
    found = faults(soak, busy)
    for text in found:
        print(f"FAILED: {text}")
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
