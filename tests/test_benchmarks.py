"""The parts of the benchmarks that results hang on, without the peers."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from itertools import combinations

import pytest

from benchmarks.memory import Sample, quarters, slope
from benchmarks.plot import HEIGHT, LETTER, LINE, WIDTH, Point, axis_of, scatter
from benchmarks.texts import queries, texts_of_any_length


def test_the_texts_for_the_memory_have_all_lengths_and_are_the_same_every_time() -> None:
    lengths = [len(text.split()) for text in texts_of_any_length(3000, 3, 500)]

    assert min(lengths) == 3
    assert 490 < max(lengths) <= 500
    assert 30 < sorted(lengths)[1500] < 48
    assert list(texts_of_any_length(5, 3, 500)) == list(texts_of_any_length(9, 3, 500))[:5]


def test_queries_have_eight_words() -> None:
    assert {len(query.split()) for query in queries(60)} == {8}


def test_memory_that_grows_by_a_constant_has_that_slope() -> None:
    samples = [Sample(texts, 5_000 + 3 * texts) for texts in range(0, 8_000, 1_000)]

    assert slope(samples) == pytest.approx(3)
    assert [sample.texts for sample in quarters(samples)] == [1_000, 3_000, 5_000, 7_000]


@pytest.mark.parametrize(("low", "high"), [(0.98872, 1.0), (0, 727.3), (0.99754, 0.99999), (5, 5)])
def test_an_axis_holds_its_values_between_round_numbers(low: float, high: float) -> None:
    axis = axis_of(low, high, 0, 100)

    assert axis.low <= low <= high <= axis.high
    assert 2 <= len(axis.marks()) <= 9
    assert axis.place(axis.low) == 0
    assert axis.place(axis.high) == pytest.approx(100)


def test_a_plot_names_every_point_inside_the_picture_and_beside_the_others() -> None:
    names = [f"system & version {number}" for number in range(6)]
    points = [Point(name, 40 + 60 * number, 1 - 0.002 * (number % 2)) for number, name in enumerate(names)]

    picture = ET.fromstring(scatter("title", "speed", "cosine", points))

    labels = [item for item in picture.iter() if item.tag.endswith("text") and item.text in names]
    assert sorted(item.text or "" for item in labels) == names
    boxes = []
    for item in labels:
        width = LETTER * len(item.text or "")
        start = float(item.get("x", 0)) - (width if item.get("text-anchor") == "end" else 0)
        boxes.append((start, start + width, float(item.get("y", 0))))
    assert all(start >= 0 and stop <= WIDTH and LINE <= y <= HEIGHT for start, stop, y in boxes)
    for one, other in combinations(boxes, 2):
        assert one[1] <= other[0] or other[1] <= one[0] or abs(one[2] - other[2]) >= LINE - 0.2
