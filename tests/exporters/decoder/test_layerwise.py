from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from ortkit.exporters.decoder.calibration import MomentsObserver
from ortkit.exporters.decoder.layerwise import LayerwiseForward, Observer
from ortkit.exporters.decoder.lazy_model import open_decoder
from ortkit.exporters.decoder.tracing import rebuild, trace
from ortkit.exporters.graph.nodes import linears
from ortkit.exporters.progress import BYTES, NoProgress
from tests.exporters.decoders import FAMILIES, loaded, logits_of, token_ids, write_decoder
from tests.exporters.graph_runs import moments_by_graph, prompts
from tests.marks import slow_but


class Recorder(Observer):
    """Keeps what it is shown, and how many matrices are in memory then."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.model = model
        self.found: dict[int, NDArray[np.float32]] = {}
        self.states: dict[tuple[int, int], NDArray[np.float32]] = {}
        self.layers_in_memory: list[set[str]] = []

    def layer(self, text: int, layer: int, states: NDArray[np.float32]) -> None:
        self.states[text, layer] = states
        present = {name for name, found in self.model.named_parameters() if found.ndim == 2 and not found.is_meta}
        self.layers_in_memory.append({name.split(".")[2] for name in present if name.startswith("model.layers.")})

    def wants_logits(self, text: int) -> bool:
        return text != 1

    def logits(self, text: int, logits: NDArray[np.float32]) -> None:
        self.found[text] = logits


class Counts(NoProgress):
    """Remembers the updates of a pass."""

    def __init__(self) -> None:
        self.updates: list[tuple[int, int, str]] = []

    def update(self, done: int, total: int, unit: str) -> None:
        self.updates.append((done, total, unit))


@pytest.mark.parametrize("family", slow_but(["gemma2", "llama, tied", "phi3", "qwen2"], sorted(FAMILIES)))
def test_a_pass_by_layers_is_pytorchs_forward_to_the_bit(family: str, tmp_path: Path) -> None:
    decoder = open_decoder(write_decoder(tmp_path, family))
    texts = [token_ids(count) for count in (200, 7, 130)]
    recorder = Recorder(decoder.model)
    progress = Counts()

    LayerwiseForward(decoder, [text.tolist() for text in texts], recorder).run(progress)

    model = loaded(tmp_path)
    for number, text in enumerate(texts):
        if recorder.wants_logits(number):
            assert np.array_equal(recorder.found[number], logits_of(model, text))
        with torch.inference_mode():
            states = model(torch.from_numpy(text)[None], output_hidden_states=True, use_cache=False).hidden_states
        assert np.array_equal(recorder.states[number, 0], states[1][0].numpy())
    assert sorted(recorder.found) == [0, 2]
    assert recorder.layers_in_memory == [{"0"}] * 3 + [{"1"}] * 3
    assert all(parameter.is_meta for parameter in decoder.lazy_weights)
    done, totals, units = zip(*progress.updates, strict=True)
    assert list(done) == sorted(set(done))
    assert done[-1] == totals[-1] > 0
    assert set(totals) == {totals[-1]}
    assert set(units) == {BYTES}


@pytest.mark.parametrize("family", ["llama, tied", "gemma2", "phi3"])
def test_pytorch_sees_what_the_graph_sees(family: str, tmp_path: Path) -> None:
    """What goes into each product, layer by layer and by onnxruntime, over texts of which the first does not count."""
    checkpoint = write_decoder(tmp_path / "checkpoint", family)
    decoder, texts = open_decoder(checkpoint), [token_ids(count).tolist() for count in (50, 40, 61)]
    model = trace(decoder, tmp_path)
    rebuild(model)
    products = list(linears(model.graph))
    runs = [feeds for text in texts[1:] for feeds in prompts(model.graph, text)]

    for squares_only in (False, True):
        reading = MomentsObserver(1, squares_only=squares_only)
        LayerwiseForward(decoder, texts, reading).run()

        expected = moments_by_graph(model, runs)(products, squares_only)
        for product in products:
            found = [reading.found[part.name] for part in product.matrix.parts]
            assert all(np.array_equal(one, found[0]) for one in found)
            assert np.allclose(found[0], expected[product.name], rtol=1e-3, atol=1e-3 * expected[product.name].max())


def test_only_what_is_wanted_is_added_up(tmp_path: Path) -> None:
    decoder = open_decoder(write_decoder(tmp_path / "checkpoint", "llama"))
    wanted = "model.layers.1.mlp.down_proj.weight"
    reading = MomentsObserver(0, squares_only=False, wanted=frozenset([wanted]))

    LayerwiseForward(decoder, [token_ids(9).tolist()], reading).run()

    assert {name: found.shape for name, found in reading.found.items()} == {wanted: (96, 96)}
