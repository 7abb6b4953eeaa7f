from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from ortkit.exporters.checkpoint.safetensors_reader import stored_tensors
from ortkit.exporters.graph.streamed_tensor import StreamedTensor, side_by_side
from ortkit.runtime.errors import CheckpointError


def matrix(rows: int, columns: int, dtype: torch.dtype) -> torch.Tensor:
    torch.manual_seed(rows)
    return (torch.randn(rows, columns) * 10 ** torch.linspace(-6, 4, columns)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_every_type_is_read_as_torch_widens_it(dtype: torch.dtype, tmp_path: Path) -> None:
    weights = {"first": matrix(7, 5, dtype), "second": matrix(3, 9, dtype), "norm": matrix(1, 6, dtype)[0]}
    save_file(weights, tmp_path / "m.safetensors")

    found = stored_tensors([tmp_path / "m.safetensors"])

    assert found.keys() == weights.keys()
    for name, weight in weights.items():
        assert np.array_equal(found[name].read(), weight.float().numpy())
        assert found[name].nbytes == weight.nbytes


def test_tensors_are_found_in_all_shards_and_once(tmp_path: Path) -> None:
    for name in ("a", "b"):
        save_file({name: torch.full((2, 2), float(ord(name)))}, tmp_path / f"{name}.safetensors")
    paths = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    assert {name: found.read()[0, 0] for name, found in stored_tensors(paths).items()} == {"a": 97, "b": 98}

    save_file({"a": torch.zeros(2)}, paths[1])
    with pytest.raises(CheckpointError) as caught:
        stored_tensors(paths)
    assert caught.value.message == "`a` is in `a.safetensors` and in `b.safetensors`"


def test_a_file_that_ends_early_is_told(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    save_file({"only": torch.zeros(100)}, path)
    (tensor,) = stored_tensors([path]).values()
    path.write_bytes(path.read_bytes()[:-4])

    with pytest.raises(CheckpointError) as caught:
        tensor.read()
    assert caught.value.message == f"the weights `{path}` are damaged: they end within `only`"
    assert caught.value.hint == "copy or download the file again"


def test_matrices_side_by_side_are_read_when_they_are_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    weights = {"q": matrix(8, 6, torch.bfloat16), "k": matrix(4, 6, torch.bfloat16)}
    save_file(weights, path)
    stored = stored_tensors([path])
    parts = [StreamedTensor([stored[name]], transposed=True) for name in ("q", "k")]
    content = path.read_bytes()
    path.unlink()

    merged = side_by_side(parts)

    assert isinstance(merged, StreamedTensor)
    assert tuple(merged.shape) == (6, 12)
    path.write_bytes(content)
    assert np.array_equal(merged.numpy(), torch.cat([weights["q"], weights["k"]]).float().T.numpy())


def test_one_matrix_is_the_transpose_of_another_by_their_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ortkit.exporters.checkpoint.safetensors_reader.NUMBERS_AT_ONCE", 10)
    table = matrix(30, 8, torch.float16)
    other = table.clone()
    other[29, 7] = 0
    save_file({"table": table, "same": table.clone(), "other": other}, tmp_path / "m.safetensors")
    stored = stored_tensors([tmp_path / "m.safetensors"])
    vectors = StreamedTensor([stored["table"]], transposed=False)

    assert StreamedTensor([stored["table"]], transposed=True).is_transpose_of(vectors)
    assert StreamedTensor([stored["same"]], transposed=True).is_transpose_of(vectors)
    assert not StreamedTensor([stored["other"]], transposed=True).is_transpose_of(vectors)
    assert not vectors.is_transpose_of(vectors)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_numbers_that_are_none_are_told_with_the_tensors_name(
    dtype: torch.dtype, value: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At its very end, of which a part is looked at on its own."""
    monkeypatch.setattr("ortkit.exporters.checkpoint.safetensors_reader.NUMBERS_AT_ONCE", 16)
    path = tmp_path / "m.safetensors"
    weights = {"good": torch.full((5, 7), 60000.0, dtype=dtype), "bad": torch.zeros(5, 7, dtype=dtype)}
    weights["bad"][4, 6] = value
    save_file(weights, path)
    found = stored_tensors([path])

    found["good"].check_finite()
    for look in (found["bad"].check_finite, found["bad"].read):
        with pytest.raises(CheckpointError) as caught:
            look()
        assert caught.value.message == f"the weights `{path}` are damaged: `bad` holds NaN or infinite numbers"
        assert caught.value.exit_code == 7


def test_a_number_beyond_float32(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    save_file({"wide": torch.tensor([1e300], dtype=torch.float64)}, path)

    with pytest.raises(CheckpointError, match="`wide` holds NaN or infinite numbers"):
        stored_tensors([path])["wide"].check_finite()
