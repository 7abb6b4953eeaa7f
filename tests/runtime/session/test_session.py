from __future__ import annotations

import dataclasses
import gc
import os
import shutil
import subprocess
import sys
import threading
import warnings
import weakref
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from ortkit import (
    Bundle,
    BundleError,
    Decoder,
    Embedder,
    InputError,
    MissingPartError,
    OrtkitError,
    OutOfMemoryError,
    Provider,
    ProviderError,
)
from ortkit.runtime.session.config import SessionConfig
from ortkit.runtime.session.memory import Limit
from ortkit.runtime.session.onnxruntime_import import OLDEST_ONNXRUNTIME, load_onnxruntime
from ortkit.runtime.session.open_sessions import _OPEN, shared_session
from ortkit.runtime.session.providers import PROVIDERS
from ortkit.runtime.session.session import Session, failure
from tests.decoders import write_decoder


def test_a_missing_provider_is_an_error_not_a_cpu_fallback(int8_bundle: Bundle) -> None:
    """With the onnxruntime and the machine that run this test."""
    missing = [provider for provider in Provider if PROVIDERS[provider].problem(onnxruntime) is not None]
    assert missing, "this machine has every provider; test the refusal elsewhere"
    for provider in missing:
        with pytest.raises(ProviderError) as caught:
            Session(int8_bundle.file("model.onnx"), SessionConfig(provider, ("input_ids",)))
        assert caught.value.message.startswith(f"`{provider.value}` is not available: ")
        assert caught.value.hint is not None
        assert caught.value.exit_code == 8


def test_a_session_that_falls_back_is_refused(int8_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing is known to be missing, and onnxruntime still runs on the CPU: it only warns."""
    if PROVIDERS[Provider.CUDA].problem(onnxruntime) is None:
        pytest.skip("this machine has CUDA")
    unchecked = dataclasses.replace(PROVIDERS[Provider.CUDA], find_problem=lambda _: None)
    monkeypatch.setitem(PROVIDERS, Provider.CUDA, unchecked)
    path = int8_bundle.file("model.onnx")

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        with pytest.raises(ProviderError) as caught:
            Session(path, SessionConfig(Provider.CUDA, ("input_ids",)))
    assert caught.value.message == (
        f"`CUDAExecutionProvider` was requested for `{path}`, and onnxruntime used `CPUExecutionProvider` instead"
    )


def test_the_cpu_is_always_there() -> None:
    assert PROVIDERS[Provider.CPU].available(onnxruntime)
    assert PROVIDERS[Provider.CPU].problem(onnxruntime) is None


def test_other_inputs_than_were_promised(int8_bundle: Bundle) -> None:
    with pytest.raises(BundleError, match=r"has the inputs \['input_ids'\], and the manifest says \['tokens'\]"):
        Session(int8_bundle.file("model.onnx"), SessionConfig(Provider.CPU, ("tokens",)))


def test_a_run_that_fails(int8_bundle: Bundle) -> None:
    session = Session(int8_bundle.file("model.onnx"), SessionConfig(Provider.CPU, ("input_ids",)))

    with pytest.raises(BundleError, match="onnxruntime cannot run"):
        session.run({"input_ids": np.array([[10**9]])})


@pytest.mark.parametrize("shape", [(1, 0), (0, 3), (2, 0)])
def test_a_run_without_tokens_is_refused(int8_bundle: Bundle, shape: tuple[int, ...]) -> None:
    session = Session(int8_bundle.file("model.onnx"), SessionConfig(Provider.CPU, ("input_ids",)))

    with pytest.raises(InputError, match=r"`input_ids` has the shape \(.*\): there are no tokens to run"):
        session.run({"input_ids": np.zeros(shape, np.int64)})


def test_a_file_that_is_not_a_graph(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"no graph")

    with pytest.raises(BundleError, match="onnxruntime cannot open"):
        Session(tmp_path / "model.onnx", SessionConfig(Provider.CPU, ()))


def test_without_onnxruntime_the_message_says_what_to_install() -> None:
    code = """
import sys
sys.modules["onnxruntime"] = None
from ortkit import MissingPartError
from ortkit.runtime.session.onnxruntime_import import load_onnxruntime
try:
    load_onnxruntime()
except MissingPartError as error:
    print(error)
"""
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert "onnxruntime is not installed" in finished.stdout
    assert "`pip install 'onnxruntime>=1.30'` or `pip install 'onnxruntime-gpu>=1.30'`" in finished.stdout


def test_embedders_of_one_bundle_share_its_weights_until_the_last_goes(bundle_copy: Path) -> None:
    first, second = Embedder(bundle_copy), Embedder(bundle_copy.parent / "." / bundle_copy.name)

    assert first.session is second.session
    gone = weakref.ref(first.session)
    # What earlier tests left in reference cycles goes first.
    gc.collect()
    open_before = len(_OPEN)
    del first
    gc.collect()
    assert gone() is second.session
    del second
    gc.collect()
    assert gone() is None
    assert len(_OPEN) == open_before - 1


def test_a_bundle_that_was_replaced_is_opened_anew(bundle_copy: Path, tiny_bundle: Bundle) -> None:
    old = Embedder(bundle_copy)
    before = old.embed(["water"])
    new_folder = bundle_copy.with_name("new")
    shutil.copytree(tiny_bundle.path, new_folder)
    bundle_copy.rename(bundle_copy.with_name("old"))
    new_folder.rename(bundle_copy)

    new = Embedder(bundle_copy)

    assert new.session is not old.session
    assert np.array_equal(new.embed(["water"]), Embedder(tiny_bundle).embed(["water"]))
    assert np.array_equal(old.embed(["water"]), before)


def test_a_graph_that_was_written_over_in_place_is_opened_anew(bundle_copy: Path) -> None:
    path = bundle_copy / "model.onnx"
    old = shared_session(path, SessionConfig(Provider.CPU, ("input_ids",)))
    os.utime(path, ns=(1, 1))

    assert shared_session(path, SessionConfig(Provider.CPU, ("input_ids",))) is not old


def test_weights_that_were_replaced_in_place_are_loaded_again(tmp_path: Path) -> None:
    """A caller who still holds the error holds the session with the damaged weights by its traceback."""
    bundle, _ = write_decoder(tmp_path / "tiny", weights_beside=True)
    expected = [step.id for step in Decoder(bundle, threads=1).steps("The quick", max_tokens=5)]
    data = bundle.path / "model.onnx.data"
    whole = data.read_bytes()
    data.write_bytes(bytes(len(whole) // 2) + whole[len(whole) // 2 :])
    with pytest.raises(BundleError, match=r"`model\.onnx\.data` in the bundle .* was changed") as caught:
        Decoder(bundle.path, threads=1)
    damaged = shared_session(bundle.file("model.onnx"), SessionConfig(Provider.CPU, bundle.manifest.inputs, threads=1))
    data.write_bytes(whole)
    os.utime(data, ns=(1, 1))

    mended = Decoder(bundle.path, threads=1)

    assert caught.value.__traceback__ is not None
    assert mended.session is not damaged
    assert [step.id for step in mended.steps("The quick", max_tokens=5)] == expected


def test_threads_that_open_at_once_get_one_session(bundle_copy: Path) -> None:
    path = bundle_copy / "model.onnx"
    found: list[Session] = []

    def work() -> None:
        found.append(shared_session(path, SessionConfig(Provider.CPU, ("input_ids",))))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(found) == 4
    assert len(set(map(id, found))) == 1


def test_decoders_have_all_threads_on_a_token_and_encoders_one(
    int8_bundle: Bundle, written: tuple[Bundle, object]
) -> None:
    encoder = Embedder(int8_bundle).session
    decoder = Decoder(written[0], threads=2).session

    assert encoder.session.get_session_options().intra_op_num_threads == 1
    assert decoder.session.get_session_options().intra_op_num_threads == 2


def test_large_int8_products_do_not_overflow(tmp_path: Path) -> None:
    """On processors without 8-bit dot products onnxruntime adds pairs of products in 16 bits unless told otherwise."""
    rng = np.random.default_rng(2)
    rows = rng.integers(200, 256, (3, 384)).astype(np.uint8)
    matrix = rng.integers(100, 128, (384, 64)).astype(np.int8)
    constants = {
        "matrix": matrix,
        "scale": np.array(1, np.float32),
        "scales": np.ones(64, np.float32),
        "middle": np.array(128, np.uint8),
    }
    node = onnx.helper.make_node(
        "MatMulIntegerToFloat", ["rows", "matrix", "scale", "scales", "middle"], ["product"], domain="com.microsoft"
    )
    graph = onnx.helper.make_graph(
        [node],
        "product",
        [onnx.helper.make_tensor_value_info("rows", onnx.TensorProto.UINT8, ["rows", 384])],
        [onnx.helper.make_tensor_value_info("product", onnx.TensorProto.FLOAT, ["rows", 64])],
        [onnx.numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    opsets = [onnx.helper.make_opsetid("", 20), onnx.helper.make_opsetid("com.microsoft", 1)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10), tmp_path / "model.onnx")

    session = Session(tmp_path / "model.onnx", SessionConfig(Provider.CPU, ("rows",), int8=True))
    found = session.run({"rows": rows})

    assert np.array_equal(found, (rows.astype(np.int64) - 128) @ matrix.astype(np.int64))


class RuntimeException(Exception):  # noqa: N818
    """Named as onnxruntime's general exception."""


class InvalidGraph(Exception):  # noqa: N818
    """Named as onnxruntime's exception for a graph that is not one."""


@pytest.mark.parametrize(
    ("error", "left", "expected"),
    [
        (RuntimeException("std::bad_alloc"), 10 << 20, OutOfMemoryError),
        (RuntimeException("std::bad_alloc"), 2 << 30, BundleError),
        (RuntimeException("something else"), 10 << 20, OutOfMemoryError),
        (RuntimeError("Error in execution: std::bad_alloc"), 10 << 20, OutOfMemoryError),
        (InvalidGraph("std::bad_alloc"), 10 << 20, BundleError),
        (MemoryError(), 2 << 30, OutOfMemoryError),
    ],
)
def test_a_failure_where_memory_is_short_is_one_of_memory(
    monkeypatch: pytest.MonkeyPatch, error: Exception, left: int, expected: type[OrtkitError]
) -> None:
    """By the class of the exception and the memory that is free now, never by the text."""
    monkeypatch.setattr(
        "ortkit.runtime.session.session.smallest_limit", lambda: Limit(left, "the limit of `ulimit -v`")
    )

    found = failure(Path("model.onnx"), "run", error, needed=100 << 20)

    assert type(found) is expected
    if expected is OutOfMemoryError:
        assert found.exit_code == 9
        assert found.message.startswith("there is too little memory to run `model.onnx`: ")


def test_weights_that_do_not_fit_in_memory(int8_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ortkit.runtime.session.memory.smallest_limit", lambda: Limit(30 << 20, "the memory limit"))
    monkeypatch.setattr("onnxruntime.InferenceSession", lambda *_, **__: pytest.fail("the weights were loaded"))

    with pytest.raises(OutOfMemoryError, match=r"the weights of `.*` take at least 45 MiB, and 30 MiB are left by"):
        Session(int8_bundle.file("model.onnx"), SessionConfig(Provider.CPU, ("input_ids",)))


@pytest.mark.parametrize(
    ("left", "message"),
    [(10 << 20, "there is too little memory to load onnxruntime: 10 MiB are left"), (2 << 30, "cannot be loaded: odd")],
)
def test_an_onnxruntime_that_cannot_be_loaded(monkeypatch: pytest.MonkeyPatch, left: int, message: str) -> None:
    monkeypatch.setattr(
        "ortkit.runtime.session.onnxruntime_import.smallest_limit", lambda: Limit(left, "the limit of `ulimit -v`")
    )

    def refuse(*_: object) -> object:
        raise ImportError("odd")

    monkeypatch.delitem(sys.modules, "onnxruntime")
    monkeypatch.setattr("builtins.__import__", refuse)

    with pytest.raises(OrtkitError, match=message):
        load_onnxruntime()


@pytest.mark.parametrize("version", ["1.20.0", "1.29.1", "0.9"])
def test_an_onnxruntime_that_is_too_old_is_refused(tiny_bundle: Bundle, version: str) -> None:
    """Those between give a decoder's tokens wrong, or end the process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("onnxruntime.__version__", version)
        with pytest.raises(MissingPartError) as caught:
            Embedder(tiny_bundle)
    assert caught.value.message == f"onnxruntime {version} is installed, and ortkit needs 1.30 or newer"
    assert caught.value.hint == ("run `pip install 'onnxruntime>=1.30'`; versions before it crash or give wrong tokens")


@pytest.mark.parametrize(
    ("needed", "opens"), [("1.30", True), (onnxruntime.__version__, True), ("1.999", False), ("2.0.1", False)]
)
def test_a_bundle_that_requires_a_newer_onnxruntime(
    tiny_bundle: Bundle,
    written: tuple[Bundle, object],
    needed: str,
    opens: bool,  # noqa: FBT001
) -> None:
    for model, bundle in ((Embedder, tiny_bundle), (Decoder, written[0])):
        changed = Bundle(bundle.path, dataclasses.replace(bundle.manifest, requires={"onnxruntime": needed}))
        if opens:
            model(changed)
            continue
        with pytest.raises(BundleError) as caught:
            model(changed)
        assert caught.value.message == (
            f"the bundle `{bundle.path}` needs onnxruntime {needed} or newer, and {onnxruntime.__version__} is "
            "installed"
        )
        assert caught.value.hint == f"run `pip install 'onnxruntime>={needed}'`"


def test_bundles_state_the_required_versions(tiny_bundle: Bundle) -> None:
    assert tiny_bundle.manifest.requires == {"onnxruntime": OLDEST_ONNXRUNTIME}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("onnxruntime.__version__", "1.30.0rc1+local")
        assert load_onnxruntime() is onnxruntime


def test_a_graph_that_fails_is_tried_once_and_prints_nothing(
    tiny_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """onnxruntime would try it again on the CPU, and say so on stdout, between the data."""
    model = onnx.load(tiny_bundle.file("model.onnx"))
    model.graph.node[0].op_type = "NoSuchOperator"
    onnx.save(model, tmp_path / "model.onnx")
    tries: list[object] = []
    create = onnxruntime.InferenceSession._create_inference_session
    monkeypatch.setattr(
        "onnxruntime.InferenceSession._create_inference_session",
        lambda *arguments, **options: (tries.append(arguments), create(*arguments, **options))[1],
    )

    def fail(*_: object) -> None:
        raise RuntimeError("a provider failed")

    with pytest.raises(BundleError, match="onnxruntime cannot open"):
        Session(tmp_path / "model.onnx", SessionConfig(Provider.CPU, ("input_ids",)))
    monkeypatch.setattr("onnxruntime.InferenceSession._create_inference_session", fail)
    with pytest.raises(BundleError, match="a provider failed"):
        Session(tiny_bundle.file("model.onnx"), SessionConfig(Provider.CPU, ("input_ids",)))

    assert len(tries) == 1
    assert capfd.readouterr().out == ""
