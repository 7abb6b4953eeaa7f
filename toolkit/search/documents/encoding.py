"""Bytes to text: Unicode by its marks and rules, other encodings as declared or by charset-normalizer."""

from __future__ import annotations

import codecs
import re

from .document import UnreadableFileError

_BOMS = (
    (codecs.BOM_UTF8, "utf-8"),
    # Before UTF-16, whose mark is the beginning of this one.
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_SAMPLE = 1 << 18
"""Bytes that an encoding is recognized by."""
_ZERO_SHARE = 0.25
"""Share of zero bytes from which on text without a mark may be UTF-16: Latin letters make it a half."""
_CONTROLS = re.compile(rb"[\x00-\x08\x0e-\x1a\x1c-\x1f\x7f]")
_CONTROL_SHARE = 0.01
_FEW_CONTROLS = 8
_NOT_ASCII = re.compile(rb"[\x80-\xff]+")
_LATIN_RUN = 1.5
"""Mean length of these runs of bytes, below which a text is taken for Latin letters with accents."""
_LATIN = ("cp1252", "cp1250", "cp1254", "cp1257")
_DAMAGED_SHARE = 10
"""Valid characters of several bytes for each invalid byte, from which on a text is damaged UTF-8."""
_AS_BROWSERS = {"iso-8859-1": "cp1252", "latin-1": "cp1252", "us-ascii": "cp1252", "ascii": "cp1252"}
"""Declared encodings that mean another one (WHATWG Encoding)."""
_UNUSABLE = {code: " " for code in (*range(32), 127) if chr(code) not in "\t\n"}
_UNUSABLE |= dict.fromkeys(range(55296, 57344), "�")


def decode_text(content: bytes, *, declared: str | None = None) -> str:
    r"""The text of a file, with `\n` as line ends, and without control characters.

    `declared` is the encoding that the file names itself. Raises UnreadableFileError for what is not text.
    """
    text = _decoded(content, declared)
    return clean(text.replace("\r\n", "\n").replace("\r", "\n"))


def clean(text: str) -> str:
    """The text with spaces for control characters, and without what is not valid Unicode; of the same length."""
    if text.isascii() and text.isprintable():
        return text
    return text.translate(_UNUSABLE)


def check_text(content: bytes) -> None:
    """Raise UnreadableFileError for the bytes, or the first ones, of what is not text in any encoding."""
    if _marked(content) is None and _utf16(content) is None and _is_binary(content):
        reason = "it has NUL bytes" if b"\0" in content else "it has many control characters"
        raise UnreadableFileError(f"is not text: {reason}")


def is_utf8(head: bytes, *, whole: bool) -> bool:
    """Whether these bytes are valid UTF-8; a character at the end may be cut unless they are `whole`."""
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head, final=whole)
    except UnicodeDecodeError:
        return False
    return b"\0" not in head


def _decoded(content: bytes, declared: str | None) -> str:
    marked = _marked(content)
    if marked is not None:
        mark, encoding = marked
        return content[len(mark) :].decode(encoding, errors="replace")
    utf16 = _utf16(content)
    if utf16 is not None:
        return content.decode(utf16, errors="replace")
    check_text(content)
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        return _in_other_encoding(content, declared)


def _in_other_encoding(content: bytes, declared: str | None) -> str:
    replaced = content.decode("utf-8", errors="replace")
    sample = replaced[:_SAMPLE]
    damaged = sample.count("\ufffd")
    if sum(not character.isascii() for character in sample) > _DAMAGED_SHARE * damaged + damaged:
        return replaced
    if declared is not None:
        try:
            return content.decode(_AS_BROWSERS.get(declared.lower(), declared), errors="replace")
        except LookupError:
            pass
    return content.decode(_detected(content), errors="replace")


def _marked(content: bytes) -> tuple[bytes, str] | None:
    return next(((mark, encoding) for mark, encoding in _BOMS if content.startswith(mark)), None)


def _utf16(content: bytes) -> str | None:
    """UTF-16 without a mark: every second byte is often zero, the others never, and all characters are assigned."""
    sample = content[: _SAMPLE // 2 * 2]
    if len(content) % 2 or len(sample) < 4:
        return None
    for encoding, high, low in (("utf-16-le", sample[1::2], sample[::2]), ("utf-16-be", sample[::2], sample[1::2])):
        if high.count(0) >= 2 * _ZERO_SHARE * len(high) and not low.count(0):
            try:
                text = codecs.getincrementaldecoder(encoding)().decode(sample)
            except UnicodeDecodeError:
                continue
            if not any(character < " " and character not in "\t\n\r\f\v\x1b" for character in text):
                return encoding
    return None


def _is_binary(content: bytes) -> bool:
    if b"\0" in content:
        return True
    sample = content[:_SAMPLE]
    return len(_CONTROLS.findall(sample)) > max(_FEW_CONTROLS, _CONTROL_SHARE * len(sample))


def _detected(content: bytes) -> str:
    """The encoding by charset-normalizer; raises UnreadableFileError without the package, or without a result."""
    try:
        from charset_normalizer import from_bytes
    except ImportError as error:
        raise UnreadableFileError(
            "is not UTF-8", hint="for other encodings, install the extra `docs`: `pip install 'ortkit[docs]'`"
        ) from error
    sample = content[:_SAMPLE]
    runs = _NOT_ASCII.findall(sample)
    # A few accents are too little to tell Latin encodings from Asian ones, whose characters have two bytes or more.
    latin = sum(map(len, runs)) < _LATIN_RUN * len(runs)
    best = (from_bytes(sample, cp_isolation=list(_LATIN)).best() if latin else None) or from_bytes(sample).best()
    if best is None:
        raise UnreadableFileError(
            "is not text in an encoding that can be recognized", hint="convert it to UTF-8, for example with `iconv`"
        )
    return best.encoding
