"""The targets of `make fuzz` work: valid inputs are read, and what is changed at random has no unforeseen error."""

from __future__ import annotations

import random

import pytest

from tests.fuzz.targets import TARGETS, seeds


@pytest.mark.parametrize("target", TARGETS)
def test_a_target_takes_anything(target: str) -> None:
    draw = random.Random(0)
    for seed in seeds(target):
        TARGETS[target](seed)
        for _ in range(20):
            changed = bytearray(seed)
            for _ in range(draw.choice([1, 5])):
                changed[draw.randrange(len(changed))] = draw.randrange(256)
            TARGETS[target](bytes(changed))
    TARGETS[target](b"")
