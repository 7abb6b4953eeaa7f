from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import pytest

from ortkit.runtime.bundle.records import WITHIN, RecordError, read_record, write_record


class Colour(StrEnum):
    RED = "red"
    BLUE = "blue"


@dataclass(frozen=True)
class Leaf:
    size: int
    weight: float = 1.0


@dataclass(frozen=True)
class Tree:
    name: str
    colour: Colour
    leaves: tuple[Leaf, ...]
    by_name: dict[str, Leaf] = field(default_factory=dict)
    parent: str | None = None
    tall: bool = False
    rings: int | None = field(default=None, metadata={WITHIN: range(1, 1000)})


GOOD: dict[str, Any] = {
    "name": "oak",
    "colour": "red",
    "leaves": [{"size": 1}, {"size": 2, "weight": 3}],
    "by_name": {"a/b": {"size": 3}},
    "parent": None,
    "tall": True,
}


def test_a_record_survives_the_way_there_and_back() -> None:
    tree = read_record(Tree, GOOD)

    assert tree == Tree("oak", Colour.RED, (Leaf(1), Leaf(2, 3.0)), {"a/b": Leaf(3)}, None, tall=True)
    assert read_record(Tree, write_record(tree)) == tree


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": 3}, "`name` must be a string, not `3`"),
        ({"name": None}, "`name` must be a string, not null"),
        ({"colour": "green"}, "`colour` must be one of red, blue, not `green`"),
        ({"colour": ["red"]}, "`colour` must be one of red, blue, not a list"),
        ({"leaves": {}}, "`leaves` must be a list, not an object"),
        ({"leaves": [{"size": 1}, {"size": "x"}]}, "`leaves[1].size` must be an integer, not `x`"),
        ({"leaves": [{"size": True}]}, "`leaves[0].size` must be an integer, not `True`"),
        ({"leaves": [{}]}, "`leaves[0].size` is missing"),
        ({"leaves": [{"size": 1, "weight": "1"}]}, "`leaves[0].weight` must be a number, not `1`"),
        ({"by_name": {"a": []}}, "`by_name.a` must be an object, not a list"),
        ({"by_name": []}, "`by_name` must be an object, not a list"),
        ({"by_name": {1: {"size": 1}}}, "`by_name` must have strings as keys, not `1`"),
        ({"parent": 1}, "`parent` must be a string, not `1`"),
        ({"name": "a\ud800"}, "`name` is not valid Unicode: surrogates not allowed at character 1"),
        ({"by_name": {"\udfff": []}}, "`by_name` is not valid Unicode: surrogates not allowed at character 0"),
        ({"leaves": [{"size": 1, "weight": 10**400}]}, "`leaves[0].weight` is too large for a float64"),
        ({"leaves": [{"size": 1, "weight": float("nan")}]}, "`leaves[0].weight` must be a finite number, not `nan`"),
        ({"leaves": [{"size": 1, "weight": float("-inf")}]}, "`leaves[0].weight` must be a finite number, not `-inf`"),
        ({"rings": 0}, "`rings` must be from 1 to 999, not `0`"),
        ({"rings": 1000}, "`rings` must be from 1 to 999, not `1000`"),
        ({"tall": 1}, "`tall` must be true or false, not `1`"),
        ({"extra": 1}, "`extra` is not a known field"),
    ],
)
def test_invalid_values_are_named_by_their_path(change: dict[str, Any], message: str) -> None:
    with pytest.raises(RecordError) as caught:
        read_record(Tree, GOOD | change)

    assert str(caught.value) == message


@pytest.mark.parametrize("rings", [None, 1, 999])
def test_values_in_range(rings: int | None) -> None:
    assert read_record(Tree, GOOD | {"rings": rings}).rings == rings


def test_something_else_than_an_object_is_refused() -> None:
    with pytest.raises(RecordError, match="must be an object, not a list"):
        read_record(Tree, [])
