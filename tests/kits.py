"""Small kits for this machine, whose wheels are made here: the installer is ours, and `ortkit` a stand-in.

The stand-in verifies the files of a bundle by its manifest, and refuses one that has a file `refuse.me`.
`make test-kit` (`tests/kit_rehearsal.py`) checks what the real one computes.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

from ortkit import Bundle, __version__
from ortkit.exporters.packaging.kit import KitPlan, plan_kit, write_kit
from ortkit.exporters.packaging.kit_installer import installer_zip
from ortkit.exporters.packaging.sign import sign_files
from ortkit.exporters.packaging.wheelhouse import DESCRIPTION, REQUIREMENTS, Wheelhouse, WheelRecord, requirements
from ortkit.runtime.bundle.records import write_record
from ortkit.runtime.installer.host import Host
from ortkit.runtime.trust.public_key import TrustedKey
from tests.tiny_bundles import rehash, write_embedder

PYTHON = sys.version_info[:2]
PLATFORM = Host.this().platform
STAND_IN = """
import hashlib, json, os, pathlib, sys

def main():
    if sys.argv[1:] == ["--version"]:
        print("ortkit, version {version}")
        return 0
    if sys.argv[1:2] != ["verify"]:
        print("error: no such command", file=sys.stderr)
        return 2
    folder = pathlib.Path(sys.argv[-1])
    files = json.loads((folder / "manifest.json").read_text())["files"]
    if set(os.listdir(folder)) != {{*files, "manifest.json"}}:
        print("error: other files", file=sys.stderr)
        return 7
    for name, record in files.items():
        if hashlib.sha256((folder / name).read_bytes()).hexdigest() != record["sha256"]:
            print(f"error: {{name}} was changed", file=sys.stderr)
            return 7
    if "refuse.me" in files:
        print("error: the logits are others than certified", file=sys.stderr)
        return 7
    print(f"ok: {{folder}} with {version}")
    return 0

sys.exit(main())
"""


@dataclass(frozen=True)
class OpensslKey:
    """A signing key that the command `openssl` uses; `cryptography` is not needed."""

    private: Path
    public_file: Path
    chain: tuple = ()

    @classmethod
    def make(cls, folder: Path, name: str = "key", curve: str = "prime256v1") -> OpensslKey:
        private, public = folder / f"{name}.pem", folder / f"{name}.pub"
        openssl("genpkey", "-algorithm", "EC", "-pkeyopt", f"ec_paramgen_curve:{curve}", "-out", private)
        openssl("pkey", "-in", private, "-pubout", "-out", public)
        return cls(private, public)

    @property
    def public(self):
        return TrustedKey.read(self.public_file).key

    def sign(self, message: bytes) -> bytes:
        return openssl("dgst", f"-{self.public.hash_name}", "-sign", self.private, stdin=message)

    def __call__(self, files: dict[str, str], name: str) -> bytes:
        return sign_files(files, name, self)


def openssl(*arguments: object, stdin: bytes = b"") -> bytes:
    return subprocess.run(["openssl", *map(str, arguments)], input=stdin, capture_output=True, check=True).stdout


def wheel(folder: Path, name: str, files: dict[str, bytes], *, version: str = "1.0", tag: str = "py3-none-any") -> Path:
    """Write a wheel, with a RECORD."""
    info = f"{name}-{version}.dist-info"
    content = {
        **files,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n".encode(),
        f"{info}/WHEEL": f"Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: {tag}\n".encode(),
    }
    rows = [f"{path},{record_hash(data)},{len(data)}\n" for path, data in content.items()]
    content[f"{info}/RECORD"] = "".join([*rows, f"{info}/RECORD,,\n"]).encode()
    path = folder / f"{name}-{version}-{tag}.whl"
    write_zip(path, content)
    return path


def record_hash(content: bytes) -> str:
    return "sha256=" + base64.urlsafe_b64encode(hashlib.sha256(content).digest()).decode().rstrip("=")


def write_zip(path: Path, files: dict[str, bytes]) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), content)


def stand_in(folder: Path, version: str = __version__) -> Path:
    """The wheel of the stand-in for ortkit, with the real installer in it."""
    with zipfile.ZipFile(io.BytesIO(installer_zip())) as archive:
        files = {name: archive.read(name) for name in archive.namelist() if name.startswith("ortkit/")}
    files["ortkit/__main__.py"] = STAND_IN.format(version=version).encode()
    return wheel(folder, "ortkit", files, version=version)


def wheelhouse(folder: Path, *, version: str = __version__, target: str = PLATFORM, python: tuple = PYTHON) -> Path:
    """A wheelhouse with the stand-in and a package that is the same in all of them."""
    folder.mkdir()
    stand_in(folder, version)
    wheel(folder, "library", {f"library/part{number}.py": b"x = %d\n" % number for number in range(20)})
    describe(folder, version=version, target=target, python=python)
    return folder


def describe(folder: Path, *, version: str = __version__, target: str = PLATFORM, python: tuple = PYTHON) -> None:
    """Write what makes a folder of wheels a wheelhouse."""
    wheels = []
    for path in sorted(folder.glob("*.whl")):
        name, number = path.name.split("-")[:2]
        content = path.read_bytes()
        wheels.append(WheelRecord(name, number, path.name, len(content), hashlib.sha256(content).hexdigest()))
    dotted = ".".join(map(str, python))
    described = Wheelhouse(1, version, target, dotted, "2.17", None, "cpu", (), tuple(wheels))
    (folder / DESCRIPTION).write_text(json.dumps(write_record(described)))
    (folder / REQUIREMENTS).write_bytes(requirements(described))


def bundle(path: Path, **files: bytes) -> Bundle:
    """A tiny embedder with further files."""
    write_embedder(path)
    for name, content in files.items():
        (path / name.replace("_", ".")).write_bytes(content)
    rehash(path)
    return Bundle.listed(path)


@dataclass(frozen=True)
class Kits:
    """A series of kits for this machine, all signed with one key."""

    folder: Path
    key: OpensslKey
    plans: dict[str, KitPlan]

    def path(self, name: str) -> Path:
        return self.folder / f"{name}.kit"


def write_kits(folder: Path) -> Kits:
    """Kits of one line: `line1`; `line2`, with a new bundle and a new ortkit; `update`: what is new in it; `broken`."""
    key = OpensslKey.make(folder)
    first = bundle(folder / "a" / "tiny", notes=b"first" * 1000)
    second = bundle(folder / "b" / "tiny", notes=b"second" * 1000)
    broken = bundle(folder / "c" / "tiny", refuse_me=b"x")
    old, new = wheelhouse(folder / "wheels-1"), wheelhouse(folder / "wheels-2", version="99.0")
    common = {"target": PLATFORM, "python": PYTHON}
    plans = {
        "line1": plan_kit("line", [first], old, release=1, **common),
        "line2": plan_kit("line", [second], new, release=2, **common),
        "broken": plan_kit("line", [broken], new, release=3, **common),
    }
    kits = Kits(folder, key, plans)
    for name, plan in plans.items():
        write_kit(plan, kits.path(name), sign=key)
    from ortkit.exporters.packaging.kit import digests_of

    write_kit(plans["line2"], kits.path("update"), sign=key, without=digests_of(kits.path("line1")))
    return kits
