"""An onnxruntime with providers that this machine need not have, and an NVIDIA driver: what a test says they report.

Sessions compute on the CPU, with the real onnxruntime.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import onnxruntime
import pytest

from ortkit import Provider
from ortkit.runtime.session.cuda import cuda_graph_problem, cuda_problem, find_driver, find_libraries
from ortkit.runtime.session.providers import ORT_NAMES, PROVIDERS, ExecutionProvider

CPU, CUDA, COREML = (ORT_NAMES[provider] for provider in (Provider.CPU, Provider.CUDA, Provider.COREML))
WANTED = ("libcudart.so.13", "libcublasLt.so.13", "libcublas.so.13", "libcurand.so.10", "libcuda.so.1", "libcudnn.so.9")


class Fail(Exception):  # noqa: N818
    """Named as what onnxruntime raises where fallback to the CPU is disabled and a node needs it."""


class RuntimeException(Exception):  # noqa: N818
    """Named as what onnxruntime raises where an allocation fails."""


@dataclass
class FakeOnnxruntime:
    """The module onnxruntime: what it lists, what its sessions get, and what they were opened with."""

    available: Sequence[str] = (CUDA, CPU)
    obtained: Sequence[str] = (CUDA,)
    subgraphs: Sequence[Sequence[tuple[str, str]]] | None = None
    """Provider and operator of each node, by subgraph; None for one MatMul on the first provider obtained."""
    cuda_version: str = "13.0"
    failure: Exception | None = None
    """What a run and an allocation raise."""
    refusal: Exception | None = None
    """What opening a session raises."""
    wrong: Callable[[Sequence[int]], float] = lambda _: 0.0
    """From the shape of a run's first input, what is added to the outputs at every second place."""
    runs: list[Sequence[int]] = field(default_factory=list)
    """The shape of the first input of each run."""
    devices: Sequence[str] = ()
    """Plugin providers with a device."""
    opened: list[SimpleNamespace] = field(default_factory=list)
    registered: dict[str, str] = field(default_factory=dict)
    severities: list[int] = field(default_factory=list)
    """What the default logger was set to."""
    __version__: str = "1.31.1"

    def get_available_providers(self) -> list[str]:
        return list(self.available)

    def register_execution_provider_library(self, name: str, path: str) -> None:
        self.registered[name] = path

    def set_default_logger_severity(self, severity: int) -> None:
        self.severities.append(severity)

    def get_ep_devices(self) -> list[SimpleNamespace]:
        return [SimpleNamespace(ep_name=name) for name in self.devices if name in self.registered]

    def SessionOptions(self) -> RecordedOptions:  # noqa: N802
        return RecordedOptions()

    def InferenceSession(self, path: str, options: RecordedOptions, **arguments: Any) -> FakeSession:  # noqa: N802
        self.opened.append(SimpleNamespace(path=path, options=options, **arguments))
        assert isinstance(options, RecordedOptions)
        nodes = [node for subgraph in self.found_subgraphs() for node in subgraph]
        if options.entries.get("session.disable_cpu_ep_fallback") == "1" and any(node[0] == CPU for node in nodes):
            raise Fail("This session contains graph nodes that are assigned to the default CPU EP")
        if self.refusal is not None:
            raise self.refusal
        real = onnxruntime.InferenceSession(path, options.real, providers=[CPU])
        return FakeSession(self, real)

    def found_subgraphs(self) -> Sequence[Sequence[tuple[str, str]]]:
        return [[(self.obtained[0], "MatMul")]] if self.subgraphs is None else self.subgraphs

    def __getattr__(self, name: str) -> Any:
        return getattr(onnxruntime, name)


class RecordedOptions:
    """SessionOptions that remember what was set, beside the real ones."""

    def __init__(self) -> None:
        real = onnxruntime.SessionOptions()
        object.__setattr__(self, "real", real)
        object.__setattr__(self, "entries", {})
        object.__setattr__(self, "devices", [])

    def add_session_config_entry(self, name: str, value: str) -> None:
        self.entries[name] = value

    def add_provider_for_devices(self, devices: list[Any], options: dict[str, str]) -> None:
        self.devices.append(([device.ep_name for device in devices], options))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.real, name, value)


class FakeSession:
    """A session on the CPU that says it is on other providers."""

    def __init__(self, module: FakeOnnxruntime, real: onnxruntime.InferenceSession) -> None:
        self.module, self.real = module, real

    def get_providers(self) -> list[str]:
        return list(self.module.obtained)

    def get_provider_graph_assignment_info(self) -> list[SimpleNamespace]:
        return [
            SimpleNamespace(
                ep_name=subgraph[0][0],
                get_nodes=lambda subgraph=subgraph: [
                    SimpleNamespace(domain="".join(operator.rpartition(".")[:1]), op_type=operator.rpartition(".")[2])
                    for _, operator in subgraph
                ],
            )
            for subgraph in self.module.found_subgraphs()
        ]

    def run(self, names: object, feeds: Any) -> Any:
        if self.module.failure is not None:
            raise self.module.failure
        shape = next(iter(feeds.values())).shape
        self.module.runs.append(shape)
        outputs = self.real.run(names, feeds)
        outputs[0][..., ::2] += self.module.wrong(shape)
        return outputs

    def create_ortvalue_from_shape_and_type(self, shape: Any, kind: Any, device: str, ordinal: int) -> Any:
        assert (device, ordinal) == ("cuda", 0)
        if self.module.failure is not None:
            raise self.module.failure
        return self.real.create_ortvalue_from_shape_and_type(shape, kind, "cpu", 0)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)


@dataclass(frozen=True)
class FakeGpu:
    name: str = "NVIDIA L4"
    capability: tuple[int, int] = (8, 9)
    memory: int = 23 << 30


@dataclass
class FakeDriver:
    """The shared libraries of a machine with an NVIDIA driver, opened by name as `ctypes.CDLL` does."""

    version: int = 13000
    gpus: Sequence[FakeGpu] = (FakeGpu(),)
    starts: int = 0
    """What `cuInit` returns."""
    errors: Mapping[int, bytes] = field(default_factory=lambda: {803: b"CUDA_ERROR_SYSTEM_DRIVER_MISMATCH"})
    missing: Sequence[str] = ()
    runtime: int = 0
    """What `cudaGetDeviceCount` returns."""
    free: int = 20 << 30

    def load(self, name: str) -> FakeDriver:
        if name in self.missing or name not in WANTED:
            raise OSError(f"{name}: cannot open shared object file: No such file or directory")
        return self

    def cuInit(self, flags: int) -> int:  # noqa: N802
        assert flags == 0
        return self.starts

    def cuGetErrorName(self, code: int, name: Any) -> int:  # noqa: N802
        if code not in self.errors:
            return 1
        name._obj.value = self.errors[code]
        return 0

    def cuDriverGetVersion(self, version: Any) -> int:  # noqa: N802
        version._obj.value = self.version
        return 0

    def cuDeviceGetCount(self, count: Any) -> int:  # noqa: N802
        count._obj.value = len(self.gpus)
        return 0

    def cuDeviceGet(self, device: Any, ordinal: int) -> int:  # noqa: N802
        device._obj.value = 100 + ordinal
        return 0

    def cuDeviceGetAttribute(self, value: Any, attribute: int, device: ctypes.c_int) -> int:  # noqa: N802
        value._obj.value = self.gpus[device.value - 100].capability[{75: 0, 76: 1}[attribute]]
        return 0

    def cuDeviceGetName(self, name: Any, length: int, device: ctypes.c_int) -> int:  # noqa: N802
        name.value = self.gpus[device.value - 100].name.encode()[: length - 1]
        return 0

    def cuDeviceTotalMem_v2(self, memory: Any, device: ctypes.c_int) -> int:  # noqa: N802
        memory._obj.value = self.gpus[device.value - 100].memory
        return 0

    def cudaGetDeviceCount(self, count: Any) -> int:  # noqa: N802
        count._obj.value = len(self.gpus)
        return self.runtime

    def cudaMemGetInfo(self, free: Any, total: Any) -> int:  # noqa: N802
        free._obj.value, total._obj.value = self.free, 23 << 30
        return 0


def use(
    patch: pytest.MonkeyPatch,
    module: FakeOnnxruntime,
    driver: FakeDriver | None = None,
    *,
    packages: Any = None,
    identity: Callable[[Any], Mapping[str, str]] | None = None,
) -> None:
    """Let ortkit find this onnxruntime, on Linux on x86_64 with this driver.

    With an `identity`, a golden text is compared at the first use of a bundle for CUDA.
    """
    machine = FakeDriver() if driver is None else driver
    for user in ("session", "machine", "first_use", "onnxruntime_import"):
        patch.setattr(f"ortkit.runtime.session.{user}.load_onnxruntime", lambda: module)
    found = {"onnxruntime-gpu": "1.31.1"} if packages is None else packages

    def installed(names: Iterable[str] | None = None) -> dict[str, str]:
        return found if names is None else dict.fromkeys(names, "13.1")

    for user in ("cuda", "providers", "machine", "onnxruntime_import"):
        patch.setattr(f"ortkit.runtime.session.{user}.installed", installed)
    patch.setattr("platform.machine", lambda: "x86_64")
    patch.setattr("sys.platform", "linux")
    patch.setattr("ortkit.runtime.session.cuda._package_folders", lambda _: [])
    patch.setattr("ortkit.runtime.session.cuda.is_from_index", lambda _: True)
    patch.setitem(
        PROVIDERS,
        Provider.CUDA,
        ExecutionProvider(
            CUDA,
            PROVIDERS[Provider.CUDA].request,
            lambda ort: cuda_problem(ort, machine.load),
            lambda ort, path: cuda_graph_problem(ort, path, machine.load),
            device="cuda",
            limits_memory=True,
            identity=identity,
        ),
    )
    patch.setattr("ortkit.runtime.session.session.free_gpu_memory", lambda _: machine.free)
    patch.setattr("ortkit.runtime.session.machine.find_driver", lambda: find_driver(machine.load))
    patch.setattr("ortkit.runtime.session.machine.find_libraries", lambda cuda: find_libraries(cuda, machine.load))
