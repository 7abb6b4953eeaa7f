"""Execution providers: how each is asked for, and which ones this onnxruntime and this machine have.

Another provider is another entry of PROVIDERS: an `ExecutionProvider`, or a `PluginProvider` for one that comes as a
library of its own (onnxruntime's plugin execution providers).
"""

from __future__ import annotations

import ctypes
import platform
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..bundle.manifest import Provider
from .config import SessionConfig
from .cpu import cpu_request
from .cuda import cuda_graph_problem, cuda_identity, cuda_problem
from .packages import conflict, install_command, installed
from .problem import Problem
from .request import Request, coreml_request, cuda_request

CPU_NAME = "CPUExecutionProvider"


def _no_problem(_ort: Any) -> None:
    return None


def _no_graph_problem(_ort: Any, _path: Path) -> None:
    return None


@dataclass(frozen=True)
class ExecutionProvider:
    """An execution provider that onnxruntime is built with."""

    name: str
    """onnxruntime's name."""
    request: Callable[[Any, SessionConfig], Request]
    """How a session is asked for, from the module onnxruntime."""
    find_problem: Callable[[Any], Problem | None] = _no_problem
    """Why this machine cannot have it, from the module onnxruntime; None if nothing is known to be in the way."""
    find_graph_problem: Callable[[Any, Path], Problem | None] = _no_graph_problem
    """What a graph needs beside that, from the module onnxruntime and the graph's path."""
    device: str = "cpu"
    """onnxruntime's name of the device that inputs and outputs are on."""
    limits_memory: bool = False
    """Whether a session can be given a limit on its memory."""
    probed: bool = False
    """Whether a session must give finite numbers once before it is used: compiled programs may not."""
    identity: Callable[[Any], Mapping[str, str]] | None = None
    """From the module onnxruntime, versions and device that its numbers depend on: a golden text is compared once for
    them (`first_use.py`). None for a provider that certifies bundles itself."""

    def available(self, ort: Any) -> bool:
        """Whether onnxruntime lists it; only opening a session shows whether it works."""
        return self.name in ort.get_available_providers()

    def problem(self, ort: Any) -> Problem | None:
        """Why this machine cannot have it; None if nothing is known to be in the way."""
        return self.find_problem(ort)

    def problem_of(self, ort: Any, path: Path) -> Problem | None:
        """Why this machine cannot run the graph at `path` with it; None if nothing is known to be in the way."""
        return self.problem(ort) or self.find_graph_problem(ort, path)

    def select(self, ort: Any, options: Any, request: Request) -> Sequence[Any] | None:  # noqa: ARG002 - for plugins
        """Choose this provider: the argument `providers` of InferenceSession; may change the session's options."""
        return [(self.name, dict(request.options)), *([CPU_NAME] if request.cpu_beside else [])]


@dataclass(frozen=True)
class PluginProvider(ExecutionProvider):
    """A provider that comes as a library of its own, in a package beside onnxruntime.

    https://onnxruntime.ai/docs/execution-providers/plugin-ep-libraries/usage.html
    """

    library: Callable[[], str] | None = None
    """Returns the path of the library; raises ImportError where its package is not installed."""
    package: str = ""
    """The package, for the hint."""

    def available(self, ort: Any) -> bool:
        """Whether a device for it is there."""
        try:
            return bool(self.devices(ort))
        except ImportError:
            return False

    def problem(self, ort: Any) -> Problem | None:
        """Why this machine cannot have it: no package, a library for another onnxruntime, no device."""
        try:
            devices = self.devices(ort)
        except ImportError as error:
            return Problem(f"`{self.name}` is not installed: {error}", f"run `pip install {self.package}`")
        # onnxruntime's exceptions share no base class but Exception.
        except Exception as error:  # noqa: BLE001
            return Problem(
                f"the library of `{self.name}` cannot be registered: {error}",
                f"run `pip install --upgrade {self.package}`",
            )
        if devices:
            return None
        return Problem(f"`{self.name}` finds no device that it can run on", "install the driver of this machine's GPU")

    def devices(self, ort: Any) -> list[Any]:
        """The devices that it runs on; raises ImportError where its package is not installed."""
        with _REGISTERING:
            if self.library is not None and self.name not in _REGISTERED:
                ort.register_execution_provider_library(self.name, self.library())
                _REGISTERED.add(self.name)
        return [device for device in ort.get_ep_devices() if device.ep_name == self.name]

    def select(self, ort: Any, options: Any, request: Request) -> Sequence[Any] | None:
        """Choose the first device; a plugin's is an option of the session, and none is named beside it."""
        options.add_provider_for_devices(self.devices(ort)[:1], dict(request.options))
        return None


_REGISTERED: set[str] = set()
"""Plugins whose libraries are registered in this process."""
_REGISTERING = threading.Lock()


def coreml_problem(ort: Any) -> Problem | None:
    """Why this machine cannot have CoreML."""
    if sys.platform != "darwin":
        return Problem(
            f"`coreml` is not available: CoreML is a part of macOS, and this machine runs {platform.system()}",
            "use a bundle for this machine: `ortkit export MODEL --provider cpu`",
        )
    packages = installed()
    overwritten = conflict(packages, "coreml")
    if overwritten is not None:
        return overwritten
    if ORT_NAMES[Provider.COREML] in ort.get_available_providers():
        return None
    return Problem(
        f"`coreml` is not available: onnxruntime {ort.__version__} is built without CoreML",
        f"run `{install_command('coreml')}`",
    )


def coreml_identity(ort: Any) -> Mapping[str, str]:
    """What CoreML's numbers depend on: macOS, the kind of Mac, and onnxruntime."""
    return {"onnxruntime": str(ort.__version__), "macos": platform.mac_ver()[0], "device": _model_of_mac()}


def _model_of_mac() -> str:
    """Apple's name of the model, such as `Mac16,1` (sysctlbyname(3)); empty elsewhere."""
    value, size = ctypes.create_string_buffer(64), ctypes.c_size_t(64)
    try:
        failed = ctypes.CDLL(None).sysctlbyname(b"hw.model", value, ctypes.byref(size), None, ctypes.c_size_t(0))
    except (OSError, AttributeError):
        return ""
    return "" if failed else value.value.decode("ascii", "replace")


PROVIDERS: dict[str, ExecutionProvider] = {
    Provider.CPU: ExecutionProvider(CPU_NAME, cpu_request),
    Provider.CUDA: ExecutionProvider(
        "CUDAExecutionProvider",
        cuda_request,
        cuda_problem,
        cuda_graph_problem,
        device="cuda",
        limits_memory=True,
        identity=cuda_identity,
    ),
    Provider.COREML: ExecutionProvider(
        "CoreMLExecutionProvider", coreml_request, coreml_problem, probed=True, identity=coreml_identity
    ),
}
"""Provider of a manifest -> how it is asked for."""
ORT_NAMES = {provider: PROVIDERS[provider].name for provider in Provider}
