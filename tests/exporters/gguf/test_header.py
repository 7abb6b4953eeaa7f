"""Headers that are damaged or absurd, or of other files: refused in words, in little time and memory."""

from __future__ import annotations

import random
import struct
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest

from ortkit.exporters.decoder.config import decoder_facts
from ortkit.exporters.decoder.lazy_model import open_decoder
from ortkit.exporters.gguf.file import described_checkpoint
from ortkit.exporters.gguf.header import (
    LARGEST_HEADER,
    LONGEST_STRING,
    MOST_ELEMENTS,
    MOST_ENTRIES,
    TYPES,
    read_header,
    shown,
)
from ortkit.exporters.gguf.metadata import NUMBERS, open_gguf
from ortkit.exporters.models.loading import load_tokenizer
from ortkit.exporters.sources import find_checkpoint
from ortkit.runtime.errors import CheckpointError, OrtkitError, UnsupportedModelError
from tests.exporters.gguf_files import rewritten, seeded, write_gguf

NUMBERS_OF_MODELS = tuple(f"llama.{name}" for name in NUMBERS)
UINT32, STRING, ARRAY, UINT64 = 4, 8, 9, 10
F32 = 0


def text(value: bytes | str) -> bytes:
    content = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(content)) + content


def entry(name: str, kind: int, value: bytes) -> bytes:
    return text(name) + struct.pack("<I", kind) + value


def tensor(name: str = "t", shape: tuple[int, ...] = (8,), kind: int = F32, offset: int = 0) -> bytes:
    """`shape` in the file's order, from the innermost on."""
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


def file_of(
    folder: Path, entries: list[bytes], tensors: list[bytes], weights: int = 64, counts: tuple[int, int] | None = None
) -> Path:
    path = folder / "m.gguf"
    stated = counts or (len(tensors), len(entries))
    header = b"GGUF" + struct.pack("<IQQ", 3, *stated) + b"".join(entries) + b"".join(tensors)
    path.write_bytes(header + bytes(-len(header) % 32) + bytes(weights))
    return path


def refused(path: Path) -> OrtkitError:
    """Errors are found without the time and memory that the header asks for and the file's size does not justify."""
    tracemalloc.start()
    start = time.process_time()
    with pytest.raises(OrtkitError) as caught:
        read_header(path)
    seconds, (_, peak) = time.process_time() - start, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert seconds < 2
    assert peak < 2**22 + 20 * min(path.stat().st_size, 2**20)
    return caught.value


def test_types_match_ggml() -> None:
    for number, (name, block, size) in TYPES.items():
        kind = gguf.GGMLQuantizationType(number)
        assert (kind.name, gguf.GGML_QUANT_SIZES[kind]) == (name, (block, size))


def test_header_matches_the_gguf_package(tmp_path: Path) -> None:
    fields = {"general.tags": ["a", "b"], "general.float": 1.5, "general.flag": True}
    path = write_gguf(
        tmp_path / "m.gguf", seeded("qwen2"), types={"ffn_up.weight": gguf.GGMLQuantizationType.Q8_0}, fields=fields
    )
    expected = gguf.GGUFReader(str(path))

    found = read_header(path)

    assert found.fields == {
        name: field.contents() for name, field in expected.fields.items() if not name.startswith("GGUF.")
    }
    assert len(found.tensors) == len(expected.tensors)
    for one, other in zip(found.tensors, expected.tensors, strict=True):
        assert (one.name, one.type, one.start, one.nbytes) == (
            other.name,
            other.tensor_type.name,
            other.data_offset,
            other.n_bytes,
        )
        assert one.shape == tuple(reversed(other.shape.tolist()))
        assert np.array_equal(one.bytes().reshape(-1), other.data.reshape(-1).view(np.uint8))


@pytest.mark.parametrize(
    ("beginning", "message", "hint"),
    [
        (
            b"GGUF" + struct.pack("<I", 1),
            "`{path}` is a GGUF file of version 1; supported: 2 and 3",
            "convert the original checkpoint with today's llama.cpp",
        ),
        (
            b"GGUF" + struct.pack("<I", 4),
            "`{path}` is a GGUF file of version 4; supported: 2 and 3",
            "update ortkit, or export the Hub's checkpoint instead",
        ),
        (
            b"GGUF" + struct.pack(">I", 3),
            "`{path}` is a big-endian GGUF file, and only little-endian ones are supported",
            "convert it with gguf's `gguf_convert_endian.py FILE little`",
        ),
        (
            b"GGUF" + struct.pack(">I", 1),
            "`{path}` is a big-endian GGUF file, and only little-endian ones are supported",
            "convert it with gguf's `gguf_convert_endian.py FILE little`",
        ),
        (
            b"tjgg" + struct.pack("<I", 3),
            "`{path}` is in the format GGJT, which came before GGUF",
            "convert the original checkpoint with today's llama.cpp, or export that checkpoint",
        ),
    ],
)
def test_other_formats_are_named(beginning: bytes, message: str, hint: str, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(beginning + bytes(100))

    error = refused(path)

    assert isinstance(error, UnsupportedModelError)
    assert (error.message, error.hint) == (message.format(path=path), hint)
    assert error.exit_code == 10


ABSURD: dict[str, tuple[Callable[[Path], Path], str]] = {
    "tensors": (
        lambda folder: file_of(folder, [], [], counts=(2**40, 0)),
        f"states {2**40} tensors, and at most {MOST_ENTRIES} are supported",
    ),
    "entries": (
        lambda folder: file_of(folder, [], [], counts=(0, 2**63)),
        f"states {2**63} metadata entries, and at most {MOST_ENTRIES} are supported",
    ),
    "string": (
        lambda folder: file_of(folder, [entry("a.b", STRING, struct.pack("<Q", 2**50))], []),
        f"ends within the metadata `a.b`, a string of {2**50} bytes",
    ),
    "name": (
        lambda folder: file_of(folder, [text("n" * 2000) + struct.pack("<II", UINT32, 1)], []),
        "has a string of 2000 bytes as the name of metadata entry 1, and at most 1024 are read",
    ),
    "array": (
        lambda folder: file_of(folder, [entry("a.b", ARRAY, struct.pack("<IQ", UINT64, 2**40))], []),
        f"ends within the metadata `a.b`, an array of {2**40} elements",
    ),
    "array of strings": (
        lambda folder: file_of(folder, [entry("a.b", ARRAY, struct.pack("<IQ", STRING, 20))], []),
        "ends within the metadata `a.b`, an array of 20 elements",
    ),
    "array of arrays": (
        lambda folder: file_of(folder, [entry("a.b", ARRAY, struct.pack("<IQ", ARRAY, 1) * 1000)], []),
        "has an array of arrays as the metadata `a.b`, which no model's metadata has",
    ),
    "type of a value": (
        lambda folder: file_of(folder, [entry("a.b", 77, b"")], []),
        "has a value of the unknown type 77 as the metadata `a.b`",
    ),
    "not UTF-8": (
        lambda folder: file_of(folder, [entry("a.b", STRING, text(b"\xff"))], []),
        "has bytes that are not UTF-8 in the metadata `a.b`",
    ),
    "twice": (
        lambda folder: file_of(folder, [entry("a.b", UINT32, bytes(4))] * 2, []),
        "has the metadata `a.b` twice",
    ),
    "escape sequences": (
        lambda folder: file_of(folder, [entry("a\x1b[2J\n", UINT32, bytes(4))] * 2, []),
        "has the metadata `a\\x1b[2J\\n` twice",
    ),
    "alignment": (
        lambda folder: file_of(folder, [entry("general.alignment", UINT32, struct.pack("<I", 48))], [tensor()]),
        "states `general.alignment` 48, which must be a power of two",
    ),
    "alignment that is text": (
        lambda folder: file_of(folder, [entry("general.alignment", STRING, text("32"))], [tensor()]),
        "states `general.alignment` 32, which must be a power of two",
    ),
    "dimensions": (
        lambda folder: file_of(folder, [], [text("t") + struct.pack("<I", 2**30)]),
        f"states {2**30} dimensions for the tensor `t`",
    ),
    "no dimensions": (lambda folder: file_of(folder, [], [tensor(shape=())]), "states 0 dimensions for the tensor `t`"),
    "shape": (
        lambda folder: file_of(folder, [], [tensor(shape=(2**62, 2**62, 2**62, 4))]),
        f"ends within the tensor `t`, which takes {2**190} bytes from 96 on",
    ),
    "empty": (
        lambda folder: file_of(folder, [], [tensor(shape=(8, 0))]),
        "states the shape [0, 8] for the tensor `t`, which F32 does not have",
    ),
    "half a block": (
        lambda folder: file_of(folder, [], [tensor(shape=(48, 2), kind=2)]),
        "states the shape [2, 48] for the tensor `t`, which Q4_0 does not have",
    ),
    "beyond the end": (
        lambda folder: file_of(folder, [], [tensor(offset=64)]),
        "ends within the tensor `t`, which takes 32 bytes from 128 on",
    ),
    "far beyond the end": (
        lambda folder: file_of(folder, [], [tensor(offset=2**64 - 32)]),
        f"ends within the tensor `t`, which takes 32 bytes from {2**64 + 32} on",
    ),
    "not aligned": (
        lambda folder: file_of(folder, [], [tensor(offset=4)]),
        "has the tensor `t` at 4, which is not a multiple of 32",
    ),
    "tensor twice": (lambda folder: file_of(folder, [], [tensor(), tensor(offset=32)]), "has the tensor `t` twice"),
    "overlapping": (
        lambda folder: file_of(folder, [], [tensor("late", offset=32), tensor("early", shape=(16,))]),
        "has the tensors `early` and `late` in the same bytes",
    ),
    "the same bytes": (
        lambda folder: file_of(folder, [], [tensor("one"), tensor("other")]),
        "has the tensors `one` and `other` in the same bytes",
    ),
}


@pytest.mark.parametrize("name", ABSURD)
def test_inconsistent_headers_are_refused(name: str, tmp_path: Path) -> None:
    write, how = ABSURD[name]
    path = write(tmp_path)

    error = refused(path)

    assert isinstance(error, CheckpointError)
    assert error.message == f"`{path}` is cut short or damaged: it has {path.stat().st_size} bytes and {how}"
    assert error.hint == "copy or download the file again"
    assert error.exit_code == 7


def test_unknown_tensor_types_are_refused(tmp_path: Path) -> None:
    error = refused(file_of(tmp_path, [], [tensor(kind=99)]))

    assert error.message == "`m.gguf` has the tensor `t` in ggml's type 99, which is not supported"
    assert error.exit_code == 10


def test_sparse_files_of_any_size_cost_no_more(tmp_path: Path) -> None:
    """A header may state what such a file does hold: what is read of it is bounded all the same."""
    stated = {
        "string": entry("a.b", STRING, struct.pack("<Q", 2**32)),
        "numbers": entry("a.b", ARRAY, struct.pack("<IQ", 0, 2**32)),
        "strings": entry("a.b", ARRAY, struct.pack("<IQ", STRING, 2**30)),
    }
    messages = {
        "string": f"has a string of {2**32} bytes as the metadata `a.b`, and at most {LONGEST_STRING} are read",
        "numbers": f"has an array of {2**32} elements as the metadata `a.b`, and at most {MOST_ELEMENTS} are read",
        "strings": f"has an array of {2**30} elements as the metadata `a.b`, and at most {MOST_ELEMENTS} are read",
    }
    for name, content in stated.items():
        path = file_of(tmp_path, [content], [])
        with path.open("r+b") as file:
            file.truncate(2**40)

        assert refused(path).message.endswith(messages[name])


def test_a_header_that_never_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ortkit.exporters.gguf.header.LARGEST_HEADER", 2**20)
    assert LARGEST_HEADER == 2**28
    path = file_of(tmp_path, [entry(f"a.{number}", STRING, text("x" * 2**16)) for number in range(20)], [])

    assert refused(path).message.endswith("has more than 1 MiB before its weights")


def test_shown_values_are_short_and_on_one_line() -> None:
    assert shown("x" * 100) == "x" * 80 + "..."
    assert shown([1] * 100) == "a list of 100"
    assert shown("é\r\n\x1b[0m\u202e") == "é\\r\\n\\x1b[0m\\u202e"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write_gguf(tmp_path_factory.mktemp("whole") / "m.gguf", seeded("llama")).read_bytes()


FEW_OR_MANY = [*range(3), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(3, 60))]


def outcome_of(path: Path, folder: Path) -> int:
    """The exit code that a file gets before any of its weights is used, 0 where they would be; in a line of words."""
    try:
        checkpoint = find_checkpoint(str(path))
        described = described_checkpoint(checkpoint, open_gguf(path), folder)
        decoder_facts(described, load_tokenizer(described))
        open_decoder(described)
    except OrtkitError as error:
        code, message = error.exit_code, error.message
    else:
        return 0
    assert "\n" not in message
    assert len(message) < 500 + 2 * len(str(path)) + 2 * len(str(folder))
    return code


@pytest.mark.parametrize("seed", FEW_OR_MANY)
def test_mutated_headers_are_read_or_refused(seed: int, whole: bytes, tmp_path: Path) -> None:
    """Bytes turned, counts and lengths made large, parts left out or doubled: never another exception."""
    chance = random.Random(seed)
    end = whole.index(b"token_embd.weight") + 2000
    path = tmp_path / "m.gguf"
    outcomes: Counter[int] = Counter()
    for _ in range(100):
        path.write_bytes(mutated(whole, end, chance))
        outcomes[outcome_of(path, tmp_path / "described")] += 1
    print(outcomes)
    assert outcomes.keys() <= {0, 7, 10}
    assert outcomes[7] > 20


VALUES: dict[type, list[object]] = {
    int: [0, 1, 2, 3, 7, 255, 65536, 2**31, 2**32 - 1, -1],
    float: [0.0, -1.0, 1e-300, 1e30, float("nan"), float("inf"), 3.5],
    str: ["", "x", "x" * 1000, "\x1b[31m", "\u0000", "{{ x", "{% for x in range(9) %}{{ x }}"],
    bool: [True, False],
}
LISTS: list[Callable[[list], list]] = [
    lambda own: own[:-1],
    lambda own: own[::-1],
    lambda own: [*own, *own],
    lambda own: own[:1] * len(own),
    lambda own: [*own[:-1], type(own[0])()],
]


@pytest.mark.parametrize("seed", FEW_OR_MANY)
def test_random_values_are_used_or_refused(seed: int, whole: bytes, tmp_path: Path) -> None:
    """Each of the type that its key has."""
    chance = random.Random(seed)
    (tmp_path / "whole.gguf").write_bytes(whole)
    known = read_header(tmp_path / "whole.gguf").fields
    outcomes: Counter[int] = Counter()
    for _ in range(25):
        changed = dict(known)
        for key in chance.sample(sorted(known), chance.choice([1, 1, 2])):
            own = known[key]
            changed[key] = chance.choice(LISTS)(own) if isinstance(own, list) else chance.choice(VALUES[type(own)])
        path = rewritten(tmp_path / "whole.gguf", changed, tmp_path / "m.gguf")
        outcomes[outcome_of(path, tmp_path / "described")] += 1
    print(outcomes)
    assert outcomes.keys() <= {0, 7, 10}
    assert outcomes[7] > 5


def mutated(whole: bytes, end: int, chance: random.Random) -> bytes:
    content = bytearray(whole)
    for _ in range(chance.choice([1, 1, 2, 5])):
        place = chance.randrange(8, end)
        match chance.randrange(6):
            case 0:
                content[place] = chance.randrange(256)
            case 1:
                content[place : place + 8] = struct.pack("<Q", chance.choice([0, 2**31, 2**40, 2**63, 2**64 - 1]))
            case 2:
                content[place : place + 4] = struct.pack("<I", chance.randrange(16))
            case 3:
                del content[place : place + chance.choice([1, 4, 8, 100])]
            case 4:
                content[place:place] = content[place : place + chance.choice([1, 4, 8, 100])]
            case _:
                del content[place:]
                break
    return bytes(content)


def test_values_of_the_wrong_type_are_refused(tmp_path: Path) -> None:
    """Each key of a file in turn, as text, a list, a number, a bool."""
    path = write_gguf(tmp_path / "m.gguf", seeded("llama"), fields={"split.count": 1, "general.type": "model"})
    known = read_header(path).fields
    assert len(known) > 20
    for key, own in known.items():
        for other in ("7", [7], ["x"], 7.5, 7, True):
            if type(other) is type(own):
                continue
            changed = rewritten(path, known | {key: other}, tmp_path / "n.gguf")
            if key in NUMBERS_OF_MODELS and other == 7 and type(other) is int:
                open_gguf(changed)
                continue
            with pytest.raises(OrtkitError) as caught:
                open_gguf(changed)
            assert caught.value.exit_code == (10 if isinstance(other, list) and key.startswith("llama.") else 7)
            assert f"`{key}`" in caught.value.message
