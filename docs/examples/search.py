"""Semantic search over a small text collection: `python search.py BUNDLE PASSAGES.jsonl QUERY...`."""

import json
import sys
from pathlib import Path

from ortkit import Embedder


def main(bundle: str, collection: str, queries: list[str]) -> None:
    with Path(collection).open("rb") as lines:
        passages = [json.loads(line) for line in lines if line.strip()]
    embedder = Embedder(bundle)
    corpus = embedder.embed([f"{passage['title']}. {passage['text']}" for passage in passages])
    for query, vector in zip(queries, embedder.embed(queries), strict=True):
        scores = corpus @ vector
        print(f"\n{query}")
        for index in scores.argsort()[::-1][:3]:
            print(f"  {scores[index]:.3f}  {passages[index]['title']}: {passages[index]['text'][:90]}...")


if __name__ == "__main__":
    if len(sys.argv) < 4:
        sys.exit(f"usage: {__doc__}")
    main(sys.argv[1], sys.argv[2], sys.argv[3:])
