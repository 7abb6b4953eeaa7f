"""Embeddings on disk: .npy segments that are written once and mapped, and exact search in them.

Rows have length 1, so a dot product is the cosine similarity. A large segment has an int8 copy, with one scale a row:
a quarter of the bytes to read. It chooses candidates; their scores are always those of the float32 rows.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from ....runtime.errors import BundleError
from .index_file import BUILD_AGAIN, SegmentRecord

INT8_ROWS = 50_000
"""Segments of as many rows get an int8 copy."""
_BLOCK_BYTES = 3 << 19
"""float32 bytes of a block of rows: what a core's cache holds, and few enough that BLAS keeps to one thread."""
HEADER_BYTES = 128
"""Bytes of the header that is written here, with room for any number of rows."""
_FEW = 0.2
"""Where a filter leaves fewer of the rows, they are gathered instead of computing all."""


def _header(rows: int, dimension: int) -> bytes:
    """The header of a .npy file (format 1.0) of float32 (rows, dimension), always of the same length."""
    text = f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({rows}, {dimension}), }}"
    return (
        b"\x93NUMPY\x01\x00"
        + (HEADER_BYTES - 10).to_bytes(2, "little")
        + text.ljust(HEADER_BYTES - 11).encode()
        + b"\n"
    )


class SegmentWriter:
    """A .npy file that grows; its header is written by `finish`, before readers know of the file."""

    def __init__(self, path: Path, dimension: int, *, rows: int = 0) -> None:
        """Open a file for rows after the first `rows`, which an earlier run committed; raises OSError."""
        self.path, self.rows = path, rows
        self._width = dimension
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | (0 if rows else os.O_TRUNC)
        self._file: BinaryIO = os.fdopen(os.open(path, flags, 0o666), "r+b")
        self._file.truncate(self._end)
        self._file.seek(self._end)

    @property
    def _end(self) -> int:
        return HEADER_BYTES + self.rows * self._width * 4

    def append(self, vectors: NDArray[np.float32]) -> None:
        """Write rows, and flush them to disk."""
        self._file.seek(self._end)
        self._file.write(np.ascontiguousarray(vectors, "<f4").data)
        self._flush()
        self.rows += len(vectors)

    def read(self, row: int) -> NDArray[np.float32]:
        """A row that was appended."""
        self._file.seek(HEADER_BYTES + row * self._width * 4)
        return np.frombuffer(self._file.read(self._width * 4), "<f4").astype(np.float32)

    def finish(self) -> None:
        self._file.truncate(self._end)
        self._file.seek(0)
        self._file.write(_header(self.rows, self._width))
        self._flush()
        self.close()

    def close(self) -> None:
        self._file.close()

    def _flush(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())


def save_array(path: Path, array: NDArray[Any]) -> None:
    """Write a .npy file to disk; raises OSError."""
    with path.open("wb") as file:
        np.save(file, array, allow_pickle=False)
        file.flush()
        os.fsync(file.fileno())


def mapped(path: Path, dtype: str, shape: tuple[int, ...]) -> NDArray[Any]:
    """Map a .npy file of this type and shape; raises BundleError for another, and FileNotFoundError."""
    try:
        # Not `np.load`, which reads ZIP archives and pickles too.
        array: NDArray[Any] = np.lib.format.open_memmap(path, mode="r")
    except FileNotFoundError:
        raise
    except PermissionError as error:
        raise BundleError(f"`{path}` cannot be read: {error.strerror or error}") from error
    # A header that is not numpy's: ValueError, EOFError or, for a file that is too short to be mapped, OSError.
    except (ValueError, EOFError, OSError) as error:
        raise BundleError(f"`{path}` is not a valid .npy file: {error}", hint=BUILD_AGAIN) from error
    if array.dtype != np.dtype(dtype) or array.shape != shape or not array.flags.c_contiguous:
        raise BundleError(
            f"`{path}` has an array {array.dtype} {array.shape} instead of {np.dtype(dtype)} {shape}", hint=BUILD_AGAIN
        )
    # A plain array on the mapping: slices of a memmap are slower.
    return array.view(np.ndarray)


@dataclass(frozen=True)
class Segment:
    """A mapped segment."""

    record: SegmentRecord
    vectors: NDArray[np.float32]
    int8: NDArray[np.int8] | None = None
    scales: NDArray[np.float32] | None = None

    @classmethod
    def open(cls, folder: Path, record: SegmentRecord, dimension: int) -> Segment:
        """Raises BundleError, and FileNotFoundError."""
        shape = (record.rows, dimension)
        vectors = mapped(folder / record.vectors, "<f4", shape)
        if not record.int8:
            return cls(record, vectors)
        copy = mapped(folder / record.copy, "|i1", shape)
        return cls(record, vectors, copy, mapped(folder / record.scales, "<f4", shape[:1]))

    def scores(self, query: NDArray[np.float32], out: NDArray[np.float32]) -> None:
        """The dot products with all rows, approximate where there is an int8 copy."""
        block = max(_BLOCK_BYTES // (self.vectors.shape[1] * 4), 1)
        if self.int8 is None or self.scales is None:
            for start in range(0, len(out), block):
                np.matmul(self.vectors[start : start + block], query, out=out[start : start + block])
            return
        buffer = np.empty((min(block, len(out)), self.vectors.shape[1]), np.float32)
        for start in range(0, len(out), block):
            part = self.int8[start : start + block]
            converted = buffer[: len(part)]
            converted[...] = part
            np.matmul(converted, query, out=out[start : start + len(part)])
        out *= self.scales


class Vectors:
    """The rows of all segments of a generation, numbered through."""

    def __init__(self, segments: Sequence[Segment], chunks: NDArray[np.int64], files: NDArray[np.int64]) -> None:
        self.segments = tuple(segments)
        self.chunks, self.files = chunks, files
        """(rows,): the chunk and the file of each row; 0 for rows of removed chunks."""
        self.starts = np.cumsum([0, *(segment.record.rows for segment in segments)])
        """The first row of each segment, and their number."""

    def nearest(
        self, query: NDArray[np.float32], count: int, *, allowed: NDArray[np.bool_] | None = None
    ) -> list[tuple[int, float]]:
        """The chunks nearest by cosine, and their similarities, best first: at least `count` if there are so many.

        `allowed` says for each file's id whether its chunks count. Chunks of the same similarity as the last are
        returned too, so that their order does not depend on where they lie.
        """
        usable = self.chunks > 0
        if allowed is not None:
            usable &= allowed.take(self.files, mode="clip")
        chosen = np.flatnonzero(usable) if np.count_nonzero(usable) < _FEW * len(usable) else None
        if chosen is None:
            approximate = np.empty(len(self.chunks), np.float32)
            with np.errstate(invalid="ignore", over="ignore"):
                for segment, start in zip(self.segments, self.starts, strict=False):
                    segment.scores(query, approximate[start : start + segment.record.rows])
            _check_finite(approximate)
            approximate[~usable] = -np.inf
            # More than asked for: int8 and the rounding of float32 sums may swap neighbors.
            chosen = _largest(approximate, 4 * count)
            chosen = chosen[usable[chosen]]
        exact = self.similarities(query, chosen)
        kept = _largest(exact, count)
        order = kept[np.lexsort((self.chunks[chosen[kept]], -exact[kept]))]
        return [(int(self.chunks[chosen[place]]), float(exact[place])) for place in order]

    def similarities(self, query: NDArray[np.float32], rows: NDArray[np.int64]) -> NDArray[np.float64]:
        """Exact similarities of some rows (numbered through): the same bits wherever a row lies."""
        found = np.empty(len(rows), np.float64)
        of_segment = np.searchsorted(self.starts, rows, side="right") - 1
        for number in np.unique(of_segment):
            own = np.flatnonzero(of_segment == number)
            for some in _parts(own):
                picked = self.segments[number].vectors[rows[some] - self.starts[number]]
                # float64: the products of float32 numbers are exact. `sum` over a row does not depend on the others.
                found[some] = (picked.astype(np.float64) * query.astype(np.float64)).sum(axis=1)
        _check_finite(found)
        return found


def _check_finite(similarities: NDArray[Any]) -> None:
    """Refuse vectors with NaN or infinity, which no similarity can be ordered by."""
    # The sum of finite cosines is finite, and takes less time than to look at each.
    if not np.isfinite(similarities.sum(dtype=np.float64)):
        raise BundleError("the index has vectors that are not finite: it is damaged", hint=BUILD_AGAIN)


def _parts(places: NDArray[np.int64], size: int = 1024) -> Iterator[NDArray[np.int64]]:
    for start in range(0, len(places), size):
        yield places[start : start + size]


def _largest(values: NDArray[Any], count: int) -> NDArray[np.int64]:
    """The places of the `count` largest values, and of those that equal the last of them, in order of place."""
    if count >= len(values):
        return np.arange(len(values))
    threshold = np.partition(values, len(values) - count)[len(values) - count]
    return np.flatnonzero(values >= threshold)


def unit_rows(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rows of length 1; zero rows stay."""
    norms = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return np.asarray(vectors / np.where(norms > 0, norms, 1), np.float32)


def write_int8_copy(folder: Path, record: SegmentRecord, dimension: int) -> SegmentRecord:
    """Write the int8 copy of a segment, with symmetric absmax scales per row; raises OSError."""
    vectors = mapped(folder / record.vectors, "<f4", (record.rows, dimension))
    made = SegmentRecord(record.number, record.rows, int8=True)
    scales = np.empty(record.rows, np.float32)
    # Written, not mapped: where the disk is full, writing to a mapping kills the process (SIGBUS).
    with (folder / made.copy).open("wb") as file:
        header = {"descr": "|i1", "fortran_order": False, "shape": vectors.shape}
        np.lib.format.write_array_header_1_0(file, header)
        for start in range(0, record.rows, 4096):
            block = vectors[start : start + 4096]
            largest = np.abs(block).max(axis=1)
            scale = np.where(largest > 0, largest / 127, 1).astype(np.float32)
            scales[start : start + 4096] = scale
            file.write(np.rint(block / scale[:, np.newaxis]).astype(np.int8).data)
        file.flush()
        os.fsync(file.fileno())
    save_array(folder / made.scales, scales)
    return made


def segments_to_merge(live: Sequence[int], rows: Sequence[int]) -> frozenset[int]:
    """Which segments to rewrite as one, by their live rows and all rows, oldest first.

    The newest ones while the next older one is not twice as large (a logarithmic number of segments remains, and each
    row is rewritten a logarithmic number of times, as in log-structured merge trees), and those that are half dead.
    """
    merged = {place for place, (alive, total) in enumerate(zip(live, rows, strict=True)) if alive * 2 < total}
    size = 0
    for place in reversed(range(len(rows))):
        if size and live[place] >= 2 * size:
            break
        size += live[place]
        if size > live[place]:
            merged |= {place, place + 1}
    return frozenset(merged)
