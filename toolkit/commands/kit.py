"""`ortkit kit`: bundles, wheels, an SBOM and an installer in one file, for an offline appliance."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ...runtime.output_path import cannot_write, regular_target_of, replacing
from ...runtime.sizes import megabytes
from ..console.help import ExampleCommand
from ..console.interrupts import reraised_interrupts
from ..console.progress import StageProgress, byte_progress, counted
from ..console.terminal import say
from .bundle_names import BundleType
from .options import once, release_option
from .sign import passphrase_option, read_signing_key

if TYPE_CHECKING:
    from ...exporters.packaging.kit import Signer
    from ...exporters.packaging.wheel_target import Target
    from ...runtime.bundle.bundle import Bundle


@click.command(
    cls=ExampleCommand,
    sections={
        "Appliance": "--target --python --glibc --with --wheels --ortkit-wheel",
        "Signature": "--sign --certificate-chain --passphrase-file --release",
        "Update": "--since --have",
        "Output": "--out --name --installer",
    },
    examples=[
        "ortkit kit all-MiniLM-L6-v2-int8 --target linux-aarch64 --python 3.11 --sign key.pem -o line4.kit",
        "ortkit kit bundles/* --target linux-x86_64 --python 3.12 --sign key.pem -o line5.kit --since line4.kit",
    ],
)
@click.argument("bundles", metavar="BUNDLE...", type=BundleType(), nargs=-1)
@once("--target", metavar="TARGET", help="System and processor of the appliance: linux-x86_64 or linux-aarch64.")
@once("--python", metavar="VERSION", help="Version of the appliance's Python, such as 3.11.")
@once("--glibc", metavar="VERSION", help="The appliance's glibc; `ldd --version` prints it.  [default: 2.28]")
@click.option(
    "--with",
    "extras",
    metavar="EXTRAS",
    multiple=True,
    help="More of ortkit's extras, separated by commas. serve: `ortkit serve`. grammar: JSON schemas (glibc 2.31). "
    "sign: check signatures without `openssl`.",
)
@once("--wheels", metavar="FOLDER", help="A wheelhouse of `ortkit wheelhouse`.  [default: collected on the way]")
@once("--ortkit-wheel", metavar="FILE", help="ortkit's own wheel, as for `ortkit wheelhouse`.")
@once("--sign", "key", metavar="KEY", help="Sign the kit with this private key, in PEM.")
@once("--certificate-chain", metavar="FILE", help="The key's X.509 certificate, then intermediate ones, in PEM.")
@passphrase_option
@release_option("A counter: an appliance refuses a kit with a lower one than it has installed.")
@click.option(
    "--since",
    type=click.Path(path_type=Path),
    multiple=True,
    metavar="OLD",
    help="Leave out the files that this earlier kit lists. May be repeated.",
)
@once("--have", metavar="FILE", help="Leave out the files in this list, which `ortkit-install have` prints.")
@once(
    "--name",
    metavar="NAME",
    help="Name of the kit, the same for its updates.  [default: that of the kit of --since, else the file's without "
    "its suffix]",
)
@once("--out", "-o", metavar="FILE", help="The kit to write.")
@once(
    "--installer",
    metavar="FILE",
    help="Write the installer alone, a zip: `python3 -I FILE KIT` runs nothing of a kit before it is verified.",
)
def kit(
    *,
    bundles: Sequence[str],
    target: str | None,
    python: str | None,
    glibc: str | None,
    extras: tuple[str, ...],
    wheels: str | None,
    ortkit_wheel: str | None,
    key: str | None,
    certificate_chain: str | None,
    passphrase_file: str | None,
    release: int | None,
    since: Sequence[Path],
    have: str | None,
    name: str | None,
    out: str | None,
    installer: str | None,
) -> None:
    """Write one file with all that an offline appliance needs: bundles, wheels, an SBOM and an installer.

    On the appliance, `sh FILE install --trusted-key KEY.pub` checks the machine and the signature, installs beside what
    is there, verifies each bundle, and only then switches to it. It needs a POSIX shell and the system's Python. The
    same bundles and wheels give the same file, apart from the signature.
    """
    if installer is not None:
        if bundles or out is not None:
            raise click.UsageError("--installer writes the installer alone, and takes neither BUNDLE nor --out")
        _write_installer(Path(installer))
        return
    for option, value in (("--target", target), ("--python", python), ("--out", out)):
        if value is None:
            raise click.MissingParameter(param_hint=f"'{option}'", param_type="option")
    if not bundles:
        raise click.MissingParameter(param_hint="'BUNDLE...'", param_type="argument")
    request = KitRequest(str(target), str(python), glibc, extras, wheels, ortkit_wheel, Path(str(out)))
    _write_kit(
        request,
        bundles,
        name=name,
        release=release or 0,
        signer=_signer(key, certificate_chain, passphrase_file),
        since=since,
        have=have,
    )


@dataclass(frozen=True)
class KitRequest:
    """The machine that a kit is for, where its wheels come from, and where it goes."""

    target: str
    python: str
    glibc: str | None
    extras: Sequence[str]
    wheels: str | None
    ortkit_wheel: str | None
    out: Path


def _write_installer(path: Path) -> None:
    from ...exporters.packaging.kit_installer import installer_zip

    target = regular_target_of(path)
    try:
        with replacing(target) as file:
            file.write(installer_zip())
    except OSError as error:
        raise cannot_write(error, path) from error
    click.echo(click.format_filename(path))


def _write_kit(
    request: KitRequest,
    bundles: Sequence[str],
    *,
    name: str | None,
    release: int,
    signer: Signer | None,
    since: Sequence[Path],
    have: str | None,
) -> None:
    from ...exporters.extras import need_packaging

    need_packaging()
    from ...exporters.packaging.kit import (
        check_target,
        digests_in_list,
        digests_of,
        name_of,
        plan_kit,
        provider_of,
        write_kit,
    )
    from ...exporters.packaging.wheel_target import parse_target
    from ...runtime.bundle.bundle import Bundle

    # First, because it says why ortkit cannot run on 32-bit ARM, for example.
    machine = parse_target(request.target, request.python, request.glibc)
    check_target(machine.name)
    opened = [Bundle.listed(path) for path in bundles]
    without = {digest for old in since for digest in digests_of(old)}
    name = name or (name_of(since[-1]) if since else request.out.stem)
    if have is not None:
        without |= digests_in_list(Path(have))
    provider_of(opened)
    with _wheels(request, machine, opened) as folder:
        plan = plan_kit(name, opened, folder, target=request.target, python=machine.python, release=release)
        size = sum(bundle.size for bundle in opened) + plan.wheelhouse.size
        with byte_progress("writing", size) as progress:
            written = write_kit(plan, request.out, sign=signer, without=without, progress=progress)
    left_out = f", {counted(written.left_out, 'file')} left out" if without else ""
    wheels = counted(len(plan.wheelhouse.wheels), "wheel")
    say(f"{counted(len(opened), 'bundle')}, {wheels}, {megabytes(written.size)}{left_out}", err=True)
    say(_next_step(request.out, signed=signer is not None), err=True)
    click.echo(click.format_filename(request.out))


def _next_step(out: Path, *, signed: bool) -> str:
    trust = "--trusted-key KEY.pub" if signed else "--allow-unsigned"
    return f"on the appliance: sh {click.format_filename(out.name)} install {trust}"


def _signer(key: str | None, certificate_chain: str | None, passphrase_file: str | None) -> Signer | None:
    if key is None:
        return None
    from ...exporters.packaging.sign import sign_files

    chain = Path(certificate_chain) if certificate_chain is not None else None
    found = read_signing_key(Path(key), passphrase_file, chain)
    return lambda files, name: sign_files(files, name, found)


@contextmanager
def _wheels(request: KitRequest, target: Target, bundles: Sequence[Bundle]) -> Iterator[Path]:
    """The folder of the wheels: the one that is named, or a new one beside the kit that is removed at the end."""
    if request.wheels is not None:
        yield Path(request.wheels)
        return
    from ...exporters.packaging.kit import provider_of
    from ...exporters.packaging.wheelhouse import collect, plan_wheelhouse

    names = [name.strip() for text in request.extras for name in text.split(",")]
    plan = plan_wheelhouse(target, provider_of(bundles).value, [name for name in names if name])
    parent = regular_target_of(request.out).absolute().parent
    try:
        made = tempfile.TemporaryDirectory(prefix=".ortkit-wheels-", dir=parent)
    except OSError as error:
        raise cannot_write(error, request.out) from error
    with made as scratch:
        wheels = Path(scratch) / "wheels"
        with reraised_interrupts() as check, StageProgress(check) as progress:
            collect(plan, wheels, ortkit_wheel=request.ortkit_wheel, progress=progress)
        yield wheels
