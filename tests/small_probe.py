"""A few of the probe texts: a tiny model's certificate needs no more, and most exports here are of tiny models.

The whole set stays for real models, and for tests of the probe set itself; see the fixture `whole_probe`.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ortkit.exporters.certification import probe

WHOLE = probe.DATA
PROBE_LINES = (1, 5, 7, 11, 25, 28, 31, 33, 38, 45, 59, 63)
"""Lines of the probe texts, counted from 1: one word to 109, several scripts and languages."""
QUERIES = 6


def write_small_probe(folder: Path) -> None:
    """Write files like those that come with the exporters, with fewer probe texts and queries."""
    folder.mkdir()
    # What is calibrated on decides how close int8 is, so there are no fewer texts for that.
    for name in ("tokenizer_probe.json", "calibration.txt"):
        shutil.copyfile(WHOLE / name, folder / name)
    texts = probe.lines_of((WHOLE / "probe.txt").read_bytes())
    write_lines(folder / "probe.txt", [texts[line - 1] for line in PROBE_LINES])
    searches = [json.loads(line) for line in probe.lines_of((WHOLE / "searches.jsonl").read_bytes())]
    few = [
        {"query": search["query"], "answers": [1 + place % len(PROBE_LINES)]}
        for place, search in enumerate(searches[:QUERIES])
    ]
    write_lines(folder / "searches.jsonl", [json.dumps(search) for search in few])


def write_lines(path: Path, lines: list[str]) -> None:
    path.write_bytes("".join(f"{line}\n" for line in lines).encode())


@contextmanager
def probe_in(folder: Path) -> Iterator[None]:
    """Let exports of this process certify and calibrate with the files of a folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(probe, "DATA", folder)
        yield
