"""The texts that come with edgekit: one set to calibrate on, another, apart from it, to certify with."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

DATA = Path(__file__).with_name("data")


@dataclass(frozen=True)
class TextSet:
    """Texts under a name, with the sha256 of the file that holds them, one a line."""

    name: str
    sha256: str
    texts: tuple[str, ...]


def load_texts(name: str) -> TextSet:
    content = (DATA / f"{name}.txt").read_bytes()
    return TextSet(name, hashlib.sha256(content).hexdigest(), tuple(content.decode("utf-8").splitlines()))


def calibration_texts() -> TextSet:
    """What the scales of static quantization are found on; never scored."""
    return load_texts("calibration")


def probe_texts() -> TextSet:
    """What a certificate is measured on; never calibrated with. The longest go beyond what most models read."""
    return load_texts("probe")
