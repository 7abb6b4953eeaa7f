"""Arrays in a file that only grows, with a journal of what is whole in it: what a killed export need not do again.

An entry is some arrays under a name. It is in the journal, with the digest of its bytes, once all of them are in the
file. Whoever opens the file again reads the journal as far as it agrees with the file, and continues after that. What
is written in the same order has the same bytes, however often it was interrupted.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ...runtime.bundle.records import RecordError, read_record, write_record

_PAGE = 4096
"""Bytes; a file is mapped from a multiple of them on."""
_LINE = 64
"""The same for arrays that are smaller than a page: what a processor reads at once."""
BLOCK = 2**24


@dataclass(frozen=True)
class Place:
    """Where an array lies in the file."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    size: int


@dataclass(frozen=True)
class Entry:
    """A line of the journal."""

    name: str
    facts: dict[str, int]
    arrays: dict[str, Place]
    start: int
    end: int
    digest: str
    """Of the file's bytes from `start` to `end`."""


@dataclass(frozen=True)
class Made:
    """Arrays that belong together, and what is to be known of them."""

    arrays: Mapping[str, NDArray[np.generic]]
    facts: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Kept:
    """The same in the file: the arrays are tensors that refer to it, and are mapped when they are read."""

    arrays: Mapping[str, ir.TensorProtocol]
    facts: Mapping[str, int]

    def array(self, name: str) -> NDArray[Any]:
        return self.arrays[name].numpy()


Keep = Callable[[str, Callable[[], Made]], Kept]
"""Is given the name of an entry and what makes it, which is only asked for where the entry is not there."""


def in_memory(_name: str, make: Callable[[], Made]) -> Kept:
    """Make an entry, and keep it in no file."""
    made = make()
    return Kept({name: ir.tensor(array) for name, array in made.arrays.items()}, made.facts)


class KeptArrays:
    """Entries in a file at `path`, beside which lies the journal."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.journal = path.with_name(f"{path.name}.journal")
        self.entries: dict[str, Entry] = {}
        self.end = 0
        for file in (path, self.journal):
            # Whatever else has the name, such as a link to another's file, is not ours to write through.
            if file.is_symlink() or (file.exists() and not file.is_file()):
                remove(file)
            file.touch()
        if path.stat().st_nlink > 1:
            self.leave_to_others()
        with path.open("r+b") as content:
            self.read_journal(content)
            content.truncate(self.end)

    def leave_to_others(self) -> None:
        """Go on with a copy, so that a bundle that has the same file stays as it is when this one changes."""
        copy = self.path.with_name(f"{self.path.name}.copy")
        shutil.copyfile(self.path, copy)
        os.replace(copy, self.path)

    def read_journal(self, file: BinaryIO) -> None:
        """Take what the journal and the file agree on, and cut off the rest."""
        lines = self.journal.read_bytes().splitlines(keepends=True)
        whole = 0
        for line in lines:
            try:
                entry = read_record(Entry, json.loads(line))
            except (ValueError, RecordError, RecursionError):
                break
            if entry.start != self.end or not _is_within(entry):
                break
            if _digest_of(file, entry.start, entry.end) != entry.digest:
                break
            self.entries[entry.name], self.end, whole = entry, entry.end, whole + len(line)
        os.truncate(self.journal, whole)

    def keep(self, name: str, make: Callable[[], Made]) -> Kept:
        """The entry of this name; it is made and written unless it is there."""
        entry = self.entries.get(name) or self.write(name, make())
        arrays = {
            key: ir.ExternalTensor(
                self.path.name,
                place.start,
                place.size,
                ir.DataType.from_numpy(np.dtype(place.dtype)),
                shape=ir.Shape(place.shape),
                name=f"{name}_{key}",
                base_dir=self.path.parent,
            )
            for key, place in entry.arrays.items()
        }
        return Kept(arrays, entry.facts)

    def write(self, name: str, made: Made) -> Entry:
        digest, start, places = blake2b(digest_size=32), self.end, {}
        with self.path.open("r+b") as file:
            file.seek(start)

            def put(data: bytes | memoryview[int]) -> None:
                file.write(data)
                digest.update(data)
                self.end += len(data)

            for key, array in made.arrays.items():
                whole = np.ascontiguousarray(array)
                put(bytes(-self.end % (_PAGE if whole.nbytes >= _PAGE else _LINE)))
                places[key] = Place(whole.dtype.str, whole.shape, self.end, whole.nbytes)
                put(whole.reshape(-1).view(np.uint8).data)
        entry = Entry(name, dict(made.facts), places, start, self.end, digest.hexdigest())
        with self.journal.open("a", encoding="utf-8") as journal:
            journal.write(json.dumps(write_record(entry)) + "\n")
        self.entries[name] = entry
        return entry


def _is_within(entry: Entry) -> bool:
    """Whether an entry's arrays lie in it and are as large as they must be."""
    try:
        return all(
            entry.start <= place.start
            and place.start + place.size <= entry.end
            and min(place.shape, default=1) >= 0
            and not np.dtype(place.dtype).hasobject
            and place.size == np.dtype(place.dtype).itemsize * math.prod(place.shape)
            for place in entry.arrays.values()
        )
    # What a dtype cannot be made of.
    except (TypeError, ValueError):
        return False


def remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _digest_of(file: BinaryIO, start: int, end: int) -> str | None:
    """The digest of a part of a file, None where it ends before."""
    digest = blake2b(digest_size=32)
    file.seek(start)
    left = end - start
    while left > 0:
        block = file.read(min(BLOCK, left))
        if not block:
            return None
        digest.update(block)
        left -= len(block)
    return digest.hexdigest()
