"""`edgekit inspect` and `edgekit verify`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from runtime.manifest import CacheType, Kind
from runtime.records import write_record
from toolkit.progress import megabytes
from toolkit.terminal import escaped_json, say

if TYPE_CHECKING:
    from runtime.decoder import DecoderPlan
    from runtime.encoder import Plan
    from runtime.footprint import Footprint
    from runtime.manifest import DecoderFacts, Manifest


PROBED = {Kind.EMBEDDER: "texts", Kind.RERANKER: "queries", Kind.DECODER: "tokens"}
GOLDEN = {Kind.EMBEDDER: "texts", Kind.RERANKER: "pairs", Kind.DECODER: "tokens"}


@click.command()
@click.argument("bundle", type=click.Path())
@click.option("--runtime", is_flag=True, help="Add what it would run with on this machine.")
@click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="The manifest as JSON; a decoder's memory in the field `memory`, what --runtime adds in `runtime`.",
)
def inspect(*, bundle: str, runtime: bool, as_json: bool) -> None:
    """Show what a bundle is, where it came from and how accurate it is."""
    from runtime.bundle import Bundle
    from runtime.footprint import footprint_of

    opened = Bundle.open(bundle)
    plan = None
    if runtime:
        from runtime.verification import model_of

        plan = model_of(opened).plan
    if as_json:
        shown = write_record(opened.manifest)
        if opened.manifest.decoder is not None:
            shown["memory"] = write_record(footprint_of(opened.manifest, opened.manifest.decoder))
        if plan is not None:
            shown["runtime"] = write_record(plan)
        click.echo(escaped_json(json.dumps(shown, indent=2, ensure_ascii=False)))
        return
    lines = describe(opened.manifest, opened.size)
    if plan is not None:
        from runtime.encoder import Plan

        lines += describe_plan(plan) if isinstance(plan, Plan) else describe_decoder_plan(plan)
    for label, text in lines:
        say(f"{label:<12} {text}")


def describe_plan(plan: Plan) -> list[tuple[str, str]]:
    """What runs on this machine in lines: (label, text)."""
    disabled = ", ".join(plan.disabled_optimizers) or "none"
    int8 = []
    if plan.int8 is not None:
        features = f"; it has {', '.join(plan.int8.features)}" if plan.int8.features else ""
        int8.append(("int8", f"{plan.int8.reason}{features}"))
    return [
        ("workers", f"{plan.workers}, each on one core: {plan.cores.reason}"),
        ("batches", f"up to {plan.batch_tokens} tokens, of texts of one length, not padded"),
        ("runs on", f"{plan.provider.value}, by onnxruntime {plan.onnxruntime}; its optimizers left out: {disabled}"),
        *int8,
    ]


def describe_decoder_plan(plan: DecoderPlan) -> list[tuple[str, str]]:
    """The same for a decoder."""
    fits = "as many tokens as the model reads" if plan.fits >= plan.context else f"{plan.fits} of {plan.context} tokens"
    return [
        ("threads", f"{plan.threads}: {plan.cores.reason}"),
        ("fits", f"{fits}, keys and values in the memory that is free now"),
        ("runs on", f"{plan.provider.value}, by onnxruntime {plan.onnxruntime}"),
    ]


def describe_footprint(footprint: Footprint) -> list[tuple[str, str]]:
    """The memory that a decoder takes in lines: (label, text)."""
    caches = ", ".join(f"{megabytes(length.cache)} for {length.tokens} tokens" for length in footprint.lengths)
    totals = ", ".join(f"{megabytes(length.total)} for {length.tokens}" for length in footprint.lengths)
    return [
        ("memory", f"weights take {megabytes(footprint.weights)}, keys and values {caches}"),
        ("in all", f"about {totals}, with the libraries and the reading of a long prompt"),
    ]


def describe_decoder(facts: DecoderFacts, footprint: Footprint) -> list[tuple[str, str]]:
    """What is told of a decoder in lines: (label, text)."""
    window = f", attention reaches {facts.sliding_window} tokens back" if facts.sliding_window is not None else ""
    lines = [
        ("context", f"{facts.context_length} tokens, prompt and answer together{window}"),
        *describe_footprint(footprint),
        ("template", "yes, for conversations" if facts.chat is not None else "no, it continues raw text"),
    ]
    if facts.cache_type is CacheType.FLOAT16:
        lines.append(("cache", "keys and values in float16, half of the memory of float32"))
    if facts.plain_attention:
        lines.append(("attention", "in plain operators, exact and slower than the fused one"))
    stated = [
        f"{name.replace('_', ' ')} {value:g}" for name, value in vars(facts.generation).items() if value is not None
    ]
    lines.append(("sampling", ", ".join(stated) + ", as its publisher says" if stated else "none, greedy"))
    return lines


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
        ("license", f"{source.license or 'not stated'}, {'gated' if source.gated else 'public'}"),
        ("size", f"{megabytes(size)} in {len(manifest.files)} files"),
        ("reads", f"up to {manifest.tokenizer.max_length} tokens"),
    ]
    facts = manifest.embedder
    if facts is not None:
        normalized = "normalized" if facts.normalize else "not normalized"
        pooled = ", ".join(one.value for one in facts.poolings)
        lines.append(("vectors", f"{facts.dimension} wide, pooled by {pooled}, {normalized}"))
        lines.append(("prompts", ", ".join(facts.prompts) or "none"))
        if facts.matryoshka_dimensions:
            lines.append(("shortens to", ", ".join(map(str, facts.matryoshka_dimensions))))
    pairs = manifest.reranker
    if pairs is not None:
        lines.append(("labels", ", ".join(pairs.labels)))
        lines.append(("scores", f"{pairs.scores.value}, as its publisher says"))
        lines.append(("cuts", "the end of a document that does not fit beside the query"))
    if manifest.decoder is not None:
        from runtime.footprint import footprint_of

        lines += describe_decoder(manifest.decoder, footprint_of(manifest, manifest.decoder))
    how = manifest.quantization or manifest.blocks
    if how is not None:
        lines.append((manifest.precision.value, str(how)))
    certificate = manifest.certificate
    if certificate is not None:
        figures = ", ".join(
            f"{name.replace('_', ' ')} {figure:{'g' if figure.is_integer() else '.5f'}}"
            for name, figure in certificate.figures.items()
        )
        probed = PROBED[manifest.kind]
        lines.append(
            ("certificate", f"{figures}, on {certificate.probe_size} {probed} against {certificate.reference}")
        )
        if certificate.layer_errors:
            lines.append(("layers", told_by_layers(certificate.layer_errors)))
    lines.append(("made with", ", ".join(f"{name} {version}" for name, version in manifest.made_with.items())))
    return lines


def told_by_layers(errors: Sequence[float]) -> str:
    """How far hidden states are from PyTorch's, in a line."""
    largest = max(range(len(errors)), key=errors.__getitem__)
    return (
        f"hidden states are {errors[0]:.2%} off PyTorch's after layer 1, {errors[-1]:.2%} after layer {len(errors)}, "
        f"at most {errors[largest]:.2%}, after layer {largest + 1}"
    )


@click.command()
@click.argument("bundle", type=click.Path())
@click.option(
    "--time-limit",
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    help="Give up after this time.  [default: 120, and 1 for each megabyte]",
)
def verify(*, bundle: str, time_limit: float | None) -> None:
    """Check a bundle on this machine: hashes, the graph's inputs, and the certificate's golden outputs.

    The graph is opened in a process of its own, with bounded time and memory.
    """
    from runtime import verification
    from runtime.bundle import Bundle

    opened = Bundle.open(bundle)
    kind = opened.manifest.kind
    say(f"files        {len(opened.manifest.files)} as the manifest lists them, sha256 checked")
    replayed = verification.verify(
        opened,
        seconds=time_limit,
        opened=lambda provider: say(f"graph        opens on {provider}, inputs as the manifest lists them"),
    )
    same = "the same" if replayed.same_bits else "not the same"
    say(
        f"certificate  {replayed.count} golden {GOLDEN[kind]}, "
        f"{replayed.agreement}, {same} bits as on the machine that made it"
    )
