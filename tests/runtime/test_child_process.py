"""Processes of this Python: what is in the current folder, which may be a stick from elsewhere, is not executed."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ortkit.exporters.packaging.pip_download import Pip
from ortkit.runtime.child_process import python_command
from ortkit.runtime.verify import verify
from ortkit.toolkit.commands.bench_worker import measure_apart
from ortkit.toolkit.doctor.packages import import_all
from tests.tiny_bundles import write_embedder

MODULES = ("json", "pip", "encodings", "re", "resource", "signal")
"""Modules that a process imports by itself, or that ours and pip import first."""


@pytest.fixture
def stick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: each of its modules leaves a file when it is executed."""
    folder = tmp_path / "stick"
    folder.mkdir()
    for name in MODULES:
        (folder / f"{name}.py").write_text(f"open({str(tmp_path / 'executed')!r}, 'a').write('{name} ')\n")
    monkeypatch.chdir(folder)
    return folder


USERS: dict[str, Callable[[Path], object]] = {
    "verify": lambda folder: verify(write_embedder(folder / "bundle")),
    "bench": lambda folder: measure_apart(write_embedder(folder / "bundle"), seconds=0.01, max_memory=None),
    "doctor": lambda _: import_all(["click"]),
    "pip": lambda folder: Pip(folder).run("--version"),
}


@pytest.mark.usefixtures("stick")
@pytest.mark.parametrize("name", USERS)
def test_nothing_in_the_current_folder_is_executed(name: str, tmp_path: Path) -> None:
    USERS[name](tmp_path)

    assert not (tmp_path / "executed").exists()


def test_an_isolated_process_starts_isolated_ones() -> None:
    code = "from ortkit.runtime.child_process import python_command; print(python_command('-c', 'x'))"
    path = f"import sys; sys.path[:] = {sys.path!r}; "

    for flag, passed_on in (("-I", "-I"), ("-P", "-P")):
        shown = subprocess.run([sys.executable, flag, "-c", path + code], capture_output=True, text=True, check=True)
        assert shown.stdout == f"{[sys.executable, passed_on, '-c', 'x']}\n"
    assert python_command("-c", "x")[0] == sys.executable
