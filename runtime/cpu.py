"""What this CPU can do, asked of onnxruntime: whether sums of its int8 products overflow, and so need a slower mode."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

CPUINFO = Path("/proc/cpuinfo")
FEATURES = ("avx2", "avx512f", "avx_vnni", "avx512_vnni", "amx_int8", "asimddp", "i8mm", "sve", "sme")
"""Names that Linux gives what int8 kernels of x86 and ARM use."""
PRECISION_MODE = "session.x64quantprecision"
"""onnxruntime's entry with which weights become uint8, whose kernels never overflow and use no VNNI."""
WITHOUT_KLEIDIAI = "mlas.disable_kleidiai"
"""onnxruntime's entry with which ARM's 4-bit matmuls leave KleidiAI's kernels.

Those without zero points scale activations by row instead of by block: a decoder with the blocks of its GGUF file comes
to a KL divergence of 0.037 to 0.043 from exact products, and to 0.007 with onnxruntime's own kernels (qemu, Cortex-A76
and Neoverse-V1). The kernels with zero points scale by block, and stay.
"""
LARGEST = 127 * 255 * 4
"""What the product below is made of, in each of its elements."""
# y = MatMulInteger(a, b), opset 13: `a` uint8 (2, 4), `b` a constant int8 (4, 16) of which all are 127.
PRODUCT = bytes.fromhex(
    "08083a94010a180a01610a0162120179220d4d61744d756c496e74656765721201672a4b0804081010034201624a407f"
    "7f7f7f7f7f7f7f7f7f7f7f7f7f7f7f7f7f7f7f7f7f7f7f7f7f7f7f7f7f7f7f7f7f7f7f7f7f7f7f7f7f7f7f7f7f7f7f7f"
    "7f7f7f7f7f7f7f7f7f7f7f7f7f7f7f5a130a0161120e0a0c080212080a0208020a02080462130a0179120e0a0c080612"
    "080a0208020a0208104202100d"
)
"""The smallest graph that shows it, as the ONNX package writes it."""


@dataclass(frozen=True)
class Int8Arithmetic:
    """How int8 matmuls run on this CPU."""

    precision_mode: bool
    """Whether onnxruntime is asked for its slower mode that cannot overflow."""
    features: tuple[str, ...]
    """Those of FEATURES that the CPU has; empty where the system does not say."""

    @property
    def reason(self) -> str:
        """Why, in words."""
        if self.precision_mode:
            return "int8 products overflow in onnxruntime's faster mode on this CPU, so its precision mode is on"
        return "int8 products are exact on this CPU, so onnxruntime's slower precision mode is off"


def int8_arithmetic(ort: Any) -> Int8Arithmetic:
    """How int8 matmuls are to run with this onnxruntime."""
    return Int8Arithmetic(products_overflow(ort), cpu_features())


@cache
def products_overflow(ort: Any) -> bool:
    """Whether sums of uint8 times int8 overflow, asked of onnxruntime once a process.

    AVX2 and AVX-512 without VNNI, and SSE 4.1 on Windows, add pairs of products in 16 bits, where they saturate. Asking
    needs no table of processors, and sees what a hypervisor hides. It takes 0.3 ms.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    options.add_session_config_entry(PRECISION_MODE, "0")
    try:
        session = ort.InferenceSession(PRODUCT, options, providers=["CPUExecutionProvider"])
        (found,) = session.run(None, {"a": np.full((2, 4), 255, np.uint8)})
    # An onnxruntime that cannot compute it is given the mode that is right everywhere.
    except Exception:  # noqa: BLE001 - onnxruntime's exceptions share no base class but Exception
        return True
    return bool((np.asarray(found) != LARGEST).any())


def cpu_features(cpuinfo: Path = CPUINFO) -> tuple[str, ...]:
    """Those of FEATURES that the first CPU has, as Linux says; for telling people, not for decisions."""
    try:
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ()
    flags = next((line.partition(":")[2].split() for line in lines if line.startswith(("flags", "Features"))), [])
    return tuple(name for name in FEATURES if name in flags)
