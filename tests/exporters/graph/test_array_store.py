from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ortkit.exporters.graph.array_store import KeptArrays, Made, in_memory

SHAPES = {"a": (3, 5), "b": (2000,), "c": (1, 1, 4), "d": (70, 70)}


def made(name: str) -> Made:
    values = np.arange(np.prod(SHAPES[name]), dtype=np.float32).reshape(SHAPES[name]) + ord(name)
    return Made({"values": values, "bytes": values.astype(np.uint8)}, {"place": ord(name)})


def fill(kept: KeptArrays, names: str = "abcd") -> list[str]:
    """Ask for entries, and return those that had to be made."""
    computed: list[str] = []
    for name in names:

        def make(name: str = name) -> Made:
            computed.append(name)
            return made(name)

        found = kept.keep(name, make)
        for key, array in made(name).arrays.items():
            assert np.array_equal(found.array(key), array)
            assert found.array(key).dtype == array.dtype
        assert found.facts == {"place": ord(name)}
    return computed


def test_arrays_are_kept_where_a_mapping_can_begin(tmp_path: Path) -> None:
    kept = KeptArrays(tmp_path / "data")
    assert fill(kept) == ["a", "b", "c", "d"]

    places = [place for entry in kept.entries.values() for place in entry.arrays.values()]
    assert all(place.start % (4096 if place.size >= 4096 else 64) == 0 for place in places)
    assert fill(KeptArrays(tmp_path / "data")) == []


def test_a_file_that_a_bundle_has_too_stays_as_it_is_there(tmp_path: Path) -> None:
    fill(KeptArrays(tmp_path / "data"), "ab")
    expected = (tmp_path / "data").read_bytes()
    (tmp_path / "bundle").hardlink_to(tmp_path / "data")
    with (tmp_path / "data").open("ab") as file:
        file.write(b"more than the journal knows of")
    cut = (tmp_path / "bundle").read_bytes()

    assert fill(KeptArrays(tmp_path / "data")) == ["c", "d"]

    assert cut.startswith(expected)
    assert (tmp_path / "bundle").read_bytes() == cut
    assert {path.name for path in tmp_path.iterdir()} == {"bundle", "data", "data.journal"}


@pytest.mark.parametrize("end", range(0, 60_000, 1_500))
def test_a_file_that_was_broken_off_anywhere_ends_with_the_same_bytes(end: int, tmp_path: Path) -> None:
    fill(KeptArrays(tmp_path / "whole"))
    expected = (tmp_path / "whole").read_bytes()
    assert len(expected) < 60_000
    (tmp_path / "part").write_bytes(expected[:end])
    (tmp_path / "part.journal").write_bytes((tmp_path / "whole.journal").read_bytes())

    computed = fill(KeptArrays(tmp_path / "part"))

    assert (tmp_path / "part").read_bytes() == expected
    assert computed == list("abcd")[4 - len(computed) :]


@pytest.mark.parametrize("end", [0, 1, 100, 300, 500, 10_000])
def test_a_journal_that_was_broken_off_anywhere_is_gone_on_with(end: int, tmp_path: Path) -> None:
    fill(KeptArrays(tmp_path / "data"))
    expected, journal = (tmp_path / "data").read_bytes(), (tmp_path / "data.journal").read_bytes()
    (tmp_path / "data.journal").write_bytes(journal[:end])

    fill(KeptArrays(tmp_path / "data"))

    assert (tmp_path / "data").read_bytes() == expected
    assert (tmp_path / "data.journal").read_bytes() == journal


def test_bytes_that_changed_are_made_again_with_all_after_them(tmp_path: Path) -> None:
    kept = KeptArrays(tmp_path / "data")
    fill(kept)
    with kept.path.open("r+b") as file:
        file.seek(kept.entries["b"].end - 1)
        file.write(b"\x7f")

    assert fill(KeptArrays(tmp_path / "data")) == ["b", "c", "d"]


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"\xff\xfe",
        b"[" * 100_000,
        b"{}",
        b"null",
        "places behind the end",
        "a size that the shape has not",
        "a type of objects",
    ],
)
def test_a_damaged_journal_costs_no_more_than_what_it_told(line: bytes | str, tmp_path: Path) -> None:
    fill(KeptArrays(tmp_path / "data"))
    expected, journal = (tmp_path / "data").read_bytes(), (tmp_path / "data.journal").read_bytes()
    lines = journal.split(b"\n")
    changes = {
        "places behind the end": (b'"size": 60', b'"size": 61'),
        "a size that the shape has not": (b'"shape": [3, 5]', b'"shape": [3, 6]'),
        "a type of objects": (b'"<f4"', b'"|O"'),
    }
    lines[0] = line if isinstance(line, bytes) else lines[0].replace(*changes[line])
    assert lines != journal.split(b"\n")
    (tmp_path / "data.journal").write_bytes(b"\n".join(lines))

    assert fill(KeptArrays(tmp_path / "data")) == ["a", "b", "c", "d"]
    assert (tmp_path / "data").read_bytes() == expected
    assert (tmp_path / "data.journal").read_bytes() == journal


@pytest.mark.parametrize("name", ["data", "data.journal"])
def test_a_link_is_not_written_through(name: str, tmp_path: Path) -> None:
    (tmp_path / "other").write_bytes(b"another's")
    (tmp_path / name).symlink_to(tmp_path / "other")

    assert fill(KeptArrays(tmp_path / "data")) == ["a", "b", "c", "d"]
    assert (tmp_path / "other").read_bytes() == b"another's"
    assert fill(KeptArrays(tmp_path / "data")) == []


def test_what_is_kept_in_memory_is_the_same() -> None:
    found = in_memory("a", lambda: made("a"))

    assert np.array_equal(found.array("values"), made("a").arrays["values"])
    assert found.facts == {"place": 97}
