"""Switch off the telemetry of all dependencies before they are imported."""

from __future__ import annotations

import os
import sys
import warnings

SWITCHES = {
    # onnxruntime since 1.29 sends events to its vendor unless this is set before the library loads.
    "ORT_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_UPDATE_CHECK": "1",
    "DO_NOT_TRACK": "1",
}


class TelemetryWarning(UserWarning):
    """A library was imported before its telemetry could be switched off."""


def switch_off() -> None:
    """Set the switches for this process and its children; warn if onnxruntime was loaded before without them."""
    late = "onnxruntime" in sys.modules and os.environ.get("ORT_DISABLE_TELEMETRY") != "1"
    os.environ.update(SWITCHES)
    if late:
        warnings.warn(
            "onnxruntime was imported before ortkit and may send telemetry: import ortkit first, "
            "or set ORT_DISABLE_TELEMETRY=1 in the environment",
            TelemetryWarning,
            stacklevel=3,
        )
