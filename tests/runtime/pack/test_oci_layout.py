"""OCI image layouts: what is read, and what is refused, in a tar, a folder and at an offset of a file."""

from __future__ import annotations

import io
import json
import os
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ortkit import BundleError, InputError, NotFoundError, OutputError
from ortkit.runtime.pack import layout_writer, oci_layout, strict_tar
from ortkit.runtime.pack.layout_writer import NewArtifact, NewLayer, write_layout, write_layout_folder
from ortkit.runtime.pack.oci_layout import Blob, OciLayout
from tests.packs import GRAPH, NAME, bundle_files, contents, layout_of, member, sha256, tar_of, write_folder

FILES = bundle_files()
LAYOUT = layout_of()
WEIGHTS = f"blobs/sha256/{sha256(GRAPH)}"


def artifact(**layers: bytes) -> NewArtifact:
    named = {name.replace("__", "/").replace("_", "."): content for name, content in layers.items()}
    return NewArtifact("a", "bundle", {name: NewLayer.of(content, "x/y") for name, content in named.items()})


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def extracted(path: Path, out: Path, **options: Any) -> dict[str, bytes]:
    with OciLayout.open(path, offset=options.pop("offset", 0)) as layout:
        layout.check()
        layout.extract(layout.artifacts[0], out, **options)
    return contents(out)


def by_gnu_tar(tmp_path: Path, *options: str) -> Path:
    subprocess.run(
        ["tar", "-cf", tmp_path / "gnu.tar", *options, "-C", write_folder(tmp_path / "layout", LAYOUT), "."], check=True
    )
    return tmp_path / "gnu.tar"


FORMS: dict[str, Callable[[Path], tuple[Path, int]]] = {
    "folder": lambda tmp: (write_folder(tmp / "layout", LAYOUT), 0),
    "ustar": lambda tmp: (write(tmp / "a.tar", tar_of(LAYOUT)), 0),
    "at an offset": lambda tmp: (write(tmp / "a.kit", b"#!/bin/sh\n" + tar_of(LAYOUT)), 10),
    "pax": lambda tmp: (write(tmp / "a.tar", tar_of(LAYOUT, form=tarfile.PAX_FORMAT)), 0),
    "gnu": lambda tmp: (write(tmp / "a.tar", tar_of(LAYOUT, form=tarfile.GNU_FORMAT)), 0),
    "with times": lambda tmp: (
        write(
            tmp / "a.tar",
            tar_of({}, before=[member(*f, mtime=1.5) for f in LAYOUT.items()], form=tarfile.PAX_FORMAT),
        ),
        0,
    ),
    "with folders": lambda tmp: (
        write(tmp / "a.tar", tar_of(LAYOUT, before=[member("blobs/", type=tarfile.DIRTYPE)])),
        0,
    ),
    "GNU tar": lambda tmp: (by_gnu_tar(tmp), 0),
    "GNU tar, pax": lambda tmp: (by_gnu_tar(tmp, "--format=pax"), 0),
}


@pytest.mark.parametrize("form", FORMS)
def test_layouts_that_other_programs_write(tmp_path: Path, form: str) -> None:
    path, offset = FORMS[form](tmp_path)

    assert extracted(path, tmp_path / "out", offset=offset) == FILES


def test_a_tar_is_what_tarfile_reads_and_the_same_twice() -> None:
    written = [io.BytesIO(), io.BytesIO()]
    for out in written:
        write_layout(out, [artifact(model_onnx=b"x" * 1000, sub__file=b"hello")])

    with tarfile.open(fileobj=io.BytesIO(written[0].getvalue())) as archive:
        members = archive.getmembers()
        names = [found.name for found in members]
        assert names[:2] == ["oci-layout", "index.json"]
        assert {(found.mode, found.mtime, found.uid, found.gid, found.uname) for found in members} == {
            (0o644, 0, 0, 0, "")
        }
        for found in members[2:]:
            assert found.name == f"blobs/sha256/{sha256(archive.extractfile(found).read())}"
    assert written[0].getvalue() == written[1].getvalue()
    assert len(written[0].getvalue()) % 512 == 0


def test_a_written_layout_is_read(tmp_path: Path) -> None:
    made = [artifact(model_onnx=b"x" * 1000, sub__file=b"hello")]
    with (tmp_path / "a.tar").open("wb") as out:
        write_layout(out, made)
    write_layout_folder(tmp_path / "folder", made)

    for place, path in enumerate([tmp_path / "a.tar", tmp_path / "folder"]):
        assert extracted(path, tmp_path / f"out-{place}") == {"model.onnx": b"x" * 1000, "sub/file": b"hello"}
        with OciLayout.open(path) as layout:
            (found,) = layout.artifacts
            assert (found.name, found.kind, found.size) == ("a", "bundle", 1005)
            assert layout.artifact("a") is found
            # What `sha256sum` says of every file that is there.
            assert layout.files() == {name: sha256(content) for name, content in contents(tmp_path / "folder").items()}
    assert (tmp_path / "out-0" / "sub" / "file").stat().st_mode & 0o777 == 0o444


def test_files_over_8_gib_have_a_pax_header(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(strict_tar, "LARGEST_OCTAL", 800)
    with (tmp_path / "a.tar").open("wb") as out:
        write_layout(out, [artifact(model_onnx=b"x" * 1000)])

    assert extracted(tmp_path / "a.tar", tmp_path / "out") == {"model.onnx": b"x" * 1000}
    with tarfile.open(tmp_path / "a.tar") as archive:
        assert [found.size for found in archive.getmembers() if found.pax_headers][-1] == 1000


def test_the_sizes_of_gnu_tar_over_8_gib(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.GNU_FORMAT) as archive:
        info = tarfile.TarInfo("index.json")
        info.size = 1 << 35
        archive.addfile(info)

    with pytest.raises(BundleError, match=r"truncated: `index\.json` has 34359738368 bytes, 9728 are left"):
        OciLayout.open(tmp_path / "a.tar")


def test_an_artifact_that_is_not_there(tmp_path: Path) -> None:
    with (
        OciLayout.open(write(tmp_path / "a.tar", tar_of(LAYOUT))) as layout,
        pytest.raises(NotFoundError, match="does not contain `b`; it contains `tiny`"),
    ):
        layout.artifact("b")


def test_no_pack_at_a_path(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"there is no pack at `.*/none`"):
        OciLayout.open(tmp_path / "none")


NOT_PACKS: dict[str, tuple[Callable[[Path], object], str]] = {
    "text": (lambda path: path.write_text("hello" * 200), "is not a pack: there is no tar header at offset 0"),
    "empty": (lambda path: path.touch(), "is not a pack: it is truncated: 512 bytes were expected at offset 0"),
    "zeros": (lambda path: path.write_bytes(bytes(1024)), "`oci-layout` is missing|`index.json` is missing"),
    "gzip": (lambda path: path.write_bytes(b"\x1f\x8b\x08" + bytes(600)), "is compressed"),
    "zstd": (lambda path: path.write_bytes(b"\x28\xb5\x2f\xfd" + bytes(600)), "is compressed"),
    "another tar": (lambda path: path.write_bytes(tar_of({"a.txt": b""})), "it contains `a.txt`, which is not part of"),
    "a folder": (lambda path: path.mkdir(), "is not a pack: it has no `oci-layout`"),
    "a pipe": (os.mkfifo, "is not a regular file"),
    "a device": (lambda path: path.symlink_to("/dev/zero"), "is not a regular file"),
}


@pytest.mark.parametrize("case", NOT_PACKS)
def test_what_is_not_a_pack(tmp_path: Path, case: str) -> None:
    make, message = NOT_PACKS[case]
    make(tmp_path / "a")

    with pytest.raises(BundleError, match=message):
        OciLayout.open(tmp_path / "a")


def header(place: int, start: int, value: bytes, *, layout: bytes | None = None) -> bytes:
    """A tar with other bytes in the header of the entry at an offset, and the checksum made right."""
    content = bytearray(tar_of(LAYOUT) if layout is None else layout)
    content[place + start : place + start + len(value)] = value
    block = bytearray(content[place : place + 512])
    block[148:156] = b" " * 8
    content[place + 148 : place + 156] = b"%06o\0 " % sum(block)
    return bytes(content)


def pax(**records: str) -> bytes:
    entry = member(
        "oci-layout", LAYOUT["oci-layout"], pax_headers={key.replace("__", "."): v for key, v in records.items()}
    )
    rest = {name: content for name, content in LAYOUT.items() if name != "oci-layout"}
    return tar_of(rest, before=[entry], form=tarfile.PAX_FORMAT)


def raw_pax(content: bytes) -> bytes:
    """A tar that begins with a pax header with these contents."""
    info = tarfile.TarInfo("pax")
    info.type, info.size = tarfile.XHDTYPE, len(content)
    return info.tobuf(tarfile.USTAR_FORMAT) + content + bytes(-len(content) % 512) + tar_of(LAYOUT)


def many(count: int) -> bytes:
    return b"".join(member(f"blobs/sha256/{number:064x}")[0].tobuf() for number in range(count))


WITH_MARKER = {"oci-layout": LAYOUT["oci-layout"]}
WHOLE = tar_of(LAYOUT)
HOSTILE_TARS: dict[str, tuple[Callable[[], bytes], str]] = {
    "a hard link": (
        lambda: tar_of(LAYOUT, after=[member("index.json", type=tarfile.LNKTYPE, linkname="oci-layout")]),
        "contains a hard link at offset",
    ),
    "a symbolic link": (
        lambda: tar_of(LAYOUT, after=[member("blobs", type=tarfile.SYMTYPE, linkname="/etc")]),
        "contains a symbolic link",
    ),
    "a character device": (lambda: tar_of(LAYOUT, after=[member("a", type=tarfile.CHRTYPE)]), "a character device"),
    "a block device": (lambda: tar_of(LAYOUT, after=[member("a", type=tarfile.BLKTYPE)]), "a block device"),
    "a pipe": (lambda: tar_of(LAYOUT, after=[member("a", type=tarfile.FIFOTYPE)]), "a named pipe"),
    "a contiguous file": (lambda: tar_of(LAYOUT, after=[member("a", type=tarfile.CONTTYPE)]), "a contiguous file"),
    "an old sparse file": (lambda: tar_of(LAYOUT, after=[member("a", type=b"S")]), "a sparse file"),
    "an unknown type": (lambda: tar_of(LAYOUT, after=[member("a", type=b"Z")]), "an entry of type b'Z'"),
    "a long name": (
        lambda: tar_of(LAYOUT, after=[member("a/" * 90)], form=tarfile.GNU_FORMAT),
        "a GNU long name",
    ),
    "a name prefix": (lambda: tar_of(LAYOUT, after=[member("a/" * 70 + "b")]), "a name prefix or other extensions"),
    "a link name of a file": (lambda: header(0, 157, b"index.json"), "has a link name"),
    "a path with ..": (lambda: tar_of(LAYOUT, after=[member("../evil")]), "`../evil`, which is not part of a pack"),
    "an absolute path": (lambda: tar_of(LAYOUT, after=[member("/etc/evil")]), "`/etc/evil`, which is not part"),
    "a path within blobs": (
        lambda: tar_of(LAYOUT, after=[member("blobs/sha256/../../evil")]),
        "`blobs/sha256/../../evil`, which is not part",
    ),
    "a blob in capitals": (lambda: tar_of(LAYOUT, after=[member(WEIGHTS.upper())]), "which is not part of a pack"),
    "another file": (lambda: tar_of(LAYOUT, after=[member("README", b"hi")]), "`README`, which is not part of a pack"),
    "another folder": (
        lambda: tar_of(LAYOUT, after=[member("evil/", type=tarfile.DIRTYPE)]),
        "`evil/`, which is not part of a pack",
    ),
    "a folder with contents": (
        lambda: header(0, 156, b"5", layout=tar_of({"blobs": b"hello"})),
        "the folder `blobs` has contents",
    ),
    "one file twice": (lambda: tar_of(LAYOUT, after=[member("index.json", b"{}")]), "contains `index.json` twice"),
    "one file as ./ too": (
        lambda: tar_of(LAYOUT, after=[member("./index.json", b"{}")]),
        "contains `index.json` twice",
    ),
    "a blob that is not listed": (
        lambda: tar_of(LAYOUT, after=[member(f"blobs/sha256/{sha256(b'more')}", b"more")]),
        "which its index does not list",
    ),
    "a blob of another size": (
        lambda: tar_of(LAYOUT | {WEIGHTS: GRAPH + b"!"}),
        f"has {len(GRAPH) + 1} bytes instead of {len(GRAPH)}",
    ),
    "a changed blob": (lambda: tar_of(LAYOUT | {WEIGHTS: b"!" + GRAPH[1:]}), "was changed: its sha256 is not its name"),
    "the checksum": (lambda: WHOLE[:100] + b"7" + WHOLE[101:], "the checksum of the header at offset 0 is wrong"),
    "the size": (lambda: header(0, 124, b"77777777777\0"), "truncated: `oci-layout` has 8589934591 bytes"),
    "a size in hexadecimal": (lambda: header(0, 124, b"0000000x036\0"), "the size in the header at offset 0"),
    "a negative size": (lambda: header(0, 124, b"-0000000036\0"), "the size in the header at offset 0"),
    "a binary size": (lambda: header(0, 124, b"\x80" + b"\xff" * 11), "truncated: `oci-layout` has [0-9]{20,} bytes"),
    "a negative binary size": (lambda: header(0, 124, b"\xff" * 12), "the size in the header at offset 0"),
    "a name with NUL": (lambda: header(0, 0, b"oci-layout\0x"), "the name at offset 0 has a NUL character"),
    "a name of other bytes": (lambda: header(0, 0, b"oci-layo\xff"), "the name at offset 0 is not ASCII"),
    "no magic": (lambda: header(0, 257, bytes(8)), "there is no tar header at offset 0"),
    "the padding": (lambda: WHOLE[:1000] + b"!" + WHOLE[1001:], "the padding at offset 542 is not zero"),
    "cut in a header": (lambda: WHOLE[:1200], "it is truncated: .* bytes were expected"),
    "cut in a file": (lambda: WHOLE[:1600], "it is truncated: `index.json` has"),
    "cut before the end": (lambda: WHOLE.rstrip(b"\0") + bytes(512), "it is truncated"),
    "data after its end": (lambda: WHOLE + b"evil", "data follows its end"),
    "another tar after its end": (lambda: WHOLE + WHOLE, "data follows its end"),
    "zeros without end": (lambda: WHOLE + bytes((1 << 20) + 1), "bytes follow its end"),
    "a pax path": (lambda: pax(path="../../evil"), "has `path`, which a pack does not use"),
    "a pax link path": (lambda: pax(linkpath="/etc/passwd"), "has `linkpath`, which a pack does not use"),
    "a pax sparse file": (lambda: pax(GNU__sparse__major="1"), "has `GNU.sparse.major`"),
    "a pax size": (lambda: raw_pax(b"14 size=99999\n"), "truncated: `oci-layout` has 99999 bytes"),
    "a pax size in hexadecimal": (lambda: raw_pax(b"12 size=0x9\n"), "is not a number"),
    "a pax record twice": (lambda: raw_pax(b"10 size=1\n10 size=2\n"), "repeats `size`"),
    "a pax record without end": (lambda: raw_pax(b"99 size=1\n"), "the pax header at offset 512 is damaged"),
    "a giant pax header": (lambda: raw_pax(b"a" * 20_000), "a pax header has 20000 bytes; the limit is 16384"),
    "two pax headers": (
        lambda: raw_pax(b"10 size=1\n")[:1024] + raw_pax(b"10 size=1\n"),
        "there are two pax headers",
    ),
    "a pax header alone": (lambda: raw_pax(b"10 size=1\n")[:1024] + bytes(1024), "is not followed by a file"),
    "a global pax header": (
        lambda: tar_of(LAYOUT, after=[member("g", b"10 size=1\n", type=tarfile.XGLTYPE)]),
        "a global pax header",
    ),
    "too many files": (lambda: many(10_001) + bytes(1024), "it has more than 10000 files"),
    "too many folders": (
        lambda: member("blobs/", type=tarfile.DIRTYPE)[0].tobuf() * 30_001,
        "it has more than 30000 entries",
    ),
    "no marker": (lambda: tar_of({k: v for k, v in LAYOUT.items() if k != "oci-layout"}), "`oci-layout` is missing"),
    "no index": (lambda: tar_of(WITH_MARKER), "`index.json` is missing"),
    "another version": (
        lambda: tar_of(LAYOUT | {"oci-layout": b'{"imageLayoutVersion":"2.0"}'}),
        "the version `1.0.0`",
    ),
}


def changed(**changes: Any) -> Callable[[], bytes]:
    return lambda: tar_of(layout_of(**changes))


def set_layer(**fields: Any) -> Callable[[], bytes]:
    """A pack whose first layer has other fields."""
    return changed(layers=lambda layers: layers[0].update(fields))


def set_path(path: Any) -> Callable[[], bytes]:
    return set_layer(annotations={oci_layout.FILE_PATH: path})


def path_of(path: str) -> dict[str, Any]:
    return {"annotations": {oci_layout.FILE_PATH: path}}


def manifest_of(content: bytes) -> dict[str, Any]:
    """An entry of the index."""
    return {"mediaType": oci_layout.IMAGE_MANIFEST, "size": len(content), "digest": f"sha256:{sha256(content)}"}


def index_of(content: bytes) -> Callable[[], bytes]:
    return lambda: tar_of(LAYOUT | {"index.json": content})


def two_artifacts(second: str) -> bytes:
    first, other = layout_of(), layout_of(name=second)
    entries = [json.loads(made["index.json"])["manifests"][0] for made in (first, other)]
    return tar_of({**first, **other, "index.json": json.dumps({"manifests": entries}).encode()})


LONG = "a" * 300
HOSTILE_JSON: dict[str, tuple[Callable[[], bytes], str]] = {
    "a path with ..": (set_path("../evil"), "the path `../evil` of .* leaves its folder"),
    "a path with .. within": (set_path("a/../../evil"), "leaves its folder"),
    "an absolute path": (set_path("/etc/evil"), "the path `/etc/evil` of .* leaves its folder"),
    "a path of Windows": (set_path("..\\evil"), "leaves its folder"),
    "a drive": (set_path("c:evil"), "leaves its folder"),
    "a dot": (set_path("."), "leaves its folder"),
    "an empty path": (set_path(""), "leaves its folder"),
    "a path that is not normalized": (set_path("a//b"), "is not normalized"),
    "a folder": (set_path("a/"), "is not normalized"),
    "a control character": (set_path("a\x1b[2J"), "is not normalized"),
    "a surrogate": (set_path("a\ud800"), "annotations that are not strings"),
    "a NUL": (set_path("a\0b"), "is not normalized"),
    "a deep path": (set_path("a/" * 9 + "b"), "is not normalized"),
    "a long name": (set_path(LONG), "is too long"),
    "a long path": (set_path("/".join([LONG[:250]] * 5)), "is too long"),
    "a number as a path": (set_path(7), "annotations that are not strings"),
    "no path": (set_layer(annotations={}), "has no annotation `org.cncf.model.filepath`"),
    "a path twice": (
        changed(layers=lambda layers: layers.append(dict(layers[0]))),
        "the layers of `tiny` `model.onnx` and `model.onnx` have the same name",
    ),
    "a path in capitals": (
        changed(layers=lambda layers: layers.append(layers[0] | path_of("MODEL.onnx"))),
        "`model.onnx` and `MODEL.onnx` have the same name",
    ),
    "a path in another normalization": (
        changed(files={"\u00e9": b"a", "e\u0301": b"b"}),
        "have the same name on some systems",
    ),
    "a file as a folder": (changed(files={"a": b"a", "a/b": b"b"}), "`a` is both a file and a folder of `tiny`"),
    "an archive as a layer": (
        set_layer(mediaType="application/vnd.cncf.model.weight.v1.tar+gzip"),
        "is an archive .*; only raw layers are supported",
    ),
    "another digest": (set_layer(digest="md5:" + "0" * 32), "has no valid sha256 digest"),
    "a digest with a path": (set_layer(digest="sha256:../../index.json"), "has no valid sha256 digest"),
    "a digest with a newline": (set_layer(digest=f"sha256:{sha256(GRAPH)}\n"), "has no valid sha256 digest"),
    "a negative size": (set_layer(size=-1), "has -1 bytes; the limit is"),
    "a size that is too large": (set_layer(size=1 << 60), "the limit is 274877906944"),
    "a size as text": (set_layer(size="5"), "has no valid `size`"),
    "a size as a boolean": (set_layer(size=True), "has no valid `size`"),
    "a size that is a lie": (set_layer(size=5), f"has {len(GRAPH)} bytes instead of 5"),
    "two sizes": (
        changed(layers=lambda layers: layers.append(layers[0] | {"size": 5} | path_of("b"))),
        "it states two sizes for",
    ),
    "sizes that add up": (
        changed(
            layers=lambda layers: layers.extend(
                {
                    "mediaType": "x",
                    "digest": f"sha256:{number:064x}",
                    "size": 1 << 37,
                    "annotations": {oci_layout.FILE_PATH: f"{number}"},
                }
                for number in range(3)
            )
        ),
        "the files of `tiny` have .* bytes; the limit is",
    ),
    "a layer that is not an object": (changed(layers=lambda layers: layers.append(7)), "must be an object"),
    "layers that are not a list": (changed(manifest=lambda m: m.update(layers={})), "has no valid `layers`"),
    "too many layers": (
        changed(manifest=lambda m: m.update(layers=[{}] * 10_001)),
        "`tiny` has 10001 layers; the limit is 10000",
    ),
    "no configuration": (changed(manifest=lambda m: m.pop("config")), "has no valid `config`"),
    "no name": (
        changed(manifest=lambda m: m.pop("annotations"), index=lambda i: i["manifests"][0].pop("annotations")),
        "has neither the annotation",
    ),
    "a name with a folder": (changed(name="a/b"), "is not a plain file name"),
    "a name with ..": (changed(name=".."), "`..`, is not a plain file name"),
    "a name with a drive": (changed(name="c:evil"), "an artifact's name, `c:evil`, leaves its folder"),
    "an empty name": (changed(name=""), "an artifact's name, ``, leaves its folder"),
    "a hidden name": (changed(name=".ssh"), "is not a plain file name"),
    "a name of a folder": (changed(name="/"), "is not a plain file name"),
    "two artifacts of one name": (lambda: two_artifacts("TINY"), "the artifacts `tiny` and `TINY` have the same name"),
    "an index in the index": (
        changed(index=lambda i: i["manifests"][0].update(mediaType=oci_layout.IMAGE_INDEX)),
        "supported: `application/vnd.oci.image.manifest.v1.json`",
    ),
    "too many artifacts": (changed(index=lambda i: i.update(manifests=[{}] * 257)), "it has 257 artifacts"),
    "a missing manifest": (
        changed(index=lambda i: i["manifests"].append(manifest_of(b"abc"))),
        f"`blobs/sha256/{sha256(b'abc')}` is missing",
    ),
    "a manifest that is not an object": (
        lambda: tar_of(
            {
                **WITH_MARKER,
                f"blobs/sha256/{sha256(b'[]')}": b"[]",
                "index.json": json.dumps({"manifests": [manifest_of(b"[]")]}).encode(),
            }
        ),
        "must be a JSON object",
    ),
    "an index that is not JSON": (index_of(b"{"), "`index.json` is not valid JSON"),
    "an index that is not UTF-8": (index_of(b'{"a": "\xff"}'), "`index.json` is not valid JSON"),
    "a duplicate key": (index_of(b'{"manifests": [], "manifests": []}'), "repeats the key `manifests`"),
    "deep nesting": (index_of(b"[" * 1_000_000), "`index.json` is not valid JSON"),
    "deep objects": (index_of(b'{"a":' * 400_000), "`index.json` is not valid JSON"),
    "a long number": (index_of(b'{"manifests": %s}' % (b"9" * 100_000)), "`index.json` is not valid JSON"),
    "a giant index": (index_of(b" " * (1 << 21) + b"{}"), "has 2097154 bytes; the limit is 2097152"),
    "a giant manifest": (
        changed(manifest=lambda m: m.update(more="x" * (1 << 21))),
        "bytes; the limit is",
    ),
    "a giant configuration": (changed(config=b" " * (1 << 21)), "bytes; the limit is"),
    "many small objects": (index_of(b'{"manifests": [%s{}]}' % (b"{}," * 650_000)), "it has 650001 artifacts"),
}


@pytest.mark.parametrize("case", HOSTILE_TARS)
def test_a_hostile_tar(tmp_path: Path, case: str) -> None:
    make, message = HOSTILE_TARS[case]
    refused(write(tmp_path / "a.tar", make()), message)


@pytest.mark.parametrize("case", HOSTILE_JSON)
def test_hostile_json(tmp_path: Path, case: str) -> None:
    make, message = HOSTILE_JSON[case]
    refused(write(tmp_path / "a.tar", make()), message)


def refused(path: Path, message: str) -> None:
    with pytest.raises(BundleError, match=message) as found, OciLayout.open(path) as layout:
        layout.check()
    assert found.value.exit_code == 7
    assert str(path) in found.value.message


def test_the_smallest_changes_are_not_refused(tmp_path: Path) -> None:
    """The cases above change layouts that are right: this is what they begin with."""
    for make in (
        changed(),
        lambda: header(0, 0, b"oci-layout"),
        lambda: pax(mtime="1"),
        lambda: two_artifacts("other"),
    ):
        with OciLayout.open(write(tmp_path / "a.tar", make())) as layout:
            layout.check()
    with OciLayout.open(write(tmp_path / "a.tar", many(0) + WHOLE + bytes(1 << 19))) as layout:
        layout.check()


FOLDERS: dict[str, tuple[Callable[[Path], object], str]] = {
    "a link as a blob": (
        lambda path: (path / WEIGHTS).rename(path / "x") and (path / WEIGHTS).symlink_to(path / "x"),
        "is a link or not a regular file",
    ),
    "a folder as a blob": (
        lambda path: (path / WEIGHTS).unlink() or (path / WEIGHTS).mkdir(),
        "is a link or not a regular file",
    ),
    "a pipe as the index": (
        lambda path: (path / "index.json").unlink() or os.mkfifo(path / "index.json"),
        "is not a regular file",
    ),
    "no index": (lambda path: (path / "index.json").unlink(), "`index.json` is missing"),
    "a changed blob": (lambda path: (path / WEIGHTS).write_bytes(b"!" + GRAPH[1:]), "was changed"),
    "a blob of another size": (lambda path: (path / WEIGHTS).write_bytes(b"!"), "has 1 bytes instead of"),
}


@pytest.mark.parametrize("case", FOLDERS)
def test_a_hostile_folder(tmp_path: Path, case: str) -> None:
    change, message = FOLDERS[case]
    change(write_folder(tmp_path / "a", LAYOUT))

    with pytest.raises(BundleError, match=message), OciLayout.open(tmp_path / "a") as layout:
        layout.check()


def test_what_systems_leave_on_a_stick_is_ignored(tmp_path: Path) -> None:
    write_folder(
        tmp_path / "a", LAYOUT | {".DS_Store": b"", "blobs/sha256/._x": b"", "System Volume Information/x": b""}
    )

    assert extracted(tmp_path / "a", tmp_path / "out") == FILES


def test_a_missing_file_is_taken_from_this_machine(tmp_path: Path) -> None:
    left_out = {name: content for name, content in LAYOUT.items() if name != WEIGHTS}
    path = write(tmp_path / "a.tar", tar_of(left_out))
    own = write(tmp_path / "own", GRAPH)
    digest = f"sha256:{sha256(GRAPH)}"

    with OciLayout.open(path) as layout:
        assert [*layout.missing(layout.artifacts[0])] == ["model.onnx"]
    assert extracted(path, tmp_path / "linked", have={digest: own}) == FILES
    assert (tmp_path / "linked" / "model.onnx").samefile(own)
    # A link to a file is copied: it can point elsewhere later.
    (tmp_path / "link").symlink_to(own)
    assert extracted(path, tmp_path / "copied", have={digest: tmp_path / "link"}) == FILES
    assert not (tmp_path / "copied" / "model.onnx").is_symlink()


def test_a_missing_file_that_is_not_here(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tar", tar_of({name: content for name, content in LAYOUT.items() if name != WEIGHTS}))

    with pytest.raises(BundleError) as found:
        extracted(path, tmp_path / "out")

    assert found.value.message == (
        f"`{path}` leaves out 1 of the files of `tiny` (`model.onnx`), and they are not on this machine"
    )
    assert found.value.hint == "name the folder of the earlier bundles with `--have-from`, or use a pack of all files"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("own", [b"!" + GRAPH[1:], GRAPH + b"!", b""])
def test_a_file_of_this_machine_that_was_changed(tmp_path: Path, own: bytes) -> None:
    path = write(tmp_path / "a.tar", tar_of({name: content for name, content in LAYOUT.items() if name != WEIGHTS}))
    have = {f"sha256:{sha256(GRAPH)}": write(tmp_path / "own", own)}

    with pytest.raises(BundleError, match=r"`.*/own` was changed: its sha256 is"):
        extracted(path, tmp_path / "out", have=have)


def test_a_file_of_this_machine_that_has_gone(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tar", tar_of({name: content for name, content in LAYOUT.items() if name != WEIGHTS}))

    with pytest.raises(BundleError, match=r"`.*/own` is missing"):
        extracted(path, tmp_path / "out", have={f"sha256:{sha256(GRAPH)}": tmp_path / "own"})


def test_a_pack_that_changes_while_it_is_read(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tar", WHOLE)
    with OciLayout.open(path) as layout:
        os.truncate(path, 4000)
        with pytest.raises(BundleError, match="was changed"):
            layout.extract(layout.artifacts[0], tmp_path / "out")


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    with (
        OciLayout.open(write(tmp_path / "a.tar", WHOLE)) as layout,
        pytest.raises(OutputError, match=r"`.*/none/out` cannot be written: No such file or directory"),
    ):
        layout.extract(layout.artifacts[0], tmp_path / "none" / "out")


def test_nothing_is_written_through_what_is_there(tmp_path: Path) -> None:
    """A caller passes an empty folder; where it does not, links in it are not followed, and files are not replaced."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "model.onnx").symlink_to(tmp_path / "victim")
    with (
        OciLayout.open(write(tmp_path / "a.tar", WHOLE)) as layout,
        pytest.raises(OutputError, match="File exists"),
    ):
        layout.extract(layout.artifacts[0], tmp_path / "out")
    assert not (tmp_path / "victim").exists()


@pytest.mark.parametrize("source", [b"y" * 1000, b"x" * 999, b"x" * 1001])
def test_a_file_that_changes_before_it_is_packed(tmp_path: Path, source: bytes) -> None:
    blob = Blob(f"sha256:{sha256(b'x' * 1000)}", 1000, "x/y")
    made = NewArtifact("a", "bundle", {"f": NewLayer(blob, write(tmp_path / "f", source))})

    with pytest.raises(BundleError, match=r"`.*/f` was changed"), (tmp_path / "a.tar").open("wb") as out:
        write_layout(out, [made])


def test_more_files_than_a_layout_may_have(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout_writer, "LARGEST_JSON", 500)

    with pytest.raises(InputError) as found:
        write_layout(io.BytesIO(), [artifact(model_onnx=b"x")])
    assert found.value.message == "the bundles have too many files for one pack"
    assert found.value.hint == "write them to several packs"


def test_a_file_that_a_pack_cannot_have() -> None:
    made = NewArtifact("a", "bundle", {"a:b": NewLayer.of(b"", "x/y")})

    with pytest.raises(InputError, match="the file `a:b` of `a` cannot be packed: its path leaves its folder"):
        write_layout(io.BytesIO(), [made])


def test_names_become_tags(tmp_path: Path) -> None:
    made = [NewArtifact(name, "bundle", {"f": NewLayer.of(b"", "x/y")}) for name in ("-a b", "ä", "plain-1.0_x")]
    write_layout_folder(tmp_path / "a", made)

    index = json.loads((tmp_path / "a" / "index.json").read_text())
    tags = {
        found["annotations"][oci_layout.TITLE]: found["annotations"][oci_layout.REFERENCE]
        for found in index["manifests"]
    }
    assert tags == {"-a b": "a-b", "ä": "bundle", "plain-1.0_x": "plain-1.0_x"}
    with OciLayout.open(tmp_path / "a") as layout:
        assert {found.name for found in layout.artifacts} == {"-a b", "ä", "plain-1.0_x"}


def test_an_artifact_of_another_tool_has_its_name_from_the_index(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tar", changed(manifest=lambda m: m.pop("annotations"))())
    with OciLayout.open(path) as layout:
        assert [(found.name, found.kind) for found in layout.artifacts] == [(NAME, "bundle")]
    path = write(tmp_path / "b.tar", changed(manifest=lambda m: m.update(annotations={}, artifactType="x/y"))())
    with OciLayout.open(path) as layout:
        assert [(found.name, found.kind) for found in layout.artifacts] == [(NAME, "other")]
