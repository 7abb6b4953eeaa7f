"""Whether the checked-in table of CUDA kernels is that of the onnxruntime-gpu wheel here; `--write` makes it so.

Crashes where a library of CUDA or TensorRT cannot be loaded: onnxruntime asks all of its providers.
"""

from __future__ import annotations

import json
import sys

import onnxruntime as ort
from onnxruntime.capi.onnxruntime_pybind11_state import get_all_opkernel_def

from tests.exporters.providers.kernel_table import TABLE, condensed, write_table


def main() -> None:
    kernels = condensed(
        (kernel.provider, kernel.domain, kernel.op_name, kernel.version_range, kernel.type_constraints)
        for kernel in get_all_opkernel_def()
    )
    if "--write" in sys.argv:
        write_table(ort.__version__, kernels)
    wheels = {"onnxruntime-gpu": ort.__version__, "kernels": json.loads(json.dumps(kernels))}
    same = json.loads(TABLE.read_text()) == wheels
    print(f"{'ok' if same else 'FAIL'}: {TABLE.name} is the table of onnxruntime-gpu {ort.__version__}")
    sys.exit(0 if same else 1)


if __name__ == "__main__":
    main()
