"""Sizes in messages: MB for files, disks and downloads, as pip and `du --si` give them, and MiB for memory.

What an option limits is given as the option takes it, the limit and what is over it: `64M`.
"""

from __future__ import annotations

_UNITS = ("", "K", "M", "G", "T")
"""Of options, in powers of 1,024 (`arguments.size_of`)."""


def megabytes(size: float) -> str:
    """Bytes on disk or of a download, in powers of ten."""
    return f"{size / 1e6:,.1f} MB"


def mebibytes(size: float) -> str:
    """Bytes in memory, in powers of two."""
    return f"{size / (1 << 20):,.0f} MiB"


def as_option(size: int) -> str:
    """Bytes in the largest unit of options that is not larger: `64M`, `1.5G`, `900`."""
    power = min(max(size.bit_length() - 1, 0) // 10, len(_UNITS) - 1)
    number = f"{size / (1 << 10 * power):.1f}".removesuffix(".0")
    return f"{number}{_UNITS[power]}"
