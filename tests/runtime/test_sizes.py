from __future__ import annotations

import pytest

from ortkit.runtime.arguments import size_of
from ortkit.runtime.sizes import as_option


@pytest.mark.parametrize("text", ["1", "900", "1023", "1K", "1.5K", "64M", "2G", "7T", "900T"])
def test_a_size_is_shown_as_options_take_it(text: str) -> None:
    assert as_option(size_of(text, "size")) == text


@pytest.mark.parametrize(
    ("size", "shown"), [(0, "0"), (1000, "1000"), (1025, "1K"), ((1 << 20) - 1, "1024K"), (2_100_000, "2M")]
)
def test_other_sizes_are_rounded(size: int, shown: str) -> None:
    assert as_option(size) == shown
