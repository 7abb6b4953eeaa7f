"""What `make fuzz` feeds bytes to: every parser of what an appliance receives. Each raises only where there is a bug.

A target takes the bytes of a fuzzer, makes checksums and digests right where they would hide what lies behind them, and
expects either a result or ortkit's own error.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path

from ortkit.runtime.bundle.folder import SBOM_FILE
from ortkit.runtime.bundle.manifest_json import manifest_from_json
from ortkit.runtime.errors import BundleError, InputError
from ortkit.runtime.pack.oci_layout import IMAGE_MANIFEST, OciLayout
from ortkit.runtime.pack.unpack import bundles_in, unpack
from ortkit.runtime.trust.public_key import TrustedKey
from ortkit.runtime.trust.signature import verify_signature
from ortkit.runtime.trust.x509 import Certificate, read_certificates
from tests.packs import OLD_MANIFEST, bundle_files, layout_of, names_in, sha256, tar_of

OPENSSF = Path(__file__).parents[1] / "runtime" / "trust" / "openssf"
SHARED_MEMORY = Path("/dev/shm")
_FOLDER = tempfile.TemporaryDirectory(dir=SHARED_MEMORY if SHARED_MEMORY.is_dir() else None)
PLACE = Path(_FOLDER.name)
MAGIC = (b"ustar\x0000", b"ustar  \x00")


def with_checksums(data: bytes) -> bytes:
    """Make the checksum of every header right: no fuzzer finds one by chance."""
    content = bytearray(data)
    for place in range(0, len(content) - 511, 512):
        if content[place + 257 : place + 265] in MAGIC:
            content[place + 148 : place + 156] = b" " * 8
            content[place + 148 : place + 156] = b"%06o\0 " % sum(content[place : place + 512])
    return bytes(content)


def tar(data: bytes) -> None:
    """The tar of a pack."""
    unpack_all(with_checksums(data))


def index(data: bytes) -> None:
    """The index of a pack."""
    unpack_all(tar_of(layout_of() | {"index.json": data}))


def image_manifest(data: bytes) -> None:
    """The OCI manifest of a bundle, under its digest."""
    layout = layout_of()
    entry = {"mediaType": IMAGE_MANIFEST, "size": len(data), "digest": f"sha256:{sha256(data)}"}
    manifests = {"index.json": json.dumps({"manifests": [entry]}).encode(), f"blobs/sha256/{sha256(data)}": data}
    # Without the manifest that the index does not list any more.
    (own,) = json.loads(layout["index.json"])["manifests"]
    del layout[f"blobs/sha256/{own['digest'].removeprefix('sha256:')}"]
    unpack_all(tar_of(layout | manifests))


def packed_bundle(data: bytes) -> None:
    """The manifest of a bundle in a pack."""
    unpack_all(tar_of(layout_of(bundle_files() | {"manifest.json": data})))


def unpack_all(content: bytes) -> None:
    pack, out = PLACE / "a.tar", PLACE / "out"
    pack.write_bytes(content)
    with suppress(BundleError), OciLayout.open(pack) as layout:
        layout.check()
        for artifact in bundles_in(layout):
            bundle = unpack(layout, artifact, out / artifact.name)
            assert names_in(out) == [artifact.name]
            for name, blob in artifact.layers.items():
                # The SBOM stays in the pack.
                assert name == SBOM_FILE or sha256((bundle.path / name).read_bytes()) == blob.sha256
            shutil.rmtree(bundle.path)
    assert not out.exists() or not names_in(out), "files were left"
    assert set(names_in(PLACE)) <= {"a.tar", "out", "key", "certificates"}, "it wrote outside its folder"


def manifest(data: bytes) -> None:
    """The manifest of a bundle."""
    with suppress(BundleError, UnicodeDecodeError):
        manifest_from_json(data.decode("utf-8"))


def signature(data: bytes) -> None:
    """A signature of a bundle, by a key and by certificates."""
    for trusted in all_trusted():
        try:
            verify_signature({"manifest.json": "0" * 64}, data, trusted)
        except BundleError:
            continue
        raise AssertionError("a signature of other files was accepted")


@cache
def all_trusted() -> tuple[Sequence[TrustedKey | Certificate], ...]:
    return [TrustedKey.read(OPENSSF / "key.pub")], read_certificates(OPENSSF / "ca.pem")


def public_key(data: bytes) -> None:
    """A file with a public key, as the policy names it."""
    (PLACE / "key").write_bytes(data)
    with suppress(InputError):
        TrustedKey.read(PLACE / "key")


def certificates(data: bytes) -> None:
    """A file with certificates, as the policy names it."""
    (PLACE / "certificates").write_bytes(data)
    with suppress(InputError):
        read_certificates(PLACE / "certificates")


TARGETS: dict[str, Callable[[bytes], None]] = {
    target.__name__: target
    for target in (tar, index, image_manifest, packed_bundle, manifest, signature, public_key, certificates)
}


def seeds(target: str) -> list[bytes]:
    """Valid inputs to begin with."""
    layout = layout_of()
    (own,) = json.loads(layout["index.json"])["manifests"]
    found: dict[str, list[bytes]] = {
        "tar": [tar_of(layout), tar_of(layout, form=1), tar_of(layout, form=2)],
        "index": [layout["index.json"]],
        "image_manifest": [layout[f"blobs/sha256/{own['digest'].removeprefix('sha256:')}"]],
        "packed_bundle": [bundle_files()["manifest.json"]],
        "manifest": [path.read_bytes() for path in sorted(OLD_MANIFEST.parent.glob("*.json"))],
        "signature": [path.read_bytes() for path in sorted(OPENSSF.glob("*.sig"))],
        "public_key": [(OPENSSF / "key.pub").read_bytes()],
        "certificates": [(OPENSSF / "ca.pem").read_bytes()],
    }
    return found[target]
