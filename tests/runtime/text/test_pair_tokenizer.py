"""How a query and a document that are too long together are cut: as `tokenizers` does for the publisher's library."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tokenizers

from ortkit.runtime.bundle.bundle import TOKENIZER, Bundle
from ortkit.runtime.bundle.manifest import PairFacts, Side, TokenizerFacts, Truncation
from ortkit.runtime.text.pair_tokenizer import PairTokenizer, longest_first

CLS, SEP = 101, 102
WORDS = "water rope north slip tie needle boil way".split()  # noqa: SIM905


def text(words: int) -> str:
    return " ".join(WORDS[number % len(WORDS)] for number in range(words))


@pytest.fixture(scope="module")
def path(reranker_bundle: Bundle) -> Path:
    return reranker_bundle.file(TOKENIZER)


def opened(path: Path, length: int, side: Side = Side.RIGHT, **facts: object) -> PairTokenizer:
    settings = {"truncation": Truncation.LONGEST, **facts}
    between = () if settings["truncation"] is Truncation.END else (SEP,)
    pair = PairFacts((CLS,), between, (SEP,), 1, **settings)  # type: ignore[arg-type]
    return PairTokenizer(path, TokenizerFacts(length, False, {}, truncation_side=side), pair, typed=True)


@pytest.mark.parametrize("side", list(Side))
@pytest.mark.parametrize("length", [9, 14])
def test_pairs_are_cut_as_tokenizers_does(path: Path, side: Side, length: int) -> None:
    own, library = opened(path, length, side), tokenizers.Tokenizer.from_file(str(path))
    library.no_padding()
    library.enable_truncation(length, strategy="longest_first", direction=side.value)
    pairs = [(text(query), text(document)) for query in range(1, 17) for document in range(17)]

    found = own.tokenize(pairs)

    for pair, row, expected in zip(pairs, found, library.encode_batch(pairs), strict=True):
        assert row.ids.tolist() == expected.ids, pair
        assert own.feeds([row])["token_type_ids"][0].tolist() == expected.type_ids
        words = [len(one.split()) for one in pair]
        assert row.dropped + row.query_dropped == max(0, sum(words) - (length - 3))


def test_the_longer_is_cut_first() -> None:
    assert longest_first(3, 4, 10) == (3, 4)
    assert longest_first(3, 40, 10) == (3, 7)
    assert longest_first(40, 3, 10) == (7, 3)
    assert longest_first(6, 6, 11) == (5, 6)
    assert longest_first(8, 6, 11) == (6, 5)
    assert longest_first(100, 200, 11) == (5, 6)


def test_a_prompt_is_cut_at_its_end(path: Path) -> None:
    """As a chat template with both texts: what follows the document stays, and a long query leaves nothing of it."""
    own = opened(path, 12, truncation=Truncation.END, query_prefix="find ", query_suffix=" in", document_prefix=" ")
    library = tokenizers.Tokenizer.from_file(str(path))
    library.no_padding()
    for query, document in ((2, 3), (2, 30), (8, 5), (30, 30)):
        whole = library.encode(f"find {text(query)} in {text(document)}", add_special_tokens=False).ids
        [found] = own.tokenize([(text(query), text(document))])
        assert found.ids.tolist() == [CLS, *whole[:10], SEP]
        assert found.dropped + found.query_dropped == max(0, len(whole) - 10)


def test_bundles_of_earlier_versions_cut_as_they_did(path: Path) -> None:
    """The end of the document, and the query only where it leaves no room: their certificates were made so."""
    own = opened(path, 13, truncation=Truncation.DOCUMENT)
    rows = own.tokenize([(text(4), text(30)), (text(9), text(9)), (text(10), "")])

    assert [(row.query_dropped, row.dropped) for row in rows] == [(0, 24), (0, 8), (0, 0)]
    [cut] = own.tokenize([(text(30), text(30))])
    assert (cut.query_dropped, cut.dropped) == (25, 25)
    assert np.array_equal(cut.ids[:1], [CLS])
