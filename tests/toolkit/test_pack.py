"""`ortkit pack` and `unpack`, and `inspect` and `list` of what they carry: output, errors and exit codes."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ortkit import Bundle
from ortkit.runtime.installer.kit_format import Parts
from ortkit.runtime.pack.oci_layout import Artifact, Blob, OciLayout
from tests.commands import Finished, lines_on_terminal, on_terminal
from tests.packs import bundle_files, contents, layout_of, names_in, sha256, tar_of, write_bundle

Run = Callable[..., Finished]


@pytest.fixture
def bundles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with `bundles/first` and `bundles/second`, which share their tokenizer."""
    write_bundle(tmp_path / "bundles" / "first")
    write_bundle(tmp_path / "bundles" / "second", bundle_files(graph=b"second"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "bundles"


def test_bundles_are_packed_and_unpacked(ortkit: Run, bundles: Path, tmp_path: Path) -> None:
    packed = ortkit("pack", "first", "bundles/second", "-o", "line4.tar")
    unpacked = ortkit("unpack", "line4.tar", "-o", "new")

    assert (packed.code, packed.out) == (0, b"line4.tar\n")
    assert packed.err == "2 bundles, 0.0 MB\n"
    assert (unpacked.code, unpacked.err, unpacked.out) == (0, "", b"new/first\nnew/second\n")
    assert contents(tmp_path / "new") == contents(bundles)
    assert names_in(tmp_path) == ["bundles", "line4.tar", "new"]


def test_a_folder(ortkit: Run, bundles: Path, tmp_path: Path) -> None:
    assert ortkit("pack", "first", "-o", "stick", "--folder").code == 0
    assert names_in(tmp_path / "stick") == ["blobs", "index.json", "oci-layout"]
    assert ortkit("unpack", "stick", "-o", "new").out == b"new/first\n"
    assert contents(tmp_path / "new" / "first") == contents(bundles / "first")


def test_bundles_are_unpacked_to_the_usual_folder(ortkit: Run, bundles: Path) -> None:
    ortkit("pack", "first", "second", "-o", "line4.tar")
    kept = contents(bundles)
    shutil.rmtree(bundles)

    assert ortkit("unpack", "line4.tar", "second").out == b"bundles/second\n"
    assert ortkit("unpack", "line4.tar", "first").out == b"bundles/first\n"
    assert contents(bundles) == kept
    assert [line.split()[0] for line in ortkit("list").out.decode().splitlines()] == ["name", "first", "second"]


@pytest.mark.usefixtures("bundles")
def test_nothing_is_unpacked_where_one_target_exists(ortkit: Run, tmp_path: Path) -> None:
    ortkit("pack", "first", "second", "-o", "line4.tar")
    (tmp_path / "new" / "second").mkdir(parents=True)
    finished = ortkit("unpack", "line4.tar", "-o", "new")

    assert (finished.code, finished.err) == (
        1,
        (
            "error: `new/second` exists, and unpacking replaces nothing\n\n"
            "hint: name another folder with `-o`, or remove it\n"
        ),
    )
    assert names_in(tmp_path / "new") == ["second"]


def test_an_update(ortkit: Run, bundles: Path, tmp_path: Path) -> None:
    """An appliance has `first`; `second` differs in its graph."""
    shutil.copytree(bundles / "first", tmp_path / "appliance" / "first")
    listed = ortkit("list", "--digests")
    own = b"\n".join(line for line in listed.out.splitlines() if b"first/" in line)
    (tmp_path / "have.txt").write_bytes(own)
    ortkit("pack", "first", "-o", "old.tar")

    hashes = sorted(f"sha256:{sha256(content)}" for content in contents(bundles).values())
    assert sorted(line.split()[0] for line in listed.out.decode().splitlines()) == hashes
    for place, options in enumerate([["--since", "old.tar"], ["--since", "bundles/first"], ["--have", "have.txt"]]):
        packed = ortkit("pack", "second", "-o", "update.tar", *options)
        assert (packed.code, packed.err) == (0, "1 bundle, 0.0 MB, 1 file left out\n")
        refused = ortkit("unpack", "update.tar", "-o", "none")
        assert (refused.code, refused.err) == (
            7,
            (
                "error: `update.tar` leaves out 1 of the files of `second` (`tokenizer.json`), and they are not on "
                "this machine\n\nhint: name the folder of the earlier bundles with `--have-from`, or use a pack of all "
                "files\n"
            ),
        )
        assert ortkit("unpack", "update.tar", "-o", f"new-{place}", "--have-from", "appliance").code == 0
        assert contents(tmp_path / f"new-{place}" / "second") == contents(bundles / "second")
    # The bundles beside the new one count without an option.
    assert ortkit("unpack", "update.tar", "-o", "appliance").code == 0
    assert names_in(tmp_path / "appliance") == ["first", "second"]


def test_a_list_of_digests_from_a_pipe(bundles: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "ortkit", "pack", "second", "-o", "update.tar", "--have", "-"]
    own = f"sha256:{sha256((bundles / 'second' / 'model.onnx').read_bytes())}\n"
    finished = subprocess.run(command, input=own, capture_output=True, text=True, cwd=tmp_path, check=False)

    assert (finished.returncode, finished.stdout) == (0, "update.tar\n")
    assert finished.stderr == "1 bundle, 0.0 MB, 1 file left out\n"


ERRORS: dict[str, tuple[list[str], int, str]] = {
    "no such bundle": (["pack", "none", "-o", "a.tar"], 5, "error: there is no bundle at `none`\n"),
    "no bundle": (["pack", "-o", "a.tar"], 2, "error: missing argument 'BUNDLE...'"),
    "no output": (["pack", "first"], 2, "error: missing option '-o' / '--out'"),
    "a folder as the output": (
        ["pack", "first", "-o", "bundles"],
        1,
        "error: `bundles` cannot be written: it is a folder\n",
    ),
    "an output in no folder": (
        ["pack", "first", "-o", "none/a.tar"],
        1,
        "error: `none/a.tar` cannot be written: No such file or directory\n",
    ),
    "an output below a file": (
        ["pack", "first", "-o", "text/a", "--folder"],
        1,
        "error: `text/a` cannot be written: Not a directory\n",
    ),
    "one bundle twice": (
        ["pack", "first", "first", "-o", "a.tar"],
        2,
        "error: two of the bundles are named `first`\n\nhint: rename the folder of one of them\n",
    ),
    "no earlier pack": (
        ["pack", "first", "-o", "a.tar", "--since", "none"],
        5,
        "error: there is no pack at `none`\n\nhint: `",
    ),
    "an earlier pack of another form": (
        ["pack", "first", "-o", "a.tar", "--since", "text"],
        7,
        (
            "error: `text` is not a pack: it is truncated: 512 bytes were expected at offset 0\n\n"
            "hint: `ortkit pack BUNDLE... -o FILE` makes one\n"
        ),
    ),
    "no list": (
        ["pack", "first", "-o", "a.tar", "--have", "none"],
        2,
        "error: invalid value for '--have': 'none': No such file or directory\n",
    ),
    "a list of something else": (
        ["pack", "first", "-o", "a.tar", "--have", "text"],
        2,
        (
            "error: line 1 of `text` does not begin with a digest (`sha256:` and 64 hexadecimal digits)\n\n"
            "hint: `ortkit list --digests` on the appliance prints them\n"
        ),
    ),
    "no pack, and no folder of it": (
        ["unpack", "none/none.tar"],
        5,
        "error: there is no pack at `none/none.tar`\n\nhint: there is no folder `none`\n",
    ),
    "a changed pack for a new folder": (
        ["unpack", "changed.tar", "-o", "new/folder"],
        7,
        "error: the pack `changed.tar` is not valid: `blobs/sha256/",
    ),
    "a bundle to unpack": (
        ["unpack", "bundles/first"],
        7,
        (
            "error: `bundles/first` is not a pack: it has no `oci-layout`\n\n"
            "hint: `ortkit pack BUNDLE... -o FOLDER --folder` makes one\n"
        ),
    ),
    "a name that is not in it": (
        ["unpack", "whole.tar", "third"],
        5,
        "error: the pack `whole.tar` has no bundle `third`\n\nhint: its bundles: `tiny`\n",
    ),
    "no earlier bundles": (
        ["unpack", "cut.tar", "-o", "new", "--have-from", "none"],
        5,
        "error: there is no folder `none`\n",
    ),
    "a folder that is a file": (
        ["unpack", "whole.tar", "-o", "text"],
        1,
        "error: `text/tiny` cannot be written: Not a directory\n",
    ),
    "a pack as a bundle": (
        ["embed", "whole.tar", "hello"],
        5,
        (
            "error: there is no bundle at `whole.tar`\n\n"
            "hint: it is a file: `ortkit unpack whole.tar` writes the bundles of a pack or kit\n"
        ),
    ),
    "runtime of a pack": (
        ["inspect", "whole.tar", "--runtime"],
        2,
        "error: --runtime needs the folder of a bundle: unpack the pack first\n",
    ),
    "runtime of an SBOM": (
        ["inspect", "first", "--runtime", "--sbom"],
        2,
        "error: --sbom and --runtime exclude each other\n",
    ),
    "an SBOM in two forms": (
        ["inspect", "first", "--sbom", "--json"],
        2,
        "error: --sbom and --json exclude each other: the SBOM is JSON\n",
    ),
    "a changed pack": (
        ["inspect", "changed.tar"],
        7,
        "error: the pack `changed.tar` is not valid: `blobs/sha256/",
    ),
    "a list in two forms": (["list", "--json", "--digests"], 2, "error: --json and --digests exclude each other\n"),
}


@pytest.mark.parametrize("case", ERRORS)
@pytest.mark.usefixtures("bundles")
def test_errors(ortkit: Run, tmp_path: Path, case: str) -> None:
    arguments, code, message = ERRORS[case]
    layout = layout_of()
    graph = f"blobs/sha256/{sha256(bundle_files()['model.onnx'])}"
    (tmp_path / "text").write_text("hello")
    (tmp_path / "whole.tar").write_bytes(tar_of(layout))
    (tmp_path / "changed.tar").write_bytes(tar_of(layout | {graph: b"!" + layout[graph][1:]}))
    (tmp_path / "cut.tar").write_bytes(tar_of({name: found for name, found in layout.items() if name != graph}))
    before = contents(tmp_path)
    finished = ortkit(*arguments)

    assert finished.code == code
    assert finished.out == b""
    assert finished.err.startswith(message)
    assert contents(tmp_path) == before
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["bundles"]


@pytest.mark.usefixtures("bundles")
@pytest.mark.parametrize("place", ["", "other/"])
def test_a_pack_that_is_not_there(ortkit: Run, tmp_path: Path, place: str) -> None:
    """The hint lists those in its folder."""
    folder = tmp_path / place
    folder.mkdir(exist_ok=True)

    def hint() -> str:
        finished = ortkit("unpack", f"{place}nowhere.tar")
        assert (finished.code, finished.out) == (5, b"")
        assert finished.err.startswith(f"error: there is no pack at `{place}nowhere.tar`\n\nhint: ")
        return finished.err.partition("hint: ")[2].rstrip()

    (folder / "notes.txt").touch()
    assert hint() == f"`{folder}` has no file that ends with .tar or .kit; `ortkit pack` writes one".replace("/`", "`")
    for name in ("line4.kit", "a.tar"):
        (folder / name).touch()
    assert hint() == f"`{folder}` has `a.tar`, `line4.kit`".replace("/`", "`")
    for number in range(5):
        (folder / f"b{number}.tar").touch()
    assert hint().endswith("has `a.tar`, `b0.tar`, `b1.tar`, `b2.tar`, `b3.tar`, ...")


def as_oras_pulls(pack: Path, folder: Path) -> Path:
    """A folder with each layer under its title, as `oras pull` writes it."""
    with OciLayout.open(pack) as layout:
        layers = [descriptor for artifact in layout.artifacts for descriptor in described(layout, artifact)]
        for descriptor in layers:
            blob = Blob(descriptor["digest"], descriptor["size"], descriptor["mediaType"])
            path = folder / descriptor["annotations"]["org.opencontainers.image.title"]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(layout.read(blob, 1 << 30))
    return folder


def described(layout: OciLayout, artifact: Artifact) -> list[dict]:
    found: list[dict] = json.loads(layout.read(artifact.manifest, 1 << 30))["layers"]
    return found


@pytest.mark.usefixtures("bundles")
def test_what_oras_pulls_is_a_bundle(ortkit: Run, bundles: Path, tmp_path: Path) -> None:
    assert ortkit("pack", "first", "-o", "a.tar").code == 0
    pulled = as_oras_pulls(tmp_path / "a.tar", tmp_path / "pulled")

    assert names_in(pulled) == ["manifest.json", "model.onnx", "sbom.cdx.json", "tokenizer.json"]
    assert Bundle.open(pulled).digest == Bundle.open(bundles / "first").digest
    # Packed again, it is the same.
    assert ortkit("pack", "pulled", "-o", "again.tar").code == 0
    assert as_oras_pulls(tmp_path / "again.tar", tmp_path / "second").is_dir()
    assert contents(tmp_path / "second") == contents(pulled)

    (pulled / "other.cdx.json").touch()
    other = ortkit("inspect", "pulled")
    assert (other.code, other.err.partition("\n")[0]) == (
        7,
        "error: `pulled` holds `other.cdx.json`, which its manifest does not list",
    )
    (pulled / "other.cdx.json").unlink()
    (pulled / "sbom.cdx.json").unlink()
    (pulled / "sbom.cdx.json").symlink_to("manifest.json")
    link = ortkit("inspect", "pulled")
    assert (link.code, link.err.partition("\n")[0]) == (
        7,
        "error: `pulled/sbom.cdx.json` is a link or not a regular file",
    )


@pytest.mark.usefixtures("bundles")
def test_a_pack_is_inspected_as_its_bundles(ortkit: Run) -> None:
    ortkit("pack", "first", "second", "-o", "line4.tar")
    shown = ortkit("inspect", "line4.tar").out.decode().split("\n\n")
    fields = json.loads(ortkit("inspect", "line4.tar", "--json").out)

    for name, text, packed in zip(["first", "second"], shown, fields, strict=True):
        own = ortkit("inspect", name).out.decode()
        assert text.rstrip("\n") == f"bundle       {name}\n{own}".rstrip("\n")
        assert packed == json.loads(ortkit("inspect", name, "--json").out) | {"packed_as": name, "left_out": []}


@pytest.mark.usefixtures("bundles")
def test_what_a_pack_leaves_out_is_shown(ortkit: Run) -> None:
    ortkit("pack", "second", "-o", "update.tar", "--since", "bundles/first")
    last = ortkit("inspect", "update.tar").out.decode().splitlines()[-1]

    assert last == "left out     tokenizer.json (0.0 MB): the appliance has them"
    assert json.loads(ortkit("inspect", "update.tar", "--json").out)[0]["left_out"] == ["tokenizer.json"]


def test_what_is_not_a_bundle_is_shown_too(ortkit: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    wheels = layout_of(
        {"a.whl": b"a", "b.whl": b"b"}, manifest=lambda m: m["annotations"].update({"ortkit.kind": "wheels"})
    )
    (tmp_path / "kit.tar").write_bytes(tar_of(wheels))

    assert ortkit("inspect", "kit.tar").out == b"wheels       tiny: 0.0 MB in 2 files\n"
    assert json.loads(ortkit("inspect", "kit.tar", "--json").out) == [
        {"kind": "wheels", "name": "tiny", "files": 2, "size": 2}
    ]


def test_the_sbom_of_a_bundle_and_of_its_pack_are_the_same(ortkit: Run, bundles: Path) -> None:
    ortkit("pack", "first", "-o", "one.tar")
    ortkit("pack", "first", "second", "-o", "two.tar")
    one, two = ortkit("inspect", "one.tar", "--sbom"), ortkit("inspect", "two.tar", "--sbom")

    assert one.out == ortkit("inspect", "first", "--sbom").out
    assert json.loads(one.out)["metadata"]["component"]["hashes"][0]["content"] == Bundle.open(bundles / "first").digest
    models = [found for found in json.loads(two.out)["components"] if found["type"] == "machine-learning-model"]
    assert [found["hashes"][0]["content"] for found in models] == [
        Bundle.open(bundles / name).digest for name in ("first", "second")
    ]


def test_broken_bundles_have_no_digests(ortkit: Run, bundles: Path) -> None:
    (bundles / "second" / "tokenizer.json").unlink()
    finished = ortkit("list", "--digests")

    assert finished.code == 0
    assert {line.split()[1].split("/")[0] for line in finished.out.decode().splitlines()} == {"first"}
    assert finished.err.startswith("note: `second` is left out: `tokenizer.json` is missing from the bundle")


@pytest.mark.usefixtures("bundles")
def test_a_list_of_digests_that_is_too_large(ortkit: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("ortkit.toolkit.commands.pack._LARGEST_LIST", 10)
    (tmp_path / "have.txt").write_text("# not a list of digests")
    finished = ortkit("pack", "first", "-o", "a.tar", "--have", "have.txt")

    assert (finished.code, finished.err) == (
        2,
        "error: `have.txt` has more than 10 bytes: it is not a list of digests\n",
    )


def test_progress_is_shown_on_a_terminal(bundles: Path, tmp_path: Path) -> None:
    slow = (
        "import sys, time; from ortkit.runtime.pack import blob_store, layout_writer, oci_layout\n"
        "copy = blob_store.copy_range\n"
        "def slowly(*arguments): time.sleep(0.6); return copy(*arguments)\n"
        "oci_layout.copy_range = layout_writer.copy_range = slowly\n"
        "from ortkit.toolkit.cli import main; main()"
    )
    command = [sys.executable, "-c", slow]
    packed = on_terminal([*command, "pack", str(bundles / "first"), "-o", str(tmp_path / "a.tar")])
    unpacked = on_terminal([*command, "unpack", str(tmp_path / "a.tar"), "-o", str(tmp_path / "new")])

    assert "\r\x1b[Kpacking 0.0 MB of 0.0 MB, 0.0 MB/s, " in packed
    assert "\r\x1b[Kunpacking 0.0 MB of 0.0 MB, 0.0 MB/s, " in unpacked
    assert lines_on_terminal(packed) == ["1 bundle, 0.0 MB", ""]
    assert lines_on_terminal(unpacked) == [""]


def test_packing_loads_nothing_heavy() -> None:
    """`ortkit pack` starts as fast as `ortkit inspect`."""
    code = "import json, sys; import ortkit.exporters.packaging.pack; print(json.dumps([*sys.modules]))"
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    loaded = {name.split(".")[0] for name in json.loads(finished.stdout)}
    assert not loaded & {
        "torch",
        "transformers",
        "onnx",
        "onnxruntime",
        "numpy",
        "huggingface_hub",
        "yaml",
        "tokenizers",
    }


def test_the_installer_needs_the_standard_library_alone() -> None:
    """A kit carries these modules; they run where nothing is installed."""
    code = (
        "import json, sys; before = {*sys.modules}; import ortkit.runtime.pack.oci_layout\n"
        "print(json.dumps(sorted({*sys.modules} - before)))"
    )
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    loaded = json.loads(finished.stdout)
    assert {name.split(".")[0] for name in loaded} - {"ortkit"} <= set(sys.stdlib_module_names)
    folders = tuple(f"ortkit.runtime.{folder}." for folder in ("bundle", "pack", "trust"))
    assert [name for name in loaded if name.startswith(folders)] == [
        "ortkit.runtime.bundle.file_names",
        "ortkit.runtime.pack.blob_store",
        "ortkit.runtime.pack.oci_layout",
        "ortkit.runtime.pack.strict_tar",
        "ortkit.runtime.trust.ownership",
    ]


def write_kit(path: Path, layout: bytes) -> Path:
    """A kit around a layout, whose installer cannot be run."""
    parts = Parts.of_installer(1024)
    header = f"#!/bin/sh\n{parts}\n".encode().ljust(parts.installer, b"\n")
    path.write_bytes(header + bytes(parts.installer_size) + b"\n" * parts.signature_size + layout)
    return path


def test_a_kit_is_read_as_a_pack(ortkit: Run, bundles: Path, tmp_path: Path) -> None:
    ortkit("pack", "first", "-o", "first.tar")
    kit = write_kit(tmp_path / "line4.kit", (tmp_path / "first.tar").read_bytes())

    for options in ([], ["--json"], ["--sbom"]):
        assert ortkit("inspect", kit, *options).out == ortkit("inspect", "first.tar", *options).out != b""
    assert ortkit("unpack", kit, "-o", "new").code == 0
    assert contents(tmp_path / "new" / "first") == contents(bundles / "first")
    assert ortkit("pack", "second", "-o", "update.tar", "--since", kit).err == "1 bundle, 0.0 MB, 1 file left out\n"


def test_the_sbom_of_a_pack_is_that_of_its_manifest(ortkit: Run, tmp_path: Path) -> None:
    """The layer is not covered by the bundle's signature, so anyone could have written it."""
    files = bundle_files()
    (tmp_path / "honest.tar").write_bytes(tar_of(layout_of(files)))
    (tmp_path / "forged.tar").write_bytes(tar_of(layout_of({**files, "sbom.cdx.json": b'{"of": "a forger"}\n'})))

    honest = ortkit("inspect", tmp_path / "honest.tar", "--sbom").out
    assert ortkit("inspect", tmp_path / "forged.tar", "--sbom").out == honest
    assert json.loads(honest)["metadata"]["component"]["type"] == "machine-learning-model"


def test_the_sbom_of_a_kit_is_the_one_in_it(ortkit: Run, tmp_path: Path) -> None:
    layout = layout_of(
        {"sbom.cdx.json": b'{"of": "the kit"}\n'}, manifest=lambda m: m["annotations"].update({"ortkit.kind": "sbom"})
    )
    kit = write_kit(tmp_path / "line4.kit", tar_of(layout))

    assert ortkit("inspect", kit, "--sbom").out == b'{"of": "the kit"}\n'


def test_a_kit_that_was_cut_off(ortkit: Run, tmp_path: Path) -> None:
    kit = write_kit(tmp_path / "line4.kit", b"")
    finished = ortkit("inspect", kit)

    assert finished.code == 7
    message = f"error: the pack `{kit}` is not valid: it is truncated: 512 bytes were expected at offset"
    assert finished.err.startswith(message)
