"""The nearest texts to a query, as JSONL: `python retrieve.py BUNDLE CORPUS.jsonl VECTORS.npy QUERY [--top N]`."""

import argparse
import json
from pathlib import Path

import numpy as np

from ortkit import Embedder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle")
    parser.add_argument("corpus", type=Path, help="JSONL, as `ortkit embed` read it")
    parser.add_argument("vectors", type=Path, help="what `ortkit embed` wrote of it")
    parser.add_argument("query")
    parser.add_argument("--top", type=int, default=50)
    options = parser.parse_args()
    # Row n belongs to the nth line that is not empty; `splitlines` would end lines at other characters too.
    text = options.corpus.read_bytes().decode("utf-8-sig", errors="replace")
    lines = [line for line in text.split("\n") if line.strip()]
    similar = np.load(options.vectors) @ Embedder(options.bundle).embed_query(options.query)
    # The rows of lines that hold no text are NaN, which sorts as the largest.
    best = [index for index in similar.argsort()[::-1] if np.isfinite(similar[index])]
    for index in best[: options.top]:
        print(json.dumps(json.loads(lines[index]) | {"similarity": float(similar[index])}, ensure_ascii=False))


if __name__ == "__main__":
    main()
