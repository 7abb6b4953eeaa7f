from __future__ import annotations

from pathlib import Path

import numpy as np

from ortkit.exporters.decoder.work_folder import WorkFolder
from ortkit.exporters.graph.array_store import Made


def made() -> Made:
    return Made({"content": np.arange(4, dtype=np.float32)})


def never() -> Made:
    raise AssertionError("what is stored must not be made again")


def test_weights_of_other_recipes_are_deleted_and_measurements_stay(tmp_path: Path) -> None:
    work = WorkFolder(tmp_path)
    work.measurements("trials").keep("a", made)
    for name in "ab":
        work.weights(name).keep("layer", made)

    work.delete_weights_except("b")

    assert [path.name for path in (tmp_path / "weights").iterdir()] == ["b"]
    again = WorkFolder(tmp_path)
    assert again.weights("b").keep("layer", never).array("content").tolist() == [0, 1, 2, 3]
    assert again.measurements("trials").keep("a", never).array("content").tolist() == [0, 1, 2, 3]
    assert not work.weights("a").entries


def test_a_store_is_opened_once(tmp_path: Path) -> None:
    """Its bytes are hashed when it is opened."""
    work = WorkFolder(tmp_path)

    assert work.weights("a") is work.weights("a")
    assert work.measurements("trials") is work.measurements("trials")


def test_what_a_killed_export_left_in_scratch_is_deleted(tmp_path: Path) -> None:
    (tmp_path / "scratch" / "left").mkdir(parents=True)

    with WorkFolder(tmp_path).scratch() as folder:
        assert [path.name for path in (tmp_path / "scratch").iterdir()] == [folder.name]
    assert not folder.exists()
