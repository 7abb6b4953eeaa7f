"""Collect the wheelhouses of every target for real, and look into the wheels: `make test-wheelhouses`.

`python -m tests.wheelhouse.download [--target NAME] [--python VERSION] [--bundle BUNDLE]` needs a package registry; of
the CUDA sets it prints the sizes alone. For each wheel it compares the tags in its name with those inside, and of each
library the versions of glibc that its symbols need with what `wheelhouse.json` says. The wheelhouse for this machine is
installed offline in an environment of its own, and runs `verify BUNDLE`.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from email.parser import Parser
from pathlib import Path

from packaging.tags import parse_tag
from packaging.utils import parse_wheel_filename

from ortkit.exporters.packaging.own_wheel import own_wheel
from ortkit.exporters.packaging.pip_download import Pip
from ortkit.exporters.packaging.wheel_target import PYTHONS, TARGETS, Target, parse_target
from ortkit.exporters.packaging.wheelhouse import Wheelhouse, collect, plan_wheelhouse
from ortkit.runtime.errors import InputError

OFFLINE = ["unshare", "--map-root-user", "--net"]
GLIBC = re.compile(rb"\bGLIBC_2\.(\d+)")


def problems_of(folder: Path) -> list[str]:
    """What is wrong with a wheelhouse: tags inside of wheels, and symbols of their libraries."""
    found = Wheelhouse.open(folder)
    limit = int(found.glibc.partition(".")[2]) if found.glibc is not None else None
    problems = []
    for wheel in found.wheels:
        with zipfile.ZipFile(folder / wheel.file) as archive:
            (name,) = [name for name in archive.namelist() if re.fullmatch(r"[^/]+\.dist-info/WHEEL", name)]
            inside = Parser().parsestr(archive.read(name).decode()).get_all("Tag", [])
            tags = {tag for text in inside for tag in parse_tag(text)}
            if not tags & parse_wheel_filename(wheel.file)[3]:
                problems.append(f"{wheel.file}: its WHEEL has the tags {inside}")
            libraries = [name for name in archive.namelist() if re.search(r"\.so(\.|$)", name)]
            for library in libraries if limit is not None else ():
                needed = max(map(int, GLIBC.findall(archive.read(library))), default=0)
                if limit is not None and needed > limit:
                    problems.append(f"{wheel.file}: {library} needs glibc 2.{needed}, not 2.{limit}")
    return problems


def is_here(target: Target) -> bool:
    return target.name == f"{sys.platform}-{os.uname().machine}" and target.python == sys.version_info[:2]


def install_and_run(folder: Path, bundle: str | None, scratch: Path) -> str:
    """Install a wheelhouse without any network interface, and run `ortkit`; what it printed last."""
    environment = {"PATH": os.environ["PATH"], "PIP_CONFIG_FILE": os.devnull}
    python = scratch / "venv" / "bin" / "python"
    offline = OFFLINE if shutil.which("unshare") else []
    command = ["verify", str(Path(bundle).absolute())] if bundle is not None else ["--version"]
    for step in (
        [sys.executable, "-m", "venv", str(scratch / "venv")],
        [*offline, python, "-m", "pip", "install", "-q", "--no-deps", "-r", str(folder / "requirements.txt")],
        [*offline, python, "-m", "ortkit", *command],
    ):
        finished = subprocess.run(step, env=environment, cwd=scratch, capture_output=True, text=True, check=False)
        if finished.returncode != 0:
            raise SystemExit(f"{step} ended with {finished.returncode}: {finished.stdout}{finished.stderr}")
    return finished.stdout.strip().splitlines()[-1]


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--target", action="append", choices=TARGETS)
    parser.add_argument("--python", action="append", metavar="VERSION")
    parser.add_argument("--bundle")
    options = parser.parse_args(argv)
    failed = 0
    with tempfile.TemporaryDirectory() as scratch:
        own = own_wheel(None, Path(scratch) / "own", Pip(Path(scratch)))
        for name in options.target or TARGETS:
            for python in options.python or [f"{major}.{minor}" for major, minor in PYTHONS]:
                target = parse_target(name, python)
                folder = Path(scratch) / f"{name}-{python}"
                began = time.monotonic()
                plan = plan_wheelhouse(target, "cpu", ["serve", "sign"])
                found = collect(plan, folder, ortkit_wheel=own).wheelhouse
                seconds = time.monotonic() - began
                problems = problems_of(folder)
                failed += len(problems)
                floor = f"glibc {found.glibc}" if found.glibc else f"macOS {found.macos}" if found.macos else ""
                print(f"{target.name:<14} {python}  {len(found.wheels)} wheels, {found.size / 1e6:5.1f} MB, "
                      f"{seconds:4.1f} s  {floor}", *problems, sep="\n  " if problems else "", flush=True)  # fmt: skip
                if is_here(target):
                    print(f"  installed offline: {install_and_run(folder, options.bundle, Path(scratch))}", flush=True)
        for name in ("linux-x86_64", "linux-aarch64"):
            for glibc in ("2.28", "2.34"):
                print(f"{name:<14} cuda, glibc {glibc}: {size_of_cuda(name, glibc)}")
    print("all as expected" if not failed else f"{failed} problems")
    return 1 if failed else 0


def size_of_cuda(name: str, glibc: str) -> str:
    try:
        plan = plan_wheelhouse(parse_target(name, "3.12", glibc), "cuda")
    except InputError as error:
        return f"refused: {error.message}"
    return f"{len(plan.pins)} wheels, {plan.size / 1e6:.0f} MB"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
