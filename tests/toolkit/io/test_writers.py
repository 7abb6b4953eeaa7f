from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ortkit import Bundle
from ortkit.toolkit.io.writers import NpyPipeWriter, NpyWriter, object_to_json, write_ranges

EMBED = f"{sys.executable} -m ortkit embed"


def saved(array: np.ndarray) -> bytes:
    """As numpy writes it."""
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8", "uint8"])
@pytest.mark.parametrize("rows", [0, 1, 7])
def test_npy_is_as_numpy_writes_it(rows: int, dtype: str) -> None:
    vectors = np.arange(rows * 5).reshape(rows, 5).astype(dtype)
    for writer_class in (NpyPipeWriter, NpyWriter):
        file = io.BytesIO()
        writer = writer_class(file, vectors[:0])
        for part in (vectors[:3], vectors[3:]):
            writer.write([], part)
        writer.close()
        assert file.getvalue() == saved(vectors)


@pytest.mark.parametrize("order", ["C", "F"])
def test_ranges_are_as_numpy_writes_them(tmp_path: Path, order: str) -> None:
    ranges = np.array([[-1, -2, -3], [1, 2, 3]], np.float32)

    write_ranges(tmp_path / "ranges.npy", np.asarray(ranges, order=order))

    assert (tmp_path / "ranges.npy").read_bytes() == saved(ranges)


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_leaves_ends_npy_quietly(tiny_bundle: Bundle, unbuffered: str) -> None:
    """Also under PYTHONUNBUFFERED, when a write is partial."""
    script = f"seq 1 1000 | {EMBED} {tiny_bundle.path} --format npy | head -c 6; echo ${{PIPESTATUS[1]}}"
    env = os.environ | {"PYTHONUNBUFFERED": unbuffered}

    finished = subprocess.run(["bash", "-c", script], capture_output=True, check=False, env=env)

    assert finished.stdout == b"\x93NUMPY141\n"
    assert finished.stderr == b""


def test_a_file_that_may_not_grow_says_so(tiny_bundle: Bundle, tmp_path: Path) -> None:
    output = tmp_path / "out.npy"
    script = f"ulimit -f 8; {EMBED} {tiny_bundle.path} --output {output} $(seq 1 200)"

    finished = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False)

    assert finished.returncode == 1
    assert finished.stderr == f"error: `{output}` cannot be written: File too large\n"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
@pytest.mark.parametrize("text", ["a", "\ud800"])
def test_values_that_are_not_json_are_not_written(number: float, text: str) -> None:
    assert json.loads(object_to_json({"text": text, "x": 1e308})) == {"text": text, "x": 1e308}
    with pytest.raises(ValueError, match="not JSON compliant"):
        object_to_json({"text": text, "x": number})
