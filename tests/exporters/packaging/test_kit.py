"""Kits: the same to the byte, what they carry, and what cannot be put into one."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from packaging.tags import parse_tag

from ortkit import BundleError, InputError, Provider
from ortkit.exporters.packaging import kit as kits_module
from ortkit.exporters.packaging.kit import KitPlan, digests_in_list, digests_of, plan_kit, write_kit
from ortkit.exporters.packaging.kit_installer import installer_zip
from ortkit.runtime.installer.host import Needs
from ortkit.runtime.installer.kit_file import Kit
from ortkit.runtime.installer.kit_format import BLOCK, HEADER_SIZE, SIGNATURE_SIZE, KitFacts, Parts
from ortkit.runtime.pack.oci_layout import OciLayout
from tests.kits import PLATFORM, PYTHON, OpensslKey, bundle, describe, wheel, wheelhouse


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> KitPlan:
    folder = tmp_path_factory.mktemp("made")
    wheels = wheelhouse(folder / "wheels")
    return plan_kit("line4", [bundle(folder / "tiny")], wheels, target=PLATFORM, python=PYTHON, release=4)


def test_the_same_bundles_and_wheels_give_the_same_bytes(made: KitPlan, tmp_path: Path) -> None:
    """Also in another process, whose hashes are seeded otherwise, and signed but for the signature."""
    write_kit(made, tmp_path / "first.kit")
    code = f"""
from pathlib import Path
from ortkit import Bundle
from ortkit.exporters.packaging.kit import plan_kit, write_kit
bundle = Bundle.listed({str(made.bundles[0].path)!r})
plan = plan_kit("line4", [bundle], Path({str(made.wheels)!r}), target={PLATFORM!r}, python={PYTHON!r}, release=4)
write_kit(plan, Path({str(tmp_path / "second.kit")!r}))
"""
    environment = os.environ | {"PYTHONHASHSEED": "7"}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment, cwd=Path(__file__).parents[3])
    write_kit(made, tmp_path / "signed.kit", sign=OpensslKey.make(tmp_path))

    first, second, signed = (
        path.read_bytes() for path in map(tmp_path.joinpath, ("first.kit", "second.kit", "signed.kit"))
    )
    assert first == second
    parts = Parts.read(first)
    assert parts is not None
    assert signed[: parts.signature] == first[: parts.signature]
    assert signed[parts.layout :] == first[parts.layout :]
    assert set(first[parts.signature : parts.layout]) == {ord("\n")}
    assert json.loads(signed[parts.signature : parts.layout])["dsseEnvelope"]


def test_the_parts_are_where_the_header_says(made: KitPlan, tmp_path: Path) -> None:
    write_kit(made, tmp_path / "any.kit")
    content = (tmp_path / "any.kit").read_bytes()

    parts = Parts.read(content[:HEADER_SIZE])
    assert parts == Parts.of_installer(len(installer_zip()))
    assert content[parts.installer :][: parts.installer_size] == installer_zip()
    assert parts.layout == parts.signature + SIGNATURE_SIZE
    with OciLayout.open(tmp_path / "any.kit", offset=parts.layout) as layout:
        layout.check()
        assert {artifact.name: artifact.kind for artifact in layout.artifacts} == {
            "ortkit-kit": "kit",
            "ortkit-sbom": "sbom",
            "ortkit-wheels": "wheels",
            "tiny": "bundle",
        }


def test_the_facts_of_a_kit(made: KitPlan, tmp_path: Path) -> None:
    write_kit(made, tmp_path / "any.kit")

    with Kit.open(tmp_path / "any.kit") as kit:
        facts = kit.facts()
        wheels = kit.wheels.layers
    assert (facts.name, facts.release, facts.ortkit) == ("line4", 4, "0.1.0")
    assert facts.needs == Needs(PLATFORM, PYTHON, (2, 17))
    assert set(facts.unpacked) == set(wheels) == {path.name for path in made.wheels.glob("*.whl")}
    for name, size in facts.unpacked.items():
        with zipfile.ZipFile(made.wheels / name) as archive:
            assert size == sum(len(archive.read(entry)) for entry in archive.namelist())
        assert wheels[name].sha256 == hashlib.sha256((made.wheels / name).read_bytes()).hexdigest()


def test_the_installer_needs_nothing_but_the_standard_library(tmp_path: Path) -> None:
    """What it imports, with site-packages out of reach, is part of Python or in the zip."""
    content = installer_zip()
    assert len(content) % BLOCK == 0
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        assert archive.testzip() is None
        assert {entry.compress_type for entry in archive.infolist()} == {zipfile.ZIP_STORED}
        names = archive.namelist()
    assert {name.split("/")[0] for name in names} == {"__main__.py", "ortkit", "padding"}
    assert "ortkit/runtime/installer/install.py" in names
    assert not [
        name for name in names if name.startswith(("ortkit/exporters", "ortkit/toolkit", "ortkit/runtime/session"))
    ]
    (tmp_path / "installer.zip").write_bytes(content)

    code = (
        "import sys; sys.path.insert(0, 'installer.zip'); import pkgutil, importlib, ortkit;"
        "[importlib.import_module(m.name) for m in pkgutil.walk_packages(ortkit.__path__, 'ortkit.')"
        " if not m.name.endswith('__main__')];"
        "print({m.split('.')[0] for m in sys.modules} - set(sys.stdlib_module_names) - {'__main__'})"
    )
    shown = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert shown.stdout == "{'ortkit'}\n"


def test_a_kit_since_another_leaves_out_what_it_lists(made: KitPlan, tmp_path: Path) -> None:
    write_kit(made, tmp_path / "old.kit")
    since = digests_of(tmp_path / "old.kit")

    written = write_kit(made, tmp_path / "same.kit", without=since)

    with Kit.open(tmp_path / "old.kit") as old, Kit.open(tmp_path / "same.kit") as same:
        assert same.digest == old.digest
        assert same.files == old.files, "one signature is of both"
        assert set(same.layout.missing(same.bundles["tiny"])) == {"model.onnx", "tokenizer.json"}
        assert set(same.layout.missing(same.wheels)) == set(same.wheels.layers)
        assert same.facts() == old.facts()
    assert written.left_out == 2 + len(made.wheelhouse.wheels)
    assert written.size < (tmp_path / "old.kit").stat().st_size
    # Also since one that left things out itself.
    assert digests_of(tmp_path / "same.kit") == since


def test_a_list_of_digests(tmp_path: Path) -> None:
    digest = f"sha256:{'0' * 64}"
    (tmp_path / "have.txt").write_text(f"# of line 4\n{digest}\n\n")
    assert digests_in_list(tmp_path / "have.txt") == {digest}

    (tmp_path / "have.txt").write_text("0" * 64)
    with pytest.raises(InputError, match="does not begin with a digest"):
        digests_in_list(tmp_path / "have.txt")
    with pytest.raises(InputError, match=r"none.txt` cannot be read"):
        digests_in_list(tmp_path / "none.txt")


def test_two_bundles_of_one_name_are_refused(made: KitPlan, tmp_path: Path) -> None:
    plan = dataclasses.replace(made, bundles=(*made.bundles, bundle(tmp_path / "other" / "tiny")))

    with pytest.raises(InputError, match="two of the bundles are named `tiny`"):
        write_kit(plan, tmp_path / "any.kit")
    assert not (tmp_path / "any.kit").exists()


@pytest.mark.parametrize("target", ["macos-arm64", "windows-amd64", "linux-riscv64"])
def test_other_targets_are_refused(target: str) -> None:
    with pytest.raises(InputError) as raised:
        kits_module.check_target(target)

    assert raised.value.message == f"a kit cannot be made for `{target}`; supported: `linux-x86_64`, `linux-aarch64`"
    assert raised.value.hint == (
        "its installer needs a POSIX shell and glibc; elsewhere use `ortkit pack` and `ortkit wheelhouse`"
    )


def test_bundles_for_two_providers_are_refused(made: KitPlan) -> None:
    (one,) = made.bundles
    other = dataclasses.replace(one, manifest=dataclasses.replace(one.manifest, provider=Provider.CUDA))

    with pytest.raises(InputError) as raised:
        kits_module.provider_of([one, other])

    assert raised.value.message == (
        f"the bundles of a kit must be for one provider: `{one.path}` for cpu, `{one.path}` for cuda"
    )
    assert "make two kits" in raised.value.hint


@pytest.mark.parametrize(
    ("settings", "message", "hint"),
    [
        (
            {"target": "linux-aarch64" if PLATFORM != "linux-aarch64" else "linux-x86_64"},
            "and the kit is for linux-",
            "`ortkit wheelhouse --target linux-",
        ),
        ({"python": (3, 99)}, "and the kit is for", "--python 3.99 --provider cpu -o FOLDER`"),
        ({"name": "a b"}, "the name `a b` of the kit has other characters than letters", "choose one with `--name`"),
        ({"name": "`id`"}, "of the kit has other characters than letters", "choose one with `--name`"),
    ],
)
def test_what_does_not_fit_together(settings: dict, message: str, hint: str, made: KitPlan) -> None:
    common = {"name": "line4", "target": PLATFORM, "python": PYTHON} | settings
    name = common.pop("name")

    with pytest.raises(InputError) as raised:
        plan_kit(name, made.bundles, made.wheels, **common)

    assert message in raised.value.message
    assert hint in raised.value.hint


def test_a_wheel_that_was_changed_is_refused(made: KitPlan, tmp_path: Path) -> None:
    wheels = wheelhouse(tmp_path / "wheels")
    plan = plan_kit("line4", made.bundles, wheels, target=PLATFORM, python=PYTHON)
    path = next(wheels.glob("library-*.whl"))
    path.write_bytes(path.read_bytes().replace(b"x = 1\n", b"x = 2\n"))

    with pytest.raises(BundleError, match="was changed: its sha256 is not"):
        write_kit(plan, tmp_path / "any.kit")
    assert not list(tmp_path.glob("*any.kit*"))


def test_a_bundle_that_was_changed_is_refused(made: KitPlan, tmp_path: Path) -> None:
    one = bundle(tmp_path / "tiny", notes=b"first")
    plan = dataclasses.replace(made, bundles=(one,))
    (one.path / "notes").write_bytes(b"FIRST")

    with pytest.raises(BundleError, match="was changed: its sha256 is not"):
        write_kit(plan, tmp_path / "any.kit")
    assert not list(tmp_path.glob("*any.kit*"))


def test_the_name_of_a_wheel_is_checked(made: KitPlan, tmp_path: Path) -> None:
    wheels = wheelhouse(tmp_path / "wheels")
    next(wheels.glob("library-*.whl")).rename(wheels / "library-1.0.whl")
    describe(wheels)

    with pytest.raises(BundleError, match=r"`library-1.0.whl` is not the name of a wheel"):
        write_kit(plan_kit("line4", made.bundles, wheels, target=PLATFORM, python=PYTHON), tmp_path / "any.kit")


def test_names_of_wheels_are_split_as_packaging_does(tmp_path: Path) -> None:
    from ortkit.runtime.installer.wheel_file import WheelName

    path = wheel(tmp_path, "package", {}, tag="cp311-abi3-manylinux_2_17_x86_64.manylinux2014_x86_64")
    name = WheelName.of(path.name)

    found = {
        f"{python}-{abi}-{platform}" for python in name.pythons for abi in name.abis for platform in name.platforms
    }
    assert found == {str(tag) for tag in parse_tag("cp311-abi3-manylinux_2_17_x86_64.manylinux2014_x86_64")}
    assert name.glibc == (2, 17)
    assert name.record == "package-1.0.dist-info/RECORD"


@pytest.mark.parametrize(
    "change",
    [
        {"format": "1"},
        {"release": -1},
        {"release": True},
        {"python": "3"},
        {"platform": "linux-mips"},
        {"name": 3},
        {"name": "a\x1b[2J"},
        {"unpacked": []},
        {"unpacked": {"a": "b"}},
        {"records": []},
        {"records": {"a": 1}},
    ],
)
def test_facts_that_are_not_valid_are_refused(change: dict) -> None:
    facts = KitFacts("line4", "1.0", Needs("linux-x86_64", (3, 11), (2, 28)), 4, {"a": 1}, {"a": "0" * 64})
    assert KitFacts.from_json(facts.to_json(), "any.kit") == facts

    with pytest.raises(BundleError) as raised:
        KitFacts.from_json(json.dumps(json.loads(facts.to_json()) | change).encode(), "any.kit")
    assert "`kit.json` of the kit `any.kit` is not valid" in raised.value.message


def test_facts_that_are_not_json_are_refused() -> None:
    for content in (b"", b"[]", b"{}", b"[" * 100_000, b"\xff"):
        with pytest.raises(BundleError, match=r"`kit.json` of the kit `any.kit` is not valid"):
            KitFacts.from_json(content, "any.kit")
