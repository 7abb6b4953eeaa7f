from __future__ import annotations

import pytest

from ortkit import exporters
from ortkit.exporters.progress import DownloadCounter, NoProgress, WeightCounter, counted, stage


class Recorder(NoProgress):
    def __init__(self) -> None:
        self.updates: list[tuple[int, int, str]] = []
        self.stages: list[str] = []

    def begin(self, stage: str) -> None:
        self.stages.append(f"begin {stage}")

    def end(self, stage: str, seconds: float) -> None:
        assert seconds >= 0
        self.stages.append(f"end {stage}")

    def update(self, done: int, total: int, unit: str) -> None:
        self.updates.append((done, total, unit))


def test_items_are_reported_when_the_next_one_is_asked_for() -> None:
    recorder, inner = Recorder(), Recorder()
    with stage(recorder, "certify"):
        for item in counted(["a", "b"], "texts"):
            assert len(recorder.updates) == "ab".index(item)
        with stage(inner, "of another export"):
            assert list(counted(range(3), "pairs")) == [0, 1, 2]
    assert list(counted("ab", "texts")) == ["a", "b"], "outside of a stage too"

    assert recorder.updates == [(1, 2, "texts"), (2, 2, "texts")]
    assert inner.updates[-1] == (3, 3, "pairs")


def test_a_stage_that_fails_has_no_end() -> None:
    recorder = Recorder()
    with pytest.raises(ValueError, match="broken"), stage(recorder, "trace"):
        raise ValueError("broken")
    list(counted("ab", "texts"))

    assert (recorder.stages, recorder.updates) == (["begin trace"], [])


def test_weights_are_reported_in_bytes() -> None:
    recorder = Recorder()
    counter = WeightCounter(recorder, [30, 70])

    counter.advance(30)
    counter.advance(70)

    assert recorder.updates == [(30, 100, "bytes"), (100, 100, "bytes")]


def test_downloads_are_reported_a_few_times_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([10.0, 10.1, 10.3, 11.0])
    monkeypatch.setattr("ortkit.exporters.progress.time.monotonic", lambda: next(times))
    recorder = Recorder()
    counter = DownloadCounter(recorder, 100)

    counter.at(10)
    counter.at(20)
    counter.at(30)
    counter.complete(40)
    counter.at(60)
    counter.finish()

    assert recorder.updates == [(10, 100, "bytes"), (30, 100, "bytes"), (100, 100, "bytes"), (100, 100, "bytes")]


def test_users_find_the_protocol_at_the_door() -> None:
    assert exporters.Progress is not None
    assert {name for name in vars(exporters.Progress) if not name.startswith("_")} == {"begin", "end", "note", "update"}
