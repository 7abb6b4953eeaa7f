"""A strict reader of DER (ITU-T X.690), for public keys and certificates."""

from __future__ import annotations

from dataclasses import dataclass

BOOLEAN, INTEGER, BIT_STRING, OCTET_STRING, OID = 0x01, 0x02, 0x03, 0x04, 0x06
UTC_TIME, GENERALIZED_TIME = 0x17, 0x18
SEQUENCE, SET = 0x30, 0x31
_MOST_ELEMENTS = 256
"""Elements of one sequence: a distinguished name has about ten."""
_MOST_LENGTH_BYTES = 3


class DerError(ValueError):
    """The data is not valid DER, or not of the expected structure."""


@dataclass(frozen=True)
class Element:
    """One element: its tag, its contents, and the whole encoding."""

    tag: int
    content: bytes
    encoded: bytes

    def expect(self, tag: int, name: str) -> bytes:
        """The contents; raises DerError for another tag."""
        if self.tag != tag:
            raise DerError(f"{name} has the DER tag {self.tag:#x} instead of {tag:#x}")
        return self.content

    def children(self, tag: int, name: str) -> list[Element]:
        """The elements inside; raises DerError for another tag."""
        return elements(self.expect(tag, name))


def elements(data: bytes) -> list[Element]:
    """All elements of the data, one after another; raises DerError where they do not fill it."""
    found: list[Element] = []
    offset = 0
    while offset < len(data):
        if len(found) == _MOST_ELEMENTS:
            raise DerError(f"more than {_MOST_ELEMENTS} elements in a sequence")
        element = _element_at(data, offset)
        found.append(element)
        offset += len(element.encoded)
    return found


def single(data: bytes, name: str) -> Element:
    """The only element of the data; raises DerError where something follows it."""
    element = _element_at(data, 0)
    if len(element.encoded) != len(data):
        raise DerError(f"{name} is followed by {len(data) - len(element.encoded)} bytes")
    return element


def _element_at(data: bytes, offset: int) -> Element:
    if len(data) - offset < 2:
        raise DerError("the data ends within an element")
    tag, length = data[offset], data[offset + 1]
    if tag & 0x1F == 0x1F:
        raise DerError("a tag of several bytes")
    start = offset + 2
    if length >= 0x80:
        count = length & 0x7F
        if not 1 <= count <= _MOST_LENGTH_BYTES or len(data) - start < count:
            raise DerError("a length that is indefinite or too large")
        length = int.from_bytes(data[start : start + count], "big")
        # DER: the shortest form.
        if length < 0x80 or length >> (8 * (count - 1)) == 0:
            raise DerError("a length that is not in its shortest form")
        start += count
    end = start + length
    if end > len(data):
        raise DerError("the data ends within an element")
    return Element(tag, data[start:end], data[offset:end])


def bits(content: bytes, name: str) -> bytes:
    """The contents of a BIT STRING of whole bytes."""
    if content[:1] != b"\0":
        raise DerError(f"{name} is not a string of whole bytes")
    return content[1:]


def unsigned(content: bytes, name: str) -> int:
    """An INTEGER that is not negative."""
    if not content or content[0] & 0x80 or (len(content) > 1 and content[0] == 0 and not content[1] & 0x80):
        raise DerError(f"{name} is negative or not in its shortest form")
    return int.from_bytes(content, "big")
