from __future__ import annotations

import signal

import pytest

from ortkit import Bundle, Decoder, Stream
from tests.decoders import write_decoder


@pytest.fixture(scope="session")
def decoder_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The bundle of a small decoder whose template is ChatML."""
    return write_decoder(tmp_path_factory.mktemp("decoders") / "tiny")[0]


@pytest.fixture(scope="session")
def decoder(decoder_bundle: Bundle) -> Decoder:
    return Decoder(decoder_bundle)


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
