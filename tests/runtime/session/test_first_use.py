"""A golden text at the first use of a bundle on a GPU or CoreML: compared once on a machine, and an error if wrong."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from ortkit import Bundle, BundleError, Decoder, Embedder, Provider, ProviderError, Reranker
from ortkit.runtime.replay import replay, replay_one
from ortkit.runtime.session.providers import PROVIDERS, coreml_identity
from ortkit.runtime.session.tolerance import Tolerance
from tests.fake_providers import COREML, CPU, FakeDriver, FakeOnnxruntime, use
from tests.tiny_bundles import TEXTS, WIDTH, rehash, weights, write_certified_decoder, write_embedder, write_reranker

LONG = "jumps over the lazy dog and the quick brown fox " * 2
IDENTITY = {"device": "NVIDIA L4, 8.9", "driver": "580.82"}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ORTKIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def on_cuda(folder: Path, precision: str = "fp16") -> Path:
    """The tiny embedder with token embeddings (texts, tokens, width), as graphs for CUDA give them."""
    path = write_embedder(folder).path
    model = onnx.load(path / "model.onnx")
    del model.graph.node[1:]
    model.graph.node[0].output[0] = "vectors"
    del model.graph.output[0].type.tensor_type.shape.dim[:]
    shape = helper.make_tensor_value_info("vectors", TensorProto.FLOAT, ["texts", "tokens", WIDTH])
    model.graph.output[0].CopyFrom(shape)
    onnx.save(model, path / "model.onnx")
    rehash(path, lambda manifest: manifest.update(provider="cuda", layout="texts_first", precision=precision))
    return path


def on_coreml(folder: Path) -> Path:
    """The tiny embedder with an input `bias`, which changes nothing here, and buckets of 16 and 64 tokens."""
    path = write_embedder(folder).path
    vocabulary = numpy_helper.to_array(onnx.load(path / "model.onnx").graph.initializer[0]).shape[0]
    nodes = [
        helper.make_node("Gather", ["embedding", "input_ids"], ["embedded"]),
        helper.make_node("Mul", ["bias", "zero"], ["nothing"]),
        helper.make_node("Reshape", ["nothing", "column"], ["added"]),
        helper.make_node("Add", ["embedded", "added"], ["vectors"]),
    ]
    constants = {
        "embedding": weights(vocabulary)["embedding"],
        "zero": np.zeros(1, np.float32),
        # (batch, 1, 1, tokens) to (batch, tokens, 1).
        "column": np.array([0, -1, 1]),
    }
    graph = helper.make_graph(
        nodes,
        "tiny",
        [
            helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "tokens"]),
            helper.make_tensor_value_info("bias", TensorProto.FLOAT, ["batch", 1, 1, "tokens"]),
        ],
        [helper.make_tensor_value_info("vectors", TensorProto.FLOAT, ["batch", "tokens", WIDTH])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path / "model.onnx")
    facts = {
        "provider": "coreml",
        "precision": "fp16",
        "layout": "texts_first",
        "inputs": ["input_ids", "bias"],
        "buckets": {"tokens": [16, 64], "texts": [1, 2]},
    }
    rehash(path, lambda manifest: manifest.update(facts))
    return path


def coreml(patch: pytest.MonkeyPatch, wrong: Callable[[Sequence[int]], float] = lambda _: 0.0) -> FakeOnnxruntime:
    """A Mac whose CoreML is wrong by this much, for the shape of a run."""
    module = FakeOnnxruntime(available=[COREML, CPU], obtained=[COREML, CPU], wrong=wrong)
    use(patch, module, packages={"onnxruntime": "1.31.1"})
    patch.setattr("sys.platform", "darwin")
    patch.setattr("platform.mac_ver", lambda: ("26.1", ("", "", ""), "arm64"))
    return module


def records(cache: Path) -> list[dict[str, str]]:
    return [json.loads(path.read_text()) for path in sorted((cache / "checked").glob("*"))]


def refused(run: Callable[[], object]) -> ProviderError:
    with pytest.raises(ProviderError) as caught:
        run()
    assert caught.value.exit_code == 8
    return caught.value


def test_a_golden_text_runs_once_on_a_machine(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = FakeOnnxruntime()
    use(monkeypatch, module, identity=lambda _: IDENTITY)
    path = on_cuda(tmp_path / "embedder")

    Embedder(path)
    first = len(module.runs)
    Embedder(path)

    assert (first, len(module.runs)) == (1, 1)
    (record,) = records(cache)
    assert record["bundle"] == Bundle.open(path).digest
    assert (record["provider"], record["shape"]) == ("cuda", "")
    assert record.items() >= IDENTITY.items()
    assert (cache / "checked").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("changed", ["driver", "device", "bundle", "ortkit", "off"])
def test_what_makes_a_machine_another_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: str) -> None:
    module, facts = FakeOnnxruntime(), dict(IDENTITY)
    use(monkeypatch, module, identity=lambda _: facts)
    path = on_cuda(tmp_path / "embedder")
    if changed == "off":
        monkeypatch.setenv("ORTKIT_CACHE", "")
    Embedder(path)

    if changed in facts:
        facts[changed] = "another"
    elif changed == "bundle":
        rehash(path, lambda manifest: manifest.update(name="another"))
    elif changed == "ortkit":
        monkeypatch.setattr("ortkit.runtime.session.first_use.__version__", "999")
    Embedder(path)

    assert len(module.runs) == 2


@pytest.mark.parametrize(
    ("precision", "hint"),
    [
        (
            "fp16",
            (
                "use a bundle in `fp32` (`ortkit export MODEL --provider cuda --precision fp32`), or a bundle for the "
                "CPU (`ortkit export MODEL --provider cpu`); `ortkit verify` compares all golden outputs"
            ),
        ),
        (
            "fp32",
            (
                "use a bundle for the CPU (`ortkit export MODEL --provider cpu`); `ortkit verify` compares all golden "
                "outputs"
            ),
        ),
    ],
)
def test_numbers_that_are_finite_and_wrong(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, precision: str, hint: str
) -> None:
    """The error is not remembered: with a newer driver or macOS the next start may be right."""
    module = FakeOnnxruntime(wrong=lambda _: 0.3)
    use(monkeypatch, module, identity=lambda _: IDENTITY)
    path = on_cuda(tmp_path / "embedder", precision)

    error = refused(lambda: Embedder(path))

    start, _, rest = error.message.partition("has cosine ")
    assert start == f"`cuda` computes `{path}` wrongly on this machine: the bundle "
    found, _, rest = rest.partition(" ")
    assert 0 < float(found) < 0.999
    allowed = "0.001" if precision == "fp16" else "0.0001"
    assert rest == f"to PyTorch where 1.0000 was certified, and {allowed} less is allowed"
    assert error.hint == hint
    assert records(cache) == []
    module.wrong = lambda _: 0.0
    assert Embedder(path).embed("fox").shape == (WIDTH,)


@pytest.mark.parametrize("failure", ["NaN", "RuntimeException"])
def test_a_golden_text_that_gives_no_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: str) -> None:
    module = FakeOnnxruntime(wrong=lambda _: np.nan)
    if failure != "NaN":
        module = FakeOnnxruntime(failure=RuntimeError("CoreML: error -1"))
    use(monkeypatch, module, identity=lambda _: IDENTITY)

    error = refused(lambda: Embedder(on_cuda(tmp_path / "embedder")))

    assert error.message.startswith("`cuda` computes `")
    assert ("not finite" if failure == "NaN" else "CoreML: error -1") in error.message


def test_each_bucket_is_another_program(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """CoreML compiles one for each, which may be wrong alone; it is padded with the shortest golden text."""
    module = coreml(monkeypatch, lambda shape: 0.3 if tuple(shape) == (2, 64) else 0.0)
    embedder = Embedder(on_coreml(tmp_path / "embedder"))
    assert [record["shape"] for record in records(cache)] == ["1x16"]
    embedder.embed(["fox", "dog"])
    embedder.embed([LONG])

    error = refused(lambda: embedder.embed([LONG, LONG]))

    assert sorted(record["shape"] for record in records(cache)) == ["1x16", "1x64", "2x16"]
    assert error.message.startswith("`coreml` computes `")
    assert "has cosine " in error.message
    runs = len(module.runs)
    embedder.embed([LONG])
    assert len(module.runs) == runs + 1


def test_the_first_bucket_is_compared_when_a_bundle_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    coreml(monkeypatch, lambda _: 0.3)
    path = on_coreml(tmp_path / "embedder")

    error = refused(lambda: Embedder(path))

    assert error.message.startswith(f"`coreml` computes `{path}` wrongly on this machine: ")
    assert error.hint is not None
    assert "`ortkit export MODEL --provider coreml --precision fp32`" in error.hint


def test_a_reranker_is_compared_by_the_range_of_all_logits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = FakeOnnxruntime()
    use(monkeypatch, module, identity=lambda _: IDENTITY)
    path = write_reranker(tmp_path / "reranker").path
    rehash(path, lambda manifest: manifest.update(provider="cuda", layout="texts_first"))

    Reranker(path)
    assert len(module.runs) == 1
    module.wrong = lambda _: 0.1
    monkeypatch.setenv("ORTKIT_CACHE", "")

    error = refused(lambda: Reranker(path))

    assert "a logit differs from PyTorch's by 0.1000 where 0.0000 was certified, and 0.0020 more is allowed" in (
        error.message
    )


def test_a_decoder_is_compared_by_its_golden_answer(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the CPU in the place of another provider: the decoder here has a float32 cache."""
    bundle = write_certified_decoder(tmp_path / "decoder")
    monkeypatch.setitem(
        PROVIDERS, Provider.CPU, dataclasses.replace(PROVIDERS[Provider.CPU], identity=lambda _: IDENTITY)
    )
    prompts: list[str] = []
    encode = Decoder.encode
    monkeypatch.setattr(Decoder, "encode", lambda self, text: (prompts.append(text), encode(self, text))[1])

    for _ in range(2):
        Decoder(bundle, threads=1)

    assert prompts == [TEXTS[0]]
    assert [record["provider"] for record in records(cache)] == ["cpu"]

    monkeypatch.setenv("ORTKIT_CACHE", "")
    monkeypatch.setattr("ortkit.runtime.decoder.golden.tolerance_of", lambda _: Tolerance(logprobs=-1.0))
    with pytest.raises(BundleError, match=r"the log-probabilities of 6 certified tokens differ by 0\.0000 on average"):
        Decoder(bundle, threads=1)


def test_the_cpu_compares_nothing_at_a_start(tmp_path: Path, cache: Path) -> None:
    assert PROVIDERS[Provider.CPU].identity is None
    Embedder(write_embedder(tmp_path / "embedder"))
    assert not cache.exists()


def test_verify_and_bench_find_the_same_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the first use, too: with the exit code of the provider."""
    module = FakeOnnxruntime()
    use(monkeypatch, module, identity=lambda _: IDENTITY)
    embedder = Embedder(on_cuda(tmp_path / "embedder"))
    assert replay(embedder).count == 3
    assert replay_one(embedder).count == 1
    module.wrong = lambda _: 0.3

    for check in (replay, replay_one):
        assert refused(lambda check=check: check(embedder)).message.startswith("`cuda` computes `")


def test_what_cuda_depends_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from ortkit.runtime.session.cuda import _driver_release, cuda_identity

    use(monkeypatch, FakeOnnxruntime(), packages={"onnxruntime-gpu": "1.31.1"})
    (tmp_path / "version").write_text("580.82.07\n")

    assert (
        cuda_identity(FakeOnnxruntime(), FakeDriver().load).items()
        >= {
            "device": "NVIDIA L4, 8.9",
            "onnxruntime": "1.31.1",
            "nvidia-cublas": "13.1",
        }.items()
    )
    assert _driver_release(tmp_path / "version") == "580.82.07"
    assert _driver_release(tmp_path / "none") == ""
    assert cuda_identity(FakeOnnxruntime(), FakeDriver(missing=["libcuda.so.1"]).load)["device"] == ""


def test_what_coreml_depends_on(monkeypatch: pytest.MonkeyPatch) -> None:
    coreml(monkeypatch)

    found = coreml_identity(FakeOnnxruntime())

    assert (found["onnxruntime"], found["macos"]) == ("1.31.1", "26.1")
    assert "device" in found
