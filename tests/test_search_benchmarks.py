"""The parts of the benchmarks of search that their results hang on: collections, measures, statistics, turns."""

from __future__ import annotations

import email
import gzip
import math
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import docx
import numpy as np
import pypdf
import pytest
from sklearn.metrics import ndcg_score

from benchmarks import fusion, index_build, known_items
from benchmarks.known_items import (
    Collection,
    Item,
    Query,
    described,
    distinct_items,
    docstrings,
    docstrings_of,
    questions,
)
from benchmarks.mixed_folder import files_of, passages, write_folder
from benchmarks.search_quality import (
    Quality,
    difference,
    difference_rows,
    interval,
    measure,
    ndcg,
    quality,
    rank_of,
    significant,
)
from ortkit import Embedder, Index, Reranker
from ortkit.toolkit.search.fusion import SIMILARITY_SHARE
from tests.tiny_bundles import write_embedder, write_reranker

PACKAGES = """\
Package: pumpd
Description-md5: 0
Description-en: Controls pumps
 A daemon for pumps of all kinds.
 .
 It speaks Modbus.

Package: nothing
Description-md5: 0
"""


def test_descriptions_of_packages() -> None:
    text = "A daemon for pumps of all kinds.\n\nIt speaks Modbus."

    assert list(described(PACKAGES)) == [Item("pumpd.txt", "Controls pumps", text)]


def test_docstrings_have_the_names_of_what_they_document() -> None:
    source = 'class Pump:\n    """A pump."""\n    def start(self):\n        """Start it.\n\n        By hand."""\n'

    assert sorted(docstrings_of(source)) == [(".Pump", "A pump."), (".Pump.start", "Start it.\n\nBy hand.")]


def test_items_that_cannot_be_told_apart_or_repeat_their_summary_are_left_out() -> None:
    long = " ".join(f"word{number}" for number in range(30))
    kept = Item("a", "one two three", long)
    others = [
        Item("b", "four five six", f"{long}\n\nAnother paragraph"),
        Item("c", "One, two: three!", f"other {long}"),
        Item("d", "seven eight nine", f"{long} as Seven-eight nine"),
        Item("e", "too short a text", "few words"),
        Item("f", "two words", f"more {long}"),
    ]

    assert list(distinct_items([kept, *others])) == [kept]


def test_the_known_items_of_the_standard_library_are_the_same_every_time(monkeypatch: pytest.MonkeyPatch) -> None:
    package = Path(email.__file__).parent
    monkeypatch.setattr("benchmarks.known_items.sysconfig.get_path", {"stdlib": package}.get)

    found = docstrings(20)

    assert found == docstrings(20)
    assert len(found.files) > 60
    assert found.files["message.Message.set_type.txt"].startswith("type must be a string in the form")
    assert len({query.answer for query in found.queries}) == 20
    for query in found.queries:
        assert known_items.words(query.text) not in known_items.words(found.files[query.answer])


def test_the_questions_have_their_passages_answers(tmp_path: Path) -> None:
    found = questions()
    found.write(tmp_path / "files")

    assert len(found.queries) == 240
    assert len(set(found.files) - {query.answer for query in found.queries}) > 400
    [answer] = {query.answer for query in found.queries if "kettle" in query.text}
    assert (tmp_path / "files" / answer).read_text("utf-8").startswith("# Boiling water to make it safe\n\nBring clear")


@pytest.mark.parametrize("rank", [1, 2, 10, 11, None])
def test_ndcg_is_scikit_learns(rank: int | None) -> None:
    relevance, scores = np.zeros((1, 40)), -np.arange(40.0)[np.newaxis]
    if rank is not None:
        relevance[0, rank - 1] = 1

    assert ndcg(rank) == pytest.approx(ndcg_score(relevance, scores, k=10))


def test_a_file_counts_at_its_best_passage() -> None:
    assert rank_of("b", ["a", "a", "b", "c"]) == 2
    assert rank_of("d", ["a", "b"]) is None
    found = quality("any", [1, 50, 51, None])
    assert found.recall.tolist() == [1, 1, 0, 0]
    assert found.ndcg.tolist() == [1, 0, 0, 0]


def test_intervals_and_tests_agree_with_the_normal_approximation() -> None:
    """For many queries both are close to that of the t-test, computed here by hand."""
    random = np.random.default_rng(1)
    those = random.uniform(0, 1, 400)
    these = those + random.normal(0.02, 0.2, 400)
    mean, error = (these - those).mean(), (these - those).std(ddof=1) / 20

    found = difference(these, those)

    assert found.mean == pytest.approx(mean)
    assert (found.low, found.high) == pytest.approx((mean - 1.96 * error, mean + 1.96 * error), abs=error / 8)
    assert found.p == pytest.approx(math.erfc(abs(mean) / error / math.sqrt(2)), abs=0.02)
    assert interval(np.ones(5)) == (1, 1)
    assert difference(those, those).p == 1


def test_holms_procedure() -> None:
    """The example of statsmodels' and R's `p.adjust`: 0.01, 0.02, 0.03 and 0.04 become 0.04, 0.06, 0.06 and 0.06."""
    assert significant([0.04, 0.01, 0.03, 0.02]) == [False, True, False, False]
    assert significant([0.012, 0.01, 0.5]) == [True, True, False]
    assert significant([0.04]) == [True]


def test_differences_that_are_noise_are_called_so() -> None:
    random = np.random.default_rng(2)
    base = random.uniform(0, 0.8, 200)
    measured = [
        Quality("plain", base, np.zeros(200)),
        Quality("same", base + random.normal(0, 0.1, 200), np.zeros(200)),
        Quality("better", base + 0.1 + random.normal(0, 0.1, 200), np.ones(200)),
    ]

    rows = difference_rows(measured)

    assert [row[0].split(" - ")[0] for row in rows[1:]] == ["better", "better"]
    assert [row[2].endswith(", noise") for row in rows] == [True, False, False]
    assert [row[4].endswith(", noise") for row in rows] == [True, False, False]
    assert rows[1][3].startswith("+1.000")


def test_the_mixed_folder_has_sixty_files_and_each_passage_once(tmp_path: Path) -> None:
    homes = write_folder(tmp_path)

    files = list(files_of(tmp_path))
    assert len(files) == 60
    assert {path.suffix for path in files} == {
        ".txt", ".md", ".html", ".csv", ".jsonl", ".pdf", ".docx", ".py", ".gz",
    }  # fmt: skip
    assert homes.keys() == {one.title for one in passages()}
    for one in passages():
        path = tmp_path / homes[one.title]
        if path.suffix == ".pdf":
            pages = [page.extract_text() for page in pypdf.PdfReader(path, strict=True).pages]
            assert any(page.startswith(f"{one.title}\n") and page.split()[-1] == one.text.split()[-1] for page in pages)
        elif path.suffix == ".docx":
            assert [line.text for line in docx.Document(str(path)).paragraphs] == [one.title, one.text]
        else:
            content = path.read_text("utf-16" if ".utf16" in path.name else "utf-8")
            assert one.title in content
    assert gzip.decompress((tmp_path / "old" / "notes.txt.gz").read_bytes())
    with pytest.raises(pypdf.errors.PdfReadError):
        pypdf.PdfReader(tmp_path / "old" / "damaged.pdf", strict=True)


def test_the_files_of_the_mixed_folder_are_found_in_every_format(tmp_path: Path) -> None:
    homes = write_folder(tmp_path / "files")
    embedder = Embedder(write_embedder(tmp_path / "bundle"))

    with Index.build(tmp_path / "index", tmp_path / "files", embedder, chunk_tokens=64) as index:
        assert index.update_report is not None
        assert index.update_report.added == 58
        assert [one.name for one in index.update_report.skipped] == ["old/damaged.pdf", "old/notes.txt.gz"]
        found = {one.title: index.search(one.text, mode="bm25", top_n=1)[0].file for one in passages()}
    assert found == homes


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Index, Collection]]:
    """An index of a few files, and queries on it."""
    folder = tmp_path_factory.mktemp("small")
    files = {"fox.txt": "The quick brown fox", "dog.txt": "jumps over the lazy dog", "sleep.txt": "and the dog sleeps"}
    queries = [Query("quick fox", "fox.txt"), Query("the dog sleeps", "sleep.txt"), Query("lazy", "dog.txt")]
    collection = Collection("small", "a test", files, queries)
    collection.write(folder / "files")
    embedder = Embedder(write_embedder(folder / "bundle"))
    with Index.build(folder / "index", folder / "files", embedder) as index:
        yield index, collection


def test_each_way_of_searching_is_measured(small: tuple[Index, Collection], tmp_path: Path) -> None:
    index, collection = small
    reranker = Reranker(write_reranker(tmp_path / "reranker"))

    measured = measure(index, collection, reranker)

    assert [one.name for one in measured] == ["BM25 alone", "vectors alone", "fusion", "fusion, reranked"]
    assert measured[0].ndcg.tolist() == [1, 1, 1]
    for one, mode, own in zip(
        measured, ("bm25", "vector", "hybrid", "hybrid"), (None, None, None, reranker), strict=True
    ):
        found = [index.search(query.text, top_n=3, mode=mode, reranker=own) for query in collection.queries]
        ranks = [
            [hit.file for hit in hits].index(query.answer)
            for hits, query in zip(found, collection.queries, strict=True)
        ]
        assert one.ndcg.tolist() == [1 / np.log2(2 + rank) for rank in ranks]


def test_fusions_are_computed_from_the_figures_of_a_search(small: tuple[Index, Collection]) -> None:
    index, collection = small

    found = fusion.candidates_of(index, collection)

    for candidates, query in zip(found, collection.queries, strict=True):
        hits = index.search(query.text, top_n=10)
        assert candidates.files == [hit.file for hit in hits]
        own = fusion.observed(candidates, share=SIMILARITY_SHARE)
        assert own.tolist() == pytest.approx([hit.scores.fused for hit in hits])
        vectors = fusion.observed(candidates, share=1)
        assert (vectors.min(), vectors.max()) == (0, 1)
    assert set(fusion.COMPARED) < set(fusion.fusions())
    vectors_alone = fusion.qualities(collection, found)[0]
    assert vectors_alone.ndcg.tolist() == measure(index, collection, None)[1].ndcg.tolist()


def test_sums_of_scores() -> None:
    inf = np.inf
    found = fusion.Candidates(
        ["a", "b", "c"],
        similarity=np.array([0.6, 0.2, 0.1]),
        similarity_rank=np.array([1, 2, inf]),
        bm25=np.array([0.0, 4.0, 8.0]),
        bm25_rank=np.array([inf, 2, 1]),
    )

    ranks = fusion.reciprocal_ranks(found, weight=2, constant=60)
    assert ranks == pytest.approx([2 / 61, 2 / 62 + 1 / 62, 1 / 61])
    assert fusion.theoretical(found, share=0.5) == pytest.approx([0.5, 0.5 * 1.2 / 1.6 + 0.25, 0.5 * 1.1 / 1.6 + 0.5])
    assert fusion.observed(found, share=0.5) == pytest.approx([0.5, 0.25, 0.5])
    assert fusion.scaled(np.zeros(2), 0.0).tolist() == [0, 0]
    assert fusion.scaled(np.zeros(0), 0.0).tolist() == []


SPIN = "import time; begin = time.process_time()\nwhile time.process_time() - begin < {seconds}: pass"


def test_two_processes_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither counts the seconds in which it was stopped."""
    monkeypatch.setattr("benchmarks.rounds.PAUSE", 0.01)
    runs = [index_build.Run([sys.executable, "-c", SPIN.format(seconds=seconds)]) for seconds in (0.2, 0.6)]
    begin = time.monotonic()

    busy = index_build.run_in_turns(runs, slot=0.1)

    took = time.monotonic() - begin
    assert runs[0].seconds >= 0.2
    assert runs[1].seconds >= 0.6
    assert runs[0].seconds + runs[1].seconds <= took
    assert len(busy) >= 4
    assert all(run.peak > 2**20 for run in runs)


def test_a_command_that_fails_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.rounds.PAUSE", 0.01)
    runs = [index_build.Run([sys.executable, "-c", code]) for code in ("raise SystemExit(3)", SPIN.format(seconds=60))]

    with pytest.raises(SystemExit, match="ended with 3"):
        index_build.run_in_turns(runs, slot=5)


def test_the_table_of_the_build_has_the_ratio_of_rates() -> None:
    measured = [(index_build.Run([], 10, 3 << 20), index_build.Run([], 9, 1 << 20)) for _ in range(2)]

    rows = index_build.rows_of(measured, 900)

    assert rows == [
        ["ortkit index", "10.0", "90", "0.90 (0.90 to 0.90)", "3"],
        ["ortkit embed", "9.0", "100", "1", "1"],
    ]
    saved = index_build.figures_of(measured, 900)
    assert [one.value.median for one in saved] == [90, 100]
    assert [one.ratio and one.ratio.rounds for one in saved] == [None, (0.9, 0.9)]
