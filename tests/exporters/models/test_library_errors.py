from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from ortkit.exporters.models.library_errors import library_errors
from ortkit.runtime.errors import CheckpointError, UnsupportedModelError


def raised_for(error: BaseException) -> BaseException:
    with pytest.raises(BaseException) as caught, library_errors("`model` cannot be loaded"):
        raise error
    return caught.value


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (KeyError("hidden_size"), "`model` cannot be loaded: 'hidden_size'"),
        (RuntimeError("shapes differ\nin many lines"), "`model` cannot be loaded: shapes differ in many lines"),
        (AssertionError(), "`model` cannot be loaded: AssertionError"),
        (OSError("no file named model.safetensors"), "`model` cannot be loaded: no file named model.safetensors"),
        (FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT)), "`model` cannot be loaded: [Errno 2] No such"),
    ],
)
def test_what_a_checkpoint_causes_is_its_error(error: Exception, message: str) -> None:
    found = raised_for(error)
    assert isinstance(found, CheckpointError)
    assert str(found).startswith(message)
    assert found.__cause__ is error


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
        OSError(errno.EMFILE, os.strerror(errno.EMFILE)),
        OSError(errno.EFBIG, os.strerror(errno.EFBIG)),
        PermissionError(errno.EACCES, os.strerror(errno.EACCES)),
        UnsupportedModelError("reported already"),
        KeyboardInterrupt(),
    ],
)
def test_what_the_machine_causes_is_not(error: BaseException) -> None:
    assert raised_for(error) is error


def test_what_pytorch_raises_without_memory_is_a_memory_error() -> None:
    with pytest.raises(MemoryError), library_errors("`model` cannot be loaded"):
        torch.empty(1 << 60, dtype=torch.int8)


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (lambda: torch.empty(1 << 60, dtype=torch.int8), 9, "error: not enough memory"),
        (lambda: os.write(os.open("/dev/full", os.O_WRONLY), b"text"), 1, "No space left on device"),
    ],
)
def test_an_export_says_what_the_machine_lacks(
    error: Callable[[], object],
    code: int,
    message: str,
    checkpoint: Path,
    tmp_path: Path,
    ortkit: Callable,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Not that the checkpoint is damaged."""

    def without(*_: object, **__: object) -> object:
        return error()

    monkeypatch.setattr("sentence_transformers.SentenceTransformer.encode", without)
    done = ortkit("export", str(checkpoint), "--out", str(tmp_path / "bundle"))

    assert done.code == code
    assert message in done.err
    assert "sentence-transformers" not in done.err
    assert not (tmp_path / "bundle").exists()
