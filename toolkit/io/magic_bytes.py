"""Compressed and binary files, recognized by their first bytes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Compression:
    """How a file is compressed."""

    name: str
    command: str
    """What decompresses it to stdout."""


_COMPRESSED = {
    b"\x1f\x8b": Compression("gzip", "gzip -dc"),
    b"\x28\xb5\x2f\xfd": Compression("Zstandard", "zstd -dc"),
    b"BZh91AY&SY": Compression("bzip2", "bzip2 -dc"),
    b"\xfd7zXZ": Compression("xz", "xz -dc"),
}
ZIP = b"PK\x03\x04"
PDF = b"%PDF"
_BINARY = {
    ZIP: "a ZIP archive or an Office document",
    PDF: "a PDF",
    b"PAR1\x15": "Parquet",
    b"\x93NUMPY": "an npy file",
    b"GGUF\x03\x00": "a GGUF file",
    b"ARROW1\x00": "Arrow",
    b"SQLite format 3\x00": "a SQLite database",
}
"""Magic bytes -> binary format that may contain text."""


def compression_of(beginning: bytes) -> Compression | None:
    return next((found for start, found in _COMPRESSED.items() if beginning.startswith(start)), None)


def binary_format_of(beginning: bytes) -> str | None:
    """What a binary file is, such as `a PDF`; None where these bytes do not begin one of the known formats."""
    return next((kind for start, kind in _BINARY.items() if beginning.startswith(start)), None)
