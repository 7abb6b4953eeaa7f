from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ortkit import InputError
from ortkit.runtime.text.stop_strings import StopStrings


def run(stops: list[str], pieces: list[str]) -> tuple[list[str], bool]:
    strings = StopStrings(stops)
    shown = []
    for piece in pieces:
        text, stopped = strings.push(piece)
        shown.append(text)
        if stopped:
            return shown, True
    return [*shown, strings.end()], False


def test_a_stop_string_across_pieces_is_not_shown() -> None:
    assert run(["\n\nUser:"], ["Hello", ".\n", "\nUs", "er", ": no"]) == (["Hello", ".", "", "", ""], True)


def test_a_partial_stop_string_is_released_late_but_complete() -> None:
    assert run(["###"], ["a#", "#", "b"]) == (["a", "", "##b", ""], False)


def test_text_held_back_is_released_at_the_end() -> None:
    assert run(["###"], ["a##"]) == (["a", "##"], False)


def test_the_first_of_several_stop_strings_wins() -> None:
    assert run(["c", "bc"], ["abc"]) == (["a"], True)


def test_without_stop_strings_no_text_is_held_back() -> None:
    assert run([], ["a", "b"]) == (["a", "b", ""], False)


small = st.text("ab", max_size=8)


@given(st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=3), st.lists(small, max_size=12))
def test_the_text_is_that_before_the_first_stop_string(stops: list[str], pieces: list[str]) -> None:
    whole = "".join(pieces)
    places = [place for stop in stops if (place := whole.find(stop)) >= 0]
    shown, stopped = run(stops, pieces)

    # In pieces, a stop string that is complete ends the text even where a longer one began before it.
    assert stopped == bool(places)
    assert whole.startswith("".join(shown))
    assert not any(stop in "".join(shown) for stop in stops)
    if not stopped:
        assert "".join(shown) == whole


@given(st.text("ab", min_size=1, max_size=4), st.lists(small, max_size=12))
def test_a_stop_string_is_found_however_the_text_is_split(stop: str, pieces: list[str]) -> None:
    whole = "".join(pieces)

    assert "".join(run([stop], pieces)[0]) == whole.split(stop)[0]


@pytest.mark.parametrize(
    ("stops", "message"),
    [
        (["a", ""], "stop string 1 is empty, so every answer would be empty"),
    ],
)
def test_stop_strings_that_cannot_be_used(stops: object, message: str) -> None:
    with pytest.raises(InputError) as caught:
        StopStrings(stops)

    assert caught.value.message == message
