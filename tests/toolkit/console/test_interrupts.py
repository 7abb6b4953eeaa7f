from __future__ import annotations

import gc
import hashlib
import os
import random
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import click
import pytest

from ortkit import Bundle, InputError
from ortkit.toolkit.cli import exit_code_of, run_interruptibly
from ortkit.toolkit.console.interrupts import cancelling_at_interrupt, interrupt_handled, reraised_interrupts
from ortkit.toolkit.console.progress import StageProgress
from tests.decoders import write_decoder


def test_an_interrupt_cancels_and_a_second_one_raises() -> None:
    before = signal.getsignal(signal.SIGINT)
    cancelled = threading.Event()

    with cancelling_at_interrupt(SimpleNamespace(cancel=cancelled.set)):
        signal.raise_signal(signal.SIGINT)
        assert cancelled.is_set()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)

    assert signal.getsignal(signal.SIGINT) == before
    assert signal.set_wakeup_fd(-1) == -1


def test_a_call_that_takes_long_is_cancelled_while_it_runs() -> None:
    """As in the prefill of a long prompt: no Python code runs in the main thread until it ends."""
    cancelled, calling, during = threading.Event(), threading.Event(), []

    def interrupt() -> None:
        calling.wait(10)
        os.kill(os.getpid(), signal.SIGINT)
        during.append(cancelled.wait(10))
        during.append(not ended.is_set())

    ended = threading.Event()
    thread = threading.Thread(target=interrupt)
    thread.start()
    with cancelling_at_interrupt(SimpleNamespace(cancel=cancelled.set)):
        calling.set()
        hashlib.pbkdf2_hmac("sha256", b"a", b"b", 5_000_000)
        ended.set()
    thread.join()

    assert during == [True, True]


def test_an_interrupt_that_a_library_swallows_ends_an_export_before_its_next_stage() -> None:
    before = signal.getsignal(signal.SIGINT)
    with reraised_interrupts() as check:
        progress = StageProgress(check)
        progress.begin("trace with Optimum")
        with suppress(BaseException):
            signal.raise_signal(signal.SIGINT)

        with pytest.raises(KeyboardInterrupt):
            progress.begin("write the bundle")
    assert signal.getsignal(signal.SIGINT) is before


class Finalizer:
    """Is interrupted while it is deleted."""

    def __del__(self) -> None:
        signal.raise_signal(signal.SIGINT)


def lose_in_a_finalizer() -> None:
    Finalizer()


def call_back(callback: Callable[[object], None]) -> None:
    """Run a weak reference's callback."""
    deleted = threading.Event()
    reference = weakref.ref(deleted, callback)
    del deleted
    assert reference() is None


def lose_in_a_weak_reference() -> None:
    """As imports do, with the lock of each module."""
    call_back(lambda _: signal.raise_signal(signal.SIGINT))


def lose_in_a_collection() -> None:
    def collecting(phase: str, _: object) -> None:
        if phase == "start":
            gc.callbacks.remove(collecting)
            signal.raise_signal(signal.SIGINT)

    gc.callbacks.append(collecting)
    gc.collect()


def wait_seconds(_: object = None) -> None:
    """Wait in short steps: Python does not look for a signal right before it calls `time.sleep`."""
    for _step in range(3000):
        time.sleep(0.01)


@pytest.mark.parametrize("lose", [lose_in_a_finalizer, lose_in_a_weak_reference, lose_in_a_collection])
def test_an_interrupt_that_python_discards_is_raised_again(
    lose: Callable[[], None], capfd: pytest.CaptureFixture[str]
) -> None:
    hook = sys.unraisablehook
    with reraised_interrupts(), pytest.raises(KeyboardInterrupt):
        lose()
        wait_seconds()

    assert sys.unraisablehook is hook
    assert capfd.readouterr().err == ""


def test_an_interrupt_that_is_discarded_twice_is_raised_again() -> None:
    with reraised_interrupts(), pytest.raises(KeyboardInterrupt):
        lose_in_a_finalizer()
        call_back(wait_seconds)
        wait_seconds()


def test_another_error_that_python_discards_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    reported: list[str] = []
    monkeypatch.setattr("sys.unraisablehook", lambda unraisable: reported.append(str(unraisable.exc_value)))

    class Broken:
        def __del__(self) -> None:
            raise ValueError("a finalizer that fails")

    with reraised_interrupts():
        Broken()

    assert reported == ["a finalizer that fails"]


ENDS = {(130, "interrupted\n"), (0, "")}
"""Exit codes of an interrupted command: interrupted, or done already."""
OF_PYTHON = "<frozen "
"""In the traceback of Python's own start, before it runs this package."""


def interrupted_after(seconds: float, command: list[str]) -> tuple[int, str]:
    """Exit code and stderr of a command that is interrupted after some seconds."""
    with subprocess.Popen(
        [sys.executable, "-m", "ortkit", *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        time.sleep(seconds)
        process.send_signal(signal.SIGINT)
        _, shown = process.communicate(timeout=120)
        return process.returncode, shown


def check_ends(command: list[str], times: list[float]) -> None:
    for seconds in times:
        code, shown = interrupted_after(seconds, command)
        # The module that handles Ctrl-C has to be imported first.
        early = not shown or (
            OF_PYTHON in shown and "/toolkit/" not in shown.replace("/toolkit/console/leaving.py", "")
        )
        assert (code, shown) in ENDS or (early and code in {-signal.SIGINT, 1}), (seconds, code, shown)


def test_an_interrupt_at_any_time_ends_the_process_quietly(tmp_path: Path) -> None:
    """During imports, the opening of a graph and the computation of a token: no abort and no traceback."""
    bundle, _ = write_decoder(tmp_path / "tiny")
    command = ["generate", str(bundle.path), "The quick", "--max-tokens", "300", "--raw"]

    check_ends(command, [0.2, 0.35, 0.5])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["generate", "embed", "rerank"])
def test_an_interrupt_at_many_times(kind: str, tmp_path: Path, tiny_bundle: Bundle, reranker_bundle: Bundle) -> None:
    bundle, _ = write_decoder(tmp_path / "tiny")
    command = {
        "generate": ["generate", str(bundle.path), "The quick", "--max-tokens", "300", "--raw"],
        "embed": ["embed", str(tiny_bundle.path), *["water"] * 200],
        "rerank": ["rerank", str(reranker_bundle.path), "--query", "water", *["wine"] * 200],
    }[kind]
    times = random.Random(7)

    check_ends(command, [times.uniform(0.1, 1.5) for _ in range(40)])


def test_an_interrupt_of_which_a_library_made_another_error_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """As pybind11, whose modules raise ImportError if their import is interrupted."""

    def imports(**_: object) -> None:
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            raise ImportError("initialization failed") from None

    monkeypatch.setattr("ortkit.toolkit.cli.cli.main", imports)

    assert exit_code_of(run_interruptibly) == 130


@pytest.mark.parametrize("step", ["make_context", "invoke"])
def test_an_interrupt_of_each_step_of_click_has_no_empty_line(
    step: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["ortkit", "catalog"])
    monkeypatch.setattr(click.Group, step, lambda *_arguments, **_options: signal.raise_signal(signal.SIGINT))

    assert exit_code_of(run_interruptibly) == 130
    assert capfd.readouterr().err == "interrupted\n"


def test_an_error_after_an_interrupt_that_had_its_effect_is_that_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def chats(**_: object) -> None:
        with suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        interrupt_handled()
        raise InputError("no such command")

    monkeypatch.setattr("ortkit.toolkit.cli.cli.main", chats)

    assert exit_code_of(run_interruptibly) == 2


def test_ignored_interrupts_stay_ignored(tmp_path: Path) -> None:
    """As in a shell's background jobs."""
    bundle, _ = write_decoder(tmp_path / "tiny")
    code = """
import os, signal, sys, threading
signal.signal(signal.SIGINT, signal.SIG_IGN)
from ortkit.__main__ import main
threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
sys.argv = ["ortkit", "generate", sys.argv[1], "The quick", "--max-tokens", "500", "--raw"]
main()
"""
    finished = subprocess.run(
        [sys.executable, "-c", code, str(bundle.path)], capture_output=True, text=True, check=False
    )

    assert (finished.returncode, finished.stderr) == (0, "")
