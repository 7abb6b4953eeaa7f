from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from safetensors.numpy import load_file, save_file

from ortkit import CheckpointError, UnsupportedModelError
from ortkit.exporters.decoder.lazy_model import open_decoder
from ortkit.exporters.decoder.passes import share_embedding
from ortkit.exporters.decoder.tracing import rebuild, trace
from ortkit.exporters.graph.passes import tidy
from ortkit.exporters.graph.streamed_tensor import StreamedTensor
from ortkit.exporters.sources import find_checkpoint
from tests.exporters.decoders import (
    FAMILIES,
    VOCABULARY,
    GraphRun,
    exported,
    loaded,
    logits_of,
    tiny_decoder,
    token_ids,
    traced,
    write_decoder,
)
from tests.marks import slow_but
from tests.seeded_checkpoints import Shape, write_seeded

TOKENS = 210
CLOSE = 1e-4


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_every_family_gives_the_logits_of_pytorch(family: str, tmp_path: Path) -> None:
    ids = token_ids(TOKENS)
    model, graph = exported(tmp_path, family)
    expected = logits_of(model, ids)

    whole, chunks, single, few = (GraphRun(graph) for _ in range(4))

    assert np.abs(whole(ids) - expected).max() < CLOSE
    assert np.abs(np.concatenate([chunks(part) for part in np.split(ids, [50, 51, 130])]) - expected).max() < CLOSE
    assert np.abs(np.concatenate([single(part) for part in np.split(ids, TOKENS)]) - expected).max() < CLOSE
    assert np.abs(few(ids, [TOKENS - 1, 7]) - expected[[TOKENS - 1, 7]]).max() < CLOSE


@pytest.mark.parametrize("family", ["mistral", "qwen3"])
def test_texts_of_different_lengths_run_together(family: str, tmp_path: Path) -> None:
    """The padding after the shorter one is overwritten by the tokens that follow."""
    lengths = np.array([90, 61])
    ids = token_ids(2 * 96).reshape(2, 96)
    model, graph = exported(tmp_path, family)
    run = GraphRun(graph, batch=2)
    expected = [logits_of(model, row) for row in ids]

    found = run.batch(ids[:, :90], lengths - 1)
    for row, length in enumerate(lengths):
        assert np.abs(found[row, :length] - expected[row][:length]).max() < CLOSE
    for step in range(6):
        found = run.batch(np.take_along_axis(ids, (lengths + step)[:, None], axis=1), lengths + step)
        for row, length in enumerate(lengths):
            assert np.abs(found[row, 0] - expected[row][length + step]).max() < CLOSE


@pytest.mark.parametrize("window", slow_but([64], [64, 4096]))
def test_texts_that_are_longer_than_the_window_give_the_logits_of_pytorch(window: int, tmp_path: Path) -> None:
    """As Mistral has it, whose window is 4,096: read at once, and token by token beyond it."""
    before = max(window, 512)
    tokens = before + 24
    shape = Shape(2, 32, 64, 2, 1, vocabulary=VOCABULARY, window=window, positions=8192)
    checkpoint = find_checkpoint(str(write_seeded(tmp_path / "checkpoint", shape, dtype="float32")))
    graph = traced(checkpoint, tmp_path)
    rebuild(graph)
    ids = token_ids(tokens)
    model = loaded(tmp_path / "checkpoint")
    expected = logits_of(model, ids)
    model.config.sliding_window = None
    assert np.abs(logits_of(model, ids)[-20:] - expected[-20:]).max() > 100 * CLOSE

    whole, chunks = (GraphRun(graph, capacity=tokens) for _ in range(2))

    places = [30, window - 1, window, before - 1, before, tokens - 1]
    assert np.abs(whole(ids, places) - expected[places]).max() < CLOSE
    chunks(ids[: before - 6], [before - 7])
    beyond = np.concatenate([chunks(ids[place : place + 1]) for place in range(before - 6, tokens)])
    assert np.abs(beyond - expected[before - 6 :]).max() < CLOSE


@pytest.mark.parametrize(
    ("family", "without"),
    [
        ("llama", {"rope_scaling": None}),
        ("mistral", {"sliding_window": None}),
        ("mistral", {"sliding_window": 31}),
        ("qwen2", {"rope_scaling": None}),
        ("qwen2", {"layer_types": ["full_attention", "full_attention"]}),
        ("gemma2", {"attn_logit_softcapping": None}),
        ("gemma2", {"final_logit_softcapping": None}),
        ("gemma2", {"query_pre_attn_scalar": 32}),
        ("gemma3_text", {"rope_local_base_freq": 100000.0}),
        ("gemma3_text", {"layer_types": ["full_attention", "sliding_attention"]}),
        ("phi3", {"rope_scaling": None}),
        ("phi3, partly rotated", {"partial_rotary_factor": 1.0}),
        ("smollm3", {"no_rope_layers": [1, 1]}),
        ("granite", {"attention_multiplier": 0.25}),
    ],
)
def test_the_logits_show_what_the_families_are_tested_for(family: str, without: dict) -> None:
    """A graph that left one of these out would be far from PyTorch."""
    ids = token_ids(TOKENS)

    with_it, without_it = (logits_of(tiny_decoder(family, **changes), ids) for changes in ({}, without))

    assert np.abs(with_it - without_it).max() > 100 * CLOSE


def test_a_rebuilt_decoder_is_made_of_few_operators(tmp_path: Path) -> None:
    model, graph = exported(tmp_path, "llama, tied")
    layers = model.config.num_hidden_layers

    assert Counter(node.op_type for node in graph.graph) == {
        "Gather": 3,  # token vectors, and the positions that logits are wanted for out of two values
        "SimplifiedLayerNormalization": 1,
        "SkipSimplifiedLayerNormalization": 2 * layers,
        "MatMul": 4 * layers + 1,  # merged QKV, attention output, merged gate and up, down; logits
        "GroupQueryAttention": layers,
        "Split": layers,
        "Sigmoid": layers,
        "Mul": 2 * layers,
    }
    for node in graph.graph:
        if node.op_type == "GroupQueryAttention":
            assert node.inputs[1] is node.inputs[2] is None, "query, key and value come packed"


def test_the_graph_says_what_it_reads_and_gives(tmp_path: Path) -> None:
    graph = exported(tmp_path, "mistral")[1].graph
    cache = ir.Shape(["batch", 2, "capacity", 32])
    past = [f"past.{layer}.{part}" for layer in (0, 1) for part in ("key", "value")]

    assert [(value.name, value.dtype, value.shape) for value in graph.inputs] == [
        ("input_ids", ir.DataType.INT64, ir.Shape(["batch", "tokens"])),
        ("last_positions", ir.DataType.INT32, ir.Shape(["batch"])),
        ("total_length", ir.DataType.INT32, ir.Shape([])),
        ("logit_positions", ir.DataType.INT64, ir.Shape(["logits"])),
        *((name, ir.DataType.FLOAT, cache) for name in past),
    ]
    assert [(value.name, value.dtype, value.shape) for value in graph.outputs] == [
        ("logits", ir.DataType.FLOAT, ir.Shape(["batch", "logits", VOCABULARY])),
        *((name.replace("past", "present"), ir.DataType.FLOAT, cache) for name in past),
    ]


def test_layers_share_their_tables_of_angles(tmp_path: Path) -> None:
    graph = exported(
        tmp_path, "gemma3_text", num_hidden_layers=4, layer_types=["sliding_attention"] * 2 + ["full_attention"] * 2
    )[1]
    tables = [node.inputs[7:9] for node in graph.graph if node.op_type == "GroupQueryAttention"]

    assert tables[0] == tables[1]
    assert tables[2] == tables[3]
    assert not set(tables[0]) & set(tables[2])
    assert [table.shape for table in tables[0]] == [ir.Shape([512, 16])] * 2


def test_layers_that_do_not_rotate_have_no_table(tmp_path: Path) -> None:
    graph = exported(tmp_path, "smollm3")[1]

    rotates = [node.attributes.get_int("do_rotary") for node in graph.graph if node.op_type == "GroupQueryAttention"]
    assert rotates == [1, 0]


def test_tables_are_as_long_as_asked_for(tmp_path: Path) -> None:
    checkpoint = write_decoder(tmp_path / "checkpoint", "llama")

    lengths = []
    for length in (None, 100, 10**6):
        graph = traced(checkpoint, tmp_path, length=length).graph
        lengths.append(next(value.shape[0] for name, value in graph.initializers.items() if name.endswith("cos_table")))
    assert lengths == [512, 100, 512]


def test_a_tied_output_and_the_embedding_are_one_tensor(tmp_path: Path) -> None:
    ids = token_ids(30)
    model, graph = exported(tmp_path, "llama, tied")
    untied = GraphRun(graph)(ids)
    assert share_embedding(graph.graph)
    tidy(graph)

    sizes = [value.const_value.size for value in graph.graph.initializers.values()]
    assert sizes.count(VOCABULARY * 64) == 1
    assert np.abs(GraphRun(graph)(ids) - logits_of(model, ids)).max() < CLOSE
    assert np.abs(GraphRun(graph)(ids) - untied).max() < CLOSE


def test_an_output_of_its_own_is_left_alone(tmp_path: Path) -> None:
    graph = exported(tmp_path, "mistral")[1]

    assert not share_embedding(graph.graph)
    assert [node.op_type for node in graph.graph][-1] == "MatMul"


def test_tracing_leaves_the_model_as_it_was(tmp_path: Path) -> None:
    decoder = open_decoder(write_decoder(tmp_path / "checkpoint", "gemma3_text"))
    before = [(name, tuple(found.shape), found.device) for name, found in decoder.model.state_dict().items()]
    ids = token_ids(60)

    trace(decoder, tmp_path)

    assert before == [(name, tuple(found.shape), found.device) for name, found in decoder.model.state_dict().items()]
    assert decoder.model.config.use_cache
    with decoder.with_weights(decoder.model):
        assert np.array_equal(logits_of(decoder.model, ids), logits_of(loaded(tmp_path / "checkpoint"), ids))
        generated = decoder.model.generate(torch.from_numpy(ids)[None], max_new_tokens=3, do_sample=False)
    assert generated.shape == (1, 63)


def test_a_graph_holds_no_matrix_until_it_is_asked_for(tmp_path: Path) -> None:
    graph = exported(tmp_path, "qwen2")[1].graph

    matrices = [
        value.const_value for value in graph.initializers.values() if isinstance(value.const_value, StreamedTensor)
    ]
    # Of two layers: query, key and value in one; attention output; gate and up in one; down. And the tied table, twice.
    assert len(matrices) == 2 * 4 + 2
    assert all(
        value.const_value.size <= 512 * 8 for value in graph.initializers.values() if value.const_value not in matrices
    )


def test_weights_that_are_missing_are_not_made_up(tmp_path: Path) -> None:
    write_decoder(tmp_path, "llama")
    path = tmp_path / "model.safetensors"
    weights = load_file(path)
    del weights["model.layers.1.mlp.down_proj.weight"]
    save_file(weights, path, {"format": "pt"})

    with pytest.raises(CheckpointError, match=r"lacks 1 of the weights .* such as `model\.layers\.1\.mlp\.down_proj"):
        open_decoder(find_checkpoint(str(tmp_path)))


def test_a_graph_that_is_no_decoder_is_refused(tmp_path: Path) -> None:
    graph = traced(write_decoder(tmp_path / "checkpoint", "llama"), tmp_path)
    graph.graph.inputs[0].name = "tokens"

    with pytest.raises(UnsupportedModelError) as caught:
        rebuild(graph)
    assert caught.value.message == "a decoder of 2 layers traces to a graph that is not supported"
    assert caught.value.hint == "its config.json asks for something that ortkit has not been tested with"
