"""Opening a decoder's bundle with more than one core: what does not need each other happens at once."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from threading import Event, Thread
from typing import TypeVar

from runtime.bundle import GRAPH, GRAPH_DATA, Bundle
from runtime.kinds import check_kind
from runtime.manifest import Kind, Precision
from runtime.session import Session, check_requirements, load_onnxruntime, shared_session

HEAD_START = 0.01
"""Seconds after which onnxruntime has Python's lock or no need of it; `tokenizers` has it until its file is read."""

First = TypeVar("First")
Second = TypeVar("Second")
Opened = TypeVar("Opened")


class Opening:
    """A decoder's bundle, of which nothing may be told before `finish`: until then its weights are not all checked."""

    def __init__(self, bundle: Bundle | str | os.PathLike[str]) -> None:
        """Begin with a folder, or with a bundle that was checked; raises as `Bundle.open`, and for one of another kind.

        Nothing is read by a library before its hash is known to be right, but for weights beside a graph, of which a
        changed byte can do no harm: they are hashed while the graph is prepared.
        """
        self.unchecked: list[str] = []
        if isinstance(bundle, Bundle):
            self.bundle = bundle
        else:
            self.bundle, _ = at_once(partial(self.checked_but_for_weights, bundle), load_onnxruntime)
        check_kind(self.bundle, Kind.DECODER)

    def checked_but_for_weights(self, path: str | os.PathLike[str]) -> Bundle:
        bundle = Bundle.listed(path)
        names = list(bundle.manifest.files)
        self.unchecked = [name for name in names if name == GRAPH_DATA]
        bundle.check_hashes(name for name in names if name != GRAPH_DATA)
        return bundle

    def finish(self, tokenizer: Callable[[], Opened], *, threads: int) -> tuple[Opened, Session]:
        """What `tokenizer` opens, and the session of the graph, when the weights too were found unchanged.

        Where the graph cannot be opened and its weights were changed, that they were is told.
        """
        manifest = self.bundle.manifest
        check_requirements(self.bundle)
        return at_once(
            partial(self.open_and_check, tokenizer),
            partial(
                shared_session,
                self.bundle.file(GRAPH),
                provider=manifest.provider,
                inputs=manifest.inputs,
                threads=threads,
                int8=manifest.precision is Precision.INT8,
                symmetric_blocks=manifest.blocks is not None and manifest.blocks.symmetric,
            ),
            head_start=HEAD_START,
        )

    def open_and_check(self, tokenizer: Callable[[], Opened]) -> Opened:
        # In this order, since a tokenizer takes the most memory while it is read, and a session when it is ready.
        found = tokenizer()
        self.bundle.check_hashes(self.unchecked)
        return found


def at_once(
    first: Callable[[], First], second: Callable[[], Second], *, head_start: float = 0.0
) -> tuple[First, Second]:
    """What both give, the second called on another thread, some seconds before; where both fail, the first's error."""
    results: list[Second] = []
    errors: list[BaseException] = []

    # An interrupted `Thread.join` takes its thread for ended (CPython 3.10 to 3.12), which then is not waited for when
    # Python ends, and aborts the process within C++. Waiting for an event has no such effect.
    done = Event()

    def call_second() -> None:
        try:
            results.append(second())
        except BaseException as error:  # noqa: BLE001 - raised below, on the thread that wants it
            errors.append(error)
        finally:
            done.set()

    Thread(target=call_second).start()
    try:
        done.wait(head_start)
        found = first()
    # An interrupt does not wait, for what may take a minute.
    except Exception:
        done.wait()
        raise
    done.wait()
    if errors:
        raise errors[0]
    return found, results[0]
