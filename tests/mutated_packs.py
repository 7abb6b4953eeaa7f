"""Packs that were changed at random: each is refused with an ortkit error, or unpacks to what it says.

`python -m tests.mutated_packs FOLDER FIRST COUNT` tries so many seeds with bounded memory and time, and writes nothing
outside FOLDER; it prints the number of refused packs and of those that were unpacked.
"""

from __future__ import annotations

import json
import random
import resource
import shutil
import signal
import sys
import tarfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ortkit.runtime.bundle.bundle import Bundle
from ortkit.runtime.bundle.folder import SBOM_FILE
from ortkit.runtime.errors import BundleError
from ortkit.runtime.pack.oci_layout import FILE_PATH, OciLayout
from ortkit.runtime.pack.unpack import bundles_in, unpack
from tests.packs import Json, bundle_files, contents, layout_of, sha256, tar_of

MEMORY = 256 << 20
SECONDS = 2
NAMES = (
    *("../evil", "/tmp/evil", "a/../../evil", "..", ".", "", "a//b", "a\\b", "c:evil", "a\0b", "\ud800", "x" * 300),
    *("a/b/c/d/e/f/g/h/i", "MODEL.onnx", "model.sig", "sbom.cdx.json", "manifest.json", "tokenizer.json/x", "-rf"),
)
VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2**31, 2**63, -(2**63), 10**30, 0.5, 1e308, float("nan"), float("inf")),
    *("", "x", "../x", "sha256:" + "0" * 64, "x" * 5000, [], [[]], {}, {"a": 1}, [None] * 100),
)
TYPES = b"01234567DKLMNSVXgx\0Z"
FIELDS = {
    "name": (0, 100, (b"../evil", b"/tmp/evil", b"index.json", b"oci-layout", b"blobs/sha256/" + b"0" * 64, b"")),
    "mode": (100, 8, (b"0004755\0", b"7777777\0", b"")),
    "size": (124, 12, (b"00000000000\0", b"77777777777\0", b"\x80" + b"\xff" * 11, b"-0000000001\0", b"\xff" * 12)),
    "time": (136, 12, (b"77777777777\0", b"")),
    "type": (156, 1, tuple(bytes([kind]) for kind in TYPES)),
    "link": (157, 100, (b"/etc/passwd", b"../evil", b"")),
    "magic": (257, 8, (b"ustar\x0000", b"ustar  \0", bytes(8))),
    "owner": (265, 32, (b"root", b"")),
    "device": (329, 16, (b"0000001\x000000002\0", b"")),
    "prefix": (345, 155, (b"..", b"/tmp", b"")),
}
"""Fields of a tar header: offset, length and what is put there."""


def change_json(value: Any, draw: random.Random) -> None:
    """Change, remove or add one value."""
    places: list[tuple[Any, Any]] = []

    def collect(holder: Any) -> None:
        for key in list(holder) if isinstance(holder, dict) else range(len(holder)):
            places.append((holder, key))
            if isinstance(holder[key], (dict, list)):
                collect(holder[key])

    collect(value)
    if not places:
        return
    holder, key = draw.choice(places)
    action = draw.randrange(4)
    if action == 0:
        del holder[key]
    elif action == 1 and isinstance(holder[key], str):
        holder[key] = draw.choice(NAMES)
    elif action == 2 and isinstance(holder[key], int):
        holder[key] += draw.choice([1, -1, 512, 2**40])
    else:
        holder[key] = draw.choice(VALUES)


def flip(content: bytearray, draw: random.Random) -> None:
    for _ in range(draw.choice([1, 1, 2, 20])):
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)


def cut(content: bytearray, draw: random.Random) -> None:
    del content[draw.randrange(len(content)) :]


def splice(content: bytearray, draw: random.Random) -> None:
    """Remove, repeat, move or insert some blocks."""
    blocks = len(content) // 512
    begin, end, place = (512 * draw.randrange(blocks + 1) for _ in range(3))
    begin, end = min(begin, end), max(begin, end)
    taken = content[begin:end]
    action = draw.randrange(4)
    if action in (0, 1):
        del content[begin:end]
    if action in (1, 2):
        content[place:place] = taken
    if action == 3:
        content[place:place] = draw.choice([bytes(512), bytes(100_000), draw.randbytes(512), draw.randbytes(7)])


def headers_of(content: bytearray) -> list[int]:
    return [place for place in range(0, len(content), 512) if content[place + 257 : place + 262] == b"ustar"]


def change_header(content: bytearray, draw: random.Random) -> None:
    """Change a field of a header, and make its checksum right."""
    found = headers_of(content)
    if not found:
        return
    place = draw.choice(found)
    start, length, values = FIELDS[draw.choice(sorted(FIELDS))]
    content[place + start : place + start + length] = draw.choice(values).ljust(length, b"\0")
    block = bytearray(content[place : place + 512])
    block[148:156] = b" " * 8
    content[place + 148 : place + 156] = b"%06o\0 " % sum(block)


def change_bytes(draw: random.Random) -> bytes:
    content = bytearray(tar_of(layout_of()))
    for _ in range(draw.choice([1, 1, 1, 3])):
        if content:
            draw.choice([flip, cut, splice, change_header, change_header])(content, draw)
    return bytes(content)


def change_layout(draw: random.Random) -> bytes:
    """Change the JSON of a layout, with digests that are right."""
    files = bundle_files(graph=draw.randbytes(draw.choice([0, 1, 511, 512, 513])))

    def change_layers(layers: list[Json]) -> None:
        if draw.random() < 0.5:
            draw.choice(layers)["annotations"] = {FILE_PATH: draw.choice(NAMES)}
        else:
            change_json(layers, draw)

    if draw.random() < 0.3:
        manifest = json.loads(files["manifest.json"])
        change_json(manifest["files"] if draw.random() < 0.5 else manifest, draw)
        files["manifest.json"] = json.dumps(manifest).encode()
    changes: list[dict[str, Any]] = [
        {"layers": change_layers},
        {"manifest": lambda found: change_json(found, draw)},
        {"index": lambda found: change_json(found, draw)},
        {"name": draw.choice([name for name in NAMES if "\ud800" not in name])},
        {"config": json.dumps(draw.choice(VALUES)).encode()},
    ]
    layout = layout_of(files, **draw.choice(changes))
    if draw.random() < 0.1:
        del layout[draw.choice(sorted(layout))]
    return tar_of(layout)


def change_blob(draw: random.Random) -> bytes:
    """A blob of another bundle, or one that is longer, shorter or changed, under a name that is right."""
    layout = layout_of()
    name = draw.choice(sorted(name for name in layout if name.startswith("blobs")))
    content = bytearray(layout[name])
    if not content:
        return tar_of(layout)
    action = draw.randrange(4)
    if action == 0:
        flip(content, draw)
    elif action == 1:
        cut(content, draw)
    elif action == 2:
        content += draw.randbytes(draw.choice([1, 512]))
    else:
        other = layout_of(bundle_files(graph=b"another"))
        content = bytearray(other[draw.choice(sorted(other))])
    return tar_of(layout | {name: bytes(content)})


def filled(item: bytes) -> bytes:
    """A pack whose index is as large as may be, and a list of small items."""
    count = ((1 << 21) - 64) // (len(item) + 1)
    return tar_of(layout_of() | {"index.json": b'{"manifests": [%s]}' % b",".join([item] * count)})


def entries(info: tarfile.TarInfo, count: int) -> bytes:
    return info.tobuf(tarfile.USTAR_FORMAT) * count + bytes(1024)


def many_blobs(count: int) -> bytes:
    return b"".join(tarfile.TarInfo(f"blobs/sha256/{number:064x}").tobuf() for number in range(count)) + bytes(1024)


BOMBS: dict[str, Callable[[], bytes]] = {
    "objects": lambda: filled(b"{}"),
    "lists": lambda: filled(b"[]"),
    "objects with a key": lambda: filled(b'{"a":1}'),
    "objects in objects": lambda: filled(b'{"a":{"b":{"c":{}}}}'),
    "texts": lambda: filled('"\U0001f642"'.encode()),
    "numbers": lambda: filled(b"1e9"),
    "one text": lambda: filled(b'"' + "\U0001f642".encode() * 450_000 + b'"'),
    "keys": lambda: tar_of(
        layout_of() | {"index.json": b"{%s}" % b",".join(b'"%x":0' % number for number in range(180_000))}
    ),
    "escapes": lambda: filled(rb'"\ud83d\ude42"'),
    "depth": lambda: tar_of(layout_of() | {"index.json": b"[" * (1 << 21)}),
    "layers": lambda: tar_of(layout_of(manifest=lambda found: found.update(layers=[{"a": {}}] * 200_000))),
    "annotations": lambda: tar_of(
        layout_of(manifest=lambda found: found["annotations"].update({f"{n:x}": "" for n in range(150_000)}))
    ),
    "files": lambda: many_blobs(10_001),
    "most files": lambda: many_blobs(10_000),
    "folders": lambda: entries(folder_named("blobs/"), 30_001),
}
"""Packs that cost most to read."""


def folder_named(name: str) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type = tarfile.DIRTYPE
    return info


CHANGES: tuple[Callable[[random.Random], bytes], ...] = (change_bytes, change_bytes, change_layout, change_blob)


def attempt(folder: Path, seed: int) -> bool:
    """Open and unpack one changed pack; whether it was refused. Raises AssertionError where something is wrong."""
    draw = random.Random(seed)
    pack, out = folder / "a.tar", folder / "out"
    pack.write_bytes(draw.choice(CHANGES)(draw))
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    try:
        unpack_all(pack, out)
    except BundleError as error:
        problem = str(error)
    else:
        return False
    assert problem, "an error without a message"
    assert not [path for path in out.iterdir() if path.name.startswith(".")], "a staging folder was left"
    return True


def unpack_all(pack: Path, out: Path) -> None:
    """Unpack all bundles and compare their files with what the layers say."""
    with OciLayout.open(pack) as layout:
        for artifact in bundles_in(layout):
            bundle = unpack(layout, artifact, out / artifact.name)
            # An SBOM stays in the pack.
            listed = {name: blob.sha256 for name, blob in artifact.layers.items() if name != SBOM_FILE}
            assert {name: sha256(content) for name, content in contents(bundle.path).items()} == listed
            assert bundle == Bundle.open(out / artifact.name)


def too_slow(_number: int, _frame: object) -> None:
    raise AssertionError(f"it took more than {SECONDS} s")


def main(folder: str, first: str, count: str) -> None:
    place = Path(folder)
    victim = place.parent / "evil"
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    # CPU time: other processes count for nothing.
    signal.signal(signal.SIGPROF, too_slow)
    for name, make in BOMBS.items():
        (place / "a.tar").write_bytes(make())
        shutil.rmtree(place / "out", ignore_errors=True)
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        try:
            unpack_all(place / "a.tar", place / "out")
        except BundleError:
            continue
        except BaseException as error:
            error.add_note(name)
            raise
        # All that is within the bounds is read.
        assert name == "annotations", f"`{name}` was not refused"
    found: Counter[bool] = Counter()
    for seed in range(int(first), int(first) + int(count)):
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        try:
            found[attempt(place, seed)] += 1
        except BaseException as error:
            error.add_note(f"seed {seed}")
            raise
        assert not victim.exists(), f"seed {seed} wrote outside its folder"
        assert sorted(path.name for path in place.iterdir()) == ["a.tar", "out"], f"seed {seed} left files"
    print(found[True], found[False])


if __name__ == "__main__":
    main(*sys.argv[1:])
