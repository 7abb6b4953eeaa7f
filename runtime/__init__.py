"""The runtime: opens a bundle and runs it offline, on onnxruntime, tokenizers, numpy and jinja2."""

from . import telemetry

telemetry.switch_off()
