"""A bundle opened and its certificate replayed in a process of its own, which can be ended.

A graph may be made to run for ever, to take all memory, or to end the process that opens it: onnxruntime does whatever
it says. Nothing within a process can stop that, so whoever does not know where a bundle comes from tries it apart.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from . import errors
from .bundle.bundle import Bundle
from .decoder.decoder import Decoder
from .encoder.embedder import Embedder
from .errors import BundleError, OrtkitError
from .bundle.manifest import Kind
from .session.memory import available_memory
from .replay import Replay, replay
from .encoder.reranker import Reranker

START = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from ortkit.runtime.verify import child; child()"
SECONDS = 120.0
BYTES_PER_SECOND = 1_000_000
"""The time that a bundle has by default: so many seconds, and one more for each megabyte of its files."""
MEMORY = 2 << 30
TIMES = 8
"""The memory that it has at most: so many bytes, and so many times its files."""
MESSAGE = 10_000
"""Characters of an error that are told: libraries quote what they read."""


def verify(bundle: Bundle, *, seconds: float | None = None, opened: Callable[[str], None] | None = None) -> Replay:
    """Open a bundle whose hashes were checked, and replay its certificate, within `seconds`.

    `opened` is called with the provider as soon as the graph is ready. Raises BundleError where that takes longer, more
    memory than a model of its size needs, or ends the process, and whatever else opening and replaying raises.
    """
    limit = SECONDS + bundle.size / BYTES_PER_SECOND if seconds is None else seconds
    command = [sys.executable, "-c", START, json.dumps(sys.path), str(bundle.path), str(memory_for(bundle))]
    # What onnxruntime writes to stderr quotes the graph, and would reach the terminal as it is.
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        try:
            for told in messages(process, time.monotonic() + limit):
                if "opened" in told and opened is not None:
                    opened(told["opened"])
                if "error" in told:
                    raise error_of(told)
                if "replay" in told:
                    return Replay(**told["replay"])
        except TimeoutError as error:
            raise BundleError(
                f"`{bundle.path}` was not verified within {limit:.0f} s",
                hint="a graph may be made to run for ever; on a slow machine, allow it more: `--time-limit SECONDS`",
            ) from error
        finally:
            process.kill()
    raise ended(bundle, process.wait())


def messages(process: subprocess.Popen[bytes], deadline: float) -> Iterator[dict[str, Any]]:
    """What the other process tells, a line each; raises TimeoutError when the time is up."""
    assert process.stdout is not None  # noqa: S101 - for mypy: it was asked for
    descriptor = process.stdout.fileno()
    rest = b""
    while True:
        ready, _, _ = select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            raise TimeoutError
        content = os.read(descriptor, 1 << 16)
        if not content:
            process.wait()
            return
        *lines, rest = (rest + content).split(b"\n")
        yield from map(json.loads, lines)


def memory_for(bundle: Bundle) -> int:
    """Bytes that a bundle may take: what its size explains, and no more than there is."""
    enough = MEMORY + TIMES * bundle.size
    available = available_memory()
    return enough if available is None else min(enough, available)


def error_of(told: dict[str, Any]) -> OrtkitError:
    """The error that the other process ended with."""
    kind = getattr(errors, told["error"], BundleError)
    found: OrtkitError = kind(told["message"], hint=told["hint"])
    return found


def ended(bundle: Bundle, code: int) -> BundleError:
    """What to say of a process that ended without a word."""
    made = bundle.manifest.made_with.get("onnxruntime")
    how = signal.Signals(-code).name if -code in set(signal.Signals) else f"exit code {code}"
    hint = f"it was made with onnxruntime {made}; if it comes from someone you trust, verify it with that version"
    return BundleError(
        f"`{bundle.path}` ends the process that opens it ({how})",
        hint="do not use it" if made is None else f"do not use it with this onnxruntime: {hint}",
    )


def child() -> None:
    """What the other process does."""
    _, path, memory = sys.argv[1:]
    out = os.dup(1)
    # Nothing else that a library prints is taken for an answer.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)

    def tell(**told: object) -> None:
        os.write(out, json.dumps(told).encode() + b"\n")

    limit_memory(int(memory))
    try:
        model = model_of(Bundle.listed(Path(path)))
        tell(opened=model.session.provider.value)
        tell(replay=vars(replay(model)))
    except OrtkitError as error:
        tell(error=type(error).__name__, message=error.message[:MESSAGE], hint=error.hint)
    except MemoryError:
        tell(error="OutOfMemoryError", message=f"`{path}` takes more memory than a model of its size needs", hint=None)
    # What a damaged bundle makes of a library, panics of `tokenizers` too.
    except BaseException as error:  # noqa: BLE001
        name = type(error).__name__
        tell(error="BundleError", message=f"`{path}` cannot be verified: {name}: {error}"[:MESSAGE], hint=None)


def limit_memory(size: int) -> None:
    """Have allocations of more than so many bytes fail, where the system can."""
    with contextlib.suppress(OSError, ValueError):
        _, most = resource.getrlimit(resource.RLIMIT_DATA)
        limit = size if most == resource.RLIM_INFINITY else min(size, most)
        resource.setrlimit(resource.RLIMIT_DATA, (limit, most))


def model_of(bundle: Bundle) -> Decoder | Embedder | Reranker:
    """A bundle ready to run, as what it is for."""
    kinds: dict[Kind, type[Decoder | Embedder | Reranker]] = {
        Kind.DECODER: Decoder,
        Kind.EMBEDDER: Embedder,
        Kind.RERANKER: Reranker,
    }
    return kinds[bundle.manifest.kind](bundle)
