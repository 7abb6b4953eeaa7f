from __future__ import annotations

from pathlib import Path

import pytest

from ortkit import Bundle, Embedder, Index
from tests.tiny_bundles import write_embedder


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_embedder(tmp_path_factory.mktemp("bundles") / "tiny")


@pytest.fixture(scope="session")
def tiny_embedder(tiny_bundle: Bundle) -> Embedder:
    return Embedder(tiny_bundle, workers=1)


MANUALS = {
    "boats/knots.md": "# Knots\n\n## Wet rope\n\nKnots for wet rope slip.\n\n## Dry rope\n\nThe bowline holds.\n",
    "boats/pump.md": "# Bilge pump\n\nThe bilge pump does not start: look at the fuse F-17.\n",
    "notes.txt": "The quick brown fox jumps over the lazy dog.\n\nAnd the dog sleeps.\n",
    "中文.txt": "水泵坏了\n\n阀门关闭",
}


def write_files(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return folder


@pytest.fixture
def manuals(tmp_path: Path) -> Path:
    """A folder of four files, with six chunks or more."""
    return write_files(tmp_path / "manuals", MANUALS)


@pytest.fixture
def index(tmp_path: Path, manuals: Path, tiny_embedder: Embedder) -> Index:
    with Index.build(tmp_path / "manuals.index", manuals, tiny_embedder, chunk_tokens=48) as made:
        yield made
