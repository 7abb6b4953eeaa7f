"""Prompt caches: a KV cache on disk, so that a long prompt is prefilled once.

The file is in the safetensors format, as mlx-lm's `save_prompt_cache` writes it: `layers.{n}.key` and `.value`, of the
type of the cache (kv_heads, tokens, head_size). `__metadata__` has the format's version, `cache` (a `_Header` as JSON:
the bundle's identity, token ids, conversation) and the CRC-32 of `cache` and the tensors.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from ...arguments import checked_path
from ...bundle.folder import BundleFolder
from ...bundle.manifest import CacheType, DecoderFacts
from ...bundle.records import RecordError, read_record, write_record
from ...errors import InputError, NotFoundError, OutputError
from ...output_path import regular_target_of, replacing
from ...text.messages import Message
from .kv_cache import KVCache, token_size

_FORMAT = {"format": "prompt_cache", "version": "1"}
_SIZE = struct.Struct("<Q")
"""Of the header, at the beginning of a safetensors file."""
_ALIGNMENT = 8
_LARGEST_HEADER = 1 << 26
"""Bytes; the header of a million tokens with their text has a quarter of them."""
_DTYPES = {CacheType.FLOAT32: "F32", CacheType.FLOAT16: "F16", CacheType.INT8: "I8"}
_SAVE_AGAIN = "prefill the prompt again and save a new file"


@dataclass(frozen=True)
class Conversation:
    """The messages that a cache holds."""

    messages: tuple[Message, ...]
    text: str
    """As the chat template rendered it, up to the end of the last answer."""
    ids: tuple[int, ...]
    """The tokens of that text, as they were prefilled and sampled; empty where they are not known."""


@dataclass(frozen=True)
class _Header:
    """What a prompt cache holds, and for which bundle."""

    bundle: str
    """The bundle's name, for people."""
    identity: str
    """`identity_of` the bundle: a KV cache is valid for one model only."""
    ids: tuple[int, ...]
    conversation: Conversation | None


def identity_of(bundle: BundleFolder, *, int8_prefill: bool = False) -> str:
    """A hash over the hashes of all files of a bundle, and whether its prompts go through its 8-bit graph."""
    files = bundle.manifest.files
    text = "".join(f"{name}\n{files[name].sha256}\n" for name in sorted(files))
    text += "int8 prefill\n" if int8_prefill else ""
    return hashlib.sha256(text.encode()).hexdigest()


def save_cache(
    path: str | os.PathLike[str], cache: KVCache, *, bundle: BundleFolder, conversation: Conversation | None = None
) -> None:
    """Write a prompt cache; an existing file is replaced once the new one is complete. Raises OutputError."""
    target = regular_target_of(path)
    record = _Header(bundle.manifest.name, cache.identity or identity_of(bundle), tuple(cache.ids), conversation)
    content = json.dumps(write_record(record), ensure_ascii=False)
    checksum = zlib.crc32(content.encode("utf-8"))
    for part in _parts(cache.contents(), cache.length):
        checksum = zlib.crc32(part, checksum)
    metadata = _FORMAT | {"cache": content, "checksum": f"{checksum:08x}"}
    header = json.dumps({"__metadata__": metadata} | _tensors(cache.facts, cache.length), ensure_ascii=False).encode()
    header += b" " * (-len(header) % _ALIGNMENT)
    try:
        with replacing(target) as file:
            file.write(_SIZE.pack(len(header)) + header)
            for part in _parts(cache.contents(), cache.length):
                file.write(part)
    except OSError as error:
        raise OutputError(f"`{target}` cannot be written: {error.strerror or error}") from error


def other_prefill(made: str, bundle: BundleFolder, *, int8: bool, otherwise: str) -> InputError:
    """The error for a cache whose prompt went through the other graph of a bundle; `int8`: here it is the 8-bit one."""
    there, here, option = ("without", "with", "none") if int8 else ("with", "without", "int8")
    return InputError(
        f"{made} {there} the 8-bit graph for prompts of `{bundle.path}`, and prompts are run {here} it",
        hint=f'open the bundle with `prefill="{option}"` (`--prefill {option}`), or {otherwise}',
    )


def load_cache(path: str | os.PathLike[str], cache: KVCache, *, bundle: BundleFolder) -> _Header:
    """Read a prompt cache into an empty KV cache.

    Raises NotFoundError, InputError for a file that is truncated, corrupted or saved with another bundle, and
    OutOfMemoryError where the KV cache does not fit.
    """
    source = checked_path(path, "path")
    try:
        with source.open("rb") as file:
            metadata, tensors = _read_header(file, source)
            content = metadata["cache"]
            header = _record_of(content, source)
            if header.identity != (cache.identity or identity_of(bundle)):
                if header.identity in {identity_of(bundle, int8_prefill=used) for used in (True, False)}:
                    int8 = cache.identity == identity_of(bundle, int8_prefill=True)
                    raise other_prefill(f"`{source}` was saved", bundle, int8=int8, otherwise=_SAVE_AGAIN)
                raise InputError(
                    f"`{source}` was saved with another bundle, `{header.bundle}`, and this is `{bundle.path}`",
                    hint=f"load it with that bundle, or {_SAVE_AGAIN}",
                )
            chosen = header.conversation.ids if header.conversation is not None else ()
            if any(not 0 <= id_ < cache.facts.vocabulary for id_ in (*header.ids, *chosen)):
                raise _damaged(source)
            tokens = len(header.ids)
            rest = os.fstat(file.fileno()).st_size - file.tell()
            if tensors != _tensors(cache.facts, tokens) or rest != tokens * token_size(cache.facts):
                raise _damaged(source)
            cache.reserve(tokens)
            cache.ids = list(header.ids)
            checksum = zlib.crc32(content.encode("utf-8"))
            for part in _parts(cache.filled(), cache.length):
                file.readinto(part)
                checksum = zlib.crc32(part, checksum)
            if metadata["checksum"] != f"{checksum:08x}":
                cache.rewind(0)
                raise _damaged(source)
    except FileNotFoundError as error:
        raise NotFoundError(f"there is no file `{source}`") from error
    except OSError as error:
        raise InputError(f"`{source}` cannot be read: {error.strerror}") from error
    return header


def _read_header(file: BinaryIO, source: Path) -> tuple[dict[str, str], dict[str, Any]]:
    """Read the header of a prompt cache: its metadata and tensors."""
    start = file.read(_SIZE.size)
    (count,) = _SIZE.unpack(start) if len(start) == _SIZE.size else (1 << 63,)
    if count > _LARGEST_HEADER:
        raise _other_file(source)
    content = file.read(count)
    if len(content) < count:
        raise _damaged(source)
    try:
        tensors = json.loads(content.decode("utf-8"))
    except (ValueError, MemoryError, RecursionError) as error:
        raise _damaged(source) from error
    metadata = tensors.pop("__metadata__", None) if isinstance(tensors, dict) else None
    if not isinstance(metadata, dict) or not metadata.items() >= {"format": _FORMAT["format"]}.items():
        raise _other_file(source)
    if metadata.get("version") != _FORMAT["version"]:
        raise InputError(
            f"`{source}` is a prompt cache in a format that is not supported; supported: version {_FORMAT['version']}",
            hint=_SAVE_AGAIN,
        )
    if set(metadata) != {*_FORMAT, "cache", "checksum"} or not all(isinstance(one, str) for one in metadata.values()):
        raise _damaged(source)
    return metadata, tensors


def _record_of(content: str, source: Path) -> _Header:
    try:
        return read_record(_Header, json.loads(content))
    except (ValueError, RecordError, OverflowError, MemoryError, RecursionError) as error:
        raise _damaged(source) from error


def _tensors(facts: DecoderFacts, tokens: int) -> dict[str, Any]:
    """The tensors of a cache of so many tokens, as a safetensors header lists them."""
    size = tokens * token_size(facts) // (2 * facts.layers)
    names = [f"layers.{layer}.{part}" for layer in range(facts.layers) for part in ("key", "value")]
    return {
        name: {
            "dtype": _DTYPES[facts.cache_type],
            "shape": [facts.kv_heads, tokens, facts.head_size],
            "data_offsets": [place * size, (place + 1) * size],
        }
        for place, name in enumerate(names)
    }


def _parts(contents: Iterable[NDArray[Any]], length: int) -> Iterator[memoryview]:
    """The memory of the cached tokens, one part for each head; `contents` are the buffers' contents."""
    if not length:
        return
    for content in contents:
        for head in content[0]:
            # As bytes: before Python 3.12, memoryview does not support float16.
            yield memoryview(head[:length].view(np.uint8)).cast("B")


def _damaged(source: Path) -> InputError:
    return InputError(f"`{source}` is truncated or corrupted", hint=_SAVE_AGAIN)


def _other_file(source: Path) -> InputError:
    return InputError(f"`{source}` is not a prompt cache", hint="name a file that was saved as one")
