"""A session and a tokenizer that are opened at once: the same models, and the same errors."""

from __future__ import annotations

import hashlib
import json
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ortkit import Bundle, BundleError, Decoder, Embedder
from ortkit.runtime.bundle.bundle import TOKENIZER
from ortkit.runtime.bundle.folder import MANIFEST
from ortkit.runtime.session.cores import Cores
from ortkit.runtime.session.parallel_opening import open_in_parallel
from ortkit.runtime.text.safe_tokenizer import SafeTokenizer, open_tokenizer
from tests.commands import Finished
from tests.decoders import TinyDecoder

LIMIT = 10.0
"""Seconds after which a thread hangs."""


def failing(error: BaseException) -> Callable[..., None]:
    def fail(*_: object) -> None:
        raise error

    return fail


def tokenizer_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "ortkit-tokenizer"]


def test_the_tokenizer_opens_while_the_session_does() -> None:
    opened = threading.Event()
    beside: list[bool] = []

    def session(begins: Callable[[], None]) -> str:
        beside.append(opened.is_set())
        begins()
        beside.append(opened.wait(LIMIT))
        return "session"

    assert open_in_parallel(session, opened.set) == "session"
    assert beside == [False, True], "not before the session began, and before it ended"


def test_a_tokenizer_opens_beside_a_session_that_was_open() -> None:
    order: list[str] = []

    # An open session is returned without a call of `begins`.
    assert open_in_parallel(lambda _: "open", lambda: order.append("tokenizer")) == "open"
    assert order == ["tokenizer"]
    assert not tokenizer_threads()


def test_one_after_the_other_the_tokenizer_is_first() -> None:
    order: list[str] = []

    open_in_parallel(lambda _: order.append("session"), lambda: order.append("tokenizer"), parallel=False)

    assert order == ["tokenizer", "session"]


@pytest.mark.parametrize("error", [BundleError("broken"), MemoryError(), KeyboardInterrupt(), BaseException("panic")])
@pytest.mark.parametrize("parallel", [True, False])
def test_an_error_of_either_is_raised(error: BaseException, *, parallel: bool) -> None:
    for session, tokenizer in ((failing(error), lambda: None), (lambda _: None, failing(error))):
        with pytest.raises(type(error)) as raised:
            open_in_parallel(session, tokenizer, parallel=parallel)

        assert raised.value is error
    assert not tokenizer_threads()


def test_of_two_errors_the_sessions_is_raised() -> None:
    with pytest.raises(BundleError, match="graph"):
        open_in_parallel(failing(BundleError("graph")), failing(BundleError("tokenizer")))
    assert not tokenizer_threads()


def test_without_another_thread_it_opens_one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    monkeypatch.setattr(threading.Thread, "start", failing(RuntimeError("can't start new thread")))

    open_in_parallel(lambda _: order.append("session"), lambda: order.append("tokenizer"))

    assert order == ["tokenizer", "session"]


def test_an_interruption_while_the_thread_starts_leaves_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python waits for threads when it exits: one that waits for a session that never opens would hang it."""
    start = threading.Thread.start

    def interrupted(thread: threading.Thread) -> None:
        # Otherwise a failure of this test would hang at its end.
        thread.daemon = True
        start(thread)
        raise KeyboardInterrupt

    monkeypatch.setattr(threading.Thread, "start", interrupted)
    before = set(threading.enumerate())
    with pytest.raises(KeyboardInterrupt):
        open_in_parallel(lambda _: "session", lambda: None)
    assert set(threading.enumerate()) == before


def with_cores(monkeypatch: pytest.MonkeyPatch, count: int) -> list[str]:
    """Let models see so many CPU cores; returns the names of the threads in which they open tokenizers from now on."""
    names: list[str] = []

    def opened(path: Path, **options: int | None) -> SafeTokenizer:
        names.append(threading.current_thread().name)
        return open_tokenizer(path, **options)

    for module in ("decoder.decoder", "encoder.base"):
        monkeypatch.setattr(f"ortkit.runtime.{module}.find_cores", lambda: Cores(count, count, None))
    for module in ("decoder.decoder", "text.tokenizer"):
        monkeypatch.setattr(f"ortkit.runtime.{module}.open_tokenizer", opened)
    return names


@pytest.mark.parametrize(("cores", "thread"), [(1, "MainThread"), (2, "ortkit-tokenizer")])
def test_a_decoder_is_the_same(
    written: tuple[Bundle, TinyDecoder], decoder: Decoder, monkeypatch: pytest.MonkeyPatch, cores: int, thread: str
) -> None:
    names = with_cores(monkeypatch, cores)
    # A session of its own: that of `decoder` is open.
    opened = Decoder(written[0], threads=cores)

    assert names == [thread]
    assert [step.id for step in opened.steps("The quick", max_tokens=9)] == [
        step.id for step in decoder.steps("The quick", max_tokens=9)
    ]


@pytest.mark.parametrize(("cores", "thread"), [(1, "MainThread"), (2, "ortkit-tokenizer")])
def test_an_encoder_is_the_same(tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch, cores: int, thread: str) -> None:
    expected = Embedder(tiny_bundle).embed("The quick brown fox")
    names = with_cores(monkeypatch, cores)
    opened = Embedder(tiny_bundle)

    assert names == [thread]
    np.testing.assert_array_equal(opened.embed("The quick brown fox"), expected)


def test_within_a_memory_limit_they_open_one_after_the_other(
    written: tuple[Bundle, TinyDecoder], monkeypatch: pytest.MonkeyPatch
) -> None:
    names = with_cores(monkeypatch, 2)

    Decoder(written[0], threads=1, max_memory=1 << 40)

    assert names == ["MainThread"]


def with_tokenizer(bundle: Bundle, target: Path, content: bytes) -> Path:
    """A copy of a bundle with another tokenizer.json, as its manifest says."""
    shutil.copytree(bundle.path, target)
    (target / TOKENIZER).write_bytes(content)
    manifest = json.loads((target / MANIFEST).read_text("utf-8"))
    manifest["files"][TOKENIZER] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (target / MANIFEST).write_text(json.dumps(manifest), "utf-8")
    return target


def test_an_invalid_tokenizer_is_the_same_error(
    written: tuple[Bundle, TinyDecoder], tiny_bundle: Bundle, tmp_path: Path, ortkit: Callable[..., Finished]
) -> None:
    for bundle, command in ((written[0], "generate"), (tiny_bundle, "embed")):
        folder = with_tokenizer(bundle, tmp_path / command, b'{"version": "1.0"}')
        finished = ortkit(command, folder, "hello")

        assert finished.code == 7
        assert f"`{folder / TOKENIZER}` is not a tokenizer: " in finished.err
    assert not tokenizer_threads()
