"""`ortkit keygen` and `ortkit sign`; and the signature in what `ortkit verify` reports."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ...runtime.errors import BundleError, InputError, NotFoundError
from ..console.help import ExampleCommand
from ..console.terminal import say
from .bundle_names import resolve_bundle
from .options import release_option

if TYPE_CHECKING:
    from ...exporters.packaging.sign import Signed, SigningKey
    from ...runtime.bundle.bundle import Bundle
    from ...runtime.trust.public_key import TrustedKey
    from ...runtime.trust.signature import Signer
    from ...runtime.trust.x509 import Certificate

_LARGEST_PASSPHRASE = 4096
NO_SIGNATURE = "none"
NO_KEY = "not verified: no key is trusted here; `--trusted-key` names one"
"""What `ortkit verify` says in place of a signer."""

passphrase_option = click.option(
    "--passphrase-file",
    type=click.Path(),
    metavar="FILE",
    help="Read the passphrase of the private key from the first line of FILE.",
)


@click.command(
    cls=ExampleCommand,
    examples=["ortkit keygen -o key.pem", "ortkit keygen -o key.pem --public models.pub --passphrase"],
)
@click.option(
    "--out", "-o", type=click.Path(path_type=Path), required=True, metavar="FILE", help="The private key to write."
)
@click.option(
    "--public",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="The public key to write.  [default: the private key's name, with the suffix .pub]",
)
@click.option("--passphrase", is_flag=True, help="Ask for a passphrase that protects the private key.")
@passphrase_option
def keygen(*, out: Path, public: Path | None, passphrase: bool, passphrase_file: str | None) -> None:
    """Make a key for signing bundles.

    The private key (ECDSA on P-256, PEM) is readable for you alone; keep it where bundles are signed, and a copy of it
    in a safe place. The public key goes to the machines that verify. Neither file is ever replaced.
    """
    from ...exporters.packaging.sign import generate_key

    target = out.with_suffix(".pub") if public is None else public
    if target == out:
        raise InputError(f"`{out}` is the name of both keys", hint="name the public key with `--public`")
    secret = None
    if passphrase_file is not None:
        secret = _read_passphrase(passphrase_file)
    elif passphrase:
        secret = _ask_passphrase(confirm=True)
    key = generate_key(out, target, passphrase=secret)
    say(f"private key  {out}")
    say(f"public key   {target} (sha256 {key.fingerprint})")


@click.command(
    cls=ExampleCommand,
    examples=[
        "ortkit sign all-MiniLM-L6-v2-int8 --key key.pem",
        "ortkit sign all-MiniLM-L6-v2-int8 --key key.pem --release 7",
        "ortkit sign bundles/* models.tar --key key.pem --certificate-chain chain.pem",
    ],
)
@click.argument("paths", metavar="BUNDLE|PACK|KIT...", nargs=-1, required=True)
@click.option("--key", type=click.Path(path_type=Path), required=True, metavar="FILE", help="The private key, in PEM.")
@click.option(
    "--certificate-chain",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="The key's X.509 certificate, then those of intermediate authorities, in PEM.",
)
@release_option(
    "Set the release of bundles; machines whose policy requires signatures refuse a lower one than they had."
)
@passphrase_option
def sign(
    *,
    paths: Sequence[str],
    key: Path,
    certificate_chain: Path | None,
    release: int | None,
    passphrase_file: str | None,
) -> None:
    """Sign bundles, packs or kits.

    All files are hashed before. A bundle's signature is `model.sig` in its folder; it covers manifest.json and all
    other files. That of a pack is `NAME.sig` beside it, that of a kit is in its file. The format is that of OpenSSF
    Model Signing, and `model_signing verify key` reads it. `ortkit verify --trusted-key` verifies.
    """
    found = read_signing_key(key, passphrase_file, certificate_chain)
    for path in paths:
        done = _sign(path, found, release)
        numbered = f", release {done.release}" if done.release is not None else ""
        say(f"signed {done.path}: {done.files} files{numbered}; the signature is {done.signature}")
    say(f"verify with a public key of sha256 {found.public.fingerprint}")


def read_signing_key(path: Path, passphrase_file: str | None, certificate_chain: Path | None) -> SigningKey:
    """Read a private key, asking for its passphrase where it has one and no file names it."""
    from ...exporters.packaging.sign import read_key

    def secret() -> bytes:
        return _read_passphrase(passphrase_file) if passphrase_file is not None else _ask_passphrase(confirm=False)

    return read_key(path, passphrase=secret, certificate_chain=certificate_chain)


def _sign(path: str, key: SigningKey, release: int | None) -> Signed:
    from ...exporters.packaging.sign import sign_bundle, sign_kit, sign_layout
    from ...runtime.installer.kit_file import is_kit

    where = Path(resolve_bundle(path))
    is_pack = os.path.isfile(where) or os.path.isfile(where / "oci-layout")  # noqa: PTH113 - any name, without errors
    if not is_pack:
        return sign_bundle(where, key, release=release)
    is_one = is_kit(where)
    if release is not None:
        raise InputError(
            f"`{where}` is not a bundle, and `--release` is of bundles",
            hint="make the kit again, with `ortkit kit --release`"
            if is_one
            else "sign the bundles with `--release`, then pack them again",
        )
    return sign_kit(where, key) if is_one else sign_layout(where, key)


def _read_passphrase(path: str) -> bytes:
    """The first line of a file that others cannot read, or of a pipe; raises NotFoundError and InputError."""
    try:
        with Path(path).open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            line = file.readline(_LARGEST_PASSPHRASE).rstrip(b"\r\n")
    except FileNotFoundError as error:
        raise NotFoundError(f"there is no file `{path}`") from error
    except OSError as error:
        raise InputError(f"`{path}` cannot be read: {error.strerror or error}") from error
    if stat.S_ISREG(mode) and mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise InputError(f"the passphrase in `{path}` can be read by other users", hint=f"`chmod 600 {path}`")
    if not line:
        raise InputError(f"the passphrase in `{path}` is empty", hint="write it on the first line of the file")
    return line


def _ask_passphrase(*, confirm: bool) -> bytes:
    """Ask on the terminal, without showing what is typed."""
    if not sys.stdin.isatty():
        raise InputError(
            "stdin is not a terminal, so ortkit cannot ask for the passphrase of the key",
            hint="write it into a file that only you can read, and name that with `--passphrase-file`",
        )
    prompt = "Passphrase of the private key (not shown)"
    found: str = click.prompt(prompt, hide_input=True, err=True, confirmation_prompt=confirm)
    return found.encode("utf-8")


def trusted_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """The options `--trusted-key` and `--trusted-certificate`."""
    key = click.option(
        "--trusted-key",
        "trusted_keys",
        type=click.Path(),
        multiple=True,
        metavar="FILE",
        help="Require a signature by this public key (PEM); repeat it for several.",
    )
    certificate = click.option(
        "--trusted-certificate",
        "trusted_certificates",
        type=click.Path(),
        multiple=True,
        metavar="FILE",
        help="Require a signature by a certificate that this authority issued, or by this one (PEM).",
    )
    return key(certificate(function))


def read_trusted(keys: Sequence[str], certificates: Sequence[str]) -> tuple[TrustedKey | Certificate, ...]:
    """Read the files of `trusted_options`; raises NotFoundError and InputError."""
    if not keys and not certificates:
        return ()
    from ...runtime.trust.public_key import TrustedKey
    from ...runtime.trust.x509 import read_certificates

    found: list[TrustedKey | Certificate] = [TrustedKey.read(path) for path in keys]
    for path in certificates:
        found += read_certificates(path)
    return tuple(found)


def signer_of(bundle: Bundle, named: tuple[TrustedKey | Certificate, ...]) -> Signer | str:
    """Who signed a bundle, by the keys that are named, else by the policy's; or why that is not known.

    Raises NotTrustedError where keys are named or in the policy, and the signature is not by one of them. Where only
    the policy has keys, and requires no signature, a bundle may have none.
    """
    from ...runtime.trust.names import SIGNATURE
    from ...runtime.trust.policy import Policy, verify_bundle

    policy = Policy.current()
    again, files = type(bundle).unsigned(bundle.path)
    if again.manifest != bundle.manifest:
        raise BundleError(f"`{bundle.path}` was changed while it was verified")
    is_signed = os.path.lexists(bundle.path / SIGNATURE)
    if named:
        return verify_bundle(bundle.path, files, named)
    if not is_signed:
        return NO_SIGNATURE
    if not policy.trusted:
        return NO_KEY
    return policy.verify(bundle.path, files)
