"""CUDA's error codes: which are states of the machine, with what mends them, and which are failed allocations."""

from __future__ import annotations

import re
from collections.abc import Mapping

from .problem import Problem

OLDEST_DRIVERS: Mapping[int, str] = {12: "525", 13: "580"}
"""CUDA's major version -> the oldest driver for it (CUDA Compatibility, table 1)."""
NO_DEVICE = 100
"""CUDA_ERROR_NO_DEVICE, and cudaErrorNoDevice."""
NO_CODE = 209
"""CUDA_ERROR_NO_BINARY_FOR_GPU, and cudaErrorNoKernelImageForDevice."""
_DRIVER = f"NVIDIA's driver, {max(OLDEST_DRIVERS.values())} or newer"
_STATES: Mapping[int, Problem] = {
    # cudaErrorInsufficientDriver
    35: Problem(
        "NVIDIA's driver is too old for the CUDA that onnxruntime is built for",
        f"install {_DRIVER}: `nvidia-smi` shows the version that is installed",
    ),
    NO_DEVICE: Problem(
        "NVIDIA's driver finds no GPU",
        "`nvidia-smi` lists the GPUs; CUDA_VISIBLE_DEVICES may hide them, and a container needs access to them, as "
        "with `docker run --gpus all`",
    ),
    NO_CODE: Problem(
        "onnxruntime has no code for this GPU",
        "`ortkit providers` shows its compute capability; use another GPU, NVIDIA's own build of onnxruntime for this "
        "board, or a bundle for the CPU: `ortkit export MODEL --provider cpu`",
    ),
    # CUDA_ERROR_SYSTEM_DRIVER_MISMATCH
    803: Problem(
        "the kernel's part of NVIDIA's driver and its libraries are of different versions",
        "restart the machine (`sudo reboot`), as after each update of the driver; in a container, start it again",
    ),
    # CUDA_ERROR_COMPAT_NOT_SUPPORTED_ON_DEVICE
    804: Problem(
        "this GPU does not support CUDA's forward compatibility, and the libraries of a newer driver are found first",
        "`ldconfig -p | grep libcuda.so.1` shows them: remove the package `cuda-compat`, and its folder from "
        f"LD_LIBRARY_PATH, or install {_DRIVER}",
    ),
    # CUDA_ERROR_UNKNOWN
    999: Problem(
        "NVIDIA's driver cannot start CUDA, for an unknown reason",
        "load its kernel module for CUDA: `sudo modprobe nvidia_uvm` (after a suspend, `sudo rmmod nvidia_uvm` first)",
    ),
}
"""Code -> cause and what mends it. Runtime and driver have the same codes from CUDA 10.1 on."""
_OUT_OF_MEMORY = {"CUDA": 2, "CUBLAS": 3}
"""Library -> its code for a failed allocation: cudaErrorMemoryAllocation, CUBLAS_STATUS_ALLOC_FAILED."""
# onnxruntime's exceptions have a status of its own, `FAIL` or `RUNTIME_EXCEPTION`, for whatever failed. CUDA's code is
# in their text alone, as cuda_call.cc writes it: `CUDA failure 35: <cudaGetErrorString> ; GPU=0 ; hostname=...`.
_FAILURE = re.compile(r"\b(CUDA|CUBLAS) failure (\d{1,6})\b")
# An arena that its limit (`gpu_mem_limit`) or the GPU leaves no room has no code at all: bfc_arena.cc raises it, and
# ORT_THROW puts the function's name into the text.
_ARENA = re.compile(r"\bBFCArena::\w+")


def state_of(code: int) -> Problem | None:
    """What an error code says of the machine, and what mends it; None for any other error."""
    known = _STATES.get(code)
    return None if known is None else Problem(f"{known.message} (CUDA error {code})", known.hint)


def unavailable(problem: Problem) -> Problem:
    """The problem, as the reason why `cuda` is not available."""
    return Problem(f"`cuda` is not available: {problem.message}", problem.hint)


def state_in(error: Exception) -> Problem | None:
    """What a failure of onnxruntime says of the machine; None where that is not its cause."""
    library, code = _code_in(error)
    state = state_of(code) if library == "CUDA" else None
    return None if state is None else unavailable(state)


def has_code(error: Exception) -> bool:
    """Whether a failure of onnxruntime states the code of CUDA or cuBLAS."""
    return _FAILURE.search(str(error)) is not None


def is_allocation(error: Exception) -> bool:
    """Whether a failure of onnxruntime is that of an allocation of GPU memory."""
    library, code = _code_in(error)
    return _OUT_OF_MEMORY.get(library) == code or (not library and _ARENA.search(str(error)) is not None)


def _code_in(error: Exception) -> tuple[str, int]:
    """The library that failed and its error code; an empty name where the text states none."""
    found = _FAILURE.search(str(error))
    return ("", 0) if found is None else (found[1], int(found[2]))
