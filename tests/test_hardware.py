"""The tests of tests/hardware.py: what is skipped says why, and is counted."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.hardware import MARKS, not_run

ROOT = Path(__file__).parents[1]
SUITE = '''
import pytest

@pytest.mark.gpu
def test_gpu():
    """The numbers of a GPU."""
    raise AssertionError("it ran")

@pytest.mark.coreml
@pytest.mark.parametrize("value", [1, 2])
def test_coreml(value):
    """The numbers of a Mac."""
    raise AssertionError("it ran")

@pytest.mark.skip(reason="something else")
def test_other():
    pass

def test_passes():
    pass
'''


def pytest_in(folder: Path, suite: str, *arguments: str, available: str = "") -> str:
    """Run a suite in a folder with the plugin; `available` are marks whose provider is there."""
    (folder / "test_suite.py").write_text(suite)
    (folder / "conftest.py").write_text(
        "import tests.hardware\n"
        "from tests.hardware import pytest_terminal_summary\n"
        "from tests.hardware import skip_without_hardware as pytest_collection_modifyitems\n"
        f"missing = {{'cuda': 'no cuda', 'coreml': 'no coreml'}} | dict.fromkeys({available.split()!r})\n"
        "tests.hardware.what_is_missing = lambda provider: missing[provider]\n"
    )
    (folder / "pytest.ini").write_text("[pytest]\nmarkers =\n    gpu: x\n    coreml: x\n")
    command = [sys.executable, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", *arguments, str(folder)]
    finished = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, check=False, env={"PYTHONPATH": str(ROOT), "PATH": ""}
    )
    return finished.stdout + finished.stderr


@pytest.mark.parametrize("arguments", [(), pytest.param(("--numprocesses", "2"), marks=pytest.mark.slow)])
def test_they_are_skipped_with_a_reason_and_counted(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    """In one process, and in several."""
    shown = pytest_in(tmp_path, SUITE, *arguments)

    assert "gpu: would check: The numbers of a GPU. (no cuda)" in shown
    assert "coreml: would check: The numbers of a Mac. (no coreml)" in shown
    assert "not run here: 1 gpu, 2 coreml" in shown
    assert "1 passed, 4 skipped" in shown


def test_they_run_where_the_provider_is(tmp_path: Path) -> None:
    shown = pytest_in(tmp_path, SUITE, available="cuda coreml")

    assert "3 failed, 1 passed, 1 skipped" in shown
    assert "not run here" not in shown


def test_one_that_does_not_say_what_it_checks(tmp_path: Path) -> None:
    shown = pytest_in(tmp_path, "import pytest\n\n@pytest.mark.gpu\ndef test_gpu():\n    pass\n")

    assert "test_gpu: the docstring must say what it checks on the hardware" in shown


def test_the_marks_are_declared(pytestconfig: pytest.Config) -> None:
    declared = {line.partition(":")[0] for line in pytestconfig.getini("markers")}

    assert set(MARKS) <= declared
    assert not_run([]) is None
