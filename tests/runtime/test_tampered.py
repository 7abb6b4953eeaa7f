"""Seeded changes to bundles, hashes recomputed: each ends in exit code 7 or 9, or in results that are whole.

A graph may end the process, since onnxruntime divides by whatever an operator's attribute says; `verify` tells that.
"""

from __future__ import annotations

import itertools
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import onnx
import pytest

from ortkit import Bundle, BundleError, InputError
from ortkit.runtime.bundle.bundle import GRAPH
from ortkit.runtime.verify import verify
from tests.tampering import SUBJECTS, attempt, use, write_subjects
from tests.tiny_bundles import replace_graph

ROOT = Path(__file__).parents[2]
PATIENCE = 20.0
"""Seconds for one bundle: what takes longer hangs."""


@pytest.fixture(scope="module")
def subjects(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tampered")
    write_subjects(folder)
    return folder


def problems(folder: Path, first: int, *, most: int, seconds: float) -> Iterator[tuple[int, str]]:
    """The seeds whose bundles ended otherwise, tried in a process that is started again when it ends."""
    deadline = time.monotonic() + seconds
    seed = first
    while seed < first + most and time.monotonic() < deadline:
        command = [sys.executable, "-m", "tests.tampering", str(folder), str(seed), str(first + most - seed)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=ROOT) as process:
            assert process.stdout is not None
            try:
                for told in lines(process.stdout.fileno(), deadline):
                    if "begin" in told:
                        seed = told["begin"]
                    elif told["problem"] is not None:
                        yield seed, told["problem"]
            except TimeoutError:
                yield from harm(folder, seed, "hangs")
            finally:
                process.kill()
            if time.monotonic() < deadline and process.wait() not in (0, -signal.SIGKILL):
                yield from harm(folder, seed, f"ends the process with {process.returncode}")
        seed += 1


def harm(folder: Path, seed: int, how: str) -> Iterator[tuple[int, str]]:
    """What ended or held up the process: only a graph may, and `verify` tells it in a sentence."""
    tampered = folder / "tampered"
    graphs = [(folder / name / GRAPH).read_bytes() for name in SUBJECTS]
    if (tampered / GRAPH).read_bytes() in graphs:
        yield seed, how
        return
    try:
        verify(Bundle.open(tampered), seconds=PATIENCE)
    except BundleError:
        return
    yield seed, f"{how}, and verify does not tell"


def lines(descriptor: int, deadline: float) -> Iterator[dict]:
    rest = b""
    while time.monotonic() < deadline:
        ready, _, _ = select.select([descriptor], [], [], PATIENCE)
        if not ready:
            raise TimeoutError
        content = os.read(descriptor, 1 << 16)
        if not content:
            return
        *complete, rest = (rest + content).split(b"\n")
        yield from map(json.loads, complete)


@pytest.mark.filterwarnings("ignore::ortkit.TruncationWarning")
def test_an_unmodified_bundle(subjects: Path) -> None:
    """Otherwise refusing everything would pass."""
    for name in SUBJECTS:
        use(subjects / name)


@pytest.mark.parametrize(
    ("broken", "problem"),
    [
        (ZeroDivisionError("zero"), "ZeroDivisionError: zero at "),
        (InputError("the text"), "InputError: the text"),
        (BundleError("the bundle"), None),
    ],
)
def test_failures_that_count_as_problems(
    subjects: Path, monkeypatch: pytest.MonkeyPatch, broken: BaseException, problem: str | None
) -> None:
    def use(_: Path) -> None:
        raise broken

    monkeypatch.setattr("tests.tampering.use", use)
    found = attempt(subjects, 0)

    assert found is problem is None or str(found).startswith(str(problem))


def test_a_graph_that_crashes_the_process_is_reported_by_verify(subjects: Path, tmp_path: Path) -> None:
    """Heads of which none are left in onnxruntime's 32 bits, and it divides by their number."""
    shutil.copytree(subjects / "decoder", tmp_path / "tampered")
    model = onnx.load(tmp_path / "tampered" / GRAPH)
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.name == "kv_num_heads":
                attribute.i = 1 << 40
    replace_graph(tmp_path / "tampered", model)

    with pytest.raises(BundleError) as caught:
        verify(Bundle.open(tmp_path / "tampered"))
    assert caught.value.exit_code == 7
    for name in SUBJECTS:
        (tmp_path / name).symlink_to(subjects / name)
    assert list(harm(tmp_path, 1, "ends")) == []
    (tmp_path / "tampered" / GRAPH).write_bytes((subjects / "decoder" / GRAPH).read_bytes())
    assert list(harm(tmp_path, 1, "ends")) == [(1, "ends")]


def test_a_few_hundred(subjects: Path) -> None:
    assert list(problems(subjects, 0, most=300, seconds=30)) == []


@pytest.mark.slow
def test_thousands(subjects: Path) -> None:
    """As many as are tried within a minute, up to 10,000."""
    assert list(itertools.islice(problems(subjects, 1_000, most=10_000, seconds=60), 20)) == []
