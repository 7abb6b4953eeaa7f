"""Verify an untrusted bundle: open it and replay its certificate in a child process with limits on time and memory.

A malicious graph can run forever, take all memory or crash onnxruntime, and nothing inside a process can prevent that.
"""

from __future__ import annotations

import json
import os
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
from .bundle.manifest import Kind, Provider
from .child_process import limit_memory, python_command
from .decoder.decoder import Decoder
from .encoder.embedder import Embedder
from .encoder.reranker import Reranker
from .errors import BundleError, OrtkitError, OutOfMemoryError
from .replay import Replay, replay
from .session.memory import available_memory
from .session.providers import PROVIDERS

_CHILD = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from ortkit.runtime.verify import child; child()"
_SECONDS = 120.0
_BYTES_PER_SECOND = 1_000_000
"""Default time limit: _SECONDS, and a second more for each megabyte of the bundle."""
MEMORY = 2 << 30
_MEMORY_FACTOR = 8
"""Memory limit: MEMORY bytes, and this many times the size of the bundle."""
_WATCHED_EVERY = 0.05 if sys.platform == "linux" else 0.5
"""Seconds between two looks at the memory of a child process without RLIMIT_DATA; elsewhere `ps` is run for each."""
_LONGEST_MESSAGE = 10_000
"""Characters of an error message: libraries quote the files that they read."""


class _MemoryExceededError(Exception):
    """The child process has more memory than its limit."""


def verify(
    bundle: Bundle,
    *,
    seconds: float | None = None,
    allow_downgrade: bool = False,
    opened: Callable[[str], None] | None = None,
) -> Replay:
    """Open a bundle, whose hashes were checked, and replay its certificate in a child process.

    `allow_downgrade` is that of `Bundle.open`. `opened` is called with the provider once the graph is open. Raises
    BundleError where the child takes more than `seconds`, more memory than a model of this size needs, or crashes; and
    the errors of opening and replaying.
    """
    limit = _SECONDS + bundle.size / _BYTES_PER_SECOND if seconds is None else seconds
    memory = memory_for(bundle)
    options = [str(bundle.path), str(memory), json.dumps(allow_downgrade)]
    command = python_command("-c", _CHILD, json.dumps(sys.path), *options)
    watched = None if limits_data(bundle.provider) else memory
    # onnxruntime quotes the graph on stderr, unescaped.
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        try:
            for report in _reports(process, time.monotonic() + limit, watched):
                if "opened" in report and opened is not None:
                    opened(report["opened"])
                if "error" in report:
                    raise _error_of(report)
                if "replay" in report:
                    return Replay(**report["replay"])
        except TimeoutError as error:
            raise BundleError(
                f"`{bundle.path}` was not verified within {limit:.0f} s",
                hint="the graph may never end; on a slow machine, raise the limit: `--time-limit SECONDS`",
            ) from error
        except _MemoryExceededError as error:
            raise _takes_too_much(bundle.path) from error
        finally:
            process.kill()
    raise _crashed(bundle, process.wait())


def _reports(process: subprocess.Popen[bytes], deadline: float, memory: int | None) -> Iterator[dict[str, Any]]:
    """The reports of the child process, JSON lines.

    Raises TimeoutError at the deadline, and _MemoryExceededError where the process has more than `memory` bytes.
    """
    assert process.stdout is not None  # noqa: S101 - for mypy: it is a pipe
    descriptor = process.stdout.fileno()
    rest = b""
    while True:
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        if memory is not None and private_memory(process.pid) > memory:
            raise _MemoryExceededError
        ready, _, _ = select.select([descriptor], [], [], left if memory is None else min(left, _WATCHED_EVERY))
        if not ready:
            continue
        content = os.read(descriptor, 1 << 16)
        if not content:
            process.wait()
            return
        *lines, rest = (rest + content).split(b"\n")
        yield from map(json.loads, lines)


def memory_for(bundle: Bundle) -> int:
    """Memory limit of the child process in bytes, at most what is free."""
    enough = MEMORY + _MEMORY_FACTOR * bundle.size
    available = available_memory()
    return enough if available is None else min(enough, available)


def limits_data(provider: Provider) -> bool:
    """Whether RLIMIT_DATA limits the memory of a process that runs graphs on a provider.

    It counts what is mapped, and for the CPU that is what is used. CUDA maps the memory of the GPU and its own pools
    into the process, by amounts that depend on the GPU and the driver, of which hardly anything is resident; RLIMIT_AS
    counts even more. macOS does not enforce it. There, this process watches what is resident.
    """
    return PROVIDERS[provider].device == "cpu" and sys.platform == "linux"


def private_memory(pid: int) -> int:
    """Resident bytes of a process that belong to no file (proc(5), `RssAnon`); all that are resident on other systems.

    0 for a process that has ended, or where the system does not say.
    """
    try:
        with open(f"/proc/{pid}/status", encoding="utf-8") as status:  # noqa: PTH123 - read twenty times a second
            return next((int(line.split()[1]) << 10 for line in status if line.startswith("RssAnon:")), 0)
    except OSError:
        pass
    if sys.platform == "linux":
        return 0
    shown = subprocess.run(["ps", "-o", "rss=", "-p", str(pid)], capture_output=True, text=True, check=False).stdout
    return int(shown) << 10 if shown.strip().isdigit() else 0


def _takes_too_much(path: Path) -> OutOfMemoryError:
    return OutOfMemoryError(f"`{path}` takes more memory than a model of its size needs")


def _error_of(report: dict[str, Any]) -> OrtkitError:
    """The error that the child process reported."""
    kind = getattr(errors, report["error"], BundleError)
    found: OrtkitError = kind(report["message"], hint=report["hint"])
    return found


def _crashed(bundle: Bundle, code: int) -> BundleError:
    """The error for a child process that ended without a report."""
    made = bundle.manifest.made_with.get("onnxruntime")
    how = signal.Signals(-code).name if -code in set(signal.Signals) else f"exit code {code}"
    hint = f"it was made with onnxruntime {made}; if it comes from someone you trust, verify it with that version"
    return BundleError(
        f"`{bundle.path}` crashes the process that opens it ({how})",
        hint="do not use it" if made is None else f"do not use it with this onnxruntime: {hint}",
    )


def child() -> None:
    """The main function of the child process."""
    _, path, memory, allow_downgrade = sys.argv[1:]
    out = os.dup(1)
    # Output of libraries must not mix with the reports.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)

    def send(**report: object) -> None:
        os.write(out, json.dumps(report).encode() + b"\n")

    try:
        bundle = Bundle.listed(Path(path), allow_downgrade=json.loads(allow_downgrade))
        if limits_data(bundle.provider):
            limit_memory(int(memory))
        model = model_of(bundle)
        send(opened=model.session.provider.value)
        send(replay=vars(replay(model)))
    except OrtkitError as error:
        send(error=type(error).__name__, message=error.message[:_LONGEST_MESSAGE], hint=error.hint)
    except MemoryError:
        found = _takes_too_much(Path(path))
        send(error=type(found).__name__, message=found.message, hint=None)
    # Whatever a library raises for a damaged bundle, including panics of `tokenizers`.
    except BaseException as error:  # noqa: BLE001
        name = type(error).__name__
        send(error="BundleError", message=f"`{path}` cannot be verified: {name}: {error}"[:_LONGEST_MESSAGE], hint=None)


def model_of(bundle: Bundle, *, max_memory: int | None = None) -> Decoder | Embedder | Reranker:
    """Open a bundle with the class for its kind; `max_memory` as there."""
    kinds: dict[Kind, type[Decoder | Embedder | Reranker]] = {
        Kind.DECODER: Decoder,
        Kind.EMBEDDER: Embedder,
        Kind.RERANKER: Reranker,
    }
    return kinds[bundle.manifest.kind](bundle, max_memory=max_memory)
