from __future__ import annotations

import dataclasses
import json
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from ortkit import Bundle, Decoder, InputError, NotFoundError, OutputError
from ortkit.runtime.bundle.manifest import CacheType, FileRecord
from ortkit.runtime.decoder.cache.kv_cache import token_size
from tests.decoders import write_decoder

PROMPT = "The quick brown fox jumps over the lazy dog. "


@pytest.fixture
def saved(decoder: Decoder, tmp_path: Path) -> Path:
    decoder.save_cache(tmp_path / "saved", decoder.prefill(PROMPT))
    return tmp_path / "saved"


def test_a_saved_prompt_is_continued_as_the_one_that_was_read(decoder: Decoder, saved: Path) -> None:
    original = decoder.prefill(PROMPT)

    cache = decoder.load_cache(saved)

    assert cache.ids == original.ids == decoder.encode(PROMPT)
    for found, expected in zip(cache.buffers, original.buffers, strict=True):
        assert np.array_equal(found[:, :, : cache.length], expected[:, :, : cache.length])
    answer = decoder.generate(PROMPT, max_tokens=20, cache=cache)
    assert answer.text == decoder.generate(PROMPT, max_tokens=20).text
    assert answer.rates.cached_tokens == len(original.ids) - 1


@pytest.mark.parametrize(("kind", "stored"), [(CacheType.FLOAT16, "F16"), (CacheType.INT8, "I8")])
def test_a_smaller_cache_takes_a_smaller_file(
    decoder: Decoder, saved: Path, kind: CacheType, stored: str, tmp_path: Path
) -> None:
    smaller = Decoder(write_decoder(tmp_path / "smaller", cache=kind)[0], threads=1)
    original = smaller.prefill(PROMPT)

    smaller.save_cache(tmp_path / "smaller-saved", original)
    cache = smaller.load_cache(tmp_path / "smaller-saved")

    assert cache.dtype == np.dtype(kind.value)
    assert header_of(tmp_path / "smaller-saved")["layers.0.key"]["dtype"] == stored
    for found, expected in zip(cache.buffers, original.buffers, strict=True):
        assert np.array_equal(found[:, :, : cache.length], expected[:, :, : cache.length])
    sizes = [path.stat().st_size for path in (saved, tmp_path / "smaller-saved")]
    bytes_of = [cache.length * token_size(facts) for facts in (decoder.facts, smaller.facts)]
    assert sizes[0] - sizes[1] == pytest.approx(bytes_of[0] - bytes_of[1], abs=16), "headers are padded to 8 bytes"
    answer = smaller.generate(PROMPT, max_tokens=20, cache=cache)
    assert answer.text == smaller.generate(PROMPT, max_tokens=20).text
    for reader, path in [(decoder, tmp_path / "smaller-saved"), (smaller, saved)]:
        with pytest.raises(InputError, match="was saved with another bundle"):
            reader.load_cache(path)


def header_of(path: Path) -> dict[str, Any]:
    """The header of a safetensors file, by its specification."""
    content = path.read_bytes()
    (size,) = struct.unpack("<Q", content[:8])
    header: dict[str, Any] = json.loads(content[8 : 8 + size])
    return header


def with_header(path: Path, header: object) -> None:
    """Replace the header of a safetensors file."""
    content = path.read_bytes()
    (size,) = struct.unpack("<Q", content[:8])
    encoded = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(encoded)) + encoded + content[8 + size :])


def test_the_safetensors_package_reads_it(decoder: Decoder, saved: Path) -> None:
    original = decoder.prefill(PROMPT)

    tensors = load_file(saved)

    names = [f"layers.{layer}.{part}" for layer in range(decoder.facts.layers) for part in ("key", "value")]
    assert sorted(tensors) == sorted(names)
    for name, buffer in zip(names, original.buffers, strict=True):
        assert tensors[name].dtype == np.float32
        assert np.array_equal(tensors[name], buffer[0, :, : original.length])
    with safe_open(saved, "numpy") as file:
        metadata = file.metadata()
    assert (metadata["format"], metadata["version"]) == ("prompt_cache", "1")
    assert json.loads(metadata["cache"])["ids"] == original.ids
    assert (8 + struct.unpack("<Q", saved.read_bytes()[:8])[0]) % 8 == 0, "tensors are aligned"


def test_the_safetensors_package_reads_an_empty_one(decoder: Decoder, tmp_path: Path) -> None:
    decoder.save_cache(tmp_path / "empty", decoder.new_cache())

    assert {array.shape[1] for array in load_file(tmp_path / "empty").values()} == {0}


@pytest.mark.parametrize(("path", "message"), [(None, "not NoneType"), (5, "not int"), (b"prefix", "not bytes")])
def test_what_is_not_a_path(decoder: Decoder, path: object, message: str) -> None:
    for run in (lambda: decoder.save_cache(path, decoder.new_cache()), lambda: decoder.load_cache(path)):
        with pytest.raises(InputError) as caught:
            run()
        assert caught.value.message == f"`path` must be a path, {message}"
    with pytest.raises(InputError, match="`path` is an empty path"):
        decoder.load_cache("")


def test_a_safetensors_file_of_another_program(decoder: Decoder, tmp_path: Path) -> None:
    save_file({"weight": np.zeros((2, 3), np.float32)}, tmp_path / "weights")

    with pytest.raises(InputError) as caught:
        decoder.load_cache(tmp_path / "weights")

    assert caught.value.message == f"`{tmp_path / 'weights'}` is not a prompt cache"
    assert caught.value.hint == "name a file that was saved as one"


@pytest.mark.parametrize(
    "change",
    [{"dtype": "F16"}, {"dtype": "BF16"}, {"shape": [1, 1, 1]}, {"data_offsets": [0, 1 << 62]}, {"shape": "all"}],
)
def test_tensors_that_the_bundle_does_not_have(decoder: Decoder, saved: Path, change: dict[str, object]) -> None:
    header = header_of(saved)
    header["layers.0.key"] |= change
    with_header(saved, header)

    with pytest.raises(InputError, match="is truncated or corrupted"):
        decoder.load_cache(saved)


@pytest.mark.parametrize("left_out", ["layers.0.value", "checksum", "cache"])
def test_a_header_that_is_not_complete(decoder: Decoder, saved: Path, left_out: str) -> None:
    header = header_of(saved)
    (header if left_out in header else header["__metadata__"]).pop(left_out)
    with_header(saved, header)

    with pytest.raises(InputError, match="is truncated or corrupted"):
        decoder.load_cache(saved)


def test_a_file_of_a_newer_format(decoder: Decoder, saved: Path) -> None:
    header = header_of(saved)
    header["__metadata__"]["version"] = "2"
    with_header(saved, header)

    with pytest.raises(InputError) as caught:
        decoder.load_cache(saved)

    assert caught.value.message == (
        f"`{saved}` is a prompt cache in a format that is not supported; supported: version 1"
    )


def test_an_id_that_was_changed(decoder: Decoder, saved: Path) -> None:
    """One bit of a digit: still an id that the model has."""
    header = header_of(saved)
    cache = json.loads(header["__metadata__"]["cache"])
    cache["ids"][0] ^= 1
    assert cache["ids"][0] in range(decoder.facts.vocabulary)
    header["__metadata__"]["cache"] = json.dumps(cache)
    with_header(saved, header)

    with pytest.raises(InputError, match="is truncated or corrupted"):
        decoder.load_cache(saved)


@pytest.mark.parametrize(
    "content", [b'{"__metadata__":' + b"[" * 200_000, b"[]", b"{}", b'{"__metadata__": 1}', b"\xff"]
)
def test_an_invalid_header(decoder: Decoder, saved: Path, content: bytes) -> None:
    saved.write_bytes(struct.pack("<Q", len(content)) + content)

    with pytest.raises(InputError, match=r"is truncated or corrupted|is not a prompt cache"):
        decoder.load_cache(saved)


def test_a_record_of_endless_brackets(decoder: Decoder, saved: Path) -> None:
    header = header_of(saved)
    header["__metadata__"]["cache"] = "[" * 200_000
    with_header(saved, header)

    with pytest.raises(InputError, match="is truncated or corrupted"):
        decoder.load_cache(saved)


def test_an_empty_cache_can_be_saved(decoder: Decoder, tmp_path: Path) -> None:
    decoder.save_cache(tmp_path / "empty", decoder.new_cache())

    assert decoder.load_cache(tmp_path / "empty").length == 0


def test_another_bundle_is_refused(decoder: Decoder, saved: Path) -> None:
    manifest = decoder.bundle.manifest
    files = manifest.files | {"tokenizer.json": FileRecord(1, "0" * 64)}
    other = Decoder(Bundle(decoder.bundle.path, dataclasses.replace(manifest, files=files)), threads=1)

    with pytest.raises(InputError) as caught:
        other.load_cache(saved)

    assert caught.value.message == (
        f"`{saved}` was saved with another bundle, `tiny-decoder`, and this is `{decoder.bundle.path}`"
    )
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("cut", [9, 40, 200, -1])
def test_a_file_that_was_cut_short(decoder: Decoder, saved: Path, cut: int) -> None:
    saved.write_bytes(saved.read_bytes()[:cut])

    with pytest.raises(InputError) as caught:
        decoder.load_cache(saved)

    assert caught.value.message == f"`{saved}` is truncated or corrupted"
    assert caught.value.hint == "prefill the prompt again and save a new file"


@pytest.mark.parametrize("place", [0, 1, 8, 33, 60, 150, 250, -100, -1])
def test_a_file_that_was_changed(decoder: Decoder, saved: Path, place: int) -> None:
    content = bytearray(saved.read_bytes())
    content[place] ^= 0x80
    saved.write_bytes(content)

    with pytest.raises(InputError, match=r"is truncated or corrupted|is not a prompt cache|is not supported"):
        decoder.load_cache(saved)


def test_a_token_that_the_model_does_not_have(decoder: Decoder, saved: Path) -> None:
    cache = decoder.prefill(PROMPT)
    cache.ids[0] = decoder.facts.vocabulary
    decoder.save_cache(saved, cache)

    with pytest.raises(InputError, match="is truncated or corrupted"):
        decoder.load_cache(saved)


def test_a_file_of_another_kind(decoder: Decoder, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("Hello")

    with pytest.raises(InputError) as caught:
        decoder.load_cache(tmp_path / "text")

    assert caught.value.message == f"`{tmp_path / 'text'}` is not a prompt cache"


def test_a_file_that_is_not_there(decoder: Decoder, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError) as caught:
        decoder.load_cache(tmp_path / "none")

    assert caught.value.message == f"there is no file `{tmp_path / 'none'}`"
    with pytest.raises(InputError, match="cannot be read: Is a directory"):
        decoder.load_cache(tmp_path)


def test_a_place_that_cannot_be_written(decoder: Decoder, tmp_path: Path) -> None:
    with pytest.raises(OutputError) as caught:
        decoder.save_cache(tmp_path / "none" / "saved", decoder.new_cache())

    assert caught.value.message == f"`{tmp_path / 'none' / 'saved'}` cannot be written: No such file or directory"


def test_a_file_is_replaced_only_when_the_new_one_is_complete(
    decoder: Decoder, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = saved.read_bytes()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OutputError, match="cannot be written: No space left on device"):
        decoder.save_cache(saved, decoder.prefill("Hello"))

    assert saved.read_bytes() == before
    assert list(saved.parent.iterdir()) == [saved]


def test_more_than_the_context_here(decoder: Decoder, saved: Path) -> None:
    small = Decoder(decoder.bundle, threads=1, context=5)
    tokens = len(decoder.encode(PROMPT))

    with pytest.raises(InputError) as caught:
        small.load_cache(saved)

    assert caught.value.message == f"the cache has a limit of 5 tokens, and {tokens} were requested"


def test_the_partial_file_of_a_killed_save_is_removed(decoder: Decoder, saved: Path) -> None:
    left = saved.with_name(f".{saved.name}.99.0a1b2c3d.partial")
    left.write_bytes(b"half of a cache")

    decoder.save_cache(saved, decoder.load_cache(saved))

    assert [path.name for path in saved.parent.iterdir()] == [saved.name]


@pytest.mark.parametrize("size", [1 << 27, 1 << 33, (1 << 64) - 1])
def test_a_header_of_gigabytes_is_not_read(decoder: Decoder, saved: Path, size: int) -> None:
    saved.write_bytes(struct.pack("<Q", size))
    os.truncate(saved, 16 << 30)

    with pytest.raises(InputError, match="is not a prompt cache"):
        decoder.load_cache(saved)
