"""The bound on an encoder's memory: estimates, waiting, refusals, and results that do not depend on it."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest

from ortkit import Bundle, Embedder, OutOfMemoryError, Precision, Reranker
from ortkit.runtime.encoder.run_memory import RunCost, RunMemory, estimated_width
from ortkit.runtime.session.memory_limit import MARGIN, MemoryLimit, resident_memory
from tests.tiny_bundles import write_embedder, write_reranker

TEXTS = ["The quick brown fox", "jumps", "over the lazy dog and the dog sleeps", "the", "the fox " * 20]


@pytest.fixture
def embedder(tmp_path: Path) -> Bundle:
    return write_embedder(tmp_path / "embedder")


@pytest.mark.parametrize("width", [8, 384, 4096])
def test_the_longest_text_is_the_one_that_just_fits(width: int) -> None:
    cost = RunCost(width)

    for size in (0, 1 << 10, 1 << 20, 1 << 30):
        longest = cost.largest(size)
        assert cost.of(1, longest) <= size < cost.of(1, longest + 1)
    # Several texts of the same number of tokens take less: there are fewer attention scores.
    assert cost.of(4, 64) < cost.of(1, 256)


@pytest.mark.parametrize(
    ("parameters", "vocabulary", "width"),
    [
        (4_386_178, 30_522, 128),  # ms-marco-TinyBERT-L-2-v2
        (22_713_601, 30_522, 384),  # ms-marco-MiniLM-L-6-v2
        (33_360_385, 30_522, 384),  # ms-marco-MiniLM-L-12-v2
        (109_483_009, 30_522, 768),  # BERT base
        (278_044_417, 250_002, 768),  # bge-reranker-base
        (559_891_969, 250_002, 1024),  # XLM-RoBERTa large
    ],
)
def test_the_width_is_never_underestimated(parameters: int, vocabulary: int, width: int, embedder: Bundle) -> None:
    """Parameters and widths as published on the Hub."""
    for precision, each in ((Precision.INT8, 1), (Precision.FP32, 4)):
        manifest = embedder.manifest.__class__(**{**vars(embedder.manifest), "precision": precision})
        assert width <= estimated_width(manifest, parameters * each, vocabulary) <= 2.5 * width


def test_runs_wait_for_one_another() -> None:
    cost = RunCost(8)
    memory = RunMemory(MemoryLimit(1), cost.of(1, 100), cost)
    order: list[str] = []

    def second() -> None:
        with memory.reserved(1, 80):
            order.append("second")

    with memory.reserved(1, 80):
        thread = threading.Thread(target=second)
        thread.start()
        thread.join(0.1)
        order.append("first")
    thread.join(10)
    assert order == ["first", "second"]
    # A run that fails returns its memory.
    with pytest.raises(ZeroDivisionError), memory.reserved(1, 100):
        _ = 1 / 0
    with memory.reserved(1, 100):
        pass


def test_a_text_that_does_not_fit() -> None:
    cost = RunCost(384)
    memory = RunMemory(MemoryLimit(150 << 20), 10 << 20, cost)

    memory.check(memory.largest, "text 3")
    with pytest.raises(OutOfMemoryError) as caught:
        memory.check(512, "text 3")
    assert caught.value.message == (
        f"text 3 has 512 tokens, which take about 42 MiB to run, and within `max_memory`, 150 MiB, there is room for "
        f"{memory.largest} tokens"
    )
    assert caught.value.hint == (
        "raise `max_memory` (`--max-memory 193M`, ORTKIT_MAX_MEMORY), split the text, or take a bundle of fewer bits"
    )


def test_results_do_not_depend_on_the_limit(embedder: Bundle, tmp_path: Path) -> None:
    limit = resident_memory() + (64 << 20)
    expected = Embedder(embedder).embed(TEXTS)
    limited = Embedder(embedder, max_memory=limit)

    assert limited.plan.max_memory == limit
    assert np.array_equal(limited.embed(TEXTS), expected)
    assert np.array_equal(limited.embed(TEXTS, batch_tokens=1 << 20), expected)

    pairs = [("the fox", text) for text in TEXTS]
    reranker = write_reranker(tmp_path / "reranker")
    assert np.array_equal(Reranker(reranker, max_memory=limit).score(pairs), Reranker(reranker).score(pairs))


def test_batches_shrink_and_long_texts_are_refused(embedder: Bundle) -> None:
    """As if little were left beside the open model."""
    model = Embedder(embedder, max_memory=1 << 40)
    cost = RunCost(8)
    model._runs = RunMemory(MemoryLimit(1 << 30), cost.of(1, 20), cost)

    assert model._checked_batch_tokens(256) == 20
    assert model.plan.fits == 20
    with pytest.raises(OutOfMemoryError, match=r"^text 4 has \d+ tokens, which take about 0 MiB to run"):
        model.embed(TEXTS)
    with pytest.raises(OutOfMemoryError, match=r"^text 1 has "):
        list(model.stream(["the", TEXTS[4]]))


def test_no_room_for_a_short_text(embedder: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ortkit.runtime.encoder.base.check_opening", lambda *_: None)

    with pytest.raises(OutOfMemoryError) as caught:
        Embedder(embedder, max_memory=resident_memory() + MARGIN)
    assert caught.value.message.startswith(f"a short text with `{embedder.path}` takes this process to about ")
    assert caught.value.exit_code == 9
