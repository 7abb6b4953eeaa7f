"""Peak and growth of memory while ortkit embeds many texts of very different lengths. Linux only.

With an LLM's bundle: resident memory after loading, after prompts and while it answers, beside the estimate of
`ortkit inspect`.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from benchmarks.peers import BUNDLE, MODEL, ortkit_name
from benchmarks.processor import processor
from benchmarks.table import print_table
from benchmarks.texts import texts_of_any_length
from ortkit import Bundle, Decoder, Embedder, Kind
from ortkit.runtime.bundle.manifest import DecoderFacts, Manifest
from ortkit.runtime.decoder.memory_estimate import footprint_of, graph_size
from ortkit.runtime.decoder.model_runner import ModelRunner

FEWEST_WORDS, MOST_WORDS = 3, 500
PROMPTS = (22, 900)
"""Prompt lengths in tokens."""
CHUNK = 1024
"""Texts per call."""
MEBIBYTE = 2**20
STATUS = Path("/proc/self/status")
PEAK_RESET = Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class Sample:
    """The memory of this process after some texts."""

    texts: int
    resident: int
    """In bytes."""


def resident_bytes() -> int:
    """Resident memory of this process."""
    return status_bytes("VmRSS")


def peak_bytes() -> int:
    """Peak resident memory since `forget_peak`."""
    return status_bytes("VmHWM")


def status_bytes(field: str) -> int:
    line = next(line for line in STATUS.read_text(encoding="ascii").splitlines() if line.startswith(f"{field}:"))
    return int(line.split()[1]) * 1024


def forget_peak() -> None:
    """Reset the peak to the resident memory: loading takes more for a moment."""
    PEAK_RESET.write_text("5", encoding="ascii")


def embed_all(embedder: Embedder, texts: Iterable[str]) -> Iterator[Sample]:
    """Embed texts chunk by chunk, discard the embeddings, and sample memory after each chunk."""
    done = 0
    for chunk in chunks(texts):
        vectors = embedder.embed_with_report(chunk).vectors
        done += len(vectors)
        del vectors
        yield Sample(done, resident_bytes())


def chunks(texts: Iterable[str]) -> Iterator[list[str]]:
    texts = iter(texts)
    while chunk := list(islice(texts, CHUNK)):
        yield chunk


def slope(samples: Sequence[Sample]) -> float:
    """Slope of a line fitted through the samples: bytes per text."""
    if len(samples) < 2:
        raise SystemExit(f"too few texts to tell a slope\n\nhint: take at least {4 * CHUNK:,}")
    counts = np.array([sample.texts for sample in samples], np.float64)
    resident = np.array([sample.resident for sample in samples], np.float64)
    return float(np.polyfit(counts, resident, 1)[0])


def quarters(samples: Sequence[Sample]) -> list[Sample]:
    """The samples after each quarter of the way."""
    return [samples[len(samples) * part // 4 - 1] for part in range(1, 5)] if len(samples) >= 4 else []


def mebibytes(size: float) -> str:
    return f"{size / MEBIBYTE:.1f}"


def measure_decoder(bundle: Bundle, *, prompts: Sequence[int], threads: int, new: int) -> None:
    """Print a table of the memory of a process that decodes, for prompts of so many tokens."""
    manifest = bundle.manifest
    facts = required_facts(manifest)
    start = time.perf_counter()
    decoder = Decoder(bundle, threads=threads)
    seconds = time.perf_counter() - start
    files = graph_size(manifest)
    rows = [["graph and weights on disk", mebibytes(files), "", ""]]

    def note(label: str, cache: int = 0) -> None:
        resident = resident_bytes()
        rows.append([label, mebibytes(resident), mebibytes(cache), mebibytes(resident - files - cache)])

    note(f"loaded in {seconds:.1f} s")
    rows.append(["the most while it was loaded", mebibytes(peak_bytes()), "", mebibytes(peak_bytes() - files)])
    ids = np.random.default_rng(1).integers(0, facts.vocabulary, max(prompts)).tolist()
    for tokens in prompts:
        cache = decoder.prefill(ids[:tokens])
        note(f"after a prompt of {tokens:,} tokens", cache.size)
        forward = ModelRunner(decoder.session, cache)
        for id_ in ids[:new]:
            forward.run([id_])
        note(f"and an answer of {new}", cache.size)
        del cache, forward
    rows.append(["the most", mebibytes(peak_bytes()), "", ""])
    for length in footprint_of(manifest, facts).lengths:
        expected = mebibytes(length.total), mebibytes(length.cache), mebibytes(length.total - files - length.cache)
        rows.append([f"estimate of `ortkit inspect` for {length.tokens:,} tokens", *expected])
    header = ["memory", "MiB", "of it KV cache", "beyond those and the files"]
    print_table(f"{manifest.name}, {threads} threads", header, rows)


def required_facts(manifest: Manifest) -> DecoderFacts:
    if manifest.decoder is None:
        raise SystemExit(f"`{manifest.name}` does not say how its graph continues a text")
    return manifest.decoder


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory", description=__doc__)
    parser.add_argument("--bundle", type=Path, default=BUNDLE)
    parser.add_argument("--texts", type=int, default=100_000, help="for the peak and the slope")
    parser.add_argument("--passes", type=int, default=10, help="over one smaller set, after the first")
    parser.add_argument("--texts-of-pass", type=int, default=2 * CHUNK)
    parser.add_argument("--prompts", type=int, nargs="+", default=PROMPTS, metavar="N", help="tokens, for a decoder")
    parser.add_argument("--new", type=int, default=16, help="tokens of a decoder's answers")
    parser.add_argument("--threads", type=int, default=2, help="of a decoder")
    return parser.parse_args()


def main() -> None:
    options = parse_options()
    print(processor())
    if not os.access(PEAK_RESET, os.W_OK):
        raise SystemExit(f"`{PEAK_RESET}` cannot be written here, and the peak is read with it")
    name = ortkit_name(options.bundle)
    bundle = Bundle.open(options.bundle)
    if bundle.manifest.kind is Kind.DECODER:
        measure_decoder(bundle, prompts=options.prompts, threads=options.threads, new=options.new)
        return
    # The corpus is read once before the first sample, so that its memory is not counted as the model's.
    for _ in texts_of_any_length(1, FEWEST_WORDS, MOST_WORDS):
        pass
    before = resident_bytes()
    embedder = Embedder(options.bundle)
    loaded = resident_bytes()
    forget_peak()
    start = time.perf_counter()
    samples = list(embed_all(embedder, texts_of_any_length(options.texts, FEWEST_WORDS, MOST_WORDS)))
    seconds = time.perf_counter() - start
    peak = peak_bytes()
    growth = slope(samples[len(samples) // 2 :])
    passes = []
    for _ in range(options.passes):
        *_, last = embed_all(embedder, texts_of_any_length(options.texts_of_pass, FEWEST_WORDS, MOST_WORDS))
        passes.append(last.resident)
    print_table(
        f"{name}, {MODEL}: {options.texts:,} texts of {FEWEST_WORDS} to {MOST_WORDS} words in {seconds:.0f} s, "
        f"{embedder.workers} workers, chunks of {CHUNK:,}",
        ["memory", "MiB"],
        [
            ["loading the bundle adds", mebibytes(loaded - before)],
            ["resident once loaded", mebibytes(loaded)],
            *([f"after {sample.texts:,} texts", mebibytes(sample.resident)] for sample in quarters(samples)),
            ["peak while embedding, above what was loaded", mebibytes(peak - loaded)],
            ["growth over the last half, for 10,000 texts", mebibytes(growth * 10_000)],
            [f"growth from pass 1 to pass {options.passes}", mebibytes(passes[-1] - passes[0])],
        ],
    )


if __name__ == "__main__":
    main()
