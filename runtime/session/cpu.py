"""CPU features, and whether onnxruntime's int8 matmuls (u8 x s8) overflow on this CPU, found with a probe."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from ..host_facts import CPUINFO, cpu_flags

_FEATURES = ("avx2", "avx512f", "avx_vnni", "avx512_vnni", "amx_int8", "asimddp", "i8mm", "sve", "sme")
"""Linux's names of the instruction sets that int8 kernels use."""
PRECISION_MODE = "session.x64quantprecision"
"""onnxruntime's session option that converts weights to uint8, whose kernels cannot overflow and do not use VNNI."""
WITHOUT_KLEIDIAI = "mlas.disable_kleidiai"
"""onnxruntime's session option that disables KleidiAI's kernels for 4-bit matmuls on ARM.

Those for symmetric weights quantize activations per row instead of per block: a decoder with the blocks of its GGUF
file has a KL divergence of 0.037 to 0.043 from exact matmuls, and 0.007 with onnxruntime's own kernels (qemu,
Cortex-A76 and Neoverse-V1). Those for weights with zero points quantize per block and are kept.
"""
LARGEST = 127 * 255 * 4
"""The exact result of the graph below, in each element."""
# y = MatMulInteger(a, b), opset 13: `a` uint8 (2, 4), `b` a constant int8 (4, 16) of which all are 127.
_OVERFLOW_PROBE = bytes.fromhex(
    "08083a94010a180a01610a0162120179220d4d61744d756c496e74656765721201672a4b0804081010034201624a407f"
    "7f7f7f7f7f7f7f7f7f7f7f7f7f7f7f7f7f7f7f7f7f7f7f7f7f7f7f7f7f7f7f7f7f7f7f7f7f7f7f7f7f7f7f7f7f7f7f7f"
    "7f7f7f7f7f7f7f7f7f7f7f7f7f7f7f5a130a0161120e0a0c080212080a0208020a02080462130a0179120e0a0c080612"
    "080a0208020a0208104202100d"
)
"""The smallest graph that overflows, as the ONNX package writes it."""


@dataclass(frozen=True)
class Int8Arithmetic:
    """How int8 matmuls run on this CPU."""

    precision_mode: bool
    """Whether onnxruntime's slower mode, which cannot overflow, is on."""
    features: tuple[str, ...]
    """Those of _FEATURES that the CPU has; empty where the system does not say."""

    @property
    def reason(self) -> str:
        """The reason, for people."""
        if self.precision_mode:
            return "int8 matmuls overflow in onnxruntime's faster mode on this CPU, so its precision mode is on"
        return "int8 matmuls are exact on this CPU, so onnxruntime's slower precision mode is off"


def int8_arithmetic(ort: Any) -> Int8Arithmetic:
    """How to run int8 matmuls with this onnxruntime on this CPU."""
    return Int8Arithmetic(matmuls_overflow(ort), cpu_features())


@cache
def matmuls_overflow(ort: Any) -> bool:
    """Whether sums of uint8 x int8 saturate; runs the probe once per process.

    Kernels for AVX2 and AVX-512 without VNNI add pairs of products in 16 bits, where they saturate. The probe needs no
    table of CPUs and sees what a hypervisor hides. It takes 0.3 ms.
    """
    # `ortkit doctor` asks for the features where numpy may be broken.
    import numpy as np  # noqa: PLC0415

    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    options.add_session_config_entry(PRECISION_MODE, "0")
    try:
        session = ort.InferenceSession(_OVERFLOW_PROBE, options, providers=["CPUExecutionProvider"])
        (found,) = session.run(None, {"a": np.full((2, 4), 255, np.uint8)})
    # Where the probe fails, the mode that is exact everywhere.
    except Exception:  # noqa: BLE001 - onnxruntime's exceptions share no base class but Exception
        return True
    return bool((np.asarray(found) != LARGEST).any())


def cpu_features(cpuinfo: Path = CPUINFO) -> tuple[str, ...]:
    """Those of _FEATURES that the CPU has; shown to people, not used for decisions."""
    flags = cpu_flags(cpuinfo) or ()
    return tuple(name for name in _FEATURES if name in flags)
