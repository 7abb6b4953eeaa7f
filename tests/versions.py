"""Bundles on the lowest and the newest versions of the runtime's packages that are allowed, and on each Python here.

`python -m tests.versions BUNDLE...` makes an environment for each, runs `verify` and the command of each bundle's kind
in it, and sees that onnxruntime below the lowest is refused. `--onnxruntime VERSION`, any number of times, runs them
with these versions instead. Needs a package registry; prints a line for each run.
"""

from __future__ import annotations

import argparse
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
    refused: str | None = None
    """The version of onnxruntime that is to be refused."""

    @property
    def folder(self) -> Path:
        return ENVIRONMENTS / self.name

    @property
    def executable(self) -> Path:
        return self.folder / "bin" / "python"

    def make(self) -> None:
        """Make it, or what of it is not there; packages without a version are brought up to date."""
        done = self.folder / "requirements.txt"
        wanted = "\n".join((self.python, *self.requirements))
        pinned = all("==" in requirement for requirement in self.requirements)
        if pinned and done.exists() and done.read_text(encoding="utf-8") == wanted:
            return
        done.unlink(missing_ok=True)
        subprocess.run([self.python, "-m", "venv", self.folder], check=True)
        pip = [self.executable, "-m", "pip", "install", "-qq", "--disable-pip-version-check", "--only-binary=:all:"]
        command = [*pip, "--upgrade", *self.requirements]
        # Registries fail now and then.
        if subprocess.run(command, check=False).returncode:
            subprocess.run(command, check=True)
        done.write_text(wanted, encoding="utf-8")

    def versions(self) -> str:
        """Of the packages, as they are installed."""
        code = f"from importlib.metadata import version; print(*(f'{{name}} {{version(name)}}' for name in {PACKAGES}))"
        found = subprocess.run([self.executable, "-c", code], capture_output=True, text=True, check=True)
        return found.stdout.strip()

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        environment |= {"PYTHONPATH": str(REPOSITORY), "ORT_DISABLE_TELEMETRY": "1", "PYTHONWARNINGS": "error"}
        command = [str(self.executable), "-m", "ortkit", *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL)  # noqa: PLW1510 - the caller looks at the exit code


def lowest() -> tuple[str, ...]:
    """The lower bounds of pyproject.toml, as exact versions."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    bounds = [*project["dependencies"], *project["optional-dependencies"]["cpu"]]
    found = tuple(bound.replace(">=", "==") for bound in bounds if bound.partition(">=")[0] in PACKAGES)
    if len(found) != len(PACKAGES):
        raise SystemExit(f"pyproject.toml has no lower bound for one of {PACKAGES}: {found}")
    return found


def with_onnxruntime(requirements: tuple[str, ...], version: str) -> tuple[str, ...]:
    """The requirements with this version of onnxruntime."""
    return tuple(f"onnxruntime=={version}" if one.startswith("onnxruntime") else one for one in requirements)


def numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))


def environments(onnxruntimes: list[str]) -> list[Environment]:
    """The lowest versions on the lowest Python, the newest on each, and one that is to be refused.

    Of the versions of onnxruntime that are named, one environment each, on the lowest Python.
    """
    pythons = {version: path for version in PYTHONS if (path := python_of(version)) is not None}
    if not pythons:
        raise SystemExit(f"none of Python {', '.join(PYTHONS)} is here")
    first = next(iter(pythons))
    low = lowest()
    bound = numbers(next(one.partition("==")[2] for one in low if one.startswith("onnxruntime")))

    def of_onnxruntime(version: str) -> Environment:
        # All in one folder, where each takes the place of the one before.
        refused = version if numbers(version) < bound else None
        return Environment(f"py{first}-onnxruntime", pythons[first], with_onnxruntime(low, version), refused)

    if onnxruntimes:
        return [of_onnxruntime(version) for version in onnxruntimes]
    newest = [Environment(f"py{version}-newest", path, PACKAGES) for version, path in pythons.items()]
    return [Environment(f"py{first}-lowest", pythons[first], low), *newest, of_onnxruntime(REFUSED)]


def python_of(version: str) -> str | None:
    """A Python of this version on the path, or that pyenv has."""
    if sys.version_info[:2] == tuple(map(int, version.split("."))):
        return sys.executable
    homes = sorted((Path.home() / ".pyenv" / "versions").glob(f"{version}.*/bin/python"))
    return str(homes[-1]) if homes else shutil.which(f"python{version}")


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("bundles", nargs="+", metavar="BUNDLE")
    parser.add_argument("--onnxruntime", action="append", default=[], metavar="VERSION")
    options = parser.parse_args(argv)
    failed = 0
    for environment in environments(options.onnxruntime):
        environment.make()
        print(f"{environment.name}: {environment.versions()}", flush=True)
        for bundle in options.bundles:
            kind = json.loads((Path(bundle) / "manifest.json").read_text(encoding="utf-8"))["kind"]
            command, *arguments = COMMANDS[kind]
            for run in (("verify", bundle), (command, bundle, *arguments)):
                found = environment.run(*run)
                ok = as_expected(environment, found)
                failed += not ok
                print(f"{'ok' if ok else 'FAIL':<5}{run[0]:<9}{Path(bundle).name:<34}{told(found):.110}", flush=True)
    print("all as expected" if not failed else f"{failed} runs are not as expected")
    return 1 if failed else 0


def told(found: subprocess.CompletedProcess[str]) -> str:
    """The line that says most of a run."""
    lines = (found.stderr if found.returncode else found.stdout).strip().splitlines() or [""]
    return next((line for line in lines if line.startswith("certificate")), lines[0])


def as_expected(environment: Environment, found: subprocess.CompletedProcess[str]) -> bool:
    if environment.refused is not None:
        wanted = f"onnxruntime {environment.refused} is installed, and ortkit needs "
        return found.returncode == MISSING_PART and wanted in found.stderr
    return found.returncode == 0 and bool(found.stdout.strip())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
