"""Many checkpoints with settings drawn from seeds: each is exact, or refused for the reason that was drawn."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from ortkit.exporters.checkpoint.architectures import ARCHITECTURES
from ortkit import Kind
from tests.exporters.drawn_checkpoints import Drawn, DrawnEmbedder, check_drawn
from tests.exporters.drawn_decoders import DrawnDecoder

SEEDS = 20
AT_ONCE = {("bert", 0), ("modernbert", 1), ("qwen3", 2), ("xlm-roberta", 3), ("nomic_bert", 4)}
AT_ONCE |= {("llama", 0), ("gemma2", 1), ("phi3", 1), ("smollm3", 2)}
"""The few that run with the fast tests."""
DRAWN: dict[Kind, Callable[[str, int], Drawn]] = {Kind.EMBEDDER: DrawnEmbedder, Kind.DECODER: DrawnDecoder}
"""How the checkpoints of a kind are drawn, for all architectures that are exported as that kind."""
CASES = [
    pytest.param(
        kind, name, seed, id=f"{kind.value}-{name}-{seed}", marks=[] if (name, seed) in AT_ONCE else [pytest.mark.slow]
    )
    for kind in DRAWN
    for name, architecture in ARCHITECTURES.items()
    if kind in architecture.kinds
    for seed in range(SEEDS)
]


@pytest.mark.parametrize(("kind", "name", "seed"), CASES)
def test_a_drawn_checkpoint_is_exact_or_refused(kind: Kind, name: str, seed: int, tmp_path: Path) -> None:
    check_drawn(DRAWN[kind](name, seed), tmp_path)
