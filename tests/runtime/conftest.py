from __future__ import annotations

import pytest

from ortkit import Bundle, Decoder
from tests.decoders import TinyDecoder, write_decoder


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Bundle, TinyDecoder]:
    """The bundle of a small decoder, and the same model in numpy."""
    return write_decoder(tmp_path_factory.mktemp("decoders") / "tiny")


@pytest.fixture(scope="session")
def decoder(written: tuple[Bundle, TinyDecoder]) -> Decoder:
    return Decoder(written[0], threads=1)


@pytest.fixture(scope="session")
def reference(written: tuple[Bundle, TinyDecoder]) -> TinyDecoder:
    return written[1]
