"""The part of the tar format that a pack needs: regular files with short names, read strictly and written reproducibly.

Links, devices, sparse files, long names and everything else that tar can express are errors, so an archive means the
same to every program that reads it. Python's `tarfile` is lenient by design. Standard library only.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass

BLOCK = 512
"""Bytes: headers and contents are padded to a multiple of it."""
END = bytes(2 * BLOCK)
"""What ends an archive."""
LARGEST_OCTAL = (1 << 33) - 1
"""Bytes. The header has room for 11 octal digits; larger files need a pax record."""
_MOST_PADDING = 1 << 20
"""Bytes after the end of an archive, which must be zeros; GNU tar writes up to 10 KiB."""
_LARGEST_PAX = 1 << 14
"""Bytes of a pax header."""
_FILES = (b"0", b"\x00")
_FOLDER = b"5"
_PAX = b"x"
_TYPES = {
    b"1": "a hard link",
    b"2": "a symbolic link",
    b"3": "a character device",
    b"4": "a block device",
    b"6": "a named pipe",
    b"7": "a contiguous file",
    b"D": "a GNU folder listing",
    b"K": "a GNU long link name",
    b"L": "a GNU long name",
    b"M": "a part of a file on several volumes",
    b"S": "a sparse file",
    b"V": "a volume label",
    b"X": "a Solaris extended header",
    b"g": "a global pax header",
}
_MAGIC = (b"ustar\x0000", b"ustar  \x00")
"""POSIX's and GNU's."""
_OCTAL = re.compile(rb" *([0-7]{1,12})[ \x00]*")
_PAX_RECORD = re.compile(rb"([1-9][0-9]{0,4}) ([^=\n]+)=")
_IGNORED = {"mtime", "atime", "ctime", "uid", "gid", "uname", "gname"}
"""pax records that say nothing about a file's name and contents."""
_IGNORED_PREFIXES = ("SCHILY.xattr.", "LIBARCHIVE.")
"""Extended attributes, which skopeo and bsdtar may write."""


class TarError(ValueError):
    """An archive that is damaged, or that uses more of the format than a pack may."""


@dataclass(frozen=True)
class Entry:
    """A file in an archive."""

    name: str
    start: int
    """Offset of its first byte in the file that has the archive."""
    size: int
    is_folder: bool = False


def read_entries(descriptor: int, start: int, end: int, *, most: int) -> Iterator[Entry]:
    """Yield the files and folders of the archive between two offsets of a file; raises TarError.

    `most` limits the number of headers. Contents are not read.
    """
    position, padding, size = start, 0, None
    for _ in range(most + 1):
        block = _read(descriptor, position, padding + BLOCK, end)
        if any(block[:padding]):
            raise TarError(f"the padding at offset {position} is not zero")
        position += padding + BLOCK
        header = block[padding:]
        if not any(header):
            if size is not None:
                raise TarError("a pax header is not followed by a file")
            _check_end(descriptor, position, end)
            return
        name, kind, stated = _parse_header(header, position - BLOCK)
        if kind == _PAX:
            if size is not None:
                raise TarError(f"there are two pax headers for one file at offset {position}")
            if stated > _LARGEST_PAX:
                raise TarError(f"a pax header has {stated} bytes; the limit is {_LARGEST_PAX}")
            size = _size_in_pax(_read(descriptor, position, stated, end), position)
        else:
            # A record without a size leaves the one in the header.
            stated, size = stated if size in (None, _UNSTATED) else size, None
            if stated > end - position:
                raise TarError(f"it is truncated: `{name}` has {stated} bytes, {end - position} are left")
            if kind == _FOLDER and stated:
                raise TarError(f"the folder `{name}` has contents")
            yield Entry(name, position, stated, kind == _FOLDER)
        position += stated
        padding = -stated % BLOCK
    raise TarError(f"it has more than {most} entries")


_UNSTATED = -1
"""The size in a pax header that has none."""


def _read(descriptor: int, position: int, size: int, end: int) -> bytes:
    """Read bytes at an offset; raises TarError where there are fewer."""
    content = os.pread(descriptor, size, position) if position + size <= end else b""
    if len(content) < size:
        raise TarError(f"it is truncated: {size} bytes were expected at offset {position}")
    return content


def _check_end(descriptor: int, position: int, end: int) -> None:
    """Check what follows the first block of zeros: a second one, then nothing but a little padding of zeros."""
    left = end - position
    if left < BLOCK:
        raise TarError("it is truncated: the blocks of zeros at its end are missing")
    if left > _MOST_PADDING:
        raise TarError(f"{left} bytes follow its end")
    if any(_read(descriptor, position, left, end)):
        raise TarError("data follows its end")


def _parse_header(header: bytes, position: int) -> tuple[str, bytes, int]:
    """Name, type and size of an entry."""
    kind = header[156:157]
    if header[257:265] not in _MAGIC:
        raise TarError(f"there is no tar header at offset {position}")
    if _octal(header[148:156], "checksum", position) != sum(header[:148]) + 8 * ord(" ") + sum(header[156:]):
        raise TarError(f"the checksum of the header at offset {position} is wrong")
    if kind not in (*_FILES, _FOLDER, _PAX):
        raise TarError(f"it contains {_TYPES.get(kind, f'an entry of type {kind!r}')} at offset {position}")
    if any(header[157:257]) or any(header[345:]):
        raise TarError(f"the header at offset {position} has a link name, a name prefix or other extensions")
    raw, _, rest = header[:100].partition(b"\0")
    if any(rest):
        raise TarError(f"the name at offset {position} has a NUL character")
    try:
        name = raw.decode("ascii")
    except UnicodeDecodeError as error:
        raise TarError(f"the name at offset {position} is not ASCII") from error
    return name, kind, _number(header[124:136], position)


def _number(field: bytes, position: int) -> int:
    """A size: octal digits, or GNU's binary number, whose first byte is 0x80."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    return _octal(field, "size", position)


def _octal(field: bytes, name: str, position: int) -> int:
    found = _OCTAL.fullmatch(field)
    if found is None:
        raise TarError(f"the {name} in the header at offset {position} is not an octal number")
    return int(found[1], 8)


def _size_in_pax(content: bytes, position: int) -> int:
    """The size in a pax header, or _UNSTATED; raises TarError for a record that changes the meaning of the file."""
    size, keys, place = _UNSTATED, set(), 0
    while place < len(content):
        found = _PAX_RECORD.match(content, place)
        if found is None or place + int(found[1]) > len(content) or content[place + int(found[1]) - 1] != ord("\n"):
            raise TarError(f"the pax header at offset {position} is damaged")
        key, end = found[2].decode("ascii", "backslashreplace"), place + int(found[1])
        value = content[found.end() : end - 1]
        if key in keys:
            raise TarError(f"the pax header at offset {position} repeats `{key}`")
        keys.add(key)
        if key == "size":
            if not (value.isdigit() and len(value) <= 19):
                raise TarError(f"the size in the pax header at offset {position} is not a number")
            size = int(value)
        elif key not in _IGNORED and not key.startswith(_IGNORED_PREFIXES):
            raise TarError(f"the pax header at offset {position} has `{key[:40]}`, which a pack does not use")
        place = end
    return size


def header_of(name: str, size: int) -> bytes:
    """The header of a file, preceded by a pax header where its size needs one; no time, no owner."""
    if size <= LARGEST_OCTAL:
        return _ustar(name, size, b"0")
    record = _pax_record("size", size)
    # The size in the header itself does not count; zero is what Go and Python write.
    return _ustar("pax", len(record), _PAX) + record + bytes(padding_of(len(record))) + _ustar(name, 0, b"0")


def padding_of(size: int) -> int:
    """Bytes of zeros after contents of this size."""
    return -size % BLOCK


def _pax_record(key: str, value: int) -> bytes:
    """A record, which begins with its own length in bytes."""
    rest = f" {key}={value}\n"
    length = len(rest)
    while len(f"{length}{rest}") != length:
        length = len(f"{length}{rest}")
    return f"{length}{rest}".encode("ascii")


def _ustar(name: str, size: int, kind: bytes) -> bytes:
    encoded = name.encode("ascii")
    if len(encoded) > 100:
        raise ValueError(f"`{name}` is too long for a tar header")
    fields = [
        encoded.ljust(100, b"\0"),
        b"0000644\0",  # mode
        b"0000000\0" * 2,  # user and group
        b"%011o\0" % size,
        b"%011o\0" % 0,  # time
        b" " * 8,  # checksum
        kind,
        bytes(100),  # link name
        _MAGIC[0],
    ]
    header = bytearray(b"".join(fields).ljust(BLOCK, b"\0"))
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)
