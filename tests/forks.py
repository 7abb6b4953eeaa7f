"""Commands in forks of a process that has imported their libraries: each starts in a fraction of the time.

`python -m tests.forks MODULE...` imports the modules, forgets what reads the environment when it is imported, and then
runs one command after another, each in a fork with its own environment, folder and standard streams.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from threading import Lock
from typing import BinaryIO

ROOT = Path(__file__).parents[1]
FORGOTTEN = ("ortkit", "huggingface_hub", "transformers", "optimum", "sentence_transformers")
"""Packages that each command imports again: our own, and those that read HF_HOME, HF_ENDPOINT and others as they are
imported."""


class Forks:
    """A process that runs commands in forks of itself; start it once, for many of them."""

    def __init__(self, modules: Sequence[str], path: str) -> None:
        """`modules` are imported at once, with PYTHONPATH set to `path`."""
        self.server = subprocess.Popen(
            [sys.executable, "-m", "tests.forks", *modules],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={"PATH": os.environ["PATH"], "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "HOME": "/nonexistent"},
            cwd=ROOT,
        )
        self.lock = Lock()

    def run(
        self, command: Sequence[str], *, env: Mapping[str, str], cwd: Path, stdin: bytes = b""
    ) -> subprocess.CompletedProcess[bytes]:
        """Run what the interpreter is given, `-m MODULE ...` or `-c CODE ...`, as `subprocess.run` would."""
        with tempfile.TemporaryDirectory() as folder, self.lock:
            streams = [str(Path(folder) / name) for name in ("stdin", "stdout", "stderr")]
            Path(streams[0]).write_bytes(stdin)
            request = {"command": list(command), "env": dict(env), "cwd": str(cwd), "streams": streams}
            assert self.server.stdin is not None
            assert self.server.stdout is not None
            self.server.stdin.write(json.dumps(request).encode() + b"\n")
            self.server.stdin.flush()
            answer = self.server.stdout.readline()
            assert answer, f"the process that forks ended with {self.server.wait()}"
            out, err = (Path(stream).read_bytes() for stream in streams[1:])
            return subprocess.CompletedProcess(command, int(answer), out, err)

    def close(self) -> None:
        assert self.server.stdin is not None
        assert self.server.stdout is not None
        self.server.stdin.close()
        self.server.wait()
        self.server.stdout.close()


def main(modules: Sequence[str]) -> None:
    for name in modules:
        importlib.import_module(name)
    for name in [name for name in sys.modules if name.partition(".")[0] in FORGOTTEN]:
        del sys.modules[name]
    # The forks share the memory of what stays, and their garbage collectors do not go through it.
    gc.collect()
    gc.freeze()
    requests, answers = (os.fdopen(os.dup(number), mode) for number, mode in ((0, "rb"), (1, "wb")))
    null = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1):
        os.dup2(null, number)
    request = next_request(requests, answers)
    if request is not None:
        requests.close()
        answers.close()
        run(request)


def next_request(requests: BinaryIO, answers: BinaryIO) -> dict | None:
    """In the forks, what each is to run; in the process itself None, when nobody asks any more."""
    for line in requests:
        fork = os.fork()
        if fork == 0:
            return json.loads(line)
        _, status = os.waitpid(fork, 0)
        answers.write(b"%d\n" % os.waitstatus_to_exitcode(status))
        answers.flush()
    return None


def run(request: dict) -> None:
    """Be the process that was asked for; its end is that of this interpreter."""
    os.environ.clear()
    os.environ.update(request["env"])
    os.chdir(request["cwd"])
    for number, stream in enumerate(request["streams"]):
        opened = os.open(stream, os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(opened, number)
        os.close(opened)
    option, what, *arguments = request["command"]
    if option == "-m":
        sys.path[0] = request["cwd"]
        sys.argv = [what, *arguments]
        runpy.run_module(what, run_name="__main__", alter_sys=True)
    else:
        sys.path[0] = ""
        sys.argv = ["-c", *arguments]
        exec(compile(what, "<string>", "exec"), {"__name__": "__main__"})


if __name__ == "__main__":
    main(sys.argv[1:])
