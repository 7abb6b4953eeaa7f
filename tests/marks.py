"""Which cases of a test run with the fast tests, and how often one tries at random."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import Any

import pytest


def number_of_kills(default: int) -> int:
    """At how many random moments a slow test kills each action, unless KILLS says so: `make test-kills KILLS=200`."""
    return int(os.environ.get("KILLS", default))


def slow_but(
    fast: Iterable[object], values: Iterable[object], name: Callable[[Any], object] = lambda value: value
) -> list:
    """The values as parameters of a test, those whose name is not among `fast` with the mark `slow`.

    For a test that shows one mechanism with many models: a few of them find what breaks the mechanism, and CI runs all.
    """
    at_once, listed = set(fast), list(values)
    unknown = at_once - {name(value) for value in listed}
    assert not unknown, f"no such case: {unknown}"
    return [pytest.param(one, marks=[] if name(one) in at_once else [pytest.mark.slow]) for one in listed]
