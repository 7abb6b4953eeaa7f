"""The parts of a kit: a shell header, the installer as a zip, the signature, and an OCI image layout as a tar.

    0        header: POSIX shell; verifies and runs the installer
    5120     installer.zip, padded to whole blocks
    ...      signature: JSON, padded with newlines; only newlines where the kit is not signed
    ...      layout: a tar up to the end of the file

The signature covers the hashes of the header, the installer and the layout's index, which has those of everything else.
A kit that leaves out files which an appliance has is the same to the byte up to the layout.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from typing import Any

from ..errors import BundleError, OrtkitError
from .host import PLATFORMS, Needs, dotted

FORMAT = 1
"""Increased whenever an older installer cannot install a new kit."""
BLOCK = 512
HEADER_SIZE = 5120
SIGNATURE_SIZE = 32_768
"""Bytes of the room for the signature, so that signing moves nothing."""
LARGEST_INSTALLER = 1 << 22
HEADER, INSTALLER, LAYOUT = "kit.sh", "kit.zip", "kit.index.json"
"""Names of the three parts in the signature."""
KIT, WHEELS, SBOM = "kit", "wheels", "sbom"
"""Kinds of artifacts in the layout, beside bundles."""
FACTS = "kit.json"
"""The only file of the artifact KIT."""
LARGEST_FACTS = 1 << 20
_PARTS = re.compile(
    rb"^installer='(\d{1,6}) (\d{1,6})' signature='(\d{1,6}) (\d{1,6})' layout=(\d{1,6})$", re.MULTILINE
)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True)
class Parts:
    """Where the parts of a kit are, in bytes."""

    installer: int
    installer_size: int
    signature: int
    signature_size: int
    layout: int

    @classmethod
    def of_installer(cls, size: int) -> Parts:
        """The parts of a kit whose installer has this size, which is a multiple of BLOCK."""
        signature = HEADER_SIZE + size
        return cls(HEADER_SIZE, size, signature, SIGNATURE_SIZE, signature + SIGNATURE_SIZE)

    @classmethod
    def read(cls, header: bytes) -> Parts | None:
        """What a header says; None where it is not a kit's."""
        found = _PARTS.search(header)
        if found is None:
            return None
        parts = cls(*(int(number) * BLOCK for number in found.groups()))
        usual = cls.of_installer(parts.installer_size)
        return parts if parts == usual and 0 < parts.installer_size <= LARGEST_INSTALLER else None

    def __str__(self) -> str:
        """The line of the header."""
        blocks = (self.installer, self.installer_size, self.signature, self.signature_size, self.layout)
        return "installer='{} {}' signature='{} {}' layout={}".format(*(size // BLOCK for size in blocks))


def signed_files(header: bytes, installer: bytes, index_sha256: str) -> dict[str, str]:
    """What the signature of a kit covers: name of a part -> sha256."""
    return {
        HEADER: hashlib.sha256(header).hexdigest(),
        INSTALLER: hashlib.sha256(installer).hexdigest(),
        LAYOUT: index_sha256,
    }


@dataclass(frozen=True)
class KitFacts:
    """What a kit says about itself, in `kit.json`; the kit's signature covers it, by way of the layout's index."""

    name: str
    """That of all kits of one line of updates: an installer does not replace one by another unasked."""
    ortkit: str
    """The version of ortkit in it."""
    needs: Needs
    release: int
    """A counter: an installer refuses a lower one than it has installed. 0 where none was given."""
    unpacked: dict[str, int]
    """File name of each wheel -> bytes of its files."""
    records: dict[str, str]
    """File name of each wheel -> sha256 of its RECORD, by which files that are installed already are checked."""

    def to_json(self) -> bytes:
        value = {
            "format": FORMAT,
            "name": self.name,
            "ortkit": self.ortkit,
            "platform": self.needs.platform,
            "python": dotted(self.needs.python),
            "glibc": dotted(self.needs.glibc),
            "release": self.release,
            "unpacked": self.unpacked,
            "records": self.records,
        }
        return json.dumps(value, indent=2, sort_keys=True).encode() + b"\n"

    @classmethod
    def from_json(cls, content: bytes, kit: str) -> KitFacts:
        """Raises OrtkitError for a kit of a later format, BundleError for what is not valid."""
        try:
            value = json.loads(content)
            if _count(value["format"]) != FORMAT:
                raise OrtkitError(
                    f"`{kit}` has the format {int(value['format'])}, and this installer reads {FORMAT}",
                    hint=f"use the installer in the kit: `sh {kit} install --trusted-key KEY`",
                )
            return cls(
                name=_text(value["name"]),
                ortkit=_text(value["ortkit"]),
                needs=Needs(_platform(value["platform"]), _version(value["python"]), _version(value["glibc"])),
                release=_count(value["release"]),
                unpacked={_text(name): _count(size) for name, size in value["unpacked"].items()},
                records={_text(name): _text(sha256) for name, sha256 in value["records"].items()},
            )
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise BundleError(f"`{FACTS}` of the kit `{kit}` is not valid: {type(error).__name__}: {error}") from error


def check_name(name: str) -> bool:
    """Whether a kit can have this name: it is shown in a shell script."""
    return _NAME.fullmatch(name) is not None


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value.isprintable():
        raise ValueError(f"{value!r} is not a text")
    return value


def _count(value: Any) -> int:
    # A boolean is an int in Python.
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 53:
        raise ValueError(f"{value!r} is not a number in its range")
    return value


def _platform(value: Any) -> str:
    if value not in PLATFORMS:
        raise ValueError(f"the platform {value!r} is not one of {', '.join(PLATFORMS)}")
    return str(value)


def _version(value: Any) -> tuple[int, int]:
    found = re.fullmatch(r"(\d{1,3})\.(\d{1,3})", value, re.ASCII)
    if found is None:
        raise ValueError(f"{value!r} is not a version such as 3.11")
    return int(found[1]), int(found[2])
