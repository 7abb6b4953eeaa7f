"""Read PDF, DOCX and large HTML files in a process of its own, with limits on time and memory.

A hostile file, or only an odd one, can keep such a parser busy for hours or take all memory, and nothing inside a
process can prevent that. The process is kept for the next file, and ends when there was none for a while.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import logging
import os
import select
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ....runtime.child_process import limit_memory, python_command
from ....runtime.sizes import as_option
from ..folder import FoundFile
from .content import opened
from .document import Passage, Place, ReadingReport, UnreadableFileError

_CHILD = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from ortkit.toolkit.search.documents.library_process import child; child()"
)
SECONDS_BETWEEN = 60.0
"""Longest time for a page; a process that is slower is ended."""
SECONDS = 600.0
"""Longest time for a file."""
MEMORY = 2 << 30
"""Bytes (RLIMIT_DATA); macOS does not enforce it."""
_IDLE = 30.0
"""Seconds after which the process ends without another file."""
_MAX_TEXT = 1 << 28
"""Characters of all passages of a file."""
_AT_ONCE = 64
"""Passages in one report, unless a page ends before."""
_PACKAGES = {"pdf": "pypdf", "docx": "docx"}
_NAMES = {"pdf": "a PDF", "docx": "a DOCX file", "html": "an HTML file"}


@dataclass(frozen=True)
class Read:
    """What was read of a file."""

    title: str
    passages: list[Passage]


def read_with_library(kind: str, found: FoundFile, report: ReadingReport) -> Read:
    """Read a file of the kind `pdf`, `docx` or `html`; raises UnreadableFileError, without its package too."""
    package = _PACKAGES.get(kind)
    if package is not None and find_spec(package) is None:
        raise UnreadableFileError(f"is {_NAMES[kind]}", hint="to read it: `pip install 'ortkit[docs]'`")
    with opened(found), _LOCK:
        return _PROCESS.read(kind, found.path, report)


class _LibraryProcess:
    """The process that reads, started when it is needed."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[bytes] | None = None
        self.owner = 0
        """Process id: the child of a fork must not read from its parent's process."""

    def read(self, kind: str, path: Path, report: ReadingReport) -> Read:
        request = json.dumps([kind, os.fsencode(path.absolute()).decode("latin-1")]).encode() + b"\n"
        try:
            process = self.requested(request)
            return _collected(kind, _reports(process), report)
        except BaseException:
            # It may still be at work on this file.
            self.end()
            raise

    def requested(self, request: bytes) -> subprocess.Popen[bytes]:
        if self.process is not None and self.owner == os.getpid() and self.process.poll() is None:
            try:
                _send(self.process, request)
            except (BrokenPipeError, ValueError):
                # It has ended; ValueError is that of a pipe that is closed.
                pass
            else:
                # It may have ended, idle, before it took the request: then there is no answer, not even a beginning.
                if _begins(self.process):
                    return self.process
        self.end()
        self.process = self.started()
        self.owner = os.getpid()
        _send(self.process, request)
        _begins(self.process)
        return self.process

    def started(self) -> subprocess.Popen[bytes]:
        # pypdf's log and the warnings of both go to stderr.
        return subprocess.Popen(
            python_command("-c", _CHILD, json.dumps(sys.path)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )

    def end(self) -> None:
        process, self.process = self.process, None
        if process is None:
            return
        if self.owner == os.getpid():
            process.kill()
            process.wait()
        else:
            # Another process waits for it; without this, `subprocess` warns that nobody does.
            process.returncode = 0
        for pipe in filter(None, (process.stdin, process.stdout)):
            with contextlib.suppress(BrokenPipeError):
                pipe.close()


_PROCESS = _LibraryProcess()
_LOCK = threading.Lock()
atexit.register(_PROCESS.end)


def _send(process: subprocess.Popen[bytes], request: bytes) -> None:
    assert process.stdin is not None  # noqa: S101 - for mypy: it is a pipe
    process.stdin.write(request)
    process.stdin.flush()


def _begins(process: subprocess.Popen[bytes]) -> bool:
    """Whether the process has taken a request: it answers with an empty line."""
    assert process.stdout is not None  # noqa: S101 - for mypy: it is a pipe
    ready, _, _ = select.select([process.stdout], [], [], SECONDS_BETWEEN)
    return bool(ready) and os.read(process.stdout.fileno(), 1) == b"\n"


def _reports(process: subprocess.Popen[bytes]) -> Iterator[dict[str, Any]]:
    """The reports of the process on a file; raises TimeoutError."""
    assert process.stdout is not None  # noqa: S101 - for mypy: it is a pipe
    descriptor = process.stdout.fileno()
    ends = time.monotonic() + SECONDS
    pieces: list[bytes] = []
    while True:
        left = min(SECONDS_BETWEEN, ends - time.monotonic())
        if left <= 0 or not select.select([descriptor], [], [], left)[0]:
            raise TimeoutError
        content = os.read(descriptor, 1 << 20)
        if not content:
            return
        pieces.append(content)
        if b"\n" not in content:
            continue
        *lines, rest = b"".join(pieces).split(b"\n")
        pieces = [rest]
        yield from map(json.loads, lines)


def _collected(kind: str, reports: Iterator[dict[str, Any]], report: ReadingReport) -> Read:
    name = _NAMES[kind]
    title = ""
    passages: list[Passage] = []
    try:
        for part in reports:
            if "error" in part:
                raise UnreadableFileError(part["error"], hint=part["hint"])
            title = part.get("title", title)
            passages += [
                Passage(text, Place(None if lines is None else (lines[0], lines[1]), page, tuple(headings)), exact)
                for text, lines, page, headings, exact in part.get("passages", ())
            ]
            if "end" in part:
                report.skipped_records, report.first_fault = part["end"]
                return Read(title, passages)
    except TimeoutError as error:
        raise UnreadableFileError(
            f"is {name} that takes more than {SECONDS_BETWEEN:.0f} s for a page, or {SECONDS:.0f} s in all",
            hint="export it again from the program that made it, or split it",
        ) from error
    raise UnreadableFileError(f"is {name} that crashes its reader")


def child() -> None:
    """The main function of the process: reads requests until there are none."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    out = os.dup(1)
    # What libraries print must not mix with the reports.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    logging.disable()
    warnings.simplefilter("ignore")
    limit_memory(MEMORY)
    pending = b""
    while True:
        while b"\n" not in pending:
            if not select.select([0], [], [], _IDLE)[0]:
                return
            more = os.read(0, 1 << 16)
            if not more:
                return
            pending += more
        request, _, pending = pending.partition(b"\n")
        os.write(out, b"\n")
        kind, path = json.loads(request)
        _answer(kind, path, out)


def _answer(kind: str, path: str, out: int) -> None:
    def send(**part: object) -> None:
        content = json.dumps(part).encode() + b"\n"
        while content:
            content = content[os.write(out, content) :]

    report = ReadingReport()
    try:
        _send_passages(kind, Path(os.fsdecode(path.encode("latin-1"))), report, send)
    except UnreadableFileError as error:
        send(error=error.message, hint=error.hint)
    except MemoryError:
        send(error=f"is {_NAMES[kind]} that takes more than {as_option(MEMORY)} of memory", hint=None)
    # Whatever a library raises for a hostile file; its message may quote the file.
    except Exception as error:  # noqa: BLE001
        send(error=f"is {_NAMES[kind]} that cannot be read: {type(error).__name__}", hint=None)
    else:
        send(end=[report.skipped_records, report.first_fault])


def _send_passages(kind: str, path: Path, report: ReadingReport, send: Callable[..., None]) -> None:
    characters = 0
    part: list[Passage] = []
    for passage in _passages(kind, path, report, lambda title: send(title=title)):
        characters += len(passage.text)
        if characters > _MAX_TEXT:
            raise UnreadableFileError(f"has more than {as_option(_MAX_TEXT)} of text")
        if len(part) == _AT_ONCE or (part and part[-1].place.page != passage.place.page):
            send(passages=[_packed(one) for one in part])
            part = []
        part.append(passage)
    send(passages=[_packed(one) for one in part])


def _passages(kind: str, path: Path, report: ReadingReport, titled: Callable[[str], None]) -> Iterator[Passage]:
    if kind == "pdf":
        from .pdf import read_pdf

        return read_pdf(path, report, titled)
    if kind == "docx":
        from .docx import read_docx

        return read_docx(path, report, titled)
    from .encoding import decode_text
    from .html import declared_encoding, read_html

    content = path.read_bytes()
    title, passages = read_html(decode_text(content, declared=declared_encoding(content)))
    titled(title)
    return iter(passages)


def _packed(passage: Passage) -> list[object]:
    place = passage.place
    return [passage.text, place.lines, place.page, place.headings, passage.line_by_line]
