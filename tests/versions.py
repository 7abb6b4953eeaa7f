"""Bundles on the lowest and the newest versions of the runtime's packages that are allowed, and on each Python here.

`python -m tests.versions BUNDLE...` makes an environment for each, runs `verify` and the command of each bundle's kind
in it, and sees that onnxruntime below the lowest is refused. Needs a package registry; prints a line for each run.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
ENVIRONMENTS = REPOSITORY / ".cache" / "versions"
PACKAGES = ("onnxruntime", "tokenizers", "numpy", "click", "jinja2")
PYTHONS = ("3.11", "3.12", "3.13", "3.14")
REFUSED = "1.29.0"
"""A version of onnxruntime below the lowest that is allowed."""
MISSING_PART = 1
"""The exit code for it."""
QUESTION = "What is photosynthesis?"
PASSAGES = ("Paris is the capital of France.", "The pump does not start.", "Berlin has many lakes.")
COMMANDS = {
    "embedder": ("embed", QUESTION),
    "reranker": ("rerank", "--query", "capital of France", *PASSAGES),
    "decoder": ("generate", QUESTION, "--max-tokens", "24"),
}
"""What is run of each kind of bundle, its path between the command and its arguments."""


@dataclass(frozen=True)
class Environment:
    """A Python with some versions of the runtime's packages."""

    name: str
    python: str
    requirements: tuple[str, ...]
    refuses: bool = False

    @property
    def executable(self) -> Path:
        return ENVIRONMENTS / self.name / "bin" / "python"

    def make(self) -> None:
        """Make it where it is not there, whole or not at all."""
        if self.executable.exists():
            return
        folder = ENVIRONMENTS / self.name
        shutil.rmtree(folder, ignore_errors=True)
        try:
            subprocess.run([self.python, "-m", "venv", folder], check=True)
            pip = [self.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--only-binary=:all:"]
            subprocess.run([*pip, *self.requirements], check=True)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        environment |= {"PYTHONPATH": str(REPOSITORY), "ORT_DISABLE_TELEMETRY": "1", "PYTHONWARNINGS": "error"}
        command = [str(self.executable), "-m", "toolkit", *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL)  # noqa: PLW1510 - the caller looks at the exit code


def lowest() -> tuple[str, ...]:
    """The lower bounds of pyproject.toml, as exact versions."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    bounds = [*project["dependencies"], *project["optional-dependencies"]["cpu"]]
    found = tuple(bound.replace(">=", "==") for bound in bounds if bound.partition(">=")[0] in PACKAGES)
    if len(found) != len(PACKAGES):
        raise SystemExit(f"pyproject.toml has no lower bound for one of {PACKAGES}: {found}")
    return found


def environments() -> list[Environment]:
    """The lowest versions on the lowest Python, the newest on each, and one that is to be refused."""
    pythons = {version: path for version in PYTHONS if (path := python_of(version)) is not None}
    if not pythons:
        raise SystemExit(f"none of Python {', '.join(PYTHONS)} is here")
    first = next(iter(pythons))
    low = lowest()
    found = [Environment(f"py{first}-lowest", pythons[first], low)]
    found += [Environment(f"py{version}-newest", path, PACKAGES) for version, path in pythons.items()]
    old = tuple(f"onnxruntime=={REFUSED}" if one.startswith("onnxruntime=") else one for one in low)
    found.append(Environment(f"py{first}-onnxruntime-{REFUSED}", pythons[first], old, refuses=True))
    return found


def python_of(version: str) -> str | None:
    """A Python of this version on the path, or that pyenv has."""
    if sys.version_info[:2] == tuple(map(int, version.split("."))):
        return sys.executable
    homes = sorted((Path.home() / ".pyenv" / "versions").glob(f"{version}.*/bin/python"))
    return str(homes[-1]) if homes else shutil.which(f"python{version}")


def main(bundles: list[str]) -> int:
    failed = 0
    for environment in environments():
        environment.make()
        for bundle in bundles:
            kind = json.loads((Path(bundle) / "manifest.json").read_text(encoding="utf-8"))["kind"]
            command, *arguments = COMMANDS[kind]
            for run in (("verify", bundle), (command, bundle, *arguments)):
                found = environment.run(*run)
                ok = as_expected(environment, found)
                failed += not ok
                shown = (found.stderr if found.returncode else found.stdout).strip().splitlines() or [""]
                print(
                    f"{'ok' if ok else 'FAIL':<5}{environment.name:<28}{run[0]:<9}{Path(bundle).name:<34}{shown[0]:.90}"
                )
    print("all as expected" if not failed else f"{failed} runs are not as expected")
    return 1 if failed else 0


def as_expected(environment: Environment, found: subprocess.CompletedProcess[str]) -> bool:
    if environment.refuses:
        wanted = f"onnxruntime {REFUSED} is installed, and edgekit needs "
        return found.returncode == MISSING_PART and wanted in found.stderr
    return found.returncode == 0 and bool(found.stdout.strip())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
