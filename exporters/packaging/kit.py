"""Put a kit together: bundles, the wheels that run them, an SBOM and an installer in one file, for one target.

Format: `runtime/installer/kit_format.py`. The same bundles and wheels give the same file to the byte, apart
from the signature.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from ...runtime.bundle.bundle import Bundle
from ...runtime.bundle.folder import MANIFEST, SBOM_FILE
from ...runtime.bundle.manifest import Provider
from ...runtime.errors import InputError, OrtkitError
from ...runtime.installer.host import PLATFORMS, Needs
from ...runtime.installer.kit_file import Kit
from ...runtime.installer.kit_format import (
    FACTS,
    HEADER_SIZE,
    KIT,
    SBOM,
    SIGNATURE_SIZE,
    WHEELS,
    KitFacts,
    Parts,
    check_name,
    signed_files,
)
from ...runtime.installer.wheel_file import WheelName, record_sha256, unpacked_size
from ...runtime.output_path import cannot_write, flush_folder, regular_target_of, replacing
from ...runtime.pack.blob_store import Progress
from ...runtime.pack.layout_writer import NewArtifact, NewLayer, write_layout
from ...runtime.pack.oci_layout import Blob, OciLayout
from ...runtime.trust.names import SIGNATURE
from .kit_installer import installer_zip
from .pack import artifact_of, read_digests
from .sbom import Wheel, sbom_json, sbom_of_kit
from .wheelhouse import Wheelhouse

_TYPE = "application/vnd.ortkit.{}.v1"
_WHEEL_TYPE = "application/vnd.pypi.wheel.v1+zip"
_JSON_TYPE = "application/json"
_ALWAYS = (MANIFEST, SIGNATURE, SBOM_FILE, FACTS)
"""Files that say what is in a kit: also one that leaves out what an appliance has carries them."""
Signer = Callable[[dict[str, str], str], bytes]
"""Signs files, by their names and sha256, under a name."""


@dataclass(frozen=True)
class KitPlan:
    """What a kit will be made of."""

    name: str
    bundles: tuple[Bundle, ...]
    wheels: Path
    """A wheelhouse for the target."""
    wheelhouse: Wheelhouse
    needs: Needs
    release: int


@dataclass(frozen=True)
class WrittenKit:
    """A kit that was written."""

    path: Path
    size: int
    left_out: int
    """Files that the appliance has."""


def check_target(target: str) -> None:
    """Raise InputError for a machine that kits are not for."""
    if target not in PLATFORMS:
        raise InputError(
            f"a kit cannot be made for `{target}`; supported: {', '.join(f'`{name}`' for name in PLATFORMS)}",
            hint="its installer needs a POSIX shell and glibc; elsewhere use `ortkit pack` and `ortkit wheelhouse`",
        )


def provider_of(bundles: Sequence[Bundle]) -> Provider:
    """The provider that all bundles are for; raises InputError where they are for several."""
    providers = {bundle.provider: bundle for bundle in bundles}
    if len(providers) > 1:
        shown = ", ".join(f"`{bundle.path}` for {provider.value}" for provider, bundle in providers.items())
        raise InputError(
            f"the bundles of a kit must be for one provider: {shown}",
            hint="onnxruntime is another package for each provider, and one takes the other's place: make two kits",
        )
    return next(iter(providers))


def plan_kit(
    name: str, bundles: Sequence[Bundle], wheels: Path, *, target: str, python: tuple[int, int], release: int = 0
) -> KitPlan:
    """Check that bundles, wheels and target fit together; raises InputError and BundleError."""
    check_target(target)
    if not check_name(name):
        raise InputError(
            f"the name `{name}` of the kit has other characters than letters, digits, `.`, `_` and `-`",
            hint="choose one with `--name`",
        )
    provider = provider_of(bundles)
    found = Wheelhouse.open(wheels)
    wanted = f"{python[0]}.{python[1]}"
    if (found.target, found.python, found.provider) != (target, wanted, provider.value):
        raise InputError(
            f"the wheels in `{wheels}` are for {found.target} with Python {found.python} and the provider "
            f"{found.provider}, and the kit is for {target} with Python {wanted} and the provider {provider.value}",
            hint=f"`ortkit wheelhouse --target {target} --python {wanted} --provider {provider.value} -o FOLDER`",
        )
    glibc = tuple(map(int, (found.glibc or "2.28").split(".")))
    return KitPlan(name, tuple(bundles), wheels, found, Needs(target, python, (glibc[0], glibc[1])), release)


def write_kit(
    plan: KitPlan,
    out: Path,
    *,
    sign: Signer | None = None,
    without: Collection[str] = (),
    progress: Progress | None = None,
) -> WrittenKit:
    """Write a kit; the file appears in one step when all of it is on the disk.

    Layers whose digests are in `without` are left out: an appliance that has them takes them from its last release.
    Raises BundleError for a bundle or wheel that was changed, InputError for two bundles of one name, OutputError.
    """
    artifacts = _artifacts_of(plan)
    layers = [(name, layer.blob.digest) for artifact in artifacts for name, layer in artifact.layers.items()]
    always = {digest for name, digest in layers if name in _ALWAYS}
    left_out = {digest for _, digest in layers if digest in without} - always
    installer = installer_zip()
    header = header_of(plan, len(installer))
    try:
        with replacing(regular_target_of(out)) as file:
            for part in (header, installer, b"\n" * SIGNATURE_SIZE):
                file.write(part)
            write_layout(file, artifacts, without=left_out, progress=progress)
            file.flush()
            if sign is not None:
                with OciLayout.open(file.name, offset=file_offset(installer)) as layout:
                    index = layout.index_sha256
                signature = sign(signed_files(header, installer, index), plan.name)
                file.seek(HEADER_SIZE + len(installer))
                file.write(padded_signature(signature))
        flush_folder(out.absolute().parent)
    except OrtkitError:
        raise
    except OSError as error:
        raise cannot_write(error, out) from error
    return WrittenKit(out, out.stat().st_size, len(left_out))


def file_offset(installer: bytes) -> int:
    """Where the layout of a kit with this installer begins."""
    return Parts.of_installer(len(installer)).layout


def padded_signature(signature: bytes) -> bytes:
    """A signature that fills the room which a kit has for it; raises InputError for one that is too large."""
    content = signature.strip()
    if len(content) >= SIGNATURE_SIZE:
        raise InputError(
            f"the signature has {len(content)} bytes, and a kit has room for {SIGNATURE_SIZE - 1}",
            hint="use a shorter chain of certificates",
        )
    return content.ljust(SIGNATURE_SIZE, b"\n")


def header_of(plan: KitPlan, installer_size: int) -> bytes:
    """The shell script at the beginning of a kit, padded with newlines."""
    text = Path(__file__).with_name("kit_header.sh").read_text(encoding="utf-8")
    values = {
        "name": plan.name,
        "platform": plan.needs.platform,
        "python": ".".join(map(str, plan.needs.python)),
        "parts": str(Parts.of_installer(installer_size)),
    }
    for name, value in values.items():
        text = text.replace(f"@{name}@", value)
    return text.encode().ljust(HEADER_SIZE, b"\n")


def _artifacts_of(plan: KitPlan) -> list[NewArtifact]:
    bundles = [artifact_of(bundle) for bundle in plan.bundles]
    names = [artifact.name for artifact in bundles]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"two of the bundles are named `{name}`", hint="rename the folder of one of them")
    files = {record.file: plan.wheels / record.file for record in plan.wheelhouse.wheels}
    for file in files:
        WheelName.of(file)
    wheels = {
        record.file: NewLayer(Blob(f"sha256:{record.sha256}", record.size, _WHEEL_TYPE), files[record.file])
        for record in plan.wheelhouse.wheels
    }
    facts = KitFacts(
        name=plan.name,
        ortkit=plan.wheelhouse.ortkit,
        needs=plan.needs,
        release=plan.release,
        unpacked={name: unpacked_size(path) for name, path in files.items()},
        records={name: record_sha256(path) for name, path in files.items()},
    )
    sbom = sbom_of_kit(
        plan.name,
        [(bundle.manifest, bundle.digest) for bundle in plan.bundles],
        [Wheel(record.name, record.version, record.sha256) for record in plan.wheelhouse.wheels],
        plan.wheelhouse.ortkit,
    )
    return [
        *bundles,
        _artifact(WHEELS, wheels),
        _artifact(KIT, {FACTS: NewLayer.of(facts.to_json(), _JSON_TYPE)}),
        _artifact(SBOM, {SBOM_FILE: NewLayer.of(sbom_json(sbom), "application/vnd.cyclonedx+json")}),
    ]


def _artifact(kind: str, layers: dict[str, NewLayer]) -> NewArtifact:
    # A bundle may be named `wheels`.
    return NewArtifact(f"ortkit-{kind}", kind, layers, artifact_type=_TYPE.format(kind))


def digests_of(path: Path) -> set[str]:
    """The digests of all that an earlier kit lists, for `--since`."""
    with Kit.open(path) as kit:
        return {blob.digest for artifact in kit.layout.artifacts for blob in artifact.layers.values()}


def name_of(path: Path) -> str:
    """The name of an earlier kit, which an update to it has too."""
    with Kit.open(path) as kit:
        return kit.facts().name


def digests_in_list(path: Path) -> set[str]:
    """The digests that `ortkit-install have` printed, for `--have`; raises InputError."""
    try:
        return read_digests(path.read_text(encoding="utf-8"), os.fspath(path))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"`{path}` cannot be read: {error}") from error
