"""`ortkit list`, `inspect` and `verify`."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ...runtime.bundle.manifest import CacheType, Kind, Provider
from ...runtime.bundle.records import write_record
from ...runtime.errors import InputError, NotFoundError, OrtkitError
from ...runtime.output_path import bundles_folder
from ..console.help import ExampleCommand
from ..console.progress import megabytes
from ..console.terminal import escaped_json, print_table, say
from ..io.warnings_report import print_error
from .bundle_names import bundle_argument, bundle_folders, missing_folder, resolve_bundle
from .options import max_memory_option

if TYPE_CHECKING:
    from ...runtime.bundle.manifest import DecoderFacts, Manifest, Source
    from ...runtime.decoder.decoder import DecoderPlan
    from ...runtime.decoder.memory_estimate import Footprint
    from ...runtime.encoder.base import Plan
    from ...runtime.replay import Replay


_PROBED = {Kind.EMBEDDER: "texts", Kind.RERANKER: "queries", Kind.DECODER: "tokens"}
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
    examples=["ortkit list", "ORTKIT_BUNDLES=/srv/models ortkit list", "ortkit list --json"],
)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array instead of a table.")
def list_bundles(*, as_json: bool) -> None:
    """List the bundles in `bundles/`.

    ORTKIT_BUNDLES names another folder. File names and sizes are checked, hashes are not: `ortkit verify` does that.
    """
    if bundles_folder().exists() and (problem := missing_folder()):
        raise NotFoundError(problem)
    found = [_listed(path) for path in bundle_folders()]
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


@click.command(
    cls=ExampleCommand,
    examples=["ortkit inspect all-MiniLM-L6-v2-int8", "ortkit inspect all-MiniLM-L6-v2-int8 --runtime"],
)
@bundle_argument()
@click.option("--runtime", is_flag=True, help="Add threads, provider and kernels on this machine.")
@click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="Print the manifest as JSON, with the bundle's `digest`, a decoder's `memory`, and `runtime` for --runtime.",
)
@max_memory_option
def inspect(*, bundle: str, runtime: bool, as_json: bool, max_memory: int | None) -> None:
    """Show a bundle's source, size, memory and accuracy."""
    from ...runtime.bundle.bundle import Bundle
    from ...runtime.decoder.memory_estimate import footprint_of

    if max_memory is not None and not runtime:
        raise InputError("`--max-memory` needs `--runtime`, which opens the model", hint="add `--runtime`")
    opened = Bundle.open(bundle)
    plan = None
    if runtime:
        from ...runtime.verify import model_of

        plan = model_of(opened, max_memory=max_memory).plan
    if as_json:
        shown = write_record(opened.manifest) | {"digest": opened.digest}
        if opened.manifest.decoder is not None:
            shown["memory"] = write_record(footprint_of(opened.manifest, opened.manifest.decoder))
        if plan is not None:
            shown["runtime"] = write_record(plan)
        click.echo(escaped_json(json.dumps(shown, indent=2, ensure_ascii=False)))
        return
    lines = _describe(opened.manifest, opened.size)
    lines.append(("digest", opened.digest))
    if plan is not None:
        from ...runtime.encoder.base import Plan

        lines += _describe_plan(plan) if isinstance(plan, Plan) else _describe_decoder_plan(plan)
    for label, text in lines:
        say(f"{label:<12} {text}")


def _describe_plan(plan: Plan) -> list[tuple[str, str]]:
    """The plan of an encoder on this machine in lines: (label, text)."""
    disabled = ", ".join(plan.disabled_optimizers) or "none"
    int8 = []
    if plan.int8 is not None:
        features = f"; CPU features: {', '.join(plan.int8.features)}" if plan.int8.features else ""
        int8.append(("int8", f"{plan.int8.reason}{features}"))
    return [
        ("workers", _workers_of(plan)),
        ("batches", f"up to {plan.batch_tokens} tokens, {_padding_of(plan)}"),
        ("runs on", f"{plan.provider.value}, onnxruntime {plan.onnxruntime}; disabled graph optimizers: {disabled}"),
        *int8,
        *_limit_of(plan),
    ]


def _limit_of(plan: Plan) -> list[tuple[str, str]]:
    """The limit on the memory in lines."""
    if plan.max_memory is None:
        return []
    fits = "" if plan.fits is None else f"; there is room for texts of {plan.fits} tokens"
    return [("limit", f"{megabytes(plan.max_memory)}{fits}")]


def _padding_of(plan: Plan) -> str:
    if plan.buckets is None:
        return "texts of equal length, no padding"
    texts, tokens = (", ".join(map(str, sizes)) for sizes in (plan.buckets.texts, plan.buckets.tokens))
    return f"padded to {texts} texts of {tokens} tokens"


def _workers_of(plan: Plan) -> str:
    if plan.provider is Provider.CPU:
        return f"{plan.workers}, one CPU core each: {plan.cores.reason}"
    return f"{plan.workers}: a batch takes the whole device"


def _describe_decoder_plan(plan: DecoderPlan) -> list[tuple[str, str]]:
    """The plan of a decoder on this machine in lines: (label, text)."""
    fits = "the whole context" if plan.fits >= plan.context else f"{plan.fits} of {plan.context} tokens"
    room = "the free memory has" if plan.max_memory is None else f"the limit of {megabytes(plan.max_memory)} has"
    return [
        ("threads", f"{plan.threads}: {plan.cores.reason}"),
        ("fits", f"{fits}: the KV cache that {room} room for now"),
        ("runs on", f"{plan.provider.value}, onnxruntime {plan.onnxruntime}"),
    ]


def _describe_footprint(footprint: Footprint, provider: Provider) -> list[tuple[str, str]]:
    """The memory of a decoder in lines: (label, text)."""
    caches = ", ".join(f"{megabytes(length.cache)} for {length.tokens} tokens" for length in footprint.lengths)
    totals = ", ".join(f"{megabytes(length.total)} for {length.tokens}" for length in footprint.lengths)
    beside = "with libraries and the prefill of a long prompt"
    if provider is not Provider.CPU:
        beside = "of GPU memory; the provider's libraries and the prefill of a prompt take more"
    return [
        ("memory", f"weights {megabytes(footprint.weights)}, KV cache {caches}"),
        ("total", f"about {totals}, {beside}"),
    ]


def describe_decoder(
    facts: DecoderFacts, footprint: Footprint, provider: Provider = Provider.CPU
) -> list[tuple[str, str]]:
    """A decoder's facts in lines: (label, text)."""
    window = f", sliding window of {facts.sliding_window}" if facts.sliding_window is not None else ""
    lines = [
        ("context", f"{facts.context_length} tokens, prompt and answer together{window}"),
        *_describe_footprint(footprint, provider),
        ("template", "chat template" if facts.chat is not None else "none: continues raw text"),
    ]
    if facts.cache_type is CacheType.FLOAT16:
        lines.append(("cache", "float16 KV cache, half the memory of float32"))
    if facts.plain_attention:
        lines.append(("attention", "plain operators: exact, slower than the fused operator"))
    stated = [
        f"{name.replace('_', ' ')} {value:g}" for name, value in vars(facts.generation).items() if value is not None
    ]
    lines.append(("sampling", ", ".join(stated) + " (the publisher's defaults)" if stated else "greedy"))
    return lines


_TRUNCATIONS = {
    "document": "the end of the document",
    "longest": "the end of the longer one, query or document",
    "end": "the end of query and document joined",
}


def _access_of(source: Source) -> str:
    if source.gated is None:
        return "access unknown"
    return "gated" if source.gated else "public"


def _describe(manifest: Manifest, size: int) -> list[tuple[str, str]]:
    """The manifest in lines: (label, text)."""
    source = manifest.source
    lines = [
        ("name", manifest.name),
        ("kind", f"{manifest.kind.value}, architecture {manifest.architecture}"),
        ("precision", f"{manifest.precision.value}, for the provider {manifest.provider.value}"),
        (
            "source",
            f"{source.resolved} ({source.origin})" + (f", revision {source.revision}" if source.revision else ""),
        ),
        ("license", f"{source.license or 'not stated'}, {_access_of(source)}"),
        ("size", f"{megabytes(size)} in {len(manifest.files)} files"),
        ("max length", f"{manifest.tokenizer.max_length} tokens"),
    ]
    facts = manifest.embedder
    if facts is not None:
        normalized = "normalized" if facts.normalize else "not normalized"
        pooled = ", ".join(one.value for one in facts.poolings)
        lines.append(("embeddings", f"{facts.dimension} dimensions, {pooled} pooling, {normalized}"))
        lines.append(("prompts", ", ".join(facts.prompts) or "none"))
        if facts.matryoshka_dimensions:
            lines.append(("matryoshka", f"dimensions {', '.join(map(str, facts.matryoshka_dimensions))}"))
    pairs = manifest.reranker
    if pairs is not None:
        lines.append(("labels", ", ".join(pairs.labels)))
        lines.append(("scores", f"{pairs.scores.value} (the publisher's default)"))
        lines.append(("truncation", _TRUNCATIONS[pairs.pair.truncation.value]))
    if manifest.decoder is not None:
        from ...runtime.decoder.memory_estimate import footprint_of

        lines += describe_decoder(manifest.decoder, footprint_of(manifest, manifest.decoder), manifest.provider)
    how = manifest.quantization or manifest.blocks
    if how is not None:
        lines.append((manifest.precision.value, str(how)))
    certificate = manifest.certificate
    if certificate is not None:
        figures = ", ".join(
            f"{name.replace('_', ' ')} {figure:{'g' if figure.is_integer() else '.5f'}}"
            for name, figure in certificate.figures.items()
        )
        probed = _PROBED[manifest.kind]
        lines.append(
            ("certificate", f"{figures}, on {certificate.probe_size} {probed} against {certificate.reference}")
        )
        if certificate.layer_errors:
            lines.append(("layers", _layer_error_summary(certificate.layer_errors)))
    lines.append(("made with", ", ".join(f"{name} {version}" for name, version in manifest.made_with.items())))
    return lines


def _layer_error_summary(errors: Sequence[float]) -> str:
    """The relative error of the hidden states against PyTorch, in a line."""
    largest = max(range(len(errors)), key=errors.__getitem__)
    return (
        f"relative error of the hidden states against PyTorch: {errors[0]:.2%} after layer 1, {errors[-1]:.2%} after "
        f"layer {len(errors)}, at most {errors[largest]:.2%} (layer {largest + 1})"
    )


@click.command(
    cls=ExampleCommand,
    examples=[
        "ortkit verify all-MiniLM-L6-v2-int8",
        "ortkit verify bundles/*",
        "ortkit verify all-MiniLM-L6-v2-int8 --json",
    ],
)
@click.argument("bundles", metavar="BUNDLE...", nargs=-1, required=True)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array with the result of each bundle.")
@click.option(
    "--time-limit",
    type=click.FloatRange(min=1, max=86_400),
    metavar="SECONDS",
    help="Give up on a bundle after this time.  [default: 120, plus 1 per megabyte]",
)
@click.pass_context
def verify(context: click.Context, *, bundles: Sequence[str], as_json: bool, time_limit: float | None) -> None:
    """Check bundles on this machine: hashes and golden outputs.

    The hashes, the graph's inputs and the golden outputs of the certificate are checked. Each graph is opened in a
    process of its own, with bounded time and memory. The last line of a bundle is its verdict, "ok: BUNDLE" or
    "failed: BUNDLE". If any failed, the exit code is 7, or that of the error where all that failed have the same one.

    The digest is the sha256 of manifest.json, which lists the sha256 of every other file: two copies with one digest
    are the same bundle.
    """
    results = []
    for place, path in enumerate(bundles):
        if place and not as_json:
            say("")
        results.append(_verified(path, time_limit, show=(lambda _: None) if as_json else say))
    if as_json:
        fields = [result.fields() for result in results]
        click.echo(escaped_json(json.dumps(fields, indent=2, ensure_ascii=False)))
    codes = {result.error.exit_code for result in results if result.error is not None}
    if codes:
        context.exit(codes.pop() if len(codes) == 1 else _BROKEN_EXIT_CODE)


@dataclass
class VerifyResult:
    """Result of a verification; `error` is None for an intact bundle."""

    path: str
    digest: str | None = None
    files: int | None = None
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
            "provider": self.provider,
            "golden_outputs": replay.count if replay is not None else None,
            "agreement": replay.agreement if replay is not None else None,
            "same_bits": replay.same_bits if replay is not None else None,
            "error": None
            if error is None
            else {"message": error.message, "hint": error.hint, "exit_code": error.exit_code},
        }


def _verified(path: str, seconds: float | None, *, show: Callable[[str], None]) -> VerifyResult:
    """Verify a bundle and show each check when it is done; also print an error to stderr."""
    result = VerifyResult(path)
    try:
        _verify(result, seconds, show=show)
    except OrtkitError as error:
        result.error = error
        print_error(error.message, error.hint)
        show(f"failed: {result.path}")
        return result
    show(f"ok: {result.path}")
    return result


def _verify(result: VerifyResult, seconds: float | None, *, show: Callable[[str], None]) -> None:
    from ...runtime import verify as verification
    from ...runtime.bundle.bundle import Bundle

    result.path = resolve_bundle(result.path)
    opened = Bundle.open(result.path)
    result.digest, result.files = opened.digest, len(opened.manifest.files)
    show(f"digest       {result.digest}")
    show(f"files        {result.files} files match the manifest's sha256")

    def graph_opened(provider: str) -> None:
        result.provider = provider
        show(f"graph        opens on {provider}; inputs match the manifest")

    result.replay = verification.verify(opened, seconds=seconds, opened=graph_opened)
    bits = "identical" if result.replay.same_bits else "not identical"
    show(
        f"certificate  {result.replay.count} golden {_GOLDEN[opened.manifest.kind]}: {result.replay.agreement}; "
        f"bits {bits} to the exporting machine's"
    )
