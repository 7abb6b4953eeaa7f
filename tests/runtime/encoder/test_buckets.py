from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from ortkit import Bundle, BundleError, Embedder, Kind, Pooling, Provider, Reranker, Scores
from ortkit.runtime.bundle.bundle import GRAPH, TOKENIZER
from ortkit.runtime.bundle.folder import MANIFEST, DraftBundle
from ortkit.runtime.bundle.manifest import Buckets, EmbedderFacts, Layout, Manifest, PairFacts, RerankerFacts
from ortkit.runtime.bundle.writer import BundleWriter
from ortkit.runtime.encoder.buckets import BucketChoice
from ortkit.runtime.session.bucket_sessions import BucketSessions
from ortkit.runtime.session.config import SessionConfig
from tests.decoders import write_tokenizer
from tests.tiny_bundles import AFTER, BEFORE, BETWEEN, WIDTH, manifest_of, weights

LENGTHS = (3, 17, 1, 40, 8, 64, 2, 5, 9, 33)
TEXTS = tuple("".join(np.random.default_rng(length).choice(list("0123456789"), length)) for length in LENGTHS)
"""Each digit is a token."""


def choice_of(tokens: Sequence[int] = (4, 8), texts: Sequence[int] = (1, 3), *, max_length: int = 8) -> BucketChoice:
    return BucketChoice(Buckets(tuple(tokens), tuple(texts)), max_length=max_length, path=Path("bundle"))


@pytest.mark.parametrize(
    ("texts", "tokens", "bucket"),
    [(1, 1, (1, 4)), (1, 4, (1, 4)), (1, 5, (1, 8)), (2, 3, (3, 4)), (3, 8, (3, 8))],
)
def test_the_smallest_bucket_that_holds_a_batch(texts: int, tokens: int, bucket: tuple[int, int]) -> None:
    assert choice_of().smallest(texts, tokens) == bucket


@pytest.mark.parametrize(("texts", "tokens"), [(4, 4), (1, 9)])
def test_a_batch_that_no_bucket_holds(texts: int, tokens: int) -> None:
    with pytest.raises(
        BundleError, match=f"no bucket in the manifest of `bundle` holds {texts} texts of {tokens} tokens"
    ) as caught:
        choice_of().smallest(texts, tokens)

    assert caught.value.exit_code == 7


@pytest.mark.parametrize(
    ("tokens", "texts", "message"),
    [
        ((4, 7), (1, 3), "the largest bucket in the manifest of `bundle` has 7 tokens, and the model's limit is 8"),
        ((8, 4), (1, 3), "`buckets.tokens` in the manifest of `bundle` must be 1 to 16 ascending numbers, not [8, 4]"),
        ((4, 8), (3, 3), "`buckets.texts` in the manifest of `bundle` must be 1 to 16 ascending numbers, not [3, 3]"),
        ((4, 8), (), "`buckets.texts` in the manifest of `bundle` must be 1 to 16 ascending numbers, not []"),
        (
            tuple(range(1, 18)),
            (1,),
            "`buckets.tokens` in the manifest of `bundle` must be 1 to 16 ascending numbers, not [1, ",
        ),
        (
            (4, 8),
            (1, 2_000_000_000),
            "the largest bucket in the manifest of `bundle` has 2000000000 texts, and the limit is 64",
        ),
    ],
)
def test_buckets_of_a_damaged_manifest(tokens: tuple[int, ...], texts: tuple[int, ...], message: str) -> None:
    with pytest.raises(BundleError, match=re.escape(message)) as caught:
        choice_of(tokens, texts)

    assert caught.value.exit_code == 7


def test_batches_fill_buckets_and_lose_nothing() -> None:
    lengths = [1, 8, 3, 5, 4, 2, 7]

    groups = choice_of().batches(range(len(lengths)), 24, length=lambda index: lengths[index])

    assert [[lengths[index] for index in group] for group in groups] == [[8, 7, 5], [4, 3], [2, 1]]


def test_texts_run_alone_where_a_bucket_of_several_is_over_the_budget() -> None:
    groups = choice_of().batches([8, 7, 3, 3], 12, length=lambda length: length)

    assert groups == [[8], [7], [3, 3]]


def test_a_padded_batch() -> None:
    rows = [
        {"input_ids": np.array([[5, 6, 7]]), "token_type_ids": np.array([[0, 1, 1]])},
        {"input_ids": np.array([[8]]), "token_type_ids": np.array([[1]])},
    ]

    padded = choice_of().pad(rows)

    assert padded.bucket == (3, 4)
    assert padded.lengths == (3, 1)
    assert list(padded.feeds) == ["input_ids", "token_type_ids", "bias"]
    # The shortest text fills the place that is left.
    assert padded.feeds["input_ids"].tolist() == [[5, 6, 7, 0], [8, 0, 0, 0], [8, 0, 0, 0]]
    assert padded.feeds["token_type_ids"].tolist() == [[0, 1, 1, 0], [1, 0, 0, 0], [1, 0, 0, 0]]
    assert padded.feeds["bias"].dtype == np.float32
    assert padded.feeds["bias"].shape == (3, 1, 1, 4)
    masked = -10_000
    assert padded.feeds["bias"][:, 0, 0].tolist() == [[0, 0, 0, masked], *[[0, masked, masked, masked]] * 2]


def attention_graph(vocabulary: int, *, reranker: bool) -> onnx.ModelProto:
    """One layer of attention over token embeddings, with `bias`: (batch, tokens, width), or logits of first tokens."""
    nodes = [
        helper.make_node("Gather", ["embedding", "input_ids"], ["rows"]),
        helper.make_node("Transpose", ["rows"], ["columns"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["rows", "columns"], ["products"]),
        helper.make_node("Squeeze", ["bias", "axis_1"], ["mask"]),
        helper.make_node("Add", ["products", "mask"], ["scores"]),
        helper.make_node("Softmax", ["scores"], ["shares"], axis=-1),
        helper.make_node("MatMul", ["shares", "rows"], ["vectors"]),
        helper.make_node("Gather", ["vectors", "zero"], ["first"], axis=1),
        helper.make_node("MatMul", ["first", "head"], ["logits"]),
    ]
    name, shape = ("logits", ["batch", 1]) if reranker else ("vectors", ["batch", "tokens", WIDTH])
    made = weights(vocabulary)
    constants = {"embedding": made["embedding"], "head": made["head"], "axis_1": np.array([1]), "zero": np.array(0)}
    graph = helper.make_graph(
        nodes,
        "tiny",
        [
            helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "tokens"]),
            helper.make_tensor_value_info("bias", TensorProto.FLOAT, ["batch", 1, 1, "tokens"]),
        ],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def attended(ids: Sequence[int], vocabulary: int) -> NDArray[np.float32]:
    """What that layer gives for one text without padding, by numpy: (tokens, width)."""
    rows = weights(vocabulary)["embedding"][list(ids)]
    shares = np.exp(rows @ rows.T - (rows @ rows.T).max(axis=1, keepdims=True))
    return np.asarray(shares / shares.sum(axis=1, keepdims=True) @ rows)


@pytest.fixture
def written(tmp_path: Path, request: pytest.FixtureRequest) -> Bundle:
    """A bundle for CoreML of the kind that is asked for."""
    kind: Kind = request.param
    with BundleWriter(tmp_path / "bundle") as writer:
        vocabulary = write_tokenizer(writer.folder / TOKENIZER).get_vocab_size()
        onnx.save(attention_graph(vocabulary, reranker=kind is Kind.RERANKER), writer.folder / GRAPH)
        poolings = (Pooling.MAX, Pooling.LAST_TOKEN)
        embedder = EmbedderFacts(3 * WIDTH, Pooling.MEAN, normalize=False, further_poolings=poolings)
        reranker = RerankerFacts(("LABEL_0",), Scores.RAW, PairFacts(BEFORE, BETWEEN, AFTER, 0))
        manifest = manifest_of(
            kind,
            ("input_ids", "bias"),
            embedder=embedder if kind is Kind.EMBEDDER else None,
            reranker=reranker if kind is Kind.RERANKER else None,
            certificate=None,
        )
        return writer.commit(for_coreml(manifest))


def for_coreml(manifest: Manifest) -> Manifest:
    buckets = Buckets(tokens=(8, 24, 64), texts=(1, 4))
    return dataclasses.replace(manifest, provider=Provider.COREML, layout=Layout.TEXTS_FIRST, buckets=buckets)


def vocabulary_of(bundle: Bundle) -> int:
    return int(onnx.load(bundle.path / GRAPH).graph.initializer[0].dims[0])


def draft_of(bundle: Bundle) -> DraftBundle:
    """The same bundle as an export has it: it runs on the CPU."""
    return DraftBundle(bundle.path, bundle.manifest)


def pooled(tokens: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.concatenate([tokens.mean(axis=0), tokens.max(axis=0), tokens[-1]])


@pytest.mark.parametrize("written", [Kind.EMBEDDER], indirect=True)
def test_padded_embeddings_are_exact(written: Bundle) -> None:
    embedder = Embedder(draft_of(written))
    tokenized = embedder.tokenizer.tokenize(list(TEXTS))
    assert [text.tokens for text in tokenized] == list(LENGTHS)
    expected = np.stack([pooled(attended(text.ids, vocabulary_of(written))) for text in tokenized])

    together, alone = embedder.embed(TEXTS), np.stack([embedder.embed(text) for text in TEXTS])

    assert np.abs(together - expected).max() <= 1e-5
    assert np.abs(alone - expected).max() <= 1e-5


@pytest.mark.parametrize("written", [Kind.EMBEDDER], indirect=True)
def test_without_its_mask_padding_changes_embeddings(written: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """That the test above can fail."""
    exact = Embedder(draft_of(written)).embed(TEXTS)
    monkeypatch.setattr("ortkit.runtime.encoder.buckets.MASKED", np.float32(0))

    assert np.abs(Embedder(draft_of(written)).embed(TEXTS) - exact).max() > 0.1


@pytest.mark.parametrize("written", [Kind.RERANKER], indirect=True)
def test_padded_scores_are_exact(written: Bundle) -> None:
    reranker = Reranker(draft_of(written))
    pairs = [("b", text) for text in TEXTS[:5]]
    vocabulary = vocabulary_of(written)
    head = weights(vocabulary)["head"]
    expected = [float((attended(pair.ids, vocabulary)[0] @ head)[0]) for pair in reranker.tokenizer.tokenize(pairs)]

    assert np.abs(reranker.score(pairs) - expected).max() <= 1e-5
    assert np.abs([reranker.score([pair])[0] for pair in pairs] - np.array(expected)).max() <= 1e-5


@pytest.mark.parametrize("written", [Kind.EMBEDDER], indirect=True)
def test_a_provider_that_compiles_shapes_gets_a_session_for_each_bucket(
    written: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the CPU in place of CoreML, which this machine lacks: its sessions have fixed shapes too."""
    opened = []

    def on_the_cpu(path: Path, config: SessionConfig, buckets: Buckets) -> BucketSessions:
        assert config.provider is Provider.COREML
        opened.append(BucketSessions(path, dataclasses.replace(config, provider=Provider.CPU), buckets))
        return opened[-1]

    monkeypatch.setattr("ortkit.runtime.encoder.base.shared_buckets", on_the_cpu)
    exact = Embedder(draft_of(written)).embed(TEXTS)

    with Embedder(written) as embedder:
        assert embedder.workers == 1
        assert np.abs(embedder.embed(TEXTS) - exact).max() <= 1e-5
        # The longest texts run first: three of up to 64 tokens, two of up to 24, then three and two of up to 8.
        buckets = ["1x8", "4x64", "4x24", "4x8"]
        assert [str(bucket) for bucket in opened[0].open_buckets] == buckets
        sessions = [slot.session for slot in opened[0]._slots.values()]
        embedder.embed(TEXTS)
        assert [slot.session for slot in opened[0]._slots.values()] == sessions, "none is opened again"


@pytest.mark.parametrize("written", [Kind.EMBEDDER], indirect=True)
def test_a_bucket_list_that_does_not_hold_the_models_texts(written: Bundle) -> None:
    path = written.path / MANIFEST
    manifest = json.loads(path.read_text())
    manifest["buckets"]["tokens"] = [8, 24]
    path.write_text(json.dumps(manifest))

    with pytest.raises(BundleError, match="has 24 tokens, and the model's limit is 64") as caught:
        Embedder(Bundle.open(written.path))

    assert caught.value.exit_code == 7


@pytest.mark.parametrize("written", [Kind.EMBEDDER], indirect=True)
def test_a_graph_for_buckets_without_the_input_that_masks_padding(written: Bundle) -> None:
    manifest = dataclasses.replace(written.manifest, inputs=("input_ids",))

    with pytest.raises(BundleError, match=r"expects the inputs \['input_ids'\]; supported: `input_ids`, `bias`"):
        Embedder(DraftBundle(written.path, manifest))
