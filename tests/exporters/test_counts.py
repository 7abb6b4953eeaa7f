from __future__ import annotations

from exporters.counts import counted, shown_by
from exporters.probe import lines_of
from exporters.stages import Silence, stage


class Noted(Silence):
    def __init__(self) -> None:
        self.counts: list[tuple[int, int, str]] = []

    def counted(self, done: int, total: int, noun: str) -> None:
        self.counts.append((done, total, noun))


def test_what_a_stage_counts_is_told_when_it_is_done() -> None:
    noted = Noted()
    with stage(noted, "certify"):
        for item in counted(["a", "b"], "texts"):
            assert len(noted.counts) == "ab".index(item)
        with shown_by(lambda *_: None):
            assert list(counted(range(3), "pairs")) == [0, 1, 2]
    assert list(counted("ab", "texts")) == ["a", "b"], "outside of a stage too"

    assert noted.counts == [(1, 2, "texts"), (2, 2, "texts")]


def test_lines_of_texts_end_with_nothing_but_a_line_feed() -> None:
    assert lines_of("a\u2028b\x85c\x0cd\re\n\nf\n".encode()) == ["a\u2028b\x85c\x0cd\re", "", "f"]
