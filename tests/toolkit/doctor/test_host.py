"""What the checks know of this machine, and readers of single files of it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from ortkit.runtime.session.memory import Limit
from ortkit.toolkit.doctor.host import (
    Swap,
    find_swap,
    find_temporary,
    find_token_files,
    initial_environment,
    limit_of_variable,
    look_at_folder,
    look_at_host,
)


def test_this_machine() -> None:
    host = look_at_host()

    assert host.python == sys.version_info[:3]
    assert host.bits == 64
    assert host.imports["numpy"].version == np.__version__
    assert host.imports["onnxruntime"].version == onnxruntime.__version__
    assert all(imported.works for imported in host.imports.values())
    assert {package.name for package in host.packages} >= {"numpy", "tokenizers", "click", "jinja2"}
    assert host.now > host.newest_file > 1_700_000_000
    assert host.temporary is not None
    assert host.temporary.writable


@pytest.mark.skipif(sys.platform != "linux", reason="the files are Linux's")
def test_this_linux() -> None:
    host = look_at_host()

    assert host.libc.version >= (2, 28)
    assert host.cpu_flags
    assert host.available_memory is not None
    assert (host.total_memory or 0) > host.available_memory.left > 1 << 20
    assert host.swap is not None


def test_the_environment_at_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "environ").write_bytes(b"A=1\0B=x=y\0no equals sign\0C=\xff\0")
    monkeypatch.setenv("SET_LATER", "1")

    assert initial_environment(tmp_path / "environ") == {"A": "1", "B": "x=y", "C": "\udcff"}
    assert initial_environment(tmp_path / "none")["SET_LATER"] == "1"


def test_the_limit_of_the_environment() -> None:
    assert list(limit_of_variable({"ORTKIT_MAX_MEMORY": "512M"})) == [Limit(512 << 20, "ORTKIT_MAX_MEMORY")]
    assert list(limit_of_variable({"ORTKIT_MAX_MEMORY": "much"})) == list(limit_of_variable({})) == []


def test_swap(tmp_path: Path) -> None:
    (tmp_path / "meminfo").write_text("MemTotal: 100 kB\nSwapTotal: 2048 kB\nSwapFree:  1024 kB\n")

    assert find_swap(tmp_path / "meminfo") == Swap(2 << 20, 1 << 20)
    assert find_swap(tmp_path / "none") is None


def test_folders(tmp_path: Path) -> None:
    found = look_at_folder(tmp_path)
    assert (found.exists, found.writable, found.open_to_others) == (True, True, False)
    assert (found.free or 0) > 0

    missing = look_at_folder(tmp_path / "a" / "b")
    assert (missing.exists, missing.writable) == (False, True)
    assert missing.free is not None

    tmp_path.chmod(0o777)
    assert look_at_folder(tmp_path).open_to_others
    tmp_path.chmod(0o1777)
    assert not look_at_folder(tmp_path).open_to_others


def test_a_read_only_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Where root runs the tests, no mode makes a folder read-only.
    allowed = os.access
    monkeypatch.setattr("os.access", lambda path, mode: not mode & os.W_OK and allowed(path, mode))

    found = look_at_folder(tmp_path)

    assert (found.exists, found.writable) == (True, False)


def test_a_name_that_is_too_long(tmp_path: Path) -> None:
    found = look_at_folder(tmp_path / ("x" * 5000))

    assert (found.exists, found.writable, found.free) == (False, False, None)


def test_no_temporary_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> str:
        raise FileNotFoundError("No usable temporary directory found")

    monkeypatch.setattr("tempfile.gettempdir", none)
    assert find_temporary() is None


def test_token_files(tmp_path: Path) -> None:
    (tmp_path / "huggingface").mkdir()
    token = tmp_path / "huggingface" / "token"
    token.write_text("hf_secret")

    assert find_token_files({"XDG_CACHE_HOME": str(tmp_path)}) == (str(token),)
    assert find_token_files({"HF_HOME": str(tmp_path / "huggingface")}) == (str(token),)
    assert find_token_files({"HF_TOKEN_PATH": str(token), "HF_HOME": "/none"}) == (str(token),)
    assert find_token_files({"HOME": str(tmp_path)}) == ()
