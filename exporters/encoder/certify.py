"""The bundle against the PyTorch reference: how far apart they are, and outputs to compare with on another machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...runtime.bundle.golden_vector import pack_vector
from ...runtime.bundle.manifest import Certificate, Golden, Manifest, Precision
from ...runtime.encoder.embedder import Embedder
from ...runtime.encoder.pooling import cosines
from ...runtime.errors import OrtkitError, UnsupportedModelError
from ...runtime.text.tokenizer import Tokenizer
from ..certification.certificate import certificate_of, golden_places, hint_of
from ..certification.probe import probe_texts, tokenizer_probe
from ..models.loading import quiet
from .embedder_reference import PublishedEmbedder

LOWEST_COSINE = {Precision.FP32: 0.9999, Precision.FP16: 0.9999, Precision.INT8: 0.98}
"""Below this, on any text of the probe set, an export is not what it claims to be, and no bundle is written."""
_LARGEST_DIFFERENCE_OF_VECTORS = 1e-5
"""Of a component of a float32 vector from the publisher's library, as a part of the vector's length."""
_EXACT_TEXTS = 32
"""How many texts are compared so, behind the default prompt or none."""
_LONGEST_EXACT = 1024
"""Tokens of the longest of them: attention in plain PyTorch takes the square of it in memory."""
_PROMPTED = ("The pump runs dry.", "Zwei Sätze. Noch einer!", "", "word " * 600)
"""Texts that are compared behind every other prompt."""


@dataclass(frozen=True)
class Sample:
    """Texts behind a prompt, and their vectors (texts, dimension) by the library that the model was published for."""

    prompt: str | None
    """Its name, None for the default one or none."""
    texts: tuple[str, ...]
    vectors: NDArray[np.float32]


def exact_samples(published: PublishedEmbedder, own: Tokenizer, manifest: Manifest) -> list[Sample]:
    """What a float32 graph must agree with to the last digits: texts that show differences, and every prompt.

    Raises UnsupportedModelError where the bundle's tokenizer `own` reads any text of the probes otherwise than the
    library, and leaves out texts without a token that would be pooled, or with one that the model has no embedding for.
    """
    facts, length = manifest.embedder, manifest.tokenizer.max_length
    if facts is None:
        raise ValueError("only embedders have vectors")
    telling = tokenizer_probe(published.tokenizer, length)
    samples = []
    named = sorted({text: name for name, text in facts.prompts.items() if text}.values())
    for prompt in (None, *named):
        name = prompt or facts.default_prompt
        prefix = facts.prompts[name] if name is not None else ""
        texts = (*telling, *probe_texts().texts) if prompt is None else _PROMPTED
        # Once around all of them, because it is slow.
        with quiet():
            read = [(text, _check_ids(published, own, text, prompt, prefix)) for text in texts]
        unpooled = facts.unpooled_tokens.get(name, 0) if name is not None else 0
        short = [text for text, tokens in read if unpooled < tokens <= _LONGEST_EXACT][:_EXACT_TEXTS]
        if short:
            samples.append(Sample(prompt, tuple(short), published.vectors(short, prompt)))
    return samples


def _check_ids(published: PublishedEmbedder, own: Tokenizer, text: str, prompt: str | None, prefix: str) -> int:
    """How many tokens a text has; raises UnsupportedModelError where they are others than the library's.

    0 for a text with a token that the model has no embedding for: the library fails on it, and the bundle refuses it.
    """
    expected, known = published.ids(text, prompt), own.facts.known_tokens
    if known is not None and max(expected, default=0) >= known:
        return 0
    found = own.tokenize([text], prefix=prefix)[0].ids.tolist()
    if found == expected:
        return len(found)
    pairs = zip(found, expected, strict=False)
    place = next((at for at, (one, other) in enumerate(pairs) if one != other), min(len(found), len(expected)))
    shown = f"{text[:40]}..." if len(text) > 40 else text
    raise UnsupportedModelError(
        f"`{published.checkpoint.name}` reads the text {shown!r} as other tokens than its tokenizer.json: from token "
        f"{place} on {expected[place : place + 8]} with sentence-transformers, and {found[place : place + 8]} here"
    )


def check_length(published: PublishedEmbedder, manifest: Manifest, positions: int) -> None:
    """Raise UnsupportedModelError where the library cuts texts at another length, within the model's positions."""
    theirs, ours = min(published.max_length or positions, positions), manifest.tokenizer.max_length
    if theirs != ours:
        raise UnsupportedModelError(
            f"`{manifest.name}` reads {theirs} tokens of a text with sentence-transformers, and would read {ours} here"
        )
    published.cut_at(ours)


def check_exact(embedder: Embedder, samples: Sequence[Sample]) -> None:
    """Raise UnsupportedModelError where a float32 bundle gives other vectors than the publisher's library.

    Run before a graph is quantized: a misreading must not hide in what int8 loses.
    """
    for sample in samples:
        found = embedder.embed_with_report(sample.texts, prompt=sample.prompt).vectors
        if found.shape != sample.vectors.shape:
            raise UnsupportedModelError(
                f"`{embedder.bundle.manifest.name}` gives vectors of {sample.vectors.shape[1]} components with "
                f"sentence-transformers, and of {found.shape[1]} here"
            )
        lengths = np.maximum(np.linalg.norm(sample.vectors, axis=1), np.finfo(np.float32).tiny)
        with np.errstate(invalid="ignore"):
            differences = np.abs(found - sample.vectors).max(axis=1) / lengths
        worst = int(differences.argmax())
        # Written so that NaN fails too.
        if not differences.max() <= _LARGEST_DIFFERENCE_OF_VECTORS:
            behind = f" behind the prompt `{sample.prompt}`" if sample.prompt is not None else ""
            raise UnsupportedModelError(
                f"the float32 graph of `{embedder.bundle.manifest.name}` gives another vector than "
                f"sentence-transformers for the text {sample.texts[worst][:40]!r}{behind}: a component differs by "
                f"{differences[worst]:.2g} of the vector's length, and at most {_LARGEST_DIFFERENCE_OF_VECTORS:g} is "
                "rounding",
                hint="no bundle was written; the checkpoint has something that ortkit does not support",
            )


def certify_embedder(
    embedder: Embedder, expected: NDArray[np.float32], *, reference: str, min_cosine: float | None = None
) -> Certificate:
    """Compare a bundle with its `reference` on the probe set; `expected` are the vectors of its texts.

    Raises OrtkitError when they agree less than `min_cosine`, or so little that something must be wrong.
    """
    probe = probe_texts()
    manifest = embedder.bundle.manifest
    found = embedder.embed_with_report(probe.texts).vectors
    agreement = cosines(found, expected)
    lowest = max(LOWEST_COSINE[manifest.precision], min_cosine or 0)
    # Written so that NaN fails too.
    if not agreement.min() >= lowest:
        worst = int(agreement.argmin())
        raise OrtkitError(
            f"the exported `{manifest.name}` does not agree with sentence-transformers: cosine "
            f"{agreement.min():.4f} on text {worst} of the probe set, and {manifest.precision.value} must reach "
            f"{lowest:g}",
            hint=hint_of(manifest.precision, f"--min-cosine {lowest:g}"),
        )
    golden = tuple(
        Golden(probe.texts[index], pack_vector(expected[index]), pack_vector(found[index]))
        for index in golden_places(len(probe.texts))
    )
    figures = {"cosine_mean": float(agreement.mean()), "cosine_min": float(agreement.min())}
    return certificate_of(probe, len(probe.texts), figures, golden, reference=reference)
