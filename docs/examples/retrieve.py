"""The nearest texts to a query, as JSONL: `python retrieve.py BUNDLE CORPUS.jsonl VECTORS.npy QUERY [--top N]`."""

import argparse
import json
from pathlib import Path

import numpy as np

from runtime import Embedder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle")
    parser.add_argument("corpus", type=Path, help="JSONL, as `edgekit embed` read it")
    parser.add_argument("vectors", type=Path, help="what `edgekit embed` wrote of it")
    parser.add_argument("query")
    parser.add_argument("--top", type=int, default=50)
    options = parser.parse_args()
    records = [json.loads(line) for line in options.corpus.read_text(encoding="utf-8").splitlines() if line.strip()]
    similar = np.load(options.vectors) @ Embedder(options.bundle).embed_query(options.query)
    for index in similar.argsort()[::-1][: options.top]:
        print(json.dumps(records[index] | {"similarity": float(similar[index])}, ensure_ascii=False))


if __name__ == "__main__":
    main()
