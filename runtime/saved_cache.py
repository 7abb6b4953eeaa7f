"""Caches on disk: a long prompt is read once, and later runs begin where it ends.

A file is a line that names the format, the size of a header, the header in JSON, keys and values of each layer
(kv_heads, tokens, head_size), little-endian and of the type that the header names, and the CRC-32 of header, keys and
values.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from runtime.bundle import Bundle
from runtime.errors import InputError, NotFoundError, OutputError
from runtime.kv_cache import KVCache, token_size
from runtime.manifest import CacheType
from runtime.messages import Message
from runtime.records import RecordError, read_record, write_record
from runtime.targets import regular_target_of, replacing

FORMAT = b"edgekit keys and values 2\n"
"""1 had a checksum that did not cover the header."""
SIZE = struct.Struct("<Q")
CHECKSUM = struct.Struct("<I")
LARGEST_HEADER = 1 << 26
"""Bytes; that of a million tokens with their text has a quarter of them."""


@dataclass(frozen=True)
class Conversation:
    """What was said to a cache and by it."""

    messages: tuple[Message, ...]
    text: str
    """As the template wrote it, up to the end of the last answer."""
    ids: tuple[int, ...]
    """The tokens of that text, as they were read and chosen; empty where they are not known."""


@dataclass(frozen=True)
class Header:
    """What a saved cache holds, and of which bundle."""

    bundle: str
    """The bundle's name, for people."""
    identity: str
    """What `identity_of` gives for the bundle: keys and values mean nothing to another."""
    ids: tuple[int, ...]
    conversation: Conversation | None
    cache_type: CacheType


def identity_of(bundle: Bundle) -> str:
    """A hash of all files of a bundle, by the hashes in its manifest."""
    files = bundle.manifest.files
    text = "".join(f"{name}\n{files[name].sha256}\n" for name in sorted(files))
    return hashlib.sha256(text.encode()).hexdigest()


def save_cache(
    path: str | os.PathLike[str], cache: KVCache, *, bundle: Bundle, conversation: Conversation | None = None
) -> None:
    """Write a cache; an older file stays as it was until the new one is whole. Raises OutputError."""
    target = regular_target_of(path)
    kind = cache.facts.cache_type
    header = Header(bundle.manifest.name, identity_of(bundle), tuple(cache.ids), conversation, kind)
    content = json.dumps(write_record(header), ensure_ascii=False).encode("utf-8")
    try:
        with replacing(target) as file:
            file.write(FORMAT + SIZE.pack(len(content)) + content)
            checksum = zlib.crc32(content)
            for part in parts(cache):
                file.write(part)
                checksum = zlib.crc32(part, checksum)
            file.write(CHECKSUM.pack(checksum))
    except OSError as error:
        raise OutputError(f"`{target}` cannot be written: {error.strerror or error}") from error


def load_cache(path: str | os.PathLike[str], cache: KVCache, *, bundle: Bundle) -> Header:
    """Fill an empty cache from a file.

    Raises NotFoundError, InputError for a file that was cut short, changed or saved with another bundle, and
    OutOfMemoryError where the keys and values would not fit.
    """
    source = Path(path)
    try:
        with source.open("rb") as file:
            header, checksum = read_header(file, source)
            if header.identity != identity_of(bundle):
                raise InputError(
                    f"`{source}` was saved with another bundle, `{header.bundle}`, and this is `{bundle.path}`",
                    hint="load it with that bundle, or read the prompt again and save it anew",
                )
            chosen = header.conversation.ids if header.conversation is not None else ()
            if any(not 0 <= id_ < cache.facts.vocabulary for id_ in (*header.ids, *chosen)):
                raise damaged(source)
            if header.cache_type is not cache.facts.cache_type:
                raise damaged(source)
            tokens = len(header.ids)
            rest = os.fstat(file.fileno()).st_size - file.tell()
            if rest != tokens * token_size(cache.facts) + CHECKSUM.size:
                raise damaged(source)
            cache.reserve(tokens)
            cache.ids = list(header.ids)
            for part in parts(cache):
                file.readinto(part)
                checksum = zlib.crc32(part, checksum)
            if file.read() != CHECKSUM.pack(checksum):
                cache.rewind(0)
                raise damaged(source)
    except FileNotFoundError as error:
        raise NotFoundError(f"there is no file `{source}`") from error
    except OSError as error:
        raise InputError(f"`{source}` cannot be read: {error.strerror}") from error
    return header


def read_header(file: BinaryIO, source: Path) -> tuple[Header, int]:
    """The header, and its CRC-32."""
    if file.read(len(FORMAT)) != FORMAT:
        raise InputError(
            f"`{source}` holds no keys and values that this edgekit knows",
            hint="if another version of edgekit saved it, read the prompt again and save it anew",
        )
    size = file.read(SIZE.size)
    try:
        (count,) = SIZE.unpack(size) if len(size) == SIZE.size else (0,)
        if count > LARGEST_HEADER:
            raise damaged(source)
        content = file.read(count)
        return read_record(Header, json.loads(content.decode("utf-8"))), zlib.crc32(content)
    except (ValueError, RecordError, OverflowError, MemoryError, RecursionError) as error:
        raise damaged(source) from error


def parts(cache: KVCache) -> Iterator[memoryview]:
    """The memory of what a cache holds, a piece for each head."""
    if not cache.length:
        return
    for buffer in cache.buffers:
        for head in buffer[0]:
            # As bytes already here: before Python 3.12, memoryview knows no float16.
            yield memoryview(head[: cache.length].view(np.uint8)).cast("B")


def damaged(source: Path) -> InputError:
    return InputError(f"`{source}` was cut short or changed", hint="read the prompt again and save it anew")
