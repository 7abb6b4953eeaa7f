"""`edgekit inspect` and `edgekit verify`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from runtime.bundle import Bundle
from runtime.manifest import Kind, Manifest
from runtime.records import write_record
from toolkit.progress import megabytes

if TYPE_CHECKING:
    from runtime.encoder import Encoder, Plan


@click.command()
@click.argument("bundle", type=click.Path())
@click.option("--runtime", is_flag=True, help="Add what it would run with on this machine.")
@click.option("--json", "as_json", is_flag=True, help="The manifest as JSON; with --runtime, in its field `runtime`.")
def inspect(*, bundle: str, runtime: bool, as_json: bool) -> None:
    """Show what a bundle is, where it came from and how accurate it is."""
    opened = Bundle.open(bundle)
    plan = encoder_of(opened).plan if runtime else None
    if as_json:
        shown = write_record(opened.manifest) | ({"runtime": write_record(plan)} if plan is not None else {})
        click.echo(json.dumps(shown, indent=2, ensure_ascii=False))
        return
    lines = describe(opened.manifest, opened.size) + (describe_plan(plan) if plan is not None else [])
    for label, text in lines:
        click.echo(f"{label:<12} {text}")


def encoder_of(opened: Bundle) -> Encoder:
    """A bundle ready to run, as what it is for."""
    if opened.manifest.kind is Kind.RERANKER:
        from runtime.reranker import Reranker

        return Reranker(opened)
    from runtime.embedder import Embedder

    return Embedder(opened)


def describe_plan(plan: Plan) -> list[tuple[str, str]]:
    """What runs on this machine in lines: (label, text)."""
    disabled = ", ".join(plan.disabled_optimizers) or "none"
    return [
        ("workers", f"{plan.workers}, each on one core: {plan.cores.reason}"),
        ("batches", f"up to {plan.batch_tokens} tokens, of texts of one length, not padded"),
        ("runs on", f"{plan.provider.value}, by onnxruntime {plan.onnxruntime}; its optimizers left out: {disabled}"),
    ]


def describe(manifest: Manifest, size: int) -> list[tuple[str, str]]:
    """The manifest in lines: (label, text)."""
    source = manifest.source
    lines = [
        ("name", manifest.name),
        ("kind", f"{manifest.kind.value}, architecture {manifest.architecture}"),
        ("precision", f"{manifest.precision.value}, made for {manifest.provider.value}"),
        (
            "source",
            f"{source.resolved} ({source.origin})" + (f", revision {source.revision}" if source.revision else ""),
        ),
        ("licence", f"{source.licence or 'not stated'}, {'gated' if source.gated else 'public'}"),
        ("size", f"{megabytes(size)} in {len(manifest.files)} files"),
        ("reads", f"up to {manifest.tokenizer.max_length} tokens"),
    ]
    facts = manifest.embedder
    if facts is not None:
        normalized = "normalized" if facts.normalize else "not normalized"
        lines.append(("vectors", f"{facts.dimension} wide, pooled by {facts.pooling.value}, {normalized}"))
        lines.append(("prompts", ", ".join(facts.prompts) or "none"))
        if facts.matryoshka_dimensions:
            lines.append(("shortens to", ", ".join(map(str, facts.matryoshka_dimensions))))
    pairs = manifest.reranker
    if pairs is not None:
        lines.append(("labels", ", ".join(pairs.labels)))
        lines.append(("scores", f"{pairs.scores.value}, as its publisher says"))
        lines.append(("cuts", "the end of a document that does not fit beside the query"))
    if manifest.quantization is not None:
        lines.append((manifest.precision.value, str(manifest.quantization)))
    certificate = manifest.certificate
    if certificate is not None:
        figures = ", ".join(
            f"{name.replace('_', ' ')} {figure:{'g' if figure.is_integer() else '.5f'}}"
            for name, figure in certificate.figures.items()
        )
        probed = "queries" if manifest.kind is Kind.RERANKER else "texts"
        lines.append(
            ("certificate", f"{figures}, on {certificate.probe_size} {probed} against {certificate.reference}")
        )
    lines.append(("made with", ", ".join(f"{name} {version}" for name, version in manifest.made_with.items())))
    return lines


@click.command()
@click.argument("bundle", type=click.Path())
def verify(*, bundle: str) -> None:
    """Check a bundle on this machine: hashes, the graph's inputs, and the certificate's golden outputs."""
    from runtime.replay import replay

    opened = Bundle.open(bundle)
    click.echo(f"files        {len(opened.manifest.files)} as the manifest lists them, sha256 checked")
    encoder = encoder_of(opened)
    click.echo(f"graph        opens on {encoder.session.provider.value}, inputs as the manifest lists them")
    replayed = replay(encoder)
    bits = "the same bits as" if replayed.same_bits else "not the same bits as"
    click.echo(
        f"certificate  {replayed.count} golden {'pairs' if opened.manifest.kind is Kind.RERANKER else 'texts'}, "
        f"{replayed.agreement}, {bits} on the machine that made it"
    )
