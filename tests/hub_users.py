"""People with a token, or without one, and what they find on a local Hub."""

from __future__ import annotations

import atexit
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tests.commands import Finished
from tests.forks import Forks
from tests.hub_server import LocalHub

ROOT = Path(__file__).parents[1]
ADA, BOB, EVE = "hf_SecretOfAda0001", "hf_SecretOfBob0002", "hf_SecretOfEve0003"
REVOKED, EXPIRED = "hf_SecretRevoked0004", "hf_SecretExpired0005"
SECRETS = (ADA, BOB, EVE, REVOKED, EXPIRED)
SMALL_FILES = {
    "config.json": b'{"model_type": "bert"}',
    "model.safetensors": bytes(300_000),
    "tokenizer.json": b"{}",
    "modules.json": b"[]",
    "README.md": b"---\nlicense: apache-2.0\n---\n",
    "pytorch_model.bin": bytes(1000),
    "onnx/model.onnx": bytes(1000),
}

DOWNLOAD = """
import sys
from ortkit.exporters.sources import find_checkpoint
find_checkpoint(sys.argv[1])
assert "torch" not in sys.modules
"""


COMMANDS = ("ortkit.toolkit.cli", "ortkit.exporters.hub.access", "ortkit.exporters.hub.account", "ortkit.exporters.hub.download")
EXPORTS = (*COMMANDS, "ortkit.exporters.pipeline")
"""What is imported before a command is run in a fork."""


@cache
def forks(modules: tuple[str, ...], path: str) -> Forks:
    """The process whose forks run commands; started when it is first asked for, once in each process of the tests."""
    started = Forks(modules, path)
    atexit.register(started.close)
    return started


@dataclass
class HubUser:
    """Runs ortkit in a process of its own, as someone whose home is empty and whose Hub is the local one."""

    home: Path
    environment: dict[str, str]

    def run(
        self, *arguments: object, stdin: bytes = b"", prefix: Sequence[str] = (), **changes: str | None
    ) -> Finished:
        """Run a command; `changes` are environment variables. No secret and no traceback may show, whatever happens."""
        environment = self.environment | {name: value for name, value in changes.items() if value is not None}
        for name in [name for name, value in changes.items() if value is None]:
            environment.pop(name, None)
        command = ["-m", "ortkit", *map(str, arguments)]
        if prefix:
            finished = subprocess.run(
                [*prefix, sys.executable, *command],
                input=stdin,
                capture_output=True,
                env=environment,
                check=False,
                cwd=self.home,
            )
        else:
            modules = EXPORTS if arguments[:1] == ("export",) else COMMANDS
            finished = self.fork(modules, command, environment, stdin)
        shown = finished.stdout + finished.stderr
        assert b"Traceback" not in shown, shown.decode()
        for secret in SECRETS:
            assert secret.encode() not in shown
        return Finished(finished.returncode, finished.stdout, finished.stderr.decode())

    def run_code(self, code: str, *arguments: str, **changes: str) -> subprocess.CompletedProcess[bytes]:
        """Run a program as this person; `changes` are environment variables."""
        return self.fork(COMMANDS, ["-c", code, *arguments], self.environment | changes)

    def fork(
        self, modules: tuple[str, ...], command: Sequence[str], environment: dict[str, str], stdin: bytes = b""
    ) -> subprocess.CompletedProcess[bytes]:
        started = forks(modules, self.environment["PYTHONPATH"])
        return started.run(command, env=environment, cwd=self.home, stdin=stdin)

    def download(self, source: str) -> None:
        """Do of an export what comes first, in a process that ends before it loads torch."""
        finished = self.run_code(DOWNLOAD, source)
        assert finished.returncode == 0, finished.stderr.decode()

    @property
    def token_file(self) -> Path:
        return self.home / ".cache" / "huggingface" / "token"

    def write_token(self, content: str | bytes, mode: int = 0o600) -> None:
        """Put a token file there as a person would."""
        self.token_file.parent.mkdir(parents=True, exist_ok=True)
        self.token_file.write_bytes(content if isinstance(content, bytes) else content.encode())
        self.token_file.chmod(mode)


def user_of(hub: LocalHub, home: Path, packages: Path | None = None) -> HubUser:
    home.mkdir(exist_ok=True)
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "HF_ENDPOINT": hub.endpoint,
        "ORTKIT_TOKEN_HOST": hub.host,
        # As in this process, and for the same reason.
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(map(str, [packages, ROOT] if packages is not None else [ROOT])),
    }
    return HubUser(home, environment)


def error_of(finished: Finished) -> tuple[int, str, str]:
    """Exit code, message and hint."""
    assert finished.out == b"", finished.out
    text = finished.err[finished.err.index("error: ") :]
    message, _, hint = text.partition("\n\nhint: ")
    return finished.code, message.removeprefix("error: ").strip(), hint.strip()
