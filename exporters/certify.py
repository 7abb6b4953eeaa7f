"""The bundle against the PyTorch reference: how far apart they are, and outputs to compare with on another machine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray

from exporters.checkpoint import Checkpoint
from exporters.dense import DenseLayer
from exporters.probe import PairSet, TextSet, probe_texts
from exporters.pytorch_model import load_tokenizer
from runtime.embedder import Embedder
from runtime.errors import EdgekitError
from runtime.manifest import Activation, Certificate, Golden, GoldenAnswer, Manifest, Precision, pack_vector
from runtime.pooling import cosines, normalize, pool

GOLDEN_TEXTS = 8
LOWEST_COSINE = {Precision.FP32: 0.9999, Precision.INT8: 0.98}
"""Below this, on any text of the probe set, an export is not what it claims to be, and no bundle is written."""
LIBRARIES = f"torch {torch.__version__}, transformers {transformers.__version__}, float32"


def reference_vectors(
    model: Any, checkpoint: Checkpoint, layers: Sequence[DenseLayer], manifest: Manifest, texts: Sequence[str]
) -> NDArray[np.float32]:
    """Embed with PyTorch and transformers' own tokenizer, one text at a time: (texts, dimension)."""
    facts = manifest.embedder
    if facts is None:
        raise ValueError("only embedders have vectors")
    tokenizer = load_tokenizer(checkpoint)
    prefix = facts.prompts[facts.default_prompt] if facts.default_prompt is not None else ""
    vectors = []
    for text in texts:
        given = (prefix + text).lower() if manifest.tokenizer.lower_case else prefix + text
        encoded = tokenizer(given, truncation=True, max_length=manifest.tokenizer.max_length, return_tensors="pt")
        with torch.inference_mode():
            tokens = model(input_ids=encoded["input_ids"]).last_hidden_state.numpy()
        vectors.append(pool(tokens.swapaxes(0, 1), facts.pooling)[0])
    found = np.stack(vectors)
    for layer in layers:
        product = torch.from_numpy(found) @ torch.from_numpy(layer.weight) + torch.from_numpy(layer.bias)
        found = (product.tanh() if layer.activation is Activation.TANH else product).numpy()
    return normalize(found) if facts.normalize else found


def certify_embedder(
    embedder: Embedder, expected: NDArray[np.float32], *, min_cosine: float | None = None
) -> Certificate:
    """Compare a bundle with its reference on the probe set; `expected` are the `reference_vectors` of its texts.

    Raises EdgekitError when they agree less than `min_cosine`, or so little that something must be wrong.
    """
    probe = probe_texts()
    manifest = embedder.bundle.manifest
    found = embedder.embed_with_report(probe.texts).vectors
    agreement = cosines(found, expected)
    lowest = max(LOWEST_COSINE[manifest.precision], min_cosine or 0)
    # Written so that NaN fails too.
    if not agreement.min() >= lowest:
        worst = int(agreement.argmin())
        raise EdgekitError(
            f"the exported `{manifest.name}` does not agree with PyTorch: cosine {agreement.min():.4f} on text {worst} "
            f"of the probe set, and {manifest.precision.value} must reach {lowest:g}",
            hint=hint_of(manifest.precision, f"--min-cosine {lowest:g}"),
        )
    golden = tuple(
        Golden(probe.texts[index], pack_vector(expected[index]), pack_vector(found[index]))
        for index in golden_places(len(probe.texts))
    )
    figures = {"cosine_mean": float(agreement.mean()), "cosine_min": float(agreement.min())}
    return certificate_of(probe, len(probe.texts), figures, golden)


def hint_of(precision: Precision, option: str) -> str:
    if precision is Precision.FP32:
        return "no bundle was written"
    return f"no bundle was written; try `{option}`, or `--precision fp32`"


def golden_places(count: int) -> list[int]:
    """The places of the golden ones among so many, spread evenly."""
    places: list[int] = np.linspace(0, count - 1, GOLDEN_TEXTS).astype(int).tolist()
    return places


def certificate_of(
    probe: TextSet | PairSet,
    size: int,
    figures: dict[str, float],
    golden: tuple[Golden, ...],
    answers: tuple[GoldenAnswer, ...] = (),
    *,
    reference: str = LIBRARIES,
) -> Certificate:
    return Certificate(
        reference=reference,
        probe=probe.name,
        probe_sha256=probe.sha256,
        probe_size=size,
        figures=figures,
        golden=golden,
        answers=answers,
    )
