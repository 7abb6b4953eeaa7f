"""`ortkit list`, `inspect` and `verify`."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ...runtime.bundle.folder import MANIFEST
from ...runtime.bundle.manifest import Kind
from ...runtime.bundle.manifest_json import manifest_fields
from ...runtime.bundle.records import write_record
from ...runtime.errors import InputError, NotFoundError, OrtkitError
from ...runtime.output_path import bundles_folder
from ...runtime.sizes import megabytes
from ...runtime.trust.policy import Policy
from ..console.help import ExampleCommand
from ..console.terminal import escaped_json, print_table, say
from ..io.warnings_report import print_error
from .bundle_names import bundle_argument, bundle_folders, missing_folder, resolve_bundle
from .descriptions import describe_bundle, describe_decoder_plan, describe_plan
from .options import max_memory_option
from .sign import read_trusted, signer_of, trusted_options

if TYPE_CHECKING:
    from ...runtime.bundle.manifest import Manifest
    from ...runtime.replay import Replay
    from ...runtime.trust.public_key import TrustedKey
    from ...runtime.trust.signature import Signer
    from ...runtime.trust.x509 import Certificate


_GOLDEN = {Kind.EMBEDDER: "texts", Kind.RERANKER: "pairs", Kind.DECODER: "tokens"}
_MAIN_FIGURE = {
    Kind.EMBEDDER: ("cosine_min", "cosine {:.4f} min"),
    Kind.RERANKER: ("tau_mean", "tau {:.4f} mean"),
    Kind.DECODER: ("kl_mean", "KL {:.4f} mean"),
}
"""Figure of a certificate that `list` shows, and its format."""
_BROKEN_EXIT_CODE = 7


@click.command(
    name="list",
    cls=ExampleCommand,
    examples=[
        "ortkit list",
        "ORTKIT_BUNDLES=/srv/models ortkit list",
        "ortkit list --json",
        "ortkit list --digests > have.txt",
    ],
)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array instead of a table.")
@click.option("--digests", is_flag=True, help="Print the sha256 of all files, for `ortkit pack --have`.")
def list_bundles(*, as_json: bool, digests: bool) -> None:
    """List the bundles in `bundles/`.

    ORTKIT_BUNDLES names another folder. File names and sizes are checked, hashes are not: `ortkit verify` does that.
    """
    if bundles_folder().exists() and (problem := missing_folder()):
        raise NotFoundError(problem)
    if as_json and digests:
        raise click.UsageError("--json and --digests exclude each other")
    # A policy that cannot be used is one error, and not one of each bundle.
    Policy.current()
    found = [_listed(path) for path in bundle_folders()]
    if digests:
        _print_digests(found)
        return
    if as_json:
        click.echo(escaped_json(json.dumps([entry.fields() for entry in found], indent=2, ensure_ascii=False)))
        return
    if not found:
        say(f"no bundles in `{bundles_folder()}`; `ortkit export MODEL` makes one", err=True)
        return
    print_table([("name", "kind", "precision", "size", "certificate"), *(entry.row() for entry in found)])


@dataclass(frozen=True)
class ListedBundle:
    """A folder in `bundles/`: its manifest and size, or why it cannot be used."""

    path: Path
    manifest: Manifest | None = None
    size: int | None = None
    digest: str | None = None
    error: OrtkitError | None = None

    def row(self) -> tuple[str, str, str, str, str]:
        if self.manifest is None:
            return (self.path.name, "broken", "", "", self.error.message if self.error is not None else "")
        size = megabytes(self.size or 0)
        return (self.path.name, self.manifest.kind.value, self.manifest.precision.value, size, self._certificate())

    def _certificate(self) -> str:
        if self.manifest is None or self.manifest.certificate is None:
            return "none"
        name, form = _MAIN_FIGURE[self.manifest.kind]
        figure = self.manifest.certificate.figures.get(name)
        return form.format(figure) if figure is not None else "yes"

    def fields(self) -> dict[str, Any]:
        manifest = self.manifest
        figures = manifest.certificate.figures if manifest is not None and manifest.certificate is not None else None
        return {
            "name": self.path.name,
            "path": str(self.path),
            "kind": manifest.kind.value if manifest is not None else None,
            "precision": manifest.precision.value if manifest is not None else None,
            "size": self.size,
            "digest": self.digest,
            "certificate": figures,
            "error": self.error.message if self.error is not None else None,
        }


def _listed(path: Path) -> ListedBundle:
    from ...runtime.bundle.bundle import Bundle

    try:
        opened = Bundle.listed(path)
        return ListedBundle(path, opened.manifest, opened.size, opened.digest)
    except OrtkitError as error:
        return ListedBundle(path, error=error)


def _print_digests(bundles: Sequence[ListedBundle]) -> None:
    """A line for each file of the bundles that can be used: its digest and its path."""
    for bundle in bundles:
        if bundle.manifest is None:
            say(f"note: `{bundle.path.name}` is left out: {bundle.error}", err=True)
            continue
        hashes = {name: record.sha256 for name, record in bundle.manifest.files.items()}
        for name, sha256 in sorted({**hashes, MANIFEST: bundle.digest}.items()):
            say(f"sha256:{sha256}  {bundle.path.name}/{name}")


@click.command(
    cls=ExampleCommand,
    examples=[
        "ortkit inspect all-MiniLM-L6-v2-int8",
        "ortkit inspect all-MiniLM-L6-v2-int8 --runtime",
        "ortkit inspect line4.tar",
        "ortkit inspect manuals.index",
        "ortkit inspect all-MiniLM-L6-v2-int8 --sbom > sbom.cdx.json",
    ],
)
@bundle_argument()
@click.option("--runtime", is_flag=True, help="Add threads, provider and kernels on this machine.")
@click.option("--sbom", is_flag=True, help="Print the SBOM instead: CycloneDX 1.6 JSON.")
@click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="Print the manifest as JSON, with the bundle's `digest`, a decoder's `memory`, and `runtime` for --runtime.",
)
@max_memory_option
def inspect(*, bundle: str, runtime: bool, sbom: bool, as_json: bool, max_memory: int | None) -> None:
    """Show a bundle's source, size, memory and accuracy.

    BUNDLE may also be a pack or kit, which `ortkit pack` and `ortkit kit` write: all that is in it is shown, and --json
    prints an array. Of an index, which `ortkit index` makes, its folder, embedder and size are shown.
    """
    from .index_report import inspect_index, is_index
    from .pack_report import inspect_pack, is_pack

    if max_memory is not None and not runtime:
        raise InputError("`--max-memory` needs `--runtime`, which opens the model", hint="add `--runtime`")
    if sbom and runtime:
        raise click.UsageError("--sbom and --runtime exclude each other")
    if sbom and as_json:
        raise click.UsageError("--sbom and --json exclude each other: the SBOM is JSON")
    if is_index(bundle):
        if sbom or runtime:
            raise click.UsageError("--sbom and --runtime need a bundle, and this is an index")
        inspect_index(bundle, as_json=as_json)
    elif sbom:
        _print_sbom(bundle)
    elif not is_pack(bundle):
        _inspect_bundle(bundle, runtime=runtime, max_memory=max_memory, as_json=as_json)
    elif runtime:
        raise click.UsageError("--runtime needs the folder of a bundle: unpack the pack first")
    else:
        inspect_pack(bundle, as_json=as_json)


def _inspect_bundle(bundle: str, *, runtime: bool, max_memory: int | None, as_json: bool) -> None:
    from ...runtime.bundle.bundle import Bundle
    from ...runtime.decoder.memory_estimate import footprint_of

    opened = Bundle.open(bundle)
    plan = None
    if runtime:
        from ...runtime.verify import model_of

        plan = model_of(opened, max_memory=max_memory).plan
    if as_json:
        shown = manifest_fields(opened.manifest) | {"digest": opened.digest}
        if opened.manifest.decoder is not None:
            shown["memory"] = write_record(footprint_of(opened.manifest, opened.manifest.decoder))
        if plan is not None:
            shown["runtime"] = write_record(plan)
        click.echo(escaped_json(json.dumps(shown, indent=2, ensure_ascii=False)))
        return
    lines = describe_bundle(opened.manifest, opened.size)
    lines.append(("digest", opened.digest))
    if plan is not None:
        from ...runtime.encoder.base import Plan

        lines += describe_plan(plan) if isinstance(plan, Plan) else describe_decoder_plan(plan)
    for label, text in lines:
        say(f"{label:<12} {text}")


def _print_sbom(path: str) -> None:
    """Print the SBOM of a bundle or of a pack."""
    from ...exporters.packaging.sbom import sbom_json, sbom_of_bundle
    from ...runtime.bundle.bundle import Bundle
    from .pack_report import is_pack, pack_sbom

    if is_pack(path):
        content = pack_sbom(path)
    else:
        opened = Bundle.open(path)
        content = sbom_json(sbom_of_bundle(opened.manifest, opened.digest))
    click.echo(escaped_json(content.decode("utf-8", "replace")), nl=False)


@click.command(
    cls=ExampleCommand,
    examples=[
        "ortkit verify all-MiniLM-L6-v2-int8",
        "ortkit verify bundles/*",
        "ortkit verify all-MiniLM-L6-v2-int8 --trusted-key key.pub",
        "ortkit verify line4.tar --trusted-key key.pub",
        "ortkit verify all-MiniLM-L6-v2-int8 --json",
    ],
)
@click.argument("bundles", metavar="BUNDLE|PACK|KIT...", nargs=-1, required=True)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array with the result of each bundle.")
@click.option(
    "--time-limit",
    type=click.FloatRange(min=1, max=86_400),
    metavar="SECONDS",
    help="Give up on a bundle after this time.  [default: 120, plus 1 per megabyte]",
)
@trusted_options
@click.option(
    "--allow-downgrade",
    is_flag=True,
    help="Accept a release that is older than the one this machine trusted before, from now on.",
)
@click.pass_context
def verify(
    context: click.Context,
    *,
    bundles: Sequence[str],
    as_json: bool,
    time_limit: float | None,
    trusted_keys: Sequence[str],
    trusted_certificates: Sequence[str],
    allow_downgrade: bool,
) -> None:
    """Check bundles on this machine: hashes, signatures and golden outputs.

    The hashes, the graph's inputs and the golden outputs of the certificate are checked. Each graph is opened in a
    process of its own, with bounded time and memory. The last line of a bundle is its verdict, "ok: BUNDLE" or
    "failed: BUNDLE". If any failed, the exit code is 7, or that of the error where all that failed have the same one.

    The digest is the sha256 of manifest.json, which lists the sha256 of every other file: two copies with one digest
    are the same bundle. A signature is verified with `--trusted-key`, or else with the keys of the machine's policy.

    Of a pack or kit, hashes and signature are checked, without unpacking it.
    """
    request = VerifyRequest(time_limit, read_trusted(trusted_keys, trusted_certificates), allow_downgrade)
    results = []
    for place, path in enumerate(bundles):
        if place and not as_json:
            say("")
        results.append(_verified(path, request, show=(lambda _: None) if as_json else say))
    if as_json:
        fields = [result.fields() for result in results]
        click.echo(escaped_json(json.dumps(fields, indent=2, ensure_ascii=False)))
    codes = {result.error.exit_code for result in results if result.error is not None}
    if codes:
        context.exit(codes.pop() if len(codes) == 1 else _BROKEN_EXIT_CODE)


@dataclass(frozen=True)
class VerifyRequest:
    """What a verification is asked for."""

    seconds: float | None
    trusted: tuple[TrustedKey | Certificate, ...]
    allow_downgrade: bool


@dataclass
class VerifyResult:
    """Result of a verification; `error` is None for an intact bundle."""

    path: str
    digest: str | None = None
    files: int | None = None
    release: int | None = None
    signer: Signer | None = None
    provider: str | None = None
    replay: Replay | None = None
    error: OrtkitError | None = None

    def fields(self) -> dict[str, Any]:
        replay, error = self.replay, self.error
        return {
            "bundle": self.path,
            "ok": error is None,
            "digest": self.digest,
            "files": self.files,
            "release": self.release,
            "signer": vars(self.signer) if self.signer is not None else None,
            "provider": self.provider,
            "golden_outputs": replay.count if replay is not None else None,
            "agreement": replay.agreement if replay is not None else None,
            "same_bits": replay.same_bits if replay is not None else None,
            "error": None
            if error is None
            else {"message": error.message, "hint": error.hint, "exit_code": error.exit_code},
        }


def _verified(path: str, request: VerifyRequest, *, show: Callable[[str], None]) -> VerifyResult:
    """Verify a bundle and show each check when it is done; also print an error to stderr."""
    result = VerifyResult(path)
    try:
        _verify(result, request, show=show)
    except OrtkitError as error:
        result.error = error
        print_error(error.message, error.hint)
        show(f"failed: {result.path}")
        return result
    show(f"ok: {result.path}")
    return result


def _verify(result: VerifyResult, request: VerifyRequest, *, show: Callable[[str], None]) -> None:
    from ...runtime import verify as verification
    from ...runtime.bundle.bundle import Bundle
    from .pack_report import is_pack

    result.path = resolve_bundle(result.path)
    if is_pack(result.path):
        _verify_pack(result, request, show=show)
        return
    # Recorded at the end: a newer release that fails must not have the one before refused, nor the other way round.
    opened = Bundle.open(result.path, read_all=True, allow_downgrade=request.allow_downgrade, record=False)
    result.digest, result.files = opened.digest, len(opened.manifest.files)
    show(f"digest       {result.digest}")
    show(f"files        {result.files} files match the manifest's sha256")
    signer = signer_of(opened, request.trusted)
    result.signer, result.release = None if isinstance(signer, str) else signer, opened.manifest.release
    numbered = f"; release {result.release}" if result.release is not None else ""
    show(f"signature    {signer}{numbered}")

    def graph_opened(provider: str) -> None:
        result.provider = provider
        show(f"graph        opens on {provider}; inputs match the manifest")

    result.replay = verification.verify(
        opened, seconds=request.seconds, allow_downgrade=request.allow_downgrade, opened=graph_opened
    )
    opened.accept(allow_downgrade=request.allow_downgrade)
    bits = "identical" if result.replay.same_bits else "not identical"
    show(
        f"certificate  {result.replay.count} golden {_GOLDEN[opened.manifest.kind]}: {result.replay.agreement}; "
        f"bits {bits} to the exporting machine's"
    )


def _verify_pack(result: VerifyResult, request: VerifyRequest, *, show: Callable[[str], None]) -> None:
    from .pack_report import verify_pack

    found = verify_pack(result.path, request.trusted)
    result.digest, result.files = found.digest, found.files
    result.signer = None if isinstance(found.signer, str) else found.signer
    show(f"digest       {result.digest}")
    show(f"files        {result.files} files match their sha256")
    show(f"signature    {found.signer}")
