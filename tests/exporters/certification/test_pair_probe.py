"""Pairs that show differences: of which kinds there are enough of each."""

from __future__ import annotations

from pathlib import Path

from ortkit.exporters.certification.pair_probe import pair_probe
from ortkit.exporters.certification.probe import tokenizer_probe
from ortkit.exporters.models.loading import load_tokenizer
from ortkit.exporters.sources import find_checkpoint
from ortkit.runtime.text.pair_tokenizer import longest_first


def test_every_text_stands_on_both_sides_and_every_cut_is_met(reranker_checkpoint: Path) -> None:
    tokenizer = load_tokenizer(find_checkpoint(str(reranker_checkpoint)))
    pairs = pair_probe(tokenizer, 64)
    texts = tokenizer_probe(tokenizer, 64)

    assert set(texts) <= {document for _, document in pairs}
    assert {text for text in texts if text.strip()} <= {query for query, _ in pairs}
    assert any(document == "" for _, document in pairs)
    assert all(query.strip() for query, _ in pairs)
    lengths = [
        tuple(len(ids) for ids in tokenizer(list(pair), add_special_tokens=False)["input_ids"]) for pair in pairs
    ]
    kept = [longest_first(query, document, 61) for query, document in lengths]
    cut = [(query - left, document - right) for (query, document), (left, right) in zip(lengths, kept, strict=True)]
    assert any(query == 0 < document for query, document in cut)
    assert any(document == 0 < query for query, document in cut)
    assert any(query > 0 and document > 0 for query, document in cut)
    assert {max(query, document) for query, document in cut} >= {0, 1}
