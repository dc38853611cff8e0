from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from wherry.worker.runtimes.stop_texts import StopFinder

LETTERS = st.text("ab你", max_size=12)
STOPS = st.lists(st.text("ab你", min_size=1, max_size=4), max_size=3)


def read(stops: list[str], pieces: list[str]) -> tuple[str, str]:
    finder = StopFinder(stops)
    said = "".join([finder.feed(piece) for piece in pieces])
    return said + finder.finish(), finder.found


@given(st.lists(LETTERS, max_size=6), STOPS)
def test_what_is_said_does_not_depend_on_the_pieces(pieces: list[str], stops: list[str]) -> None:
    whole = "".join(pieces)
    said, found = read(stops, pieces)
    assert (said, found) == read(stops, [whole]) == read(stops, list(whole))
    assert whole.startswith(said + found)
    assert not any(stop in said for stop in stops)
    if not found:
        assert said == whole


def test_nothing_that_may_be_part_of_a_stop_text_is_said_too_soon() -> None:
    finder = StopFinder(["\nUser:"])
    assert finder.feed("Hello\nUs") == "Hello"
    assert finder.feed("ually") == "\nUsually"
    assert finder.feed(" yes\nUser: no") == " yes"
    assert (finder.found, finder.feed("more"), finder.finish()) == ("\nUser:", "", "")


def test_of_two_that_are_complete_at_once_the_longer_counts() -> None:
    assert read(["bc", "abc"], ["xabc"]) == ("x", "abc")
    assert read(["abc", "b"], ["xabc"]) == ("xa", "b")
