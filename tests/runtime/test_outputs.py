"""What comes out of a graph is looked at before anything is made of it: type, rank, shape, finite numbers."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from ortkit import Bundle, BundleError, Decoder, Embedder, InputError, Pooling, Reranker
from tests.commands import Finished
from tests.decoders import write_decoder
from tests.tiny_bundles import embedder_graph, rehash, replace_graph, reranker_graph, write_embedder, write_reranker

Ortkit = Callable[..., Finished]
VOCABULARY = 320
FLOAT = TensorProto.FLOAT


@pytest.fixture(scope="module")
def embedder(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_embedder(tmp_path_factory.mktemp("tiny") / "embedder")


@pytest.fixture(scope="module")
def reranker(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_reranker(tmp_path_factory.mktemp("tiny") / "reranker")


def ending(
    model: onnx.ModelProto, operator: str, *constants: np.ndarray, kind: int = FLOAT, **attributes: object
) -> onnx.ModelProto:
    """A graph whose output goes through one more operator, with nothing said of the shape that comes of it."""
    graph = model.graph
    plain, name = "plain", graph.output[0].name
    graph.node[-1].output[0] = plain
    for place, constant in enumerate(constants):
        graph.initializer.append(numpy_helper.from_array(constant, f"constant.{place}"))
    names = [f"constant.{place}" for place in range(len(constants))]
    graph.node.append(helper.make_node(operator, [plain, *names], [name], **attributes))
    output = helper.make_tensor_value_info(name, kind, None)
    if kind == TensorProto.UNDEFINED:
        output = helper.make_tensor_sequence_value_info(name, FLOAT, None)
    graph.output[0].CopyFrom(output)
    return model


def padded(model: onnx.ModelProto, *, axis: int) -> onnx.ModelProto:
    """One more of an axis, of the vectors of tokens or the logits."""
    rank = len(model.graph.output[0].type.tensor_type.shape.dim)
    ends = np.zeros((2, rank), np.int64)
    ends[1, axis] = 1
    return ending(model, "Pad", ends.reshape(-1))


AXES = np.array([0])
CHANGES: dict[str, Callable[[onnx.ModelProto], onnx.ModelProto]] = {
    "a scalar": lambda model: ending(model, "ReduceMean", keepdims=0),
    "a rank less": lambda model: ending(model, "ReduceMean", AXES, keepdims=0),
    "a rank more": lambda model: ending(model, "Unsqueeze", AXES),
    "fewer rows": lambda model: ending(model, "ReduceMean", AXES, keepdims=1),
    "more rows": lambda model: padded(model, axis=0),
    "wider": lambda model: padded(model, axis=-1),
    "nothing": lambda model: ending(model, "Slice", np.array([0]), np.array([0]), AXES),
    "float64": lambda model: ending(model, "Cast", kind=TensorProto.DOUBLE, to=TensorProto.DOUBLE),
    "integers": lambda model: ending(model, "Cast", kind=TensorProto.INT64, to=TensorProto.INT64),
    "a sequence": lambda model: ending(model, "SequenceConstruct", kind=TensorProto.UNDEFINED),
}
REFUSED = (
    r"gives an output of the shape|gives embeddings of 9 components|the first output of the graph .* must be "
    r"`tensor\(float\)`"
)


@pytest.mark.parametrize("texts", [None, 1, {"text": "a"}, b"a"])
def test_values_that_are_not_several_texts(embedder: Bundle, texts: object) -> None:
    """As JSON from a client may be."""
    model = Embedder(embedder)
    for call in (model.embed, model.count_tokens):
        with pytest.raises(InputError, match="`texts` must be an iterable of strings, not "):
            call(texts)  # type: ignore[arg-type]


@pytest.mark.parametrize("change", CHANGES)
def test_an_output_of_another_form(embedder: Bundle, reranker: Bundle, tmp_path: Path, change: str) -> None:
    for bundle, made in ((embedder, embedder_graph(VOCABULARY)), (reranker, reranker_graph(VOCABULARY))):
        folder = tmp_path / bundle.path.name
        shutil.copytree(bundle.path, folder)
        replace_graph(folder, CHANGES[change](made))

        with pytest.raises(BundleError, match=REFUSED):
            if bundle is embedder:
                Embedder(folder).embed(["The quick brown fox", "jumps over"])
            else:
                Reranker(folder).score([("fox", "The quick brown fox")] * 2)


def factor(model: onnx.ModelProto, value: float) -> onnx.ModelProto:
    return ending(model, "Mul", np.array(value, np.float32))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("pooling", [Pooling.MEAN, Pooling.MAX, Pooling.CLS])
def test_vectors_that_are_not_finite(
    ortkit: Ortkit, embedder: Bundle, tmp_path: Path, value: float, pooling: Pooling
) -> None:
    folder = tmp_path / "bundle"
    shutil.copytree(embedder.path, folder)
    rehash(folder, lambda manifest: manifest["embedder"].update(pooling=pooling.value))
    replace_graph(folder, factor(embedder_graph(VOCABULARY), value))

    with np.errstate(invalid="ignore"):
        finished = ortkit("embed", folder, "The quick", "fox")
        to_file = ortkit("embed", folder, "--output", tmp_path / "out.npy", stdin=b"The quick\nfox\n")

    for one in (finished, to_file):
        assert one.code == 7
        assert one.out == b""
        assert "error: the bundle gives vectors that are not finite numbers\n\nhint: run `ortkit verify`" in one.err
    assert not (tmp_path / "out.npy").exists()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_logits_that_are_not_finite(ortkit: Ortkit, reranker: Bundle, tmp_path: Path, value: float) -> None:
    folder = tmp_path / "bundle"
    shutil.copytree(reranker.path, folder)
    replace_graph(folder, factor(reranker_graph(VOCABULARY), value))

    with np.errstate(invalid="ignore"):
        finished = ortkit("rerank", folder, "--query", "fox", "The quick", "dog", "sleeps")

    assert finished.code == 7
    assert finished.out == b""
    assert "gives logits that are not finite numbers\n\nhint: run `ortkit verify` on the bundle" in finished.err


def decoder_with(tmp_path: Path, change: Callable[[onnx.GraphProto], None]) -> Path:
    bundle, decoder = write_decoder(tmp_path / "tiny")
    model = decoder.graph()
    change(model.graph)
    return replace_graph(bundle.path, model)


def output_named(graph: onnx.GraphProto, name: str) -> onnx.ValueInfoProto:
    return next(value for value in graph.output if value.name == name)


def forget_shape(value: onnx.ValueInfoProto) -> None:
    value.type.tensor_type.ClearField("shape")


def through(operator: str, *constants: np.ndarray, kind: int = FLOAT, **attributes: object) -> Callable:
    def change(graph: onnx.GraphProto) -> None:
        node = next(node for node in graph.node if node.output[0] == "logits")
        node.output[0] = "plain"
        for place, constant in enumerate(constants):
            graph.initializer.append(numpy_helper.from_array(constant, f"constant.{place}"))
        names = [f"constant.{place}" for place in range(len(constants))]
        graph.node.append(helper.make_node(operator, ["plain", *names], ["logits"], **attributes))
        value = output_named(graph, "logits")
        value.type.tensor_type.elem_type = kind
        forget_shape(value)

    return change


def renamed(graph: onnx.GraphProto) -> None:
    next(node for node in graph.node if node.output[0] == "logits").output[0] = "scores"
    output_named(graph, "logits").name = "scores"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (renamed, r"has the outputs \['scores', .*, and a decoder has \['logits'"),
        (lambda graph: graph.output.pop(), "has the outputs .*, and a decoder has"),
        (through("Cast", kind=TensorProto.DOUBLE, to=TensorProto.DOUBLE), "must be `tensor.float.`, not"),
        (through("ReduceMean", keepdims=0), "cannot run|has the shape"),
        (through("Unsqueeze", AXES), "cannot run|has the shape"),
        (through("Pad", np.array([0, 0, 0, 0, 0, 1])), "cannot run|has the shape"),
        (through("Pad", np.array([0, 0, 0, 0, 1, 0])), "cannot run|has the shape"),
        (through("Mul", np.array(np.nan, np.float32)), "gives logits that are not finite numbers at token 0"),
        (through("Mul", np.array(np.inf, np.float32)), "gives logits that are not finite numbers at token 0"),
    ],
)
def test_what_a_decoder_gives(tmp_path: Path, change: Callable, message: str) -> None:
    folder = decoder_with(tmp_path, change)

    with pytest.raises(BundleError, match=message), np.errstate(invalid="ignore"):
        Decoder(folder, threads=1).generate("The quick", max_tokens=3)
