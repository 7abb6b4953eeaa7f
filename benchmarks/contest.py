"""Run systems in turn on the same work, each with its model in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.peers import REPOSITORY
from benchmarks.rounds import take_turns
from benchmarks.worker import System, Task

OPENVINO_BUDGETS = (256, 512, 1024, 2048)
SEARCH_REPEATS = 2


@dataclass(frozen=True)
class Contestant:
    """A system with its model, and the interpreter of the environment that holds it."""

    name: str
    system: System
    model: Path
    python: Path = Path(sys.executable)
    batch: int | None = None
    """Batch size in texts, for OpenVINO in tokens; None for the system's default."""


@dataclass(frozen=True)
class Result:
    """Results of one contestant."""

    contestant: Contestant
    seconds: list[float]
    """Seconds for all items, per counted round."""
    outputs: NDArray[np.float32]
    """Vectors (texts, dimension), or scores (searches, documents)."""


class Worker:
    """The process of a contestant: keeps the model loaded, and runs a set on request."""

    def __init__(self, task: Task, contestant: Contestant, inputs: Path, outputs: Path) -> None:
        self.contestant = contestant
        self.outputs = outputs
        command = [str(contestant.python), "-m", "benchmarks.worker", task.value, contestant.system.value]
        command += [str(contestant.model), str(inputs), str(outputs)]
        if contestant.batch is not None:
            command.append(str(contestant.batch))
        self.process = subprocess.Popen(
            command, cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8"
        )

    def run(self, name: str) -> float:
        """Run all items of a set at once; return seconds."""
        return self.ask("run", name)[0]

    def call(self, name: str) -> list[float]:
        """Run the items of a set one by one; return the seconds of each call."""
        return self.ask("calls", name)

    def ask(self, command: str, name: str) -> list[float]:
        try:
            print(command, name, file=self.process.stdin, flush=True)
            seconds: list[float] = json.loads(self.process.stdout.readline() if self.process.stdout else "")
        except (OSError, ValueError) as error:
            raise SystemExit(f"{self.contestant.name} failed; its messages are above") from error
        return seconds

    def outputs_of(self, name: str) -> NDArray[np.float32]:
        """Outputs of the last run over a set."""
        outputs: NDArray[np.float32] = np.load(self.outputs / f"{name}.npy")
        return outputs

    def close(self) -> None:
        """Kill the process if it is still running."""
        self.process.kill()
        self.process.communicate()


@contextmanager
def workers_of(
    task: Task, contestants: Sequence[Contestant], sets: Mapping[str, Sequence[object]]
) -> Iterator[list[Worker]]:
    """Start all contestants on these named sets of items."""
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        for name, items in sets.items():
            (scratch / f"{name}.json").write_text(json.dumps(items), encoding="utf-8")
        folders = [scratch / str(number) for number in range(len(contestants))]
        for folder in folders:
            folder.mkdir()
        yield [
            stack.enter_context(closing(Worker(task, contestant, scratch, folder)))
            for contestant, folder in zip(contestants, folders, strict=True)
        ]


def compete(workers: Sequence[Worker], repeats: int, *, timed: str, compared: str) -> list[Result]:
    """Time all on the set `timed` in turn, then run the set `compared` once and keep its outputs."""
    seconds = take_turns([partial(worker.run, timed) for worker in workers], repeats)
    for worker in workers:
        worker.run(compared)
    return [
        Result(worker.contestant, own, worker.outputs_of(compared))
        for worker, own in zip(workers, seconds, strict=True)
    ]


def with_best_budget(task: Task, contestant: Contestant, items: Sequence[object]) -> Contestant:
    """OpenVINO with the batch size in tokens that is fastest on these items and this machine."""
    candidates = [replace(contestant, batch=budget) for budget in OPENVINO_BUDGETS]
    with workers_of(task, candidates, {"items": items}) as workers:
        seconds = take_turns([partial(worker.run, "items") for worker in workers], SEARCH_REPEATS)
    best = candidates[int(np.argmin([min(own) for own in seconds]))]
    return replace(best, name=f"{best.name}, {best.batch} tokens a batch")
