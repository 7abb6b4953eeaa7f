"""Our signatures verified by OpenSSF's `model_signing`, and its signatures by ours, with keys and with certificates.

`python -m tests.openssf.interoperate MODEL_SIGNING`, the command in an environment of its own (`make test-openssf`).
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from ortkit import Bundle, NotTrustedError
from ortkit.exporters.packaging.sign import SigningKey, read_key, sign_bundle
from ortkit.runtime.trust import public_key
from ortkit.runtime.trust.policy import verify_bundle
from ortkit.runtime.trust.public_key import TrustedKey
from ortkit.runtime.trust.x509 import Certificate, read_certificates
from tests.signers import CODE_SIGNING, Issued, files_of, issue, issue_authority, new_key
from tests.tiny_bundles import write_embedder

CURVES = (ec.SECP256R1(), ec.SECP384R1(), ec.SECP521R1())
count = 0


def expect(condition: object, what: str) -> None:
    """Count a check; end where it fails."""
    global count  # noqa: PLW0603 - a script
    if not condition:
        sys.exit(f"failed: {what}")
    count += 1


class Place:
    """A bundle, a signer's certificate and key, and the commands of both tools on them."""

    def __init__(self, folder: Path, program: str, curve: ec.EllipticCurve) -> None:
        self.program = program
        self.bundle = write_embedder(folder / "bundle").path
        self.root = issue_authority("root")
        middle = issue_authority("middle", self.root)
        leaf = issue("leaf", middle, key=new_key(curve), purposes=[CODE_SIGNING])
        names = ("key.pem", "key.pub", "leaf.pem", "middle.pem", "root.pem", "chain.pem")
        self.files = {name: folder / name for name in names}
        self.files["key.pem"].touch(0o600)
        self.files["key.pem"].write_bytes(self.private(leaf))
        self.key = read_key(self.files["key.pem"], passphrase=bytes)
        self.files["key.pub"].write_text(self.key.public.pem)
        for name, content in (("leaf", leaf.pem), ("middle", middle.pem), ("root", self.root.pem)):
            self.files[f"{name}.pem"].write_bytes(content)
        self.files["chain.pem"].write_bytes(leaf.pem + middle.pem)

    @staticmethod
    def private(issued: Issued) -> bytes:
        return issued.key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )

    @property
    def signature(self) -> Path:
        return self.bundle / "model.sig"

    def run(self, *arguments: object) -> int:
        """The exit code of `model_signing`."""
        command = [self.program, *map(str, arguments), "--signature", str(self.signature), str(self.bundle)]
        return subprocess.run(command, capture_output=True, check=False).returncode

    def change_a_byte(self, name: str) -> None:
        content = bytearray((self.bundle / name).read_bytes())
        content[-1] ^= 1
        (self.bundle / name).write_bytes(content)

    def ours(self, *trusted: TrustedKey | Certificate) -> bool:
        """Whether we accept the signature and the files, with `cryptography` and with `openssl`."""
        verdicts = set()
        for way in (True, False):
            public_key.has_cryptography = lambda way=way: way
            try:
                verify_bundle(self.bundle, files_of(self.bundle), trusted)
                verdicts.add(True)
            except NotTrustedError:
                verdicts.add(False)
        expect(len(verdicts) == 1, "cryptography and openssl have the same verdict")
        return verdicts.pop()


def ours_to_upstream(place: Place, signer: SigningKey, *options: object) -> None:
    kind = "certificate" if signer.chain else "key"
    sign_bundle(place.bundle, signer, release=7)
    expect(place.run("verify", kind, *options) == 0, f"upstream accepts our signature by {kind}")
    place.change_a_byte("tokenizer.json")
    expect(place.run("verify", kind, *options) != 0, f"upstream refuses a changed file, by {kind}")
    place.change_a_byte("tokenizer.json")
    (place.bundle / "more.txt").write_text("more")
    expect(place.run("verify", kind, *options) != 0, f"upstream refuses another file, by {kind}")
    (place.bundle / "more.txt").unlink()
    expect(place.run("verify", kind, *options) == 0, f"upstream accepts it again, by {kind}")


def upstream_to_ours(
    place: Place, trusted: TrustedKey | Certificate, other: TrustedKey | Certificate, *options: object
) -> None:
    kind = str(options[0])
    place.signature.unlink()
    expect(place.run("sign", *options) == 0, f"upstream signs by {kind}")
    expect(place.ours(trusted), f"we accept upstream's signature by {kind}")
    expect(not place.ours(other), f"we refuse upstream's signature by another {kind}")
    Bundle.open(place.bundle)
    (place.bundle / "manifest.json").write_bytes((place.bundle / "manifest.json").read_bytes()[:-1] + b" ")
    expect(not place.ours(trusted), f"we refuse another manifest, by {kind}")
    (place.bundle / "manifest.json").write_bytes((place.bundle / "manifest.json").read_bytes()[:-1] + b"\n")
    expect(place.ours(trusted), f"we accept it again, by {kind}")


def main(program: str) -> None:
    for curve in CURVES:
        with tempfile.TemporaryDirectory() as folder:
            place = Place(Path(folder), program, curve)
            files = place.files
            chained = read_key(files["key.pem"], passphrase=bytes, certificate_chain=files["chain.pem"])
            ours_to_upstream(place, place.key, "--public_key", files["key.pub"])
            ours_to_upstream(place, chained, "--certificate_chain", files["root.pem"])
            key, (root,) = TrustedKey.read(files["key.pub"]), read_certificates(files["root.pem"])
            other = TrustedKey(issue("other", key=new_key(curve)).ours.key, "other")
            upstream_to_ours(place, key, other, "key", "--private_key", files["key.pem"])
            upstream_to_ours(
                place,
                root,
                issue_authority("root").ours,
                "certificate",
                *("--private_key", files["key.pem"], "--signing_certificate", files["leaf.pem"]),
                *("--certificate_chain", files["middle.pem"]),
            )
    print(f"ok: {count} checks with {Path(program).name}, on {len(CURVES)} curves")


if __name__ == "__main__":
    main(*sys.argv[1:])
