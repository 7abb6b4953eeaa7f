"""Speed of servers with many clients: embeddings and streamed chat, ortkit's server beside the library and llama.cpp's.

`--url NAME=HOST:PORT/MODEL` adds a server that runs already and speaks OpenAI's API.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import contest, worker
from benchmarks.decoding import BUNDLE as DECODER_BUNDLE
from benchmarks.decoding_peers import MODEL, gguf_file
from benchmarks.http_load import Load, Reply
from benchmarks.peers import BUNDLE, CACHE, REPOSITORY, ortkit_name
from benchmarks.peers import MODEL as EMBEDDER
from benchmarks.plot import Curve, curves
from benchmarks.processor import processor
from benchmarks.results import Better, Figure, add_save, plain_figure, rate_figure, save
from benchmarks.rounds import take_turns
from benchmarks.servers import HOST, llama_command, ortkit_command, running
from benchmarks.table import print_table, ratio
from benchmarks.texts import held_out_texts, questions_of

LLAMA_SERVER = CACHE / "llama.cpp" / "build" / "bin" / "llama-server"
"""Where `python -m benchmarks.llama_server .cache/peers/llama.cpp` builds it."""
CHAT_PLOT = REPOSITORY / ".cache" / "benchmarks" / "serving-chat.svg"
EMBEDDINGS_PLOT = CHAT_PLOT.with_name("serving-embeddings.svg")
EMBED_CLIENTS = (1, 8, 32)
CHAT_STREAMS = (1, 4, 8)
CONTEXT = 1024
"""Limit of prompt and answer of one of llama.cpp's slots, in tokens."""
TEXTS = 768
NEVER = -100.0
"""Bias of tokens that end an answer, so that all systems' answers have the same length."""
QUESTION_WORDS = 20
"""Words of news in each question."""
CHAT = "/v1/chat/completions"
RESPONSE_FORMAT = {
    "type": "json_schema",
    "json_schema": {
        "name": "story",
        "strict": True,
        "schema": {
            "type": "object",
            "properties": {"title": {"type": "string"}, "story": {"type": "string"}},
            "required": ["title", "story"],
            "additionalProperties": False,
        },
    },
}
GENERATOR_COLUMN = "load generator, CPU cores"
ORTKIT, LIBRARY, LLAMA = "ortkit serve", "ortkit, the library", "llama.cpp, llama-server"


@dataclass(frozen=True)
class Target:
    """A server and the model to ask."""

    name: str
    host: str
    port: int
    model: str


@dataclass(frozen=True)
class Run:
    """A system with a number of clients."""

    name: str
    clients: int
    load: Callable[[int], Load]
    """Load of a round; 0 is the warm-up."""


@dataclass(frozen=True)
class Measured:
    """Loads of a system with a number of clients, one per counted round."""

    name: str
    clients: int
    loads: Sequence[Load]

    def rates(self, of: Callable[[Reply], int]) -> list[float]:
        """Tokens, or vectors, of all clients in a second, per round."""
        return [sum(map(of, load.replies)) / load.seconds for load in self.loads]

    def all(self, of: Callable[[Reply], float]) -> list[float]:
        """A figure of every reply of all rounds."""
        return [of(reply) for load in self.loads for reply in load.replies]

    def generator_share(self) -> float:
        """CPU cores that the load generator took."""
        return sum(load.cpu_seconds for load in self.loads) / sum(load.seconds for load in self.loads)


class LineWorker:
    """A process that answers each line of JSON with one that describes a Load."""

    def __init__(self, name: str, module: str, *arguments: str) -> None:
        self.name = name
        self.process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            cwd=REPOSITORY,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            encoding="utf-8",
        )

    def load(self, **request: object) -> Load:
        try:
            print(json.dumps(request), file=self.process.stdin, flush=True)
            told = json.loads(self.process.stdout.readline() if self.process.stdout else "")
        except (OSError, ValueError) as error:
            raise SystemExit(f"{self.name} failed; its messages are above") from error
        replies = tuple(Reply(**reply) for reply in told["replies"])
        return Load(told["seconds"], told["cpu_seconds"], replies)

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


def load_generator(target: Target) -> LineWorker:
    return LineWorker(f"the load of {target.name}", "benchmarks.http_load", target.host, str(target.port))


def embedding_bodies(model: str, texts: Sequence[str], texts_of_request: int) -> list[dict[str, Any]]:
    """Requests of so many texts each, in base64, as OpenAI's client asks for them; long texts are truncated, as by the
    library.
    """
    groups = [texts[start : start + texts_of_request] for start in range(0, len(texts), texts_of_request)]
    return [{"model": model, "input": list(group), "encoding_format": "base64", "truncate": True} for group in groups]


def end_tokens(bundle: Path) -> list[int]:
    """The tokens that end an answer."""
    manifest = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))
    found: list[int] = manifest["decoder"]["eos_ids"]
    return found


def chat_bodies(
    model: str, questions: Sequence[str], max_tokens: int, *, never: Sequence[int] = (), **options: object
) -> list[dict[str, Any]]:
    """Greedy streams with their usage at the end, in which some tokens never come."""
    return [
        {
            "model": model,
            "messages": [{"role": "user", "content": question}],
            "max_tokens": max_tokens,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
            "logit_bias": {str(id_): NEVER for id_ in never},
            **options,
        }
        for question in questions
    ]


def rounds_of_questions(streams: int, options: argparse.Namespace, *, seed: int = 0) -> list[list[str]]:
    """For each round, warm-up included, the questions for so many streams, no two rounds alike."""
    endless = questions_of(QUESTION_WORDS, seed=1000 * seed + streams)
    return [list(islice(endless, streams * options.questions_of_stream)) for _ in range(options.repeats + 1)]


def measure_in_turn(runs: Sequence[Run], repeats: int) -> list[Measured]:
    """Measure all, round by round."""

    def turn(run: Run, rounds: Iterator[int]) -> Load:
        return run.load(next(rounds))

    # Each counts its own turns, of which the first is the warm-up: all have the same texts in the same round.
    turns = take_turns([partial(turn, run, iter(range(repeats + 1))) for run in runs], repeats)
    return [Measured(run.name, run.clients, loads) for run, loads in zip(runs, turns, strict=True)]


def measure_embeddings(target: Target, options: argparse.Namespace) -> list[Figure]:
    """Print the table, and write the plot, of embeddings per second against clients; return the figures."""
    texts = held_out_texts(options.texts)
    library = contest.Contestant(LIBRARY, worker.System.ORTKIT, options.bundle.absolute())
    with ExitStack() as stack:
        [embed] = stack.enter_context(contest.workers_of(worker.Task.EMBED, [library], {"texts": texts}))
        generator = stack.enter_context(closing(load_generator(target)))

        def in_library(_round: int) -> Load:
            return vectors_load(embed.run("texts"), len(texts))

        def in_server(size: int, clients: int, _round: int) -> Load:
            bodies = embedding_bodies(target.model, texts, size)
            return generator.load(path="/v1/embeddings", bodies=bodies, clients=clients)

        runs = [Run(LIBRARY, 1, in_library)]
        for size in options.texts_of_request:
            name = f"{target.name}, {size} a request"
            runs += [Run(name, clients, partial(in_server, size, clients)) for clients in options.clients]
        one_call, *served = measure_in_turn(runs, options.repeats)
    title = f"{options.bundle.name}: {len(texts)} texts, medians of {options.repeats} rounds (range); {processor()}"
    print_table(title, *embedding_rows(one_call, served))
    level = median(one_call.rates(vectors_of))
    drawn = [*curves_of(served, vectors_of), Curve(LIBRARY, [(1, level), (max(options.clients), level)])]
    write_plot(options.embeddings_plot, options.bundle.name, "clients", "embeddings per second", drawn)
    return list(embedding_figures(one_call, served))


def vectors_load(seconds: float, count: int) -> Load:
    """A call of the library that gave so many vectors, as a Load."""
    reply = Reply(seconds, seconds, seconds, 0, 0, 0, count, None, "")
    return Load(seconds, 0.0, (reply,))


def vectors_of(reply: Reply) -> int:
    return reply.vectors


def tokens_of(reply: Reply) -> int:
    return reply.tokens


def embedding_rows(library: Measured, served: Sequence[Measured]) -> tuple[list[str], list[list[str]]]:
    """Rows of the library's call for all texts, then of the server at each number of clients."""
    header = ["system", "clients", "embeddings/s", f"system / {library.name}", "ms p50", "p95", GENERATOR_COLUMN]
    rates = library.rates(vectors_of)
    rows = [[library.name, "1", f"{median(rates):,.0f}", "1", "", "", ""]]
    for one in served:
        own, seconds = one.rates(vectors_of), one.all(lambda reply: reply.seconds)
        rows.append(
            [
                one.name,
                str(one.clients),
                f"{median(own):,.0f}",
                ratio(own, rates),
                milliseconds(percentile(seconds, 50)),
                milliseconds(percentile(seconds, 95)),
                f"{one.generator_share():.2f}",
            ]
        )
    return header, rows


def embedding_figures(library: Measured, served: Sequence[Measured]) -> Iterator[Figure]:
    """The server's rates, and the share of the library's that they are, as the library's figure in the same measure."""
    alone = library.rates(vectors_of)
    yield rate_figure("embed served, library", library.name, alone, None, "embeddings/s")
    for one in served:
        requests = one.name.removeprefix(f"{ORTKIT}, ")
        measure = f"embed served, {requests}, {counted(one.clients, 'client')}"
        own = one.rates(vectors_of)
        yield rate_figure(measure, ORTKIT, own, None, "embeddings/s")
        yield rate_figure(measure, library.name, alone, own, "embeddings/s")


def counted(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def curves_of(served: Sequence[Measured], of: Callable[[Reply], int]) -> list[Curve]:
    """Rates against clients, a curve for each system."""
    return [
        Curve(name, [(one.clients, median(one.rates(of))) for one in served if one.name == name], is_ours(name))
        for name in dict.fromkeys(one.name for one in served)
    ]


def is_ours(name: str) -> bool:
    return name.startswith(ORTKIT)


def measure_chat(targets: Sequence[Target], options: argparse.Namespace) -> list[Figure]:
    """Print the table, and write the plot, of tokens per second against streams; return the figures."""
    rounds = {streams: rounds_of_questions(streams, options) for streams in options.streams}
    never = end_tokens(options.decoder)
    # A server caches the prompts that it has had, so that it gets others for its second kind of answers.
    others = {streams: rounds_of_questions(streams, options, seed=1) for streams in options.streams}
    with ExitStack() as stack:
        worker_of_library = LineWorker(LIBRARY, "benchmarks.chat_worker", str(options.decoder), str(options.threads))
        library = stack.enter_context(closing(worker_of_library))

        def in_library(lookup: bool, number: int) -> Load:  # noqa: FBT001 - bound by `partial`
            asked = rounds[options.streams[0]][number]
            return library.load(questions=asked, max_tokens=options.max_tokens, lookup=lookup, never=never)

        def in_server(generator: LineWorker, model: str, streams: int, number: int) -> Load:
            bodies = chat_bodies(model, rounds[streams][number], options.max_tokens, never=never)
            return generator.load(path=CHAT, bodies=bodies, clients=streams)

        def by_schema(generator: LineWorker, model: str, streams: int, number: int) -> Load:
            asked = others[streams][number]
            bodies = chat_bodies(model, asked, options.max_tokens, response_format=RESPONSE_FORMAT)
            return generator.load(path=CHAT, bodies=bodies, clients=streams)

        runs = [Run(LIBRARY, 1, partial(in_library, False)), Run(f"{LIBRARY}, lookup", 1, partial(in_library, True))]
        for target in targets:
            generator = stack.enter_context(closing(load_generator(target)))
            kinds = {target.name: in_server}
            if options.schema and target.name == ORTKIT:
                kinds[f"{target.name}, JSON schema"] = by_schema
            runs += [
                Run(name, streams, partial(load, generator, target.model, streams))
                for name, load in kinds.items()
                for streams in options.streams
            ]
        measured = measure_in_turn(runs, options.repeats)
    title = (
        f"{MODEL}, answers of {options.max_tokens} tokens, {options.threads} threads; medians of "
        f"{options.repeats} rounds (range); {processor()}"
    )
    print_table(title, *chat_rows(measured))
    served = measured[2:]
    for note in notes_of(served, options.max_tokens):
        print(note)
    drawn = curves_of(served, tokens_of)
    write_plot(options.chat_plot, f"{MODEL}, {options.threads} threads", "streams", "tokens per second", drawn)
    return list(chat_figures(measured))


def chat_rows(measured: Sequence[Measured]) -> tuple[list[str], list[list[str]]]:
    """Rows of each system at each number of streams; the first is the library's one stream."""
    alone = measured[0].rates(tokens_of)
    ours = {one.clients: one.rates(tokens_of) for one in measured if one.name == ORTKIT}
    header = ["system", "streams", "tokens/s", f"system / {measured[0].name}", f"{ORTKIT} / system", "TTFT ms p50"]
    header += ["p95", "ms a token p50", "p95", "cached", GENERATOR_COLUMN]
    rows = []
    for one in measured:
        rates = alone if one is measured[0] else one.rates(tokens_of)
        first, steady = one.all(lambda reply: reply.first_seconds), one.all(token_seconds)
        cached, prompt = one.all(lambda reply: reply.cached_tokens), one.all(lambda reply: reply.prompt_tokens)
        rows.append(
            [
                one.name,
                str(one.clients),
                f"{median(rates):,.0f}",
                ratio(rates, alone),
                "1" if one.name == ORTKIT else ratio(ours[one.clients], rates) if one.clients in ours else "",
                milliseconds(percentile(first, 50)),
                milliseconds(percentile(first, 95)),
                milliseconds(percentile(steady, 50)),
                milliseconds(percentile(steady, 95)),
                f"{sum(cached) / sum(prompt):.0%}",
                f"{one.generator_share():.2f}",
            ]
        )
    return header, rows


def chat_figures(measured: Sequence[Measured]) -> Iterator[Figure]:
    """Rates and times to the first token of each system at each number of streams."""
    ours = {one.clients: one.rates(tokens_of) for one in measured if one.name == ORTKIT}
    for one in measured:
        streams = counted(one.clients, "stream")
        # Answers by a schema are shorter, and have no peer.
        compared = None if one.name.startswith(ORTKIT) else ours.get(one.clients)
        yield rate_figure(f"chat, {streams}", one.name, one.rates(tokens_of), compared, "tokens/s")
        first = one.all(lambda reply: reply.first_seconds)
        for percent in (50, 95):
            measure, value = f"chat TTFT p{percent}, {streams}", 1000 * percentile(first, percent)
            yield plain_figure(measure, one.name, value, "ms", Better.LOWER)


def notes_of(served: Sequence[Measured], max_tokens: int) -> list[str]:
    """What a reader of the table must know of the answers: how many ended before their limit."""
    notes = []
    for name in dict.fromkeys(one.name for one in served):
        counts = [reply.tokens for one in served if one.name == name for load in one.loads for reply in load.replies]
        short = sum(count < max_tokens for count in counts)
        notes.append(f"{name}: {short} of {len(counts)} answers ended before {max_tokens} tokens")
    return notes


def token_seconds(reply: Reply) -> float:
    """Mean time per token after the first."""
    return (reply.last_seconds - reply.first_seconds) / max(1, reply.tokens - 1)


def percentile(values: Sequence[float], percent: int) -> float:
    """The smallest value that this share of all does not exceed."""
    ordered = sorted(values)
    return ordered[max(0, -(-len(ordered) * percent // 100) - 1)]


def milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:,.1f}"


def write_plot(path: Path, title: str, x: str, y: str, drawn: Sequence[Curve]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(curves(title, x, y, drawn), encoding="utf-8")
    print(f"\n{path}")


def q4_0_file(llama_server: Path) -> Path:
    """The model's GGUF file in Q4_0 for all matrices, as `benchmarks.decoding` has it, made by llama.cpp."""
    target = CACHE / f"{MODEL}-llama-server.Q4_0.gguf"
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        scratch = target.with_suffix(".writing")
        program = llama_server.with_name("llama-quantize")
        command = [str(program), "--allow-requantize", "--pure", str(gguf_file()), str(scratch), "Q4_0"]
        made = subprocess.run(command, capture_output=True, text=True, check=False)
        if made.returncode != 0:
            raise SystemExit(f"`{program}` failed:\n{made.stderr}")
        os.replace(scratch, target)
    return target


def target_of(text: str) -> Target:
    """`NAME=HOST:PORT/MODEL`."""
    name, _, rest = text.partition("=")
    address, _, model = rest.partition("/")
    host, _, port = address.rpartition(":")
    if not (name and host and port.isdigit() and model):
        raise argparse.ArgumentTypeError(f"`{text}` is not NAME=HOST:PORT/MODEL")
    return Target(name, host, int(port), model)


@contextmanager
def chat_targets(options: argparse.Namespace) -> Iterator[list[Target]]:
    """ortkit's server first, llama.cpp's where it is built, and those that run already."""
    with ExitStack() as stack:
        command = ortkit_command({MODEL: options.decoder}, "--slots", str(max(options.streams)))
        ours = stack.enter_context(running(ORTKIT, command))
        found = [Target(ORTKIT, HOST, ours.port, MODEL)]
        if options.llama_server.exists():
            model = q4_0_file(options.llama_server)
            command = llama_command(
                options.llama_server, model, threads=options.threads, slots=max(options.streams), context=CONTEXT
            )
            theirs = stack.enter_context(running(LLAMA, command))
            found.append(Target(LLAMA, HOST, theirs.port, model.name))
        else:
            print(f"llama.cpp was not measured: no such file: `{options.llama_server}`", file=sys.stderr)
        yield [*found, *options.url]


def parse_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving", description=__doc__)
    parser.add_argument("--bundle", type=Path, default=BUNDLE, help="an embedder")
    parser.add_argument("--decoder", type=Path, default=DECODER_BUNDLE, help="an int4 LLM")
    parser.add_argument("--only", choices=["embeddings", "chat"], help="one of the two tables")
    parser.add_argument("--llama-server", type=Path, default=LLAMA_SERVER, help="built by `benchmarks.llama_server`")
    parser.add_argument("--url", type=target_of, nargs="+", default=[], metavar="NAME=HOST:PORT/MODEL")
    parser.add_argument("--clients", type=int, nargs="+", default=EMBED_CLIENTS, metavar="N", help="of embeddings")
    parser.add_argument("--texts", type=int, default=TEXTS)
    parser.add_argument("--texts-of-request", type=int, nargs="+", default=(8, 1), metavar="N")
    parser.add_argument("--streams", type=int, nargs="+", default=CHAT_STREAMS, metavar="N")
    parser.add_argument("--questions-of-stream", type=int, default=3, metavar="N", help="one after another, per round")
    parser.add_argument("--max-tokens", type=int, default=128, help="of each answer")
    parser.add_argument("--schema", action="store_true", help="answers by a JSON schema too")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5, help="rounds, after one warm-up")
    parser.add_argument("--embeddings-plot", type=Path, default=EMBEDDINGS_PLOT, metavar="SVG")
    parser.add_argument("--chat-plot", type=Path, default=CHAT_PLOT, metavar="SVG")
    add_save(parser, "serving")
    options = parser.parse_args(arguments)
    if options.max_tokens < 2:
        parser.error("--max-tokens must be at least 2: speed is taken from the first token to the last")
    return options


def main() -> None:
    options = parse_options()
    print(f"{ortkit_name(options.bundle)}; {ortkit_name(options.decoder, MODEL)}; {processor()}")
    figures: list[Figure] = []
    if options.only != "chat":
        with running(ORTKIT, ortkit_command({EMBEDDER: options.bundle})) as server:
            figures += measure_embeddings(Target(ORTKIT, HOST, server.port, EMBEDDER), options)
    if options.only != "embeddings":
        with chat_targets(options) as targets:
            figures += measure_chat(targets, options)
    save(options, "serving", figures)


if __name__ == "__main__":
    main()
