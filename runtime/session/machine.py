"""What this machine has for each execution provider, and whether a bundle can run on it: `ortkit providers`."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ..bundle.bundle import GRAPH
from ..bundle.folder import BundleFolder
from ..bundle.manifest import Provider
from ..errors import MissingPartError, OrtkitError, OutOfMemoryError, ProviderError
from .config import SessionConfig
from .cores import Cores, find_cores
from .cpu_class import CpuClass, cpu_features, this_cpu_class
from .cuda import (
    CudaLibrary,
    Driver,
    Gpu,
    cuda_version,
    find_driver,
    find_libraries,
    known_architectures,
    wheel_architectures,
)
from .memory import available_memory, check_memory, mebibytes
from .onnxruntime_import import ONNXRUNTIME, check_requirements, load_onnxruntime
from .packages import NVIDIA, installed
from .problem import Problem
from .providers import PROVIDERS
from .session import check_gpu_memory, size_of_weights


@dataclass(frozen=True)
class ProviderState:
    """One provider on this machine."""

    provider: Provider
    built_in: bool
    """Whether onnxruntime is built with it."""
    problem: str | None
    """What is in the way; None if nothing is known to be."""
    hint: str | None
    """What to do about it."""


@dataclass(frozen=True)
class CudaState:
    """CUDA on this machine."""

    built_for: str | None
    """The version of CUDA that onnxruntime is built for; None for a build without CUDA."""
    driver: str | None
    """The newest version of CUDA that NVIDIA's driver supports; None without a driver that works."""
    driver_problem: str | None
    """Why there is none."""
    gpus: tuple[Gpu, ...]
    libraries: tuple[CudaLibrary, ...]
    """What onnxruntime's CUDA provider is linked to; empty for a build without CUDA."""
    architectures: tuple[str, ...]
    """Compute capabilities that onnxruntime-gpu has code for; empty where that is not known of the one installed."""


@dataclass(frozen=True)
class Machine:
    """What this machine has."""

    system: str
    python: str
    packages: dict[str, str]
    """Installed packages of onnxruntime and CUDA's libraries, with their versions."""
    onnxruntime: str | None
    """Its version; None where it cannot be loaded."""
    cores: Cores
    cpu_class: CpuClass
    cpu_features: tuple[str, ...]
    memory: int | None
    """Free memory in bytes; None where the system does not say."""
    providers: tuple[ProviderState, ...]
    cuda: CudaState


@dataclass(frozen=True)
class Verdict:
    """Whether a bundle can run on this machine."""

    needs: tuple[str, ...]
    """What it needs, for people."""
    error: OrtkitError | None
    """What is in the way; None if nothing is known to be."""


def this_machine() -> Machine:
    """Look at this machine; opens no session, and raises nothing for what is missing."""
    try:
        ort, missing = load_onnxruntime(), None
    except (MissingPartError, OutOfMemoryError) as error:
        ort, missing = None, error
    return Machine(
        system=f"{platform.system()} {platform.machine()}",
        python=platform.python_version(),
        packages=installed() | installed(NVIDIA),
        onnxruntime=None if ort is None else str(ort.__version__),
        cores=find_cores(),
        cpu_class=this_cpu_class(),
        cpu_features=cpu_features(),
        memory=available_memory(),
        providers=tuple(_state_of(provider, ort, missing) for provider in Provider),
        cuda=_cuda_state(ort),
    )


def _state_of(provider: Provider, ort: Any, missing: OrtkitError | None) -> ProviderState:
    if missing is not None:
        return ProviderState(provider, built_in=False, problem=missing.message, hint=missing.hint)
    entry = PROVIDERS[provider]
    problem = entry.problem(ort)
    return ProviderState(
        provider,
        entry.available(ort),
        None if problem is None else problem.message,
        None if problem is None else problem.hint,
    )


def _cuda_state(ort: Any) -> CudaState:
    built = None if ort is None else cuda_version(ort)
    architectures = wheel_architectures() if built is None else known_architectures(installed())
    driver = find_driver()
    known = driver if isinstance(driver, Driver) else None
    return CudaState(
        built_for=None if built is None else "{}.{}".format(*built),
        driver=None if known is None else "{}.{}".format(*known.cuda),
        driver_problem=driver.message if isinstance(driver, Problem) else None,
        gpus=() if known is None else known.gpus,
        libraries=() if built is None else find_libraries(built[0]),
        architectures=tuple("{}.{}".format(*one) for one in architectures),
    )


def verdict_on(bundle: BundleFolder, machine: Machine) -> Verdict:
    """Whether a bundle can run on this machine, by its manifest; its graph is not opened."""
    needs = tuple(_needs_of(bundle, machine))
    try:
        check_requirements(bundle)
        SessionConfig.of(bundle)
        state = next(state for state in machine.providers if state.provider is bundle.provider)
        if state.problem is not None:
            raise ProviderError(state.problem, hint=state.hint)
        problem = PROVIDERS[bundle.provider].problem_of(load_onnxruntime(), bundle.path / GRAPH)
        if problem is not None:
            raise problem.error()
        _check_memory(bundle)
    except OrtkitError as error:
        return Verdict(needs, error)
    return Verdict(needs, None)


def _needs_of(bundle: BundleFolder, machine: Machine) -> Iterator[str]:
    version = bundle.manifest.requires.get(ONNXRUNTIME)
    yield f"onnxruntime{f' {version} or newer' if version is not None else ''}"
    if bundle.provider is Provider.CUDA:
        capabilities = ", ".join(machine.cuda.architectures) or "that onnxruntime-gpu has code for"
        yield f"a GPU of compute capability {capabilities}, or newer of the same major version"
    if bundle.provider is Provider.COREML:
        yield "macOS on Apple silicon"
    where = "GPU memory" if PROVIDERS[bundle.provider].device != "cpu" else "memory"
    yield f"{mebibytes(_weights_of(bundle))} of {where} for the weights, and more for each call"


def _weights_of(bundle: BundleFolder) -> int:
    return size_of_weights(bundle.path / GRAPH, PROVIDERS[bundle.provider].device)


def _check_memory(bundle: BundleFolder) -> None:
    what = f"the weights of `{bundle.path}`"
    if PROVIDERS[bundle.provider].device == "cpu":
        check_memory(_weights_of(bundle), what)
    else:
        check_gpu_memory(_weights_of(bundle), what)
