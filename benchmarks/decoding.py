"""Greedy decoding speed after prompts of several lengths, and each system's KL divergence to PyTorch in float32."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from statistics import median

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from benchmarks.decoding_peers import (
    MODEL,
    genai_folder,
    gguf_file,
    installed_version,
    openvino_folder,
    q4_0_file,
    transformers_folder,
)
from benchmarks.decoding_worker import OPENVINO_MODEL, Logits, System
from benchmarks.peers import PEERS, REPOSITORY, add_only, ortkit_name, peers_python
from benchmarks.plot import Curve, curves
from benchmarks.processor import processor
from benchmarks.results import Better, Figure, add_save, plain_figure, rate_figure, save, time_figure
from benchmarks.rounds import take_turns
from benchmarks.table import print_table, ratio
from benchmarks.texts import CORPUS, read_lines

BUNDLE = REPOSITORY / "bundles" / f"{MODEL}-int4"
PLOT = REPOSITORY / ".cache" / "benchmarks" / "decoding.svg"
PEERS_OF_ORTKIT = tuple(system.value for system in System if system is not System.ORTKIT)
DISTRIBUTIONS = {
    System.GENAI: "onnxruntime-genai",
    System.LLAMA_CPP: "llama_cpp_python",
    System.OPENVINO: "openvino-genai",
}
CONTEXTS = (22, 450, 900, 1800)
WEIGHTS = frozenset({".onnx", ".data", ".gguf", ".safetensors"})
"""Suffixes of the files that are read for each token."""
OPENVINO_WEIGHTS = Path(OPENVINO_MODEL).with_suffix(".bin").name
"""OpenVINO's; its tokenizer has the same ending."""
MEGABYTE, MEBIBYTE = 10**6, 2**20
READ_BYTES = 2**29
READS = 5


@dataclass(frozen=True)
class Contestant:
    """A system with its model, and the interpreter of the environment that holds it."""

    name: str
    system: System
    model: Path
    python: Path = Path(sys.executable)


@dataclass(frozen=True)
class Speed:
    """Speed of one answer."""

    prompt_seconds: float
    """Seconds from the ids of the prompt to the first token."""
    token_seconds: float
    """Mean seconds per token after the first."""


@dataclass(frozen=True)
class Result:
    """Results of one contestant."""

    contestant: Contestant
    speeds: dict[int, list[Speed]]
    """Prompt length in tokens -> speeds of each counted round."""
    start_seconds: list[float]
    """Seconds from process start to the first token after the shortest prompt, per counted round."""
    peak_bytes: int
    """Peak memory of the process, the longest prompt included."""
    bandwidths: list[float]
    """Memory bandwidth in bytes per second with as many threads, just before the answers of each counted round."""

    def token_seconds(self, context: int) -> list[float]:
        return [speed.token_seconds for speed in self.speeds[context]]

    def prompt_seconds(self, context: int) -> list[float]:
        return [speed.prompt_seconds for speed in self.speeds[context]]

    def shares_of_bandwidth(self, context: int, size: int) -> list[float]:
        """Share of the bandwidth that each round used, if a token reads so many bytes of weights."""
        seconds = self.token_seconds(context)
        return [size / taken / bandwidth for taken, bandwidth in zip(seconds, self.bandwidths, strict=True)]


@dataclass(frozen=True)
class Closeness:
    """Difference of the next token's probabilities to PyTorch's."""

    kl: float
    """Kullback-Leibler divergence from PyTorch's, the mean over the tokens, in nats."""
    top: float
    """Top-1 agreement."""


class Worker:
    """The process of a contestant; keeps the model loaded."""

    def __init__(self, contestant: Contestant, *, threads: int, context: int) -> None:
        self.contestant = contestant
        command = [str(contestant.python), "-m", "benchmarks.decoding_worker", contestant.system.value]
        self.process = subprocess.Popen(
            [*command, str(contestant.model), str(threads), str(context)],
            cwd=REPOSITORY,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            encoding="utf-8",
        )

    def ask(self, **request: object) -> object:
        """Send a request, as `benchmarks.decoding_worker` describes it, and wait for its answer."""
        try:
            print(json.dumps(request), file=self.process.stdin, flush=True)
            answer: object = json.loads(self.process.stdout.readline() if self.process.stdout else "")
        except (OSError, ValueError) as error:
            raise SystemExit(f"{self.contestant.name} failed; its messages are above") from error
        return answer

    def speed(self, ids: Sequence[int], new: int) -> Speed:
        """Continue a prompt by `new` tokens, at least two."""
        answer = self.ask(ids=ids, new=new)
        if not isinstance(answer, dict) or len(answer["seconds"]) != new:
            raise SystemExit(f"{self.contestant.name} did not give {new} tokens")
        seconds: list[float] = answer["seconds"]
        return Speed(seconds[0], (seconds[-1] - seconds[0]) / (new - 1))

    def speeds(self, prompts: Sequence[Sequence[int]], new: int) -> list[Speed]:
        return [self.speed(ids, new) for ids in prompts]

    def logits(self, ids: Sequence[int]) -> Logits:
        """After each of the ids: (tokens, vocabulary)."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "logits.npy"
            self.ask(ids=ids, logits=str(path))
            logits: Logits = np.load(path)
        return logits

    def peak_bytes(self) -> int:
        return int(str(self.ask(peak=True)))

    def close(self) -> None:
        """End the process at once, if it is still there."""
        self.process.kill()
        self.process.communicate()


@contextmanager
def workers_of(contestants: Sequence[Contestant], *, threads: int, context: int) -> Iterator[list[Worker]]:
    with ExitStack() as stack:
        yield [
            stack.enter_context(closing(Worker(contestant, threads=threads, context=context)))
            for contestant in contestants
        ]


def contestants_of(options: argparse.Namespace) -> tuple[list[Contestant], list[str]]:
    """ortkit first, then the selected peers; and a note on each that is missing."""
    found = [Contestant(ortkit_name(options.bundle, MODEL), System.ORTKIT, options.bundle.absolute())]
    if options.source_bundle is not None:
        name = ortkit_name(options.source_bundle, MODEL)
        found.append(Contestant(name, System.ORTKIT, options.source_bundle.absolute()))
    if options.prefill_bundle is not None:
        name = f"{ortkit_name(options.prefill_bundle, MODEL)}, int8 prefill"
        found.append(Contestant(name, System.ORTKIT, options.prefill_bundle.absolute()))
    missing = []
    for system in map(System, options.only):
        if system is System.TORCH:
            name = f"transformers {version('transformers')} torch fp32"
            found.append(Contestant(name, system, transformers_folder()))
            continue
        python = peers_python(options.peers)
        installed = installed_version(python, DISTRIBUTIONS[system])
        if installed is None:
            missing.append(missing_note(system, options.peers))
        elif system is System.GENAI:
            found.append(Contestant(f"onnxruntime-genai {installed} int4", system, genai_folder(python), python))
        elif system is System.OPENVINO:
            found.append(Contestant(f"openvino-genai {installed} int4", system, openvino_folder(python), python))
        else:
            name = f"llama.cpp, llama-cpp-python {installed}"
            found.append(Contestant(f"{name} Q4_0", system, q4_0_file(python), python))
            found.append(Contestant(f"{name} Q4_1", system, gguf_file(), python))
    return found, missing


def missing_note(system: System, environment: Path) -> str:
    return f"{system.value} was not measured: `{DISTRIBUTIONS[system]}` is not installed in `{environment}`"


def start_seconds(contestant: Contestant, ids: Sequence[int], *, threads: int, context: int) -> float:
    """From the start of a process to its first token."""
    start = time.perf_counter()
    with closing(Worker(contestant, threads=threads, context=context)) as worker:
        worker.ask(ids=ids, new=1)
        return time.perf_counter() - start


def compete(
    workers: Sequence[Worker], prompts: Sequence[Sequence[int]], *, new: int, repeats: int, threads: int, context: int
) -> list[Result]:
    """Continue the prompts with all in turn, then measure the start of all in turn."""

    def turn(worker: Worker) -> tuple[float, list[Speed]]:
        return memory_bandwidth(threads), worker.speeds(prompts, new)

    turns = take_turns([partial(turn, worker) for worker in workers], repeats)
    peaks = [worker.peak_bytes() for worker in workers]
    starts = take_turns(
        [partial(start_seconds, worker.contestant, prompts[0], threads=threads, context=context) for worker in workers],
        repeats,
    )
    return [
        Result(
            worker.contestant,
            {len(ids): [speeds[place] for _, speeds in own] for place, ids in enumerate(prompts)},
            own_starts,
            peak,
            [bandwidth for bandwidth, _ in own],
        )
        for worker, own, own_starts, peak in zip(workers, turns, starts, peaks, strict=True)
    ]


def closeness_to(reference: Logits, logits: Logits) -> Closeness:
    """Compare logits with PyTorch's; both (tokens, vocabulary)."""
    divergences = []
    for expected, found in zip(map(logprobs_of, reference), map(logprobs_of, logits), strict=True):
        divergences.append(float(np.exp(expected) @ (expected - found)))
    top = reference.argmax(axis=-1) == logits.argmax(axis=-1)
    return Closeness(float(np.mean(divergences)), float(top.mean()))


def logprobs_of(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """The logarithms of the probabilities (vocabulary,)."""
    shifted = logits.astype(np.float64) - logits.max()
    found: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum())
    return found


def closeness_of(workers: Sequence[Worker], ids: Sequence[int]) -> dict[str, Closeness]:
    """Contestant -> closeness to PyTorch on a text; empty if PyTorch was not measured."""
    reference = next((worker for worker in workers if worker.contestant.system is System.TORCH), None)
    if reference is None:
        return {}
    expected = reference.logits(ids)
    return {
        worker.contestant.name: closeness_to(expected, worker.logits(ids))
        for worker in workers
        if worker is not reference
    }


def memory_bandwidth(threads: int) -> float:
    """Memory bandwidth in bytes per second: threads read a large array together, the best of a few passes."""
    numbers = np.ones(READ_BYTES // 4, np.float32)
    parts = np.array_split(numbers, threads)
    seconds = []
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(READS):
            start = time.perf_counter()
            list(pool.map(np.max, parts))
            seconds.append(time.perf_counter() - start)
    return READ_BYTES / min(seconds)


def bandwidths_note(results: Sequence[Result]) -> str:
    """A sentence on the bandwidths of all rounds: median and range."""
    found = sorted(bandwidth / 1e9 for result in results for bandwidth in result.bandwidths)
    return f"{median(found):.1f} GB/s ({found[0]:.1f} to {found[-1]:.1f})"


def files_of(model: Path) -> list[Path]:
    """The files of a model: a folder's, or the one file that it is."""
    return [model] if model.is_file() else sorted(path for path in model.rglob("*") if path.is_file())


def total_bytes(model: Path) -> int:
    return sum(path.stat().st_size for path in files_of(model))


def weights_bytes(model: Path) -> int:
    """Size of the weights: about what is read per token if the embedding is tied."""
    files = [path for path in files_of(model) if path.suffix in WEIGHTS or path.name == OPENVINO_WEIGHTS]
    return sum(path.stat().st_size for path in files)


def speed_rows(results: Sequence[Result], context: int) -> tuple[list[str], list[list[str]]]:
    """Rows of the speeds after a prompt of that length, with ratios for each of ortkit's bundles."""
    ours = [result for result in results if result.contestant.system is System.ORTKIT]
    ratios = [f"{own.contestant.name} / system" for own in ours]
    rows = []
    for result in results:
        new, prompt = result.token_seconds(context), result.prompt_seconds(context)
        own_new = [new if own is result else own.token_seconds(context) for own in ours]
        own_prompt = [prompt if own is result else own.prompt_seconds(context) for own in ours]
        rows.append(
            [
                result.contestant.name,
                f"{1 / median(new):,.1f}",
                *(ratio(new, own) for own in own_new),
                f"{context / median(prompt):,.0f}",
                *(ratio(prompt, own) for own in own_prompt),
            ]
        )
    return ["system", "new tokens/s", *ratios, "prompt tokens/s", *ratios], rows


def cost_rows(
    results: Sequence[Result], closeness: dict[str, Closeness], *, context: int
) -> tuple[list[str], list[list[str]]]:
    """Rows of each system's size, memory, start and closeness; the bandwidth is at that context."""
    first = results[0]
    header = ["system", "MB", "KL", "top-1", "of bandwidth", "s to first token"]
    header += [f"system / {first.contestant.name}", "peak MiB"]
    rows = []
    for result in results:
        close = closeness.get(result.contestant.name)
        shares = result.shares_of_bandwidth(context, weights_bytes(result.contestant.model))
        rows.append(
            [
                result.contestant.name,
                f"{total_bytes(result.contestant.model) / MEGABYTE:.1f}",
                "" if close is None else f"{close.kl:.4f}",
                "" if close is None else f"{close.top:.3f}",
                f"{median(shares):.0%}",
                f"{median(result.start_seconds):.2f}",
                ratio(result.start_seconds, first.start_seconds),
                f"{result.peak_bytes / MEBIBYTE:,.0f}",
            ]
        )
    return header, rows


def figures_of(results: Sequence[Result], closeness: dict[str, Closeness]) -> Iterator[Figure]:
    """The figures for a result file; the first bundle is the one that peers are compared with."""
    first = results[0]
    for result in results:
        name, is_first = result.contestant.name, result is first
        for context in sorted(result.speeds):
            yield speed_figure(f"decode after {context}", result, first, context, tokens=1, of=Result.token_seconds)
            yield speed_figure(f"prefill {context}", result, first, context, tokens=context, of=Result.prompt_seconds)
        starts = None if is_first else first.start_seconds
        yield time_figure(f"first token after {min(result.speeds)}", name, result.start_seconds, starts)
        yield plain_figure("peak memory", name, result.peak_bytes / MEBIBYTE, "MiB", Better.LOWER)
        yield plain_figure("size", name, total_bytes(result.contestant.model) / MEGABYTE, "MB", Better.LOWER)
        if name in closeness:
            yield plain_figure("KL", name, closeness[name].kl, "nats", Better.LOWER)
            yield plain_figure("top-1", name, closeness[name].top, "share", Better.HIGHER)


def speed_figure(
    measure: str, result: Result, first: Result, context: int, *, tokens: int, of: Callable[[Result, int], list[float]]
) -> Figure:
    """Tokens per second in each round, from seconds for so many tokens."""
    rates, ours = ([tokens / seconds for seconds in of(one, context)] for one in (result, first))
    return rate_figure(measure, result.contestant.name, rates, None if result is first else ours, "tokens/s")


def write_plot(path: Path, results: Sequence[Result], *, threads: int) -> None:
    """Plot new tokens per second against prompt tokens, one curve per system."""
    drawn = [
        Curve(
            result.contestant.name,
            [(context, 1 / median(result.token_seconds(context))) for context in sorted(result.speeds)],
            ours=result.contestant.system is System.ORTKIT,
        )
        for result in results
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    title = f"{MODEL}, {threads} threads"
    path.write_text(curves(title, "tokens of the prompt", "new tokens per second", drawn), encoding="utf-8")


def ids_of(bundle: Path, count: int) -> list[int]:
    """The first tokens of news texts that are not used in calibration."""
    tokenizer = Tokenizer.from_file(str(bundle / "tokenizer.json"))
    tokenizer.no_truncation()
    ids: list[int] = tokenizer.encode("\n".join(read_lines(CORPUS)), add_special_tokens=False).ids
    return ids[:count]


def parse_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.decoding", description=__doc__)
    parser.add_argument("--bundle", type=Path, default=BUNDLE, help="an int4 bundle")
    parser.add_argument("--source-bundle", type=Path, help="one with the file's own blocks, measured beside it")
    parser.add_argument("--prefill-bundle", type=Path, help="one with an 8-bit graph for prompts, measured beside it")
    parser.add_argument("--peers", type=Path, default=PEERS, help="the virtual environment of the peers")
    add_only(parser, PEERS_OF_ORTKIT)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--contexts", type=int, nargs="+", default=CONTEXTS, metavar="N", help="tokens of the prompts")
    parser.add_argument("--new", type=int, default=64, help="tokens of each answer")
    parser.add_argument("--compared", type=int, default=512, help="tokens of the text that is compared with PyTorch")
    parser.add_argument("--repeats", type=int, default=5, help="rounds, after one warm-up")
    parser.add_argument("--plot", type=Path, default=PLOT, metavar="SVG")
    add_save(parser, "decoding")
    options = parser.parse_args(arguments)
    if options.new < 2:
        parser.error("--new must be at least 2: speed is taken from the first token to the last")
    options.contexts = sorted(set(options.contexts))
    return options


def main() -> None:
    options = parse_options()
    contestants, missing = contestants_of(options)
    contexts, threads = options.contexts, options.threads
    ids = ids_of(options.bundle, contexts[-1] + options.compared)
    prompts = [ids[:count] for count in contexts]
    compared = ids[contexts[-1] :]
    context = max(contexts[-1] + options.new, options.compared + 1)
    with workers_of(contestants, threads=threads, context=context) as workers:
        results = compete(workers, prompts, new=options.new, repeats=options.repeats, threads=threads, context=context)
        closeness = closeness_of(workers, compared)
    print(f"\n{processor()}")
    rounds = f"{threads} threads; medians of {options.repeats} rounds (range)"
    for count in contexts:
        title = f"{MODEL}, {options.new} new tokens after {count}, {rounds}"
        print_table(title, *speed_rows(results, count))
    on_text = f"KL and top-1 to PyTorch fp32 on {len(compared)} tokens; " if closeness else ""
    print_table(
        f"{on_text}{threads} threads read {bandwidths_note(results)}, and decoding after {contexts[0]} tokens reads "
        f"the weights for each; from the start of a process to its first token after {contexts[0]}",
        *cost_rows(results, closeness, context=contexts[0]),
    )
    write_plot(options.plot, results, threads=threads)
    print(f"\n{options.plot}")
    for note in missing:
        print(note)
    save(options, "decoding", figures_of(results, closeness))


if __name__ == "__main__":
    main()
