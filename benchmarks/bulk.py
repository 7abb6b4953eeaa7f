"""Texts per second and CPU core of `ortkit.bulk.Embed`: `python -m benchmarks.bulk BUNDLE [TEXTS]`.

The figures of the sizing table in docs/bulk.md. The CPU time of the process counts, so that other processes disturb
little; run it on an idle machine nevertheless.
"""

from __future__ import annotations

import sys
import time

import pyarrow as pa

from benchmarks.texts import held_out_texts
from ortkit import Embedder
from ortkit.bulk import Embed


def main(bundle: str, count: int) -> None:
    texts = held_out_texts(count)
    table = pa.table({"text": texts})
    tokens = Embedder(bundle, workers=1).count_tokens(texts).clip(max=Embedder(bundle).max_length)
    words = sum(len(text.split()) for text in texts) / len(texts)
    print(f"{len(texts)} texts of {tokens.mean():.0f} tokens and {words:.0f} words on average")
    for workers in (1, 2):
        embed = Embed(bundle, workers=workers, long="mean")
        embed(table.slice(0, 64))
        wall, cpu = time.perf_counter(), time.process_time()
        embed(table)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        print(
            f"{workers} workers: {len(texts) / wall:.0f} texts/s, {len(texts) / cpu:.0f} texts per second of CPU time"
        )


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 800)
