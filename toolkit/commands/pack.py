"""`ortkit pack` and `ortkit unpack`: bundles in one file to carry, and out of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import IO

import click

from ...runtime.errors import InputError, NotFoundError
from ...runtime.output_path import bundles_folder
from ...runtime.sizes import megabytes
from ..console.help import ExampleCommand
from ..console.progress import byte_progress, counted
from ..console.terminal import say
from .bundle_names import BundleType

_LARGEST_LIST = 1 << 24
"""Bytes of a list of digests: far more than a full disk of bundles has."""


@click.command(
    cls=ExampleCommand,
    examples=[
        "ortkit pack all-MiniLM-L6-v2-int8 SmolLM2-135M-Instruct-int4 -o line4.tar",
        "ortkit pack all-MiniLM-L6-v2-int8 -o /media/stick/line4 --folder",
        "ortkit pack bundles/* -o update.tar --since line4.tar",
        "ortkit pack bundles/* -o update.tar --have have.txt",
    ],
)
@click.argument("bundles", metavar="BUNDLE...", type=BundleType(), nargs=-1, required=True)
@click.option("-o", "--out", type=click.Path(path_type=Path), required=True, help="The file, or folder, to write.")
@click.option(
    "--folder", "as_folder", is_flag=True, help="Write a folder instead of a tar: for FAT32, or to look inside."
)
@click.option(
    "--since",
    type=click.Path(path_type=Path),
    multiple=True,
    metavar="OLD",
    help="Leave out the files that this earlier pack, kit or bundle lists. May be repeated.",
)
@click.option(
    "--have",
    type=click.File("rb"),
    metavar="FILE",
    help="Leave out the files whose digests are in this list, which `ortkit list --digests` prints; - is stdin.",
)
def pack(*, bundles: Sequence[str], out: Path, as_folder: bool, since: Sequence[Path], have: IO[bytes] | None) -> None:
    """Write bundles to one file: an OCI image layout, which registries, skopeo and oras take as it is.

    Each file of a bundle is a layer under its sha256, with the media types of CNCF ModelPack; the signature and an SBOM
    (CycloneDX) are layers too. The same bundles give the same bytes. `ortkit unpack` on the appliance writes the
    bundles again, and completes a pack made with --since or --have with the files that are there.
    """
    from ...exporters.packaging.pack import digests_in, pack_size, read_digests
    from ...exporters.packaging.pack import pack as write

    without: set[str] = set()
    for old in since:
        without |= digests_in(old)
    if have is not None:
        content = have.read(_LARGEST_LIST + 1)
        if len(content) > _LARGEST_LIST:
            raise InputError(f"`{have.name}` has more than {_LARGEST_LIST} bytes: it is not a list of digests")
        without |= read_digests(content.decode("utf-8", "replace"), have.name)
    with byte_progress("packing", pack_size(bundles, without)) as progress:
        packed = write(bundles, out, as_folder=as_folder, without=without, progress=progress)
    left_out = f", {counted(packed.left_out, 'file')} left out" if without else ""
    say(f"{counted(packed.bundles, 'bundle')}, {megabytes(packed.size)}{left_out}", err=True)
    click.echo(click.format_filename(packed.path))


@click.command(
    cls=ExampleCommand,
    examples=[
        "ortkit unpack line4.tar",
        "ortkit unpack line4.tar all-MiniLM-L6-v2-int8 -o /srv/models",
        "ortkit unpack update.tar -o /srv/new --have-from /srv/models",
    ],
)
@click.argument("file", type=click.Path(path_type=Path))
@click.argument("names", metavar="[NAME]...", nargs=-1)
@click.option(
    "-o",
    "--out",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="Where to write the bundles' folders.  [default: bundles/, or ORTKIT_BUNDLES]",
)
@click.option(
    "--have-from",
    type=click.Path(path_type=Path),
    multiple=True,
    metavar="FOLDER",
    help="A bundle, or a folder of bundles, that has the files a pack leaves out; FOLDER of -o counts too. "
    "May be repeated.",
)
@click.option("--allow-downgrade", is_flag=True, help="Accept a release that is older than the one trusted before.")
def unpack(
    *, file: Path, names: Sequence[str], out: Path | None, have_from: Sequence[Path], allow_downgrade: bool
) -> None:
    """Write the bundles of a pack or kit, or those of these names, each to a folder of its own.

    Every file is checked against its sha256 while it is written, and a bundle's folder appears when it is complete:
    whatever interrupts, there is never a part of one. An existing folder is never replaced. Where the machine's policy
    requires signatures, they are verified before anything is written.
    """
    from ...runtime.installer.kit_file import open_layout
    from ...runtime.pack.unpack import bundles_in, check_targets, files_by_digest
    from ...runtime.pack.unpack import unpack as write

    folder = bundles_folder() if out is None else out
    with open_layout(file) as layout:
        artifacts = bundles_in(layout)
        known = {artifact.name: artifact for artifact in artifacts}
        for name in names:
            if name not in known:
                listed = ", ".join(f"`{other}`" for other in known)
                raise NotFoundError(f"the pack `{file}` has no bundle `{name}`", hint=f"its bundles: {listed}")
        chosen = [artifact for artifact in artifacts if not names or artifact.name in names]
        targets = {artifact.name: folder / artifact.name for artifact in chosen}
        check_targets(targets.values())
        have = {}
        if any(layout.missing(artifact) for artifact in chosen):
            have = files_by_digest([*have_from, *([folder] if folder.is_dir() else [])])
        with byte_progress("unpacking", sum(artifact.size for artifact in chosen)) as progress:
            for artifact in chosen:
                target = targets[artifact.name]
                write(layout, artifact, target, have=have, allow_downgrade=allow_downgrade, progress=progress)
    for target in targets.values():
        click.echo(click.format_filename(target))
