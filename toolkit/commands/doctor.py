"""`ortkit doctor`."""

from __future__ import annotations

import json
from collections.abc import Sequence

import click

from ...runtime.errors import NotFoundError
from ..console.help import ExampleCommand
from ..console.terminal import escaped_json, say, styled
from ..doctor.finding import Finding, Severity, exit_code_of
from ..doctor.report import lines_of, report_of, summary_of
from .bundle_names import resolve_bundle

_COLORS = {Severity.OK: "green", Severity.NOTE: "cyan", Severity.WARNING: "yellow", Severity.ERROR: "red"}


@click.command(
    cls=ExampleCommand,
    examples=[
        "ortkit doctor",
        "ortkit doctor bundles/*",
        "ortkit doctor all-MiniLM-L6-v2-int8 --quick",
        "ortkit doctor --json",
    ],
)
@click.argument("bundles", metavar="[BUNDLE...]", nargs=-1)
@click.option("--quick", is_flag=True, help="Do not replay the certificates, which takes seconds for each bundle.")
@click.option(
    "--time-limit",
    type=click.FloatRange(min=1, max=86_400),
    metavar="SECONDS",
    help="Give up on a bundle's certificate after this time.  [default: 120, plus 1 per megabyte]",
)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object with all findings.")
@click.pass_context
def doctor(
    context: click.Context, *, bundles: Sequence[str], quick: bool, time_limit: float | None, as_json: bool
) -> None:
    """Check this machine, the installation and bundles, and say what to do.

    Each finding is ok, a note, a warning or an error, says why it matters and what to type. The exit code is that of
    the worst error, 0 without one. With BUNDLE, its files are hashed, what it needs is compared with what is here, and
    its certificate is replayed in a process with bounded time and memory. Works where onnxruntime or numpy is broken.
    """
    from ..doctor.checks import examine

    findings = []
    for finding in examine([_resolved(path) for path in bundles], quick=quick, seconds=time_limit):
        findings.append(finding)
        if not as_json:
            _show(finding)
    if as_json:
        click.echo(escaped_json(json.dumps(report_of(findings), indent=2, ensure_ascii=False)))
    else:
        say("")
        say(summary_of(findings))
    context.exit(exit_code_of(findings))


def _resolved(path: str) -> str:
    """The path of a bundle; one that is not found is a finding, not an error that ends the report."""
    try:
        return resolve_bundle(path)
    except NotFoundError:
        return path


def _show(finding: Finding) -> None:
    from ..console.terminal import escaped

    first, *more = (escaped(line) for line in lines_of(finding))
    label = finding.severity.value
    click.echo(styled(label, err=False, fg=_COLORS[finding.severity]) + first.removeprefix(label))
    for line in more:
        click.echo(line)
