from __future__ import annotations

import signal
from pathlib import Path

import pytest

from ortkit import Bundle, Decoder, Index, Stream
from tests.decoders import write_decoder
from tests.tiny_bundles import write_embedder

MANUALS = {
    "pumps/bilge.md": (
        "# Bilge pump\n\nThe bilge pump is started by hand with the crank.\n\n## Fuse\n\nThe fuse is F-17.\n"
    ),
    "notes.txt": "The quick brown fox jumps over the lazy dog.\nAnd the dog sleeps.\n",
    "lamps.csv": "lamp,meaning\nred,stop\ngreen,go\n",
}
"""Files of a folder, and what stands in them."""


def write_manuals(folder: Path) -> Path:
    for name, text in MANUALS.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return folder


@pytest.fixture
def manuals(tmp_path: Path) -> Path:
    """A folder of three files."""
    return write_manuals(tmp_path / "manuals")


@pytest.fixture(scope="session")
def embedder_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The bundle of an embedder of a few kilobytes."""
    return write_embedder(tmp_path_factory.mktemp("embedders") / "tiny")


@pytest.fixture(scope="session")
def manuals_index(embedder_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index of those files, which tests read."""
    folder = tmp_path_factory.mktemp("indexes")
    Index.build(folder / "manuals.index", write_manuals(folder / "manuals"), embedder_bundle.path).close()
    return folder / "manuals.index"


@pytest.fixture(scope="session")
def decoder_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The bundle of a small decoder whose template is ChatML."""
    return write_decoder(tmp_path_factory.mktemp("decoders") / "tiny")[0]


@pytest.fixture(scope="session")
def decoder(decoder_bundle: Bundle) -> Decoder:
    return Decoder(decoder_bundle)


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Embed files in chunks of eight texts."""
    monkeypatch.setattr("ortkit.runtime.encoder.base.CHUNK", 8)


@pytest.fixture
def interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Press Ctrl-C after the third token of an answer."""
    original, count = Stream.__next__, 0

    def after_three(self: Stream) -> object:
        nonlocal count
        count += 1
        if count == 4:
            signal.raise_signal(signal.SIGINT)
        return original(self)

    monkeypatch.setattr(Stream, "__next__", after_three)
