from __future__ import annotations

import tomllib
from importlib import metadata
from pathlib import Path

import onnxruntime
import pytest

from ortkit.runtime.session.cuda import find_libraries
from ortkit.runtime.session.onnxruntime_import import OLDEST_ONNXRUNTIME
from ortkit.runtime.session.packages import NVIDIA, REQUIREMENTS, conflict, install_command, installed

PROJECT = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text("utf-8"))


@pytest.mark.parametrize("provider", REQUIREMENTS)
def test_errors_name_what_the_extra_installs(provider: str) -> None:
    extra = PROJECT["project"]["optional-dependencies"][provider]

    assert [requirement.partition(";")[0].strip() for requirement in extra] == list(REQUIREMENTS[provider])
    # Each in quotes: a shell takes `>` for a redirection and `~` for a home folder.
    assert install_command(provider).split(" ")[2:] == [f"'{requirement}'" for requirement in REQUIREMENTS[provider]]


def test_the_extras_that_exclude_each_other() -> None:
    """Those with different packages of the same module."""
    stated = {frozenset(one["extra"] for one in pair) for pair in PROJECT["tool"]["uv"]["conflicts"]}
    packages = {provider: names[0].partition(">")[0] for provider, names in REQUIREMENTS.items()}

    assert stated == {
        frozenset((first, second)) for first in packages for second in packages if packages[first] != packages[second]
    }
    assert all(names[0].partition(">=")[2] >= OLDEST_ONNXRUNTIME for names in REQUIREMENTS.values())


def test_what_is_installed_here() -> None:
    """The package that the tests run with, and only that one."""
    assert list(installed().values()) == [onnxruntime.__version__]
    assert conflict(installed(), "cpu") is None
    assert installed(["numpy", "no-such-package"]) == {"numpy": metadata.version("numpy")}


def test_three_packages() -> None:
    problem = conflict({"onnxruntime": "1", "onnxruntime-gpu": "2", "ort-nightly": "3"}, "cpu")

    assert problem is not None
    assert problem.message == (
        "`onnxruntime` 1, `onnxruntime-gpu` 2 and `ort-nightly` 3 are installed over each other: all have the module "
        "`onnxruntime`"
    )
    assert problem.hint == (
        "run `pip uninstall -y onnxruntime onnxruntime-gpu ort-nightly`, then `pip install 'onnxruntime>=1.30'`"
    )


def test_libraries_come_from_the_packages_of_the_environment_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "libcudart.so.13").touch()
    monkeypatch.setattr("ortkit.runtime.session.cuda._package_folders", lambda _: [tmp_path])
    loaded: list[str] = []

    found = find_libraries(13, loaded.append)

    assert loaded == [
        str(tmp_path / "libcudart.so.13"),
        "libcublasLt.so.13",
        "libcublas.so.13",
        "libcurand.so.10",
        "libcudnn.so.9",
    ]
    assert [library.error for library in found] == [None] * 5
    assert {library.package for library in found} == set(NVIDIA)
