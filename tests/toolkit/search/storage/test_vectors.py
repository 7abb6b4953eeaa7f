"""Vectors on disk, and exact search in them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from ortkit import BundleError
from ortkit.toolkit.search.storage import vectors
from ortkit.toolkit.search.storage.index_file import SegmentRecord
from ortkit.toolkit.search.storage.vectors import (
    Segment,
    SegmentWriter,
    Vectors,
    mapped,
    segments_to_merge,
    unit_rows,
    write_int8_copy,
)

WIDTH = 24


def random_rows(count: int, seed: int = 0) -> NDArray[np.float32]:
    return unit_rows(np.random.default_rng(seed).normal(0, 1, (count, WIDTH)).astype(np.float32))


def written(folder: Path, number: int, rows: NDArray[np.float32], *, int8: bool) -> Segment:
    writer = SegmentWriter(folder / f"vectors-{number}.npy", WIDTH)
    writer.append(rows)
    writer.finish()
    record = SegmentRecord(number, len(rows))
    return Segment.open(folder, write_int8_copy(folder, record, WIDTH) if int8 else record, WIDTH)


def test_a_segment_that_grows(tmp_path: Path) -> None:
    """numpy reads it, however often it was opened again; rows of a run that was killed before its commit are gone."""
    rows = random_rows(10)
    path = tmp_path / "vectors-1.npy"
    first = SegmentWriter(path, WIDTH)
    first.append(rows[:3])
    first.append(rows[3:5])
    np.testing.assert_array_equal(first.read(4), rows[4])
    first.append(rows[:2])
    first.close()
    second = SegmentWriter(path, WIDTH, rows=5)
    second.append(rows[5:])
    second.finish()
    np.testing.assert_array_equal(np.load(path, allow_pickle=False), rows)


@pytest.mark.parametrize("int8", [False, True])
def test_the_nearest_are_those_of_numpy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, int8: bool) -> None:
    monkeypatch.setattr(vectors, "_BLOCK_BYTES", 7 * WIDTH * 4)
    parts = [random_rows(count, seed) for seed, count in enumerate((301, 1, 57))]
    segments = [written(tmp_path, number, rows, int8=int8) for number, rows in enumerate(parts, 1)]
    everything = np.concatenate(parts)
    chunks = np.arange(1, len(everything) + 1)
    chunks[::5] = 0
    files = np.where(chunks > 0, chunks % 3 + 1, 0)
    stored = Vectors(segments, chunks, files)
    for seed in range(5):
        query = random_rows(1, 100 + seed)[0]
        exact = everything.astype(np.float64) @ query.astype(np.float64)
        for allowed in (None, [False, True, True, True], [False, False, True, False], [False] * 4):
            flags = None if allowed is None else np.array(allowed)
            usable = (chunks > 0) & (True if flags is None else flags[files])
            expected = [row for row in np.argsort(-exact) if usable[row]][:20]
            found = stored.nearest(query, 20, allowed=flags)
            assert [chunk for chunk, _ in found] == [int(chunks[row]) for row in expected]
            np.testing.assert_allclose([score for _, score in found], exact[expected], rtol=1e-12)


def test_equal_similarities_are_all_found(tmp_path: Path) -> None:
    rows = np.repeat(random_rows(2), 30, axis=0)
    stored = Vectors([written(tmp_path, 1, rows, int8=False)], np.arange(1, 61), np.ones(60, np.int64))
    found = stored.nearest(rows[0], 5)
    assert [chunk for chunk, _ in found] == list(range(1, 31))
    assert len({score for _, score in found}) == 1


def test_the_int8_copy_is_close(tmp_path: Path) -> None:
    rows = random_rows(500)
    rows[3] = 0
    rows[4, 1:] = 0
    segment = written(tmp_path, 1, rows, int8=True)
    assert segment.int8 is not None
    assert segment.scales is not None
    np.testing.assert_allclose(segment.int8 * segment.scales[:, np.newaxis], rows, atol=0.004)
    assert segment.int8.min() >= -127


def test_zero_rows_stay_zero() -> None:
    rows = unit_rows(np.array([[0, 0], [3, 4]], np.float32))
    np.testing.assert_allclose(rows, [[0, 0], [0.6, 0.8]])
    assert rows.dtype == np.float32


def test_arrays_that_could_run_code(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.array([{}, {}], object), allow_pickle=True)
    with pytest.raises(BundleError, match=r"is not a valid \.npy file"):
        mapped(tmp_path / "x.npy", "<f4", (2,))


@pytest.mark.parametrize(
    ("live", "rows", "expected"),
    [
        ([], [], set()),
        ([10], [10], set()),
        ([10], [30], {0}),
        ([100, 10], [100, 10], set()),
        ([100, 60], [100, 60], {0, 1}),
        ([1000, 10, 8], [1000, 10, 8], {1, 2}),
        ([1000, 100, 30, 10], [1000, 100, 30, 10], set()),
        ([40, 100, 10], [100, 100, 10], {0}),
    ],
)
def test_which_segments_are_merged(live: list[int], rows: list[int], expected: set[int]) -> None:
    assert segments_to_merge(live, rows) == expected
