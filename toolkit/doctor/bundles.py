"""What a bundle needs, beside what this machine has: `ortkit doctor BUNDLE`."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...runtime.bundle.bundle import Bundle
from ...runtime.bundle.folder import MANIFEST
from ...runtime.bundle.manifest import Kind, Manifest, Precision, Provider
from ...runtime.errors import OrtkitError
from ...runtime.session.cpu_class import CpuClass, class_of
from ...runtime.session.memory import mebibytes
from .finding import Finding, error, failed, note, ok, warning
from .host import Host
from .trust import SignatureState, Trust, check_signature, look_at_signature

if TYPE_CHECKING:
    from ...runtime.replay import Replay
    from ...runtime.session.machine import Verdict

_DAY = 86_400
_MEMORY_EXIT = 9
_PROCESS = 56 << 20
"""Bytes of the command line with its libraries, as measured."""
_LIBRARIES = ("numpy", "onnxruntime", "tokenizers", "jinja2")
"""Modules without which a bundle cannot be tried."""


@dataclass(frozen=True)
class Needs:
    """The memory that a bundle takes with its process, in bytes."""

    least: int
    """To open it, and run a short text."""
    lengths: tuple[tuple[int, int], ...] = ()
    """LLMs: numbers of tokens, prompt and answer together, and what they take."""


@dataclass(frozen=True)
class BundleState:
    """A bundle on this machine; what comes after `problem` is there only without one."""

    path: Path
    problem: OrtkitError | None = None
    """Why it cannot be opened."""
    manifest: Manifest | None = None
    digest: str = ""
    size: int = 0
    written: float = 0.0
    """When its manifest was written here."""
    open_to_others: bool = False
    """Whether other users can change it."""
    signature: SignatureState = field(default_factory=lambda: SignatureState(signed=False))
    tried: bool = False
    """Whether what follows was asked: the modules that a model needs can be imported."""
    verdict: Verdict | None = None
    """Whether its provider runs here, as `ortkit providers BUNDLE` says."""
    needs: Needs | None = None
    replay: Replay | None = None
    replay_problem: OrtkitError | None = None


def look_at_bundle(path: str, host: Host, trust: Trust, *, quick: bool, seconds: float | None = None) -> BundleState:
    """Open a bundle, hash its files and, unless `quick`, replay its certificate in a process with bounded memory."""
    folder = Path(path)
    try:
        # The policy is not obeyed here: what it refuses is a finding of its own.
        bundle, files = Bundle.unsigned(path)
        bundle.check_hashes(bundle.manifest.files)
        status = (folder / MANIFEST).stat()
    except OrtkitError as problem:
        return BundleState(folder, problem)
    except OSError as problem:
        return BundleState(folder, OrtkitError(f"`{path}` cannot be read: {problem.strerror or problem}"))
    manifest = bundle.manifest
    state = BundleState(
        path=folder,
        manifest=manifest,
        digest=bundle.digest,
        size=bundle.size,
        written=status.st_mtime,
        open_to_others=_is_open_to_others(folder),
        signature=look_at_signature(trust, bundle, files),
    )
    if _is_refused(state, trust) or not host.imports_well(*_LIBRARIES):
        return state
    return _tried(state, bundle, quick=quick, seconds=seconds)


def _is_refused(state: BundleState, trust: Trust) -> bool:
    """Whether the policy refuses the bundle: its graph is not opened then."""
    return trust.problem is not None or (trust.required and state.signature.problem is not None)


def _tried(state: BundleState, bundle: Bundle, *, quick: bool, seconds: float | None) -> BundleState:
    """Ask what needs numpy and onnxruntime."""
    from ...runtime.session.machine import this_machine, verdict_on

    verdict = verdict_on(bundle, this_machine())
    state = replace(state, tried=True, verdict=verdict, needs=needs_of(bundle))
    if quick or verdict.error is not None:
        return state
    from ...runtime.verify import verify

    try:
        return replace(state, replay=verify(bundle, seconds=seconds))
    except OrtkitError as problem:
        return replace(state, replay_problem=problem)


def needs_of(bundle: Bundle) -> Needs:
    """Estimate the memory that a bundle takes, from its manifest."""
    from ...runtime.decoder.memory_estimate import PROCESS, footprint_of
    from ...runtime.session.opening import size_to_open

    manifest = bundle.manifest
    if manifest.decoder is None:
        return Needs(_PROCESS + size_to_open(bundle))
    footprint = footprint_of(manifest, manifest.decoder)
    return Needs(footprint.weights + PROCESS, tuple((one.tokens, one.total) for one in footprint.lengths))


def _is_open_to_others(folder: Path) -> bool:
    try:
        return any(path.stat().st_mode & 0o022 for path in (folder, folder / MANIFEST))
    except OSError:
        return False


def check_bundle(host: Host, trust: Trust, state: BundleState) -> Iterator[Finding]:
    """All findings on a bundle, from its files up to its answers."""
    for found in _checks_of(host, trust, state):
        yield replace(found, bundle=str(state.path))


def _checks_of(host: Host, trust: Trust, state: BundleState) -> Iterator[Finding]:
    if state.problem is not None or state.manifest is None:
        yield failed(
            "bundle-files",
            state.problem or OrtkitError(f"`{state.path}` cannot be read"),
            "it cannot be used",
            "copy the bundle again from the machine that made it",
        )
        return
    yield _files_finding(state, state.manifest)
    yield from check_signature(trust, state.signature)
    yield from _clock_findings(host, state)
    if _is_refused(state, trust):
        return
    if not state.tried:
        yield note(
            "bundle-provider",
            "the bundle was not tried",
            f"it needs {', '.join(f'`{name}`' for name in _LIBRARIES if not host.imports_well(name))}",
            "mend the errors above first",
        )
        return
    yield from _provider_findings(state, state.manifest)
    yield from _kernel_findings(host, state.manifest)
    yield from _memory_findings(host, state, state.manifest)
    yield from _replay_findings(state)


def _files_finding(state: BundleState, manifest: Manifest) -> Finding:
    facts: Mapping[str, Any] = {
        "kind": manifest.kind.value,
        "precision": manifest.precision.value,
        "provider": manifest.provider.value,
        "digest": state.digest,
        "size": state.size,
    }
    if state.open_to_others:
        return warning(
            "bundle-files",
            f"other users can change the bundle `{state.path}`",
            "a graph is a program, which runs with your rights",
            f"let its owner alone write to it: `chmod -R go-w {state.path}`",
            **facts,
        )
    what = f"{manifest.kind.value}, {manifest.precision.value}, for {manifest.provider.value}"
    return ok("bundle-files", f"{what}: {len(manifest.files)} files match the manifest's sha256", **facts)


def _clock_findings(host: Host, state: BundleState) -> Iterator[Finding]:
    if state.written > host.now + _DAY:
        written = dt.datetime.fromtimestamp(state.written, dt.UTC).strftime("%Y-%m-%d")
        yield warning(
            "bundle-clock",
            f"the bundle was written on {written}, after this machine's clock",
            "the clock is wrong, or was wrong when the bundle was copied",
            "set the clock: `sudo date -s '2027-01-31 12:00'`",
            written=written,
        )


def _provider_findings(state: BundleState, manifest: Manifest) -> Iterator[Finding]:
    verdict = state.verdict
    facts: dict[str, Any] = {
        "provider": manifest.provider.value,
        "needs": [] if verdict is None else list(verdict.needs),
    }
    if verdict is not None and verdict.error is not None:
        yield failed("bundle-provider", verdict.error, "the bundle cannot run here", **facts)
    else:
        yield ok("bundle-provider", f"nothing is in the way of running it with `{manifest.provider.value}`", **facts)


def _kernel_findings(host: Host, manifest: Manifest) -> Iterator[Finding]:
    """What this CPU makes of the bundle's matmuls."""
    cpu_class = class_of(host.cpu_flags, host.machine, host.system)
    few_bits = manifest.precision in {Precision.INT8, Precision.INT4, Precision.SOURCE}
    if manifest.provider is not Provider.CPU or cpu_class is CpuClass.OTHER or not few_bits:
        return
    arm = cpu_class in {CpuClass.AARCH64, CpuClass.AARCH64_DOTPROD}
    wanted = "asimddp" if arm else "avx2"
    name = "dot product (asimddp)" if arm else "AVX2"
    there = cpu_class.has_few_bit_kernels
    facts: dict[str, Any] = {
        "precision": manifest.precision.value,
        "class": cpu_class.value,
        "wanted": wanted,
        "there": there,
    }
    if not there and manifest.kind is Kind.DECODER:
        yield warning(
            "bundle-kernels",
            f"the bundle's {manifest.precision.value} matmuls have no kernel for this CPU, which has no {name}",
            "weights are unpacked and multiplied in float32: exact, and several times slower",
            "use a smaller model, or a CPU with it; `ortkit bench` measures",
            **facts,
        )
    elif not there:
        yield note(
            "bundle-kernels",
            f"this CPU has no {name}",
            f"{manifest.precision.value} is slower here than the docs say, and may be no faster than fp32",
            "measure both: `ortkit bench BUNDLE...`",
            **facts,
        )
    else:
        yield ok("bundle-kernels", f"this CPU has kernels for {manifest.precision.value} ({name})", **facts)


def _memory_findings(host: Host, state: BundleState, manifest: Manifest) -> Iterator[Finding]:
    """What the bundle takes beside what can be allocated; `bundle-provider` says where not even the weights fit."""
    limit, needs = host.available_memory, state.needs
    if needs is None or limit is None or manifest.provider is Provider.CUDA:
        return
    facts: dict[str, Any] = {"needed": needs.least, "available": limit.left, "lengths": dict(needs.lengths)}
    fitting = [tokens for tokens, size in needs.lengths if size <= limit.left]
    if needs.least > limit.left:
        yield error(
            "bundle-memory",
            f"the bundle takes about {mebibytes(needs.least)} with its process, and {limit.described}",
            "the system kills a process that takes more than there is",
            "end other programs, raise the limit, or take a bundle of fewer bits",
            _MEMORY_EXIT,
            **facts,
        )
    elif needs.lengths and len(fitting) < len(needs.lengths):
        tokens, size = needs.lengths[-1]
        room = f"{fitting[-1]} tokens fit" if fitting else f"less than {needs.lengths[0][0]} tokens fit"
        yield warning(
            "bundle-memory",
            f"a context of {tokens} tokens takes about {mebibytes(size)}, and {limit.described}: {room}",
            "a longer prompt or answer is refused (exit code 9)",
            f"limit the context: `--context {fitting[-1] if fitting else 512}`; or free memory",
            **facts,
        )
    else:
        most = needs.lengths[-1][1] if needs.lengths else needs.least
        tokens_of = f" for {needs.lengths[-1][0]} tokens" if needs.lengths else ""
        yield ok(
            "bundle-memory", f"takes about {mebibytes(most)}{tokens_of} with its process; {limit.described}", **facts
        )


def _replay_findings(state: BundleState) -> Iterator[Finding]:
    found = state.replay
    if state.replay_problem is not None:
        yield failed(
            "bundle-certificate",
            state.replay_problem,
            "on this machine the bundle does not give what was certified",
            f"run `ortkit verify {state.path}`",
        )
    elif found is not None:
        bits = "identical" if found.same_bits else "not identical"
        yield ok(
            "bundle-certificate",
            f"{found.count} golden outputs: {found.agreement}; bits {bits} to the exporting machine's",
            golden_outputs=found.count,
            agreement=found.agreement,
            same_bits=found.same_bits,
        )
    elif state.verdict is not None and state.verdict.error is None:
        yield note(
            "bundle-certificate",
            "the certificate was not replayed (`--quick`)",
            "a machine may compute something else than was certified",
            f"run `ortkit verify {state.path}`",
        )
