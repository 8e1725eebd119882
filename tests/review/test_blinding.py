"""Which side of a pair is shown as A, and what an answer means then."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from stairdata_review.blinding import first_side, other_side, unblind


def test_sides_are_drawn_evenly_and_the_same_each_time() -> None:
    sides = [first_side(42, f"{number:016x}") for number in range(2000)]
    assert 900 < sides.count("chosen") < 1100
    assert sides == [first_side(42, f"{number:016x}") for number in range(2000)]
    assert sides != [first_side(43, f"{number:016x}") for number in range(2000)]


@given(st.sampled_from(["chosen", "rejected"]), st.sampled_from(["A", "B", "tie", "both_bad"]))
def test_answers_are_turned_back(first: str, said: str) -> None:
    assert unblind(said, first) == {"A": first, "B": other_side(first)}.get(said, said)
