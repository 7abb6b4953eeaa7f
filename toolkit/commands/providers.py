"""`ortkit providers`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from ...runtime.bundle.records import write_record
from ..console.help import ExampleCommand
from ..console.terminal import escaped_json, say
from ..io.warnings_report import print_error
from .bundle_names import bundle_argument

if TYPE_CHECKING:
    from ...runtime.bundle.bundle import Bundle
    from ...runtime.session.machine import CudaState, Machine, Verdict

Lines = Iterator[tuple[str, str]]


@click.command(
    cls=ExampleCommand,
    examples=[
        "ortkit providers",
        "ortkit providers all-MiniLM-L6-v2-int8",
        "ortkit providers --json",
    ],
)
@bundle_argument(required=False)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object.")
@click.pass_context
def providers(context: click.Context, *, bundle: str | None, as_json: bool) -> None:
    """Show the execution providers of this machine.

    With BUNDLE, show what the bundle needs too, and why it cannot run here; the exit code is then that of the error.
    The graph is not opened: `ortkit verify` does that.
    """
    from ...runtime.bundle.bundle import Bundle
    from ...runtime.session.machine import this_machine, verdict_on

    opened = None if bundle is None else Bundle.listed(bundle)
    machine = this_machine()
    verdict = None if opened is None else verdict_on(opened, machine)
    if as_json:
        fields = write_record(machine)
        if opened is not None and verdict is not None:
            fields |= {"bundle": _fields_of(opened, verdict)}
        click.echo(escaped_json(json.dumps(fields, indent=2, ensure_ascii=False)))
    else:
        for label, text in _lines_of(machine):
            say(f"{label:<12} {text}")
        if opened is not None and verdict is not None:
            say("")
            for label, text in _lines_of_bundle(opened, verdict):
                say(f"{label:<12} {text}")
    if verdict is not None and verdict.error is not None:
        if not as_json:
            print_error(verdict.error.message, verdict.error.hint)
        context.exit(verdict.error.exit_code)


def _fields_of(bundle: Bundle, verdict: Verdict) -> dict[str, Any]:
    error = verdict.error
    return {
        "path": str(bundle.path),
        "kind": bundle.manifest.kind.value,
        "precision": bundle.manifest.precision.value,
        "provider": bundle.provider.value,
        "needs": list(verdict.needs),
        "runs": error is None,
        "error": None
        if error is None
        else {"message": error.message, "hint": error.hint, "exit_code": error.exit_code},
    }


def _lines_of(machine: Machine) -> Lines:
    yield "system", f"{machine.system}, Python {machine.python}"
    yield "packages", ", ".join(f"{name} {version}" for name, version in machine.packages.items()) or "none"
    for state in machine.providers:
        yield state.provider.value, "available" if state.problem is None else "not available"
        if state.problem is not None:
            yield "", state.problem
        if state.hint is not None:
            yield "", state.hint
    free = "not known" if machine.memory is None else _mebibytes(machine.memory)
    yield "memory", f"{free} free"
    yield "cores", f"{machine.cores.usable}: {machine.cores.reason}"
    yield "CPU", machine.cpu_class.description
    yield "CPU features", ", ".join(machine.cpu_features) or "not known"
    yield from _cuda_lines(machine.cuda)


def _cuda_lines(cuda: CudaState) -> Lines:
    yield "CUDA", "not in this onnxruntime" if cuda.built_for is None else f"onnxruntime is built for {cuda.built_for}"
    yield "driver", f"none: {cuda.driver_problem}" if cuda.driver is None else f"supports CUDA {cuda.driver}"
    for gpu in cuda.gpus:
        capability = "{}.{}".format(*gpu.capability)
        yield "GPU", f"{gpu.name}, compute capability {capability}, {_mebibytes(gpu.memory)}"
    for library in cuda.libraries:
        purpose = "" if library.operator is None else f", for {library.operator}"
        found = "loads" if library.error is None else library.error
        yield "library", f"{library.name}: {found} ({library.package}{purpose})"


def _lines_of_bundle(bundle: Bundle, verdict: Verdict) -> Lines:
    manifest = bundle.manifest
    yield "bundle", f"{bundle.path}: {manifest.kind.value}, {manifest.precision.value}, for {bundle.provider.value}"
    for need in verdict.needs:
        yield "needs", need
    yield (
        "runs here",
        "nothing is in the way; `ortkit verify` opens it and compares its outputs" if verdict.error is None else "no",
    )


def _mebibytes(size: int) -> str:
    from ...runtime.session.memory import mebibytes

    return mebibytes(size)
