from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from runtime import Bundle, BundleError, Provider, ProviderError
from runtime.session import ORT_NAMES, Session, available_providers


def test_what_is_not_there_is_an_error_and_not_a_silent_cpu(int8_bundle: Bundle) -> None:
    missing = [provider for provider in Provider if ORT_NAMES[provider] not in onnxruntime.get_available_providers()]
    assert missing, "this machine has every provider; test the refusal elsewhere"
    for provider in missing:
        with pytest.raises(ProviderError) as caught:
            Session(int8_bundle.file("model.onnx"), provider=provider, inputs=["input_ids"])
        assert caught.value.message == f"`{provider.value}` is not available here; this onnxruntime has `cpu`"


def test_a_session_that_falls_back_is_refused(int8_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """As when the CUDA libraries are missing: onnxruntime lists the provider and then runs on the CPU."""
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: list(ORT_NAMES.values()))
    with pytest.warns(UserWarning, match="CUDAExecutionProvider"):  # noqa: SIM117
        with pytest.raises(ProviderError, match="`cuda` was asked for and onnxruntime took `CPUExecutionProvider`"):
            Session(int8_bundle.file("model.onnx"), provider=Provider.CUDA, inputs=["input_ids"])


def test_the_cpu_is_always_there() -> None:
    assert Provider.CPU in available_providers()


def test_other_inputs_than_were_promised(int8_bundle: Bundle) -> None:
    with pytest.raises(BundleError, match=r"has the inputs \['input_ids'\], the manifest says \['tokens'\]"):
        Session(int8_bundle.file("model.onnx"), provider=Provider.CPU, inputs=["tokens"])


def test_a_run_that_fails(int8_bundle: Bundle) -> None:
    session = Session(int8_bundle.file("model.onnx"), provider=Provider.CPU, inputs=["input_ids"])

    with pytest.raises(BundleError, match="onnxruntime cannot run"):
        session.run({"input_ids": np.array([[10**9]])})


def test_a_file_that_is_no_graph(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"no graph")

    with pytest.raises(BundleError, match="onnxruntime cannot open"):
        Session(tmp_path / "model.onnx", provider=Provider.CPU, inputs=[])


def test_without_onnxruntime_the_message_says_what_to_install() -> None:
    code = """
import sys
sys.modules["onnxruntime"] = None
from runtime import MissingPartError
from runtime.session import available_providers
try:
    available_providers()
except MissingPartError as error:
    print(error)
"""
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert "onnxruntime is not installed" in finished.stdout
    assert "pip install 'edgekit[cpu]'" in finished.stdout
