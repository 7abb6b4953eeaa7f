"""`ortkit bench`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from ...runtime.errors import OrtkitError
from ...runtime.session.cpu_class import CpuClass, this_cpu_class
from ...runtime.sizes import mebibytes
from ..console.help import ExampleCommand
from ..console.terminal import escaped_json, print_table, say
from ..io.warnings_report import print_error
from .bundle_names import resolve_bundle
from .options import max_memory_option

if TYPE_CHECKING:
    from .bench_worker import Measured


@dataclass
class Benched:
    """A bundle and its figures, or why there are none."""

    path: str
    cpu_class: CpuClass
    measured: Measured | None = None
    error: OrtkitError | None = None

    def row(self) -> tuple[str, ...]:
        if self.measured is None:
            return (self.path, "failed, see `ortkit verify`", *[""] * 6)
        found = self.measured
        memory = mebibytes(found.memory)
        if found.gpu_memory is not None:
            memory += f", GPU {mebibytes(found.gpu_memory)}"
        return (
            self.path,
            found.provider,
            found.precision,
            f"{found.speed:,.1f} {found.unit}",
            "" if found.prompt_speed is None else f"{found.prompt_speed:,.0f} tokens/s",
            f"{found.latency * 1000:,.1f} ms",
            memory,
            f"{found.opening:.2f} s",
        )

    def fields(self) -> dict[str, Any]:
        error = self.error
        return {
            "bundle": self.path,
            "cpu_class": self.cpu_class.value,
            **({} if self.measured is None else vars(self.measured)),
            "error": None
            if error is None
            else {"message": error.message, "hint": error.hint, "exit_code": error.exit_code},
        }


_HEADER = ("bundle", "provider", "precision", "speed", "prompt", "latency", "peak memory", "opens in")


@click.command(
    cls=ExampleCommand,
    examples=[
        "ortkit bench all-MiniLM-L6-v2-int8 all-MiniLM-L6-v2-fp32",
        "ortkit bench bundles/SmolLM2-* --seconds 20",
        "ortkit bench all-MiniLM-L6-v2-int8 --json",
    ],
)
@click.argument("bundles", metavar="BUNDLE...", nargs=-1, required=True)
@click.option(
    "--seconds",
    type=click.FloatRange(min=0.01, max=3600),
    default=5.0,
    show_default=True,
    help="Time for each figure, at least; the median of the runs in it is shown.",
)
@max_memory_option
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array with the figures of each bundle.")
@click.pass_context
def bench(
    context: click.Context, *, bundles: Sequence[str], seconds: float, max_memory: int | None, as_json: bool
) -> None:
    """Measure bundles on this machine, to choose between precisions and providers.

    Each bundle runs in a process of its own. Embedders: texts per second, 64 texts of 1 to 12 sentences at once.
    Rerankers: as many pairs. LLMs: generated tokens per second, and tokens per second of a prompt of 128. The latency
    is that of one short text alone, or the time to the first token. Run nothing else meanwhile.
    """
    from ...runtime.bundle.bundle import Bundle
    from .bench_worker import measure_apart

    results = []
    cpu_class = this_cpu_class()
    if not as_json:
        say(f"CPU: {cpu_class.description}", err=True)
    for path in bundles:
        result = Benched(path, cpu_class)
        results.append(result)
        try:
            result.path = resolve_bundle(path)
            if not as_json:
                say(f"measuring {result.path}", err=True)
            result.measured = measure_apart(Bundle.open(result.path), seconds=seconds, max_memory=max_memory)
        except OrtkitError as error:
            result.error = error
            print_error(error.message, error.hint)
    if as_json:
        fields = [result.fields() for result in results]
        click.echo(escaped_json(json.dumps(fields, indent=2, ensure_ascii=False)))
    elif any(result.measured is not None for result in results):
        print_table(_without_empty_columns([_HEADER, *(result.row() for result in results)]))
    codes = {result.error.exit_code for result in results if result.error is not None}
    if codes:
        context.exit(codes.pop() if len(codes) == 1 else OrtkitError.exit_code)


def _without_empty_columns(rows: Sequence[tuple[str, ...]]) -> list[list[str]]:
    """The rows of a table without the columns that have a header and nothing else."""
    kept = [place for place in range(len(rows[0])) if any(row[place] for row in rows[1:])]
    return [[row[place] for place in kept] for row in rows]
