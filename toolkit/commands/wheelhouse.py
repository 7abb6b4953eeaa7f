"""`ortkit wheelhouse`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from ..console.help import ExampleCommand
from ..console.interrupts import reraised_interrupts
from ..console.progress import StageProgress, megabytes
from ..console.terminal import print_table, say
from .options import once

if TYPE_CHECKING:
    from ...exporters.packaging.wheelhouse import Collected, Plan


@click.command(
    cls=ExampleCommand,
    sections={"Appliance": "--target --python --glibc --provider --with", "Output": "--output --dry-run"},
    examples=[
        "ortkit wheelhouse --target linux-aarch64 --python 3.11 -o wheels",
        "ortkit wheelhouse --target linux-x86_64 --python 3.12 --provider cuda -o wheels --dry-run",
    ],
)
@once(
    "--target",
    metavar="TARGET",
    help="System and processor: linux-x86_64, linux-aarch64, macos-arm64 or windows-amd64.",
)
@once("--python", metavar="VERSION", help="Version of the appliance's Python, such as 3.11.")
@once("--glibc", metavar="VERSION", help="Linux: the appliance's glibc; `ldd --version` prints it.  [default: 2.28]")
@click.option(
    "--provider",
    type=click.Choice(["cpu", "cuda", "coreml"]),
    default="cpu",
    show_default=True,
    help="Execution provider of the bundles. cuda: Linux. coreml: macOS.",
)
@click.option(
    "--with",
    "extras",
    metavar="EXTRAS",
    multiple=True,
    help="More of ortkit's extras, separated by commas. serve: `ortkit serve`. grammar: JSON schemas (glibc 2.31). "
    "sign: check signatures without `openssl`.",
)
@once("--output", "-o", metavar="FOLDER", help="The wheelhouse.  [default: wheels]")
@once(
    "--ortkit-wheel",
    metavar="FILE",
    help="ortkit's own wheel.  [default: made from the source folder or the installation]",
)
@click.option("--dry-run", is_flag=True, help="Print the wheels and their sizes; download and write nothing.")
def wheelhouse(
    *,
    target: str | None,
    python: str | None,
    glibc: str | None,
    provider: str,
    extras: tuple[str, ...],
    output: str | None,
    ortkit_wheel: str | None,
    dry_run: bool,
) -> None:
    """Collect the wheels that another machine needs to install ortkit offline.

    Versions and hashes are pinned by this release of ortkit; the files come from the index that pip is set to. The
    folder's path goes to stdout, or with --dry-run a table of the wheels.
    """
    if target is None or python is None:
        missing = "'--target'" if target is None else "'--python'"
        raise click.MissingParameter(ctx=click.get_current_context(), param_hint=missing, param_type="option")
    from ...exporters.extras import need_packaging

    need_packaging()
    from ...exporters.packaging.wheel_target import parse_target
    from ...exporters.packaging.wheelhouse import collect, plan_wheelhouse

    names = [name.strip() for text in extras for name in text.split(",")]
    plan = plan_wheelhouse(parse_target(target, python, glibc), provider, [name for name in names if name])
    if dry_run:
        _print_plan(plan)
        return
    folder = output or "wheels"
    with reraised_interrupts() as check, StageProgress(check) as progress:
        collected = collect(plan, folder, ortkit_wheel=ortkit_wheel, progress=progress)
    _summarize(collected, folder)
    click.echo(folder)


def _print_plan(plan: Plan) -> None:
    rows = [(pin.name, pin.version, megabytes(pin.wheel.size), pin.wheel.file) for pin in plan.pins]
    print_table([("name", "version", "size", "file"), *rows])
    say(f"{len(plan.pins)} wheels, {megabytes(plan.size)} to download, and ortkit's own", err=True)


def _summarize(collected: Collected, folder: str) -> None:
    found = collected.wheelhouse
    system = f", glibc {found.glibc} or later" if found.glibc is not None else ""
    system = f", macOS {found.macos} or later" if found.macos is not None else system
    state = f"{collected.fetched} downloaded" if collected.changed else "complete already, nothing was changed"
    say("", err=True)
    say(f"{found.target}, Python {found.python}{system}, {', '.join((found.provider, *found.extras))}", err=True)
    say(f"  wheels   {len(found.wheels)}, {megabytes(found.size)}; {state}", err=True)
    say("  next     copy the folder to the appliance, and there, in a virtual environment:", err=True)
    say(f"           pip install --no-deps -r {click.format_filename(folder)}/requirements.txt", err=True)
    say("", err=True)
