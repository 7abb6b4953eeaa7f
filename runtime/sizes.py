"""Sizes in messages: MB for files, disks and downloads, as pip and `du --si` give them, and MiB for memory."""

from __future__ import annotations


def megabytes(size: float) -> str:
    """Bytes on disk or of a download, in powers of ten."""
    return f"{size / 1e6:,.1f} MB"


def mebibytes(size: float) -> str:
    """Bytes in memory, in powers of two."""
    return f"{size / (1 << 20):,.0f} MiB"
