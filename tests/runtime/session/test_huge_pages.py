from __future__ import annotations

import mmap
import platform
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx.external_data_helper import set_external_data

from ortkit.runtime.bundle.manifest import Provider
from ortkit.runtime.session.config import SessionConfig
from ortkit.runtime.session.huge_pages import (
    HUGE_PAGE,
    Region,
    give_back,
    mapped_regions,
    move_to_huge_pages,
    own_bytes,
)
from ortkit.runtime.session.session import Session

LISTING = """\
55d0c8a00000-55d0c8c00000 rw-p 00000000 00:00 0                          [heap]
7f0000000000-7f0000001000 r--p 00000000 fe:00 12                         /tmp/a folder/model.onnx.data
7f0000001000-7f0000003000 rw-p 00000000 00:00 0
7f0000003000-7f0000004000 ---p 00000000 00:00 0
"""
SMAPS = Path("/proc/self/smaps")
linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux lists mapped regions")


def resident(path: Path) -> int:
    """Bytes of a file that lie in this process's memory, counted for each time it is mapped."""
    total, inside = 0, False
    for line in SMAPS.read_text().splitlines():
        name, *values = line.split(maxsplit=5)
        if not name.endswith(":"):
            inside = values[-1] == str(path)
        elif name == "Rss:" and inside:
            total += int(values[0]) * 1024
    return total


def test_regions_are_read_with_their_files(tmp_path: Path) -> None:
    (tmp_path / "maps").write_text(LISTING)

    assert mapped_regions(tmp_path / "maps") == [
        Region(0x55D0C8A00000, 0x55D0C8C00000, None),
        Region(0x7F0000000000, 0x7F0000001000, "/tmp/a folder/model.onnx.data"),
        Region(0x7F0000001000, 0x7F0000003000, None),
    ]


def test_a_system_that_does_not_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ortkit.runtime.session.huge_pages.mapped_regions", lambda: mapped_regions(tmp_path / "none"))

    assert mapped_regions(tmp_path / "none") == []
    assert give_back(tmp_path) == 0
    assert move_to_huge_pages([]) == 0


@linux
@pytest.mark.parametrize("told", [None, bytes(8)])
def test_a_system_without_proc(told: bytes | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if told is not None:
        (tmp_path / "pagemap").write_bytes(told)
    monkeypatch.setattr(
        "ortkit.runtime.session.huge_pages.own_bytes", lambda regions: own_bytes(regions, tmp_path / "pagemap")
    )
    monkeypatch.setattr("ortkit.runtime.session.huge_pages.WORTH_MOVING", 0)
    (tmp_path / "weights").write_bytes(bytes(1 << 16))
    with (tmp_path / "weights").open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ):
        assert give_back(tmp_path) == 0
        assert move_to_huge_pages([]) == 0


@linux
def test_mapped_pages_are_given_back_and_read_again_when_they_are_used(tmp_path: Path) -> None:
    numbers = np.random.default_rng(3).integers(0, 256, 1 << 22).astype(np.uint8)
    path = tmp_path / "weights"
    path.write_bytes(numbers.tobytes())
    mapped = np.memmap(path, np.uint8, "r")
    assert np.array_equal(mapped, numbers)
    assert resident(path) == path.stat().st_size

    assert give_back(tmp_path) == path.stat().st_size

    assert resident(path) == 0
    assert np.array_equal(mapped, numbers)


@linux
def test_pages_that_were_written_to_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_bytes(bytes(1 << 16))
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) as mapped:
        mapped[100] = 7

        assert [own_bytes([region])[0] for region in mapped_regions() if region.file == str(path)] == [mmap.PAGESIZE]
        assert give_back(tmp_path) == 0
        assert mapped[100] == 7


@linux
def test_memory_keeps_its_content_on_huge_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    before = mapped_regions()
    # Mapped by itself, as large weights are: the allocator may have room for an array where there was one before.
    numbers = np.frombuffer(mmap.mmap(-1, 8 * HUGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS), np.int32)
    numbers[:] = np.arange(len(numbers))
    expected = int(numbers.sum(dtype=np.int64))
    # The system may have joined it to what lies beside it, so how much there is to move is not known.
    monkeypatch.setattr("ortkit.runtime.session.huge_pages.WORTH_MOVING", 1 << 50)
    assert move_to_huge_pages(before) == 0, "too little to be worth it"
    monkeypatch.setattr("ortkit.runtime.session.huge_pages.WORTH_MOVING", HUGE_PAGE)

    done = move_to_huge_pages(before)

    assert int(numbers.sum(dtype=np.int64)) == expected
    major, minor = map(int, platform.release().split(".")[:2])
    if (major, minor) >= (6, 1):
        assert done >= 6 * HUGE_PAGE


@linux
def test_a_decoders_session_keeps_no_page_of_what_it_packed_and_computes_the_same(tmp_path: Path) -> None:
    """Against the product with the weights that the blocks stand for."""
    width, outputs, block = 1024, 2048, 64
    rng = np.random.default_rng(5)
    levels = rng.integers(0, 16, (outputs, width)).astype(np.uint8)
    scales = rng.uniform(0.5, 1, (outputs, width // block)).astype(np.float32)
    zeros = rng.integers(0, 16, (outputs, width // block)).astype(np.uint8)
    constants = {
        "levels": (levels[:, ::2] | levels[:, 1::2] << 4).reshape(outputs, -1, block // 2),
        "scales": scales,
        "zeros": zeros[:, ::2] | zeros[:, 1::2] << 4,
    }
    node = onnx.helper.make_node(
        "MatMulNBits",
        ["rows", *constants],
        ["product"],
        domain="com.microsoft",
        K=width,
        N=outputs,
        bits=4,
        block_size=block,
        accuracy_level=4,
    )
    tensors = [onnx.numpy_helper.from_array(array, name) for name, array in constants.items()]
    graph = onnx.helper.make_graph(
        [node],
        "product",
        [onnx.helper.make_tensor_value_info("rows", onnx.TensorProto.FLOAT, ["rows", width])],
        [onnx.helper.make_tensor_value_info("product", onnx.TensorProto.FLOAT, ["rows", outputs])],
        tensors,
    )
    for tensor in tensors:
        set_external_data(tensor, "model.onnx.data")
    opsets = [onnx.helper.make_opsetid("", 20), onnx.helper.make_opsetid("com.microsoft", 1)]
    graph_file = tmp_path / "model.onnx"
    model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10)
    onnx.save(model, graph_file, save_as_external_data=True, location="model.onnx.data", size_threshold=0)

    session = Session(graph_file, SessionConfig(Provider.CPU, ("rows",), threads=1))

    assert resident(tmp_path / "model.onnx.data") == 0
    rows = rng.normal(size=(3, width)).astype(np.float32)
    differences = levels.reshape(outputs, -1, block).astype(np.float32) - zeros[:, :, None]
    weights = (scales[:, :, None] * differences).reshape(outputs, width)
    expected = rows @ weights.T
    # Activations are rounded to 8 bits.
    assert np.abs(session.run({"rows": rows}) - expected).max() < 0.02 * np.abs(expected).max()


def test_a_path_may_contain_line_separators(tmp_path: Path) -> None:
    line = "7f0000000000-7f0000001000 r--p 00000000 08:01 42                         {}\n"
    paths = ["/tmp/a\u2028b", "/tmp/a\rb", "/tmp/a\x85b\x0c"]
    (tmp_path / "maps").write_bytes("".join(line.format(path) for path in paths).encode())

    assert [region.file for region in mapped_regions(tmp_path / "maps")] == paths
