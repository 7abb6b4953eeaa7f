"""CUDA on this machine: the driver, its GPUs, and the libraries that onnxruntime's CUDA provider needs.

Everything is asked through ctypes, so that a library that is missing can be named. (onnxruntime opens a CUDA session
on the CPU instead, and `get_all_opkernel_def` would crash the process.)
"""

from __future__ import annotations

import ctypes
import importlib.util
import mmap
import os
import platform
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .cuda_errors import OLDEST_DRIVERS, state_of, unavailable
from .packages import NVIDIA, conflict, cuda_hint, installed, is_from_index
from .problem import Problem

Load = Callable[[str], Any]
"""Opens a shared library by name or path, as `ctypes.CDLL` does; raises OSError."""
DRIVER = "libcuda.so.1"
_MAJOR, _MINOR = 75, 76
"""CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR."""
_ARCHITECTURES = {
    "x86_64": ((7, 5), (8, 0), (8, 6), (8, 9), (9, 0), (12, 0)),
    "aarch64": ((8, 9), (9, 0), (12, 0), (12, 1)),
}
"""CPU -> compute capabilities that the wheels of _READ_FROM have code for; they have no PTX."""
_WHEEL, _READ_FROM = "onnxruntime-gpu", ("1.30", "1.31")
"""The package and the versions that the table was read from. Others may have code for more GPUs: they are tried."""


@dataclass(frozen=True)
class Gpu:
    """A GPU that the driver lists."""

    name: str
    capability: tuple[int, int]
    """Compute capability."""
    memory: int
    """Bytes."""

    def runs(self, architectures: Sequence[tuple[int, int]]) -> bool:
        """Whether code for one of these runs here: of the same major version, and no newer."""
        major, minor = self.capability
        return any(own == major and other <= minor for own, other in architectures)


@dataclass(frozen=True)
class Driver:
    """NVIDIA's driver."""

    cuda: tuple[int, int]
    """The newest CUDA that it supports."""
    gpus: tuple[Gpu, ...]


@dataclass(frozen=True)
class CudaLibrary:
    """A library that onnxruntime's CUDA provider is linked to."""

    name: str
    package: str
    """The package that has it."""
    error: str | None
    """Why the loader cannot load it; None where it can."""
    operator: str | None = None
    """The operator that needs it; None where every graph does."""


def libraries_of(cuda: int) -> tuple[tuple[str, str], ...]:
    """The libraries for a major version of CUDA, with their packages; each may need those before it."""
    return (
        (f"libcudart.so.{cuda}", "nvidia-cuda-runtime"),
        (f"libcublasLt.so.{cuda}", "nvidia-cublas"),
        (f"libcublas.so.{cuda}", "nvidia-cublas"),
        ("libcurand.so.10", "nvidia-curand"),
    )


def libraries_of_operators(cuda: int) -> tuple[tuple[str, str, str], ...]:
    """Libraries that onnxruntime loads for some operators alone: library, package, operator.

    Version 1.31 asks for cuDNN's handle in each MultiHeadAttention, whatever kernel it then takes.
    """
    return (("libcudnn.so.9", f"nvidia-cudnn-cu{cuda}", "MultiHeadAttention"),)


def find_libraries(cuda: int, load: Load = ctypes.CDLL) -> tuple[CudaLibrary, ...]:
    """Load the libraries, from the packages of this environment or from where the system's loader looks.

    A library that is loaded is found by those that need it, wherever it came from.
    """
    every = [CudaLibrary(name, package, _error_of(name, cuda, load)) for name, package in libraries_of(cuda)]
    some = [
        CudaLibrary(name, package, _error_of(name, cuda, load), operator)
        for name, package, operator in libraries_of_operators(cuda)
    ]
    return (*every, *some)


def _error_of(name: str, cuda: int, load: Load) -> str | None:
    for folder in _package_folders(cuda):
        if (folder / name).exists():
            name = str(folder / name)
            break
    try:
        load(name)
    except OSError as error:
        return str(error)
    return None


def _package_folders(cuda: int) -> list[Path]:
    """The folders in which NVIDIA's packages for this version of CUDA have their libraries."""
    spec = importlib.util.find_spec("nvidia")
    roots = map(Path, (spec.submodule_search_locations if spec else None) or ())
    return [root / name / "lib" for root in roots for name in (f"cu{cuda}", "cudnn")]


def find_driver(load: Load = ctypes.CDLL) -> Driver | Problem:
    """Ask NVIDIA's driver for its version and its GPUs."""
    try:
        library = load(DRIVER)
    except OSError as error:
        return Problem(
            f"there is no NVIDIA driver: {error}",
            f"install NVIDIA's driver, {OLDEST_DRIVERS[13]} or newer; in a container, start it with access to the "
            "GPUs, as with `docker run --gpus all`",
        )
    try:
        code = library.cuInit(0)
    # Another library of this name, or a stub of it.
    except AttributeError as error:
        return Problem(
            f"`{DRIVER}` is not NVIDIA's driver: {error}", f"install NVIDIA's driver, {OLDEST_DRIVERS[13]} or newer"
        )
    if code:
        known = state_of(code)
        if known is not None:
            return known
        return Problem(
            f"NVIDIA's driver cannot start ({_name_of(library, code)})",
            "`nvidia-smi` must work on this machine first; after an update of the driver, restart it",
        )
    return Driver(_version_of(library), tuple(_gpus_of(library)))


def _name_of(library: Any, code: int) -> str:
    name = ctypes.c_char_p()
    if library.cuGetErrorName(code, ctypes.byref(name)) or name.value is None:
        return f"error {code}"
    return f"{name.value.decode('ascii', 'replace')}, {code}"


def _version_of(library: Any) -> tuple[int, int]:
    version = ctypes.c_int()
    library.cuDriverGetVersion(ctypes.byref(version))
    return version.value // 1000, version.value % 1000 // 10


def _gpus_of(library: Any) -> list[Gpu]:
    count = ctypes.c_int()
    library.cuDeviceGetCount(ctypes.byref(count))
    gpus = []
    for ordinal in range(count.value):
        device, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
        library.cuDeviceGet(ctypes.byref(device), ordinal)
        library.cuDeviceGetAttribute(ctypes.byref(major), _MAJOR, device)
        library.cuDeviceGetAttribute(ctypes.byref(minor), _MINOR, device)
        name, memory = ctypes.create_string_buffer(256), ctypes.c_size_t()
        library.cuDeviceGetName(name, len(name), device)
        library.cuDeviceTotalMem_v2(ctypes.byref(memory), device)
        gpus.append(Gpu(name.value.decode("utf-8", "replace"), (major.value, minor.value), memory.value))
    return gpus


def cuda_version(ort: Any) -> tuple[int, int] | None:
    """The version of CUDA that this onnxruntime was built for; None for a build without CUDA."""
    parts = str(getattr(ort, "cuda_version", "") or "").split(".")
    if not parts[0].isdigit():
        return None
    return int(parts[0]), int(parts[1]) if len(parts) > 1 and parts[1].isdigit() else 0


def cuda_problem(ort: Any, load: Load = ctypes.CDLL) -> Problem | None:
    """Why this onnxruntime cannot use CUDA on this machine; None if nothing is known to be in the way."""
    packages = installed()
    overwritten = conflict(packages, "cuda")
    if overwritten is not None:
        return overwritten
    built = cuda_version(ort)
    if built is None or "CUDAExecutionProvider" not in ort.get_available_providers():
        names = ", ".join(f"`{name}`" for name in packages) or "onnxruntime"
        return Problem(f"`cuda` is not available: {names} {ort.__version__} is built without CUDA", cuda_hint(packages))
    driver = find_driver(load)
    if isinstance(driver, Problem):
        return unavailable(driver)
    return (
        _driver_problem(driver, built, ort.__version__)
        or _gpu_problem(driver.gpus, known_architectures(packages), ort.__version__)
        or _library_problem([library for library in find_libraries(built[0], load) if library.operator is None])
        or _start_problem(built[0], load)
    )


def known_architectures(packages: Mapping[str, str]) -> tuple[tuple[int, int], ...]:
    """The compute capabilities that the installed onnxruntime has code for; empty where that is not known.

    `packages` are those installed, with their versions. NVIDIA's builds for its boards have the same name and version
    as the wheels of the package index.
    """
    version = packages.get(_WHEEL, "")
    if not version.startswith(tuple(f"{known}." for known in _READ_FROM)) or not is_from_index(_WHEEL):
        return ()
    return wheel_architectures()


def wheel_architectures() -> tuple[tuple[int, int], ...]:
    """The compute capabilities that the wheels of onnxruntime-gpu have code for, on this kind of CPU."""
    return _ARCHITECTURES.get(platform.machine(), ())


def _start_problem(cuda: int, load: Load) -> Problem | None:
    """Why CUDA's runtime cannot start, by its error code."""
    try:
        code = _runtime_library(cuda, load).cudaGetDeviceCount(ctypes.byref(ctypes.c_int()))
    except (OSError, AttributeError):
        return None
    state = state_of(code)
    return None if state is None else unavailable(state)


def cuda_identity(ort: Any, load: Load = ctypes.CDLL) -> dict[str, str]:
    """What the numbers of CUDA depend on: the GPU, the driver, CUDA's libraries and onnxruntime."""
    driver = find_driver(load)
    gpu = driver.gpus[0] if isinstance(driver, Driver) and driver.gpus else None
    return {
        "device": "" if gpu is None else "{}, {}.{}".format(gpu.name, *gpu.capability),
        "driver": _driver_release(),
        "onnxruntime": str(ort.__version__),
        **installed(NVIDIA),
    }


def _driver_release(path: Path = Path("/sys/module/nvidia/version")) -> str:
    """The release of the driver that is loaded, such as `580.82.07`; empty where Linux does not say."""
    try:
        return path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return ""


def cuda_graph_problem(ort: Any, path: Path, load: Load = ctypes.CDLL) -> Problem | None:
    """Which library the operators of the graph at `path` lack; None if nothing is known to be missing."""
    built = cuda_version(ort)
    if built is None:
        return None
    libraries = [library for library in find_libraries(built[0], load) if library.operator is not None]
    needed = [library for library in libraries if library.error is not None and _has_operator(path, library.operator)]
    return _library_problem(needed)


def _has_operator(path: Path, operator: str | None) -> bool:
    """Whether a graph has an operator: its name is in the file, as protobuf writes strings."""
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return operator is not None and content.find(operator.encode()) >= 0
    # Opening the graph says what is wrong with the file.
    except (OSError, ValueError):
        return False


def _driver_problem(driver: Driver, built: tuple[int, int], version: str) -> Problem | None:
    # Drivers of one major version run programs of all its minor versions (CUDA Compatibility).
    if not driver.cuda[0] or driver.cuda[0] >= built[0]:
        return None
    needed = OLDEST_DRIVERS.get(built[0])
    return Problem(
        f"`cuda` is not available: NVIDIA's driver supports CUDA {driver.cuda[0]}.{driver.cuda[1]}, and onnxruntime "
        f"{version} needs CUDA {built[0]}",
        f"install a newer driver{f', {needed} or newer' if needed else ''}: `nvidia-smi` shows the version that is "
        "installed",
    )


def _gpu_problem(gpus: Sequence[Gpu], architectures: Sequence[tuple[int, int]], version: str) -> Problem | None:
    """Why the first GPU cannot be used; `architectures` are those that onnxruntime has code for, empty if not known."""
    if not gpus:
        return Problem(
            "`cuda` is not available: NVIDIA's driver lists no GPU",
            "`nvidia-smi` lists the GPUs; CUDA_VISIBLE_DEVICES may hide them",
        )
    # onnxruntime is asked for the first one.
    if not architectures or gpus[0].runs(architectures):
        return None
    others = [place for place, gpu in enumerate(gpus) if gpu.runs(architectures)]
    known = ", ".join(f"{major}.{minor}" for major, minor in architectures)
    own = "{}.{}".format(*gpus[0].capability)
    return Problem(
        f"`cuda` is not available: onnxruntime-gpu {version} has no code for the GPU {gpus[0].name}, of compute "
        f"capability {own}; it has code for {known}",
        f"set CUDA_VISIBLE_DEVICES={_visible_name(others[0])}, a GPU that it has code for"
        if others
        else "use a GPU of one of these, NVIDIA's own build of onnxruntime for this board, or a bundle for the CPU: "
        "`ortkit export MODEL --provider cpu`",
    )


def _library_problem(libraries: Sequence[CudaLibrary]) -> Problem | None:
    missing = [library for library in libraries if library.error is not None]
    if not missing:
        return None
    packages = dict.fromkeys(library.package for library in missing)
    wanted = " ".join(shlex.quote(f"{name}{NVIDIA.get(name, '')}") for name in packages)
    return Problem(
        f"`cuda` is not available: the library `{missing[0].name}`{_purpose(missing[0])} cannot be loaded: "
        f"{missing[0].error}",
        f"run `pip install {wanted}`",
    )


def _purpose(library: CudaLibrary) -> str:
    return "" if library.operator is None else f", which `{library.operator}` needs,"


def free_gpu_memory(cuda: int, load: Load = ctypes.CDLL) -> int | None:
    """Bytes that are free on the current GPU; None where CUDA does not say."""
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    try:
        code = _runtime_library(cuda, load).cudaMemGetInfo(ctypes.byref(free), ctypes.byref(total))
    except (OSError, AttributeError):
        return None
    return None if code else free.value


def _runtime_library(cuda: int, load: Load) -> Any:
    """libcudart, from the packages of this environment or from where the system's loader looks; raises OSError."""
    name = libraries_of(cuda)[0][0]
    paths = [str(folder / name) for folder in _package_folders(cuda) if (folder / name).exists()]
    return load([*paths, name][0])


def _visible_name(place: int) -> str:
    """What CUDA_VISIBLE_DEVICES calls the GPU at this place among those that are visible now."""
    visible = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")]
    return visible[place] if visible[0] and place < len(visible) else str(place)
