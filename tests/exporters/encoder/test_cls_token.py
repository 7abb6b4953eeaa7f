from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from ortkit import Kind, Precision
from ortkit.exporters.bundle_manifest import make_manifest, tokenizer_facts
from ortkit.exporters.encoder.calibration import Calibration
from ortkit.exporters.encoder.cls_token import follow_first_tokens, narrow_last_layer, path_of_first_tokens
from ortkit.exporters.encoder.int8 import Recipe, quantize_encoder
from ortkit.exporters.encoder.recipe_search import ladder_for
from ortkit.exporters.encoder.tracing import rebuild, trace
from ortkit.exporters.graph.passes import tidy
from ortkit.exporters.models.tokenizer import bundle_tokenizer
from ortkit.exporters.options import ExportOptions, plan_export
from ortkit.exporters.sources import find_checkpoint
from ortkit.exporters.task import task_of
from tests.exporters.graphs import make_model, run, token_rows

RNG = np.random.default_rng(4)
IDS = RNG.integers(1000, 20000, size=(3, 40))
TYPES = np.repeat([[0] * 10 + [1] * 30], 3, axis=0)
LAYERS = 2
STATIC_CLS, PER_TOKEN_CLS = Recipe(cls_16bit=True), Recipe(smoothing=0.7, per_token=True, cls_16bit=True)


@pytest.fixture(scope="module")
def classifier(reranker_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The float32 graph of a small cross-encoder."""
    checkpoint = find_checkpoint(str(reranker_checkpoint))
    plan = plan_export(checkpoint, ExportOptions(Kind.RERANKER, Precision.FP32, None, dict.fromkeys(Kind)))
    tokenizer = tokenizer_facts(checkpoint, plan.kind, bundle_tokenizer(checkpoint))
    scratch = tmp_path_factory.mktemp("first-token")
    (scratch / "tokenizer.json").write_bytes((reranker_checkpoint / "tokenizer.json").read_bytes())
    task = task_of(checkpoint, plan)
    manifest = make_manifest(checkpoint, plan, task.facts(tokenizer, scratch))
    model = trace(task.load(), scratch, Kind.RERANKER)
    rebuild(model, checkpoint, manifest)
    return ir.to_proto(model).SerializeToString()


def graph_of(proto: bytes) -> ir.Model:
    import onnx

    return ir.from_proto(onnx.load_from_string(proto))


def logits(model: ir.Model, ids: NDArray[np.int64] = IDS, types: NDArray[np.int64] = TYPES) -> NDArray[np.float32]:
    return run(model, input_ids=ids, token_type_ids=types)


def quantized(proto: bytes, recipe: Recipe) -> ir.Model:
    model = graph_of(proto)
    texts = RNG.integers(1000, 20000, size=(20, 1, 40))
    quantize_encoder(
        model, Calibration(model, [{"input_ids": ids, "token_type_ids": TYPES[:1]} for ids in texts]), recipe
    )
    tidy(model)
    return model


def test_the_last_layer_is_computed_for_the_first_tokens_only(classifier: bytes) -> None:
    nodes = list(graph_of(classifier).graph)
    slices = [place for place, node in enumerate(nodes) if node.op_type == "Slice"]
    attentions = [place for place, node in enumerate(nodes) if node.op_type == "Softmax"]

    # Another one takes the position vectors of as many positions as there are tokens.
    assert len(slices) == 2
    assert sum(node.op_type == "Gelu" for node in nodes) == LAYERS
    # The first tokens are taken between the two layers, not after the last.
    assert attentions[0] < slices[1] < attentions[1]


def test_a_path_of_its_own_changes_nothing_in_float32(classifier: bytes) -> None:
    model = graph_of(classifier)
    expected = logits(model)
    rows = follow_first_tokens(model.graph)
    tidy(model)
    kinds = [node.op_type for node in model.graph]

    assert np.abs(logits(model) - expected).max() < 1e-6 * np.abs(expected).max()
    assert rows
    assert kinds.count("ScatterND") == LAYERS
    # Of the layer before the last, all is computed twice: for all tokens, and for the first.
    assert kinds.count("Gelu") == 2 * (LAYERS - 1) + 1


def test_of_all_tokens_the_last_layer_reads_keys_and_values_only(classifier: bytes) -> None:
    model = graph_of(classifier)
    path = path_of_first_tokens(model.graph)
    assert path is not None
    follow_first_tokens(model.graph)
    tidy(model)

    assert [node.op_type for node, _ in path.target.uses()] == ["MatMul"]


def test_the_ladder_has_16_bits_for_the_cls_token_where_a_head_reads_it_only(classifier: bytes) -> None:
    assert ladder_for(graph_of(classifier).graph) == (Recipe(), STATIC_CLS, PER_TOKEN_CLS)


def test_most_of_the_error_of_int8_goes(classifier: bytes) -> None:
    exact = logits(graph_of(classifier))
    plain, precise = (np.abs(logits(quantized(classifier, recipe)) - exact).mean() for recipe in (Recipe(), STATIC_CLS))

    print(f"mean error {plain:.2e} and {precise:.2e}")
    assert precise < plain / 1.5


@pytest.mark.parametrize("recipe", [STATIC_CLS, PER_TOKEN_CLS])
def test_a_pair_gets_the_same_bits_in_any_batch(classifier: bytes, recipe: Recipe) -> None:
    model = quantized(classifier, recipe)
    alone = [logits(model, IDS[[row]], TYPES[[row]]) for row in range(len(IDS))]

    assert np.array_equal(logits(model), np.concatenate(alone))
    assert np.array_equal(logits(model, IDS[::-1]), np.concatenate(alone[::-1]))


def test_products_may_stay_exact_for_all_tokens_and_the_first(classifier: bytes) -> None:
    model = quantized(classifier, Recipe(cls_16bit=True, float32=frozenset({1})))
    products = [node for node in model.graph if node.op_type == "MatMul"]

    assert len(products) == 2
    assert products[0].inputs[1] is products[1].inputs[1]


def test_a_graph_without_a_head_has_no_such_path() -> None:
    ids, table, gather = token_rows()
    model = make_model([gather], [ids], gather.outputs[0], [table])
    narrow_last_layer(model.graph)

    assert path_of_first_tokens(model.graph) is None
    assert ladder_for(model.graph) == (Recipe(), Recipe(per_token=True))
