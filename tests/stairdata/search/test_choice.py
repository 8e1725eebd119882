"""The choice among candidates: by fewer of them, and on average over all subsets."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from statistics import fmean
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stairdata.search.choice import best_of, best_of_curve
from stairdata_schemas.aliases import Row
from stairdata_schemas.errors import UsageError

Candidates = list[tuple[float, bool, float | None]]
"""Of each candidate its score, whether it is complete, and what is measured of it."""
CANDIDATES = st.lists(
    st.tuples(st.sampled_from([-1.0, 0.0, 0.5, 2.0]), st.booleans(), st.sampled_from([0.0, 1.0, 2.5, None])),
    min_size=1,
    max_size=6,
)


def row(candidates: Candidates, **other: Any) -> Row:
    made = [
        {"text": f"answer {number}", "score": score, "is_complete": complete, "tokens": number + 1}
        for number, (score, complete, _) in enumerate(candidates)
    ]
    return {
        "response_id": "0123456789abcdef",
        "method": "best_of_n",
        "n": len(made),
        "candidates": made,
        "chosen_index": 0,
        "text": made[0]["text"],
        "score": made[0]["score"],
        "completion_tokens": 100,
        "step_scores": [[0.0, each["score"]] for each in made],
        "seconds": 1.5,
    } | other


def measure_of(candidates: Candidates) -> Callable[[Row], float | None]:
    def measure(response: Row) -> float | None:
        assert response["text"] == response["candidates"][response["chosen_index"]]["text"]
        return candidates[int(response["text"].split()[1])][2]

    return measure


def chosen_by_hand(candidates: Candidates, subset: tuple[int, ...]) -> int:
    """Choose as the page says, in another way than the code."""
    best = subset[0]
    for index in subset[1:]:
        (score, complete, _), (best_score, best_complete, _) = candidates[index], candidates[best]
        if (complete and not best_complete) or (complete == best_complete and score > best_score):
            best = index
    return best


@given(CANDIDATES)
def test_the_curve_is_the_mean_over_all_subsets(candidates: Candidates) -> None:
    curve = best_of_curve([row(candidates)], measure_of(candidates))
    assert [point.k for point in curve] == list(range(1, len(candidates) + 1))
    for point in curve:
        subsets = combinations(range(len(candidates)), point.k)
        values = [candidates[chosen_by_hand(candidates, subset)][2] for subset in subsets]
        known = [value for value in values if value is not None]
        assert point.rows == bool(known)
        assert point.error is None
        assert point.mean == (pytest.approx(fmean(known)) if known else None)


@given(CANDIDATES, st.data())
def test_the_best_of_the_first_k(candidates: Candidates, data: st.DataObject) -> None:
    k = data.draw(st.integers(1, len(candidates)))
    best = best_of(row(candidates), k)
    index = chosen_by_hand(candidates, tuple(range(k)))
    assert (best["chosen_index"], best["text"], best["score"]) == (index, f"answer {index}", candidates[index][0])
    assert (best["n"], len(best["candidates"]), len(best["step_scores"])) == (k, k, k)
    assert best["completion_tokens"] == k * (k + 1) / 2
    assert best["seconds"] is None


def test_rows_of_a_curve_count_alike_up_to_the_fewest_candidates() -> None:
    first: Candidates = [(0.0, True, 0.0), (1.0, True, 1.0)]
    second: Candidates = [(0.0, True, 1.0), (1.0, True, 3.0), (2.0, True, 9.0)]
    values = {"first": first, "second": second}

    def measure(response: Row) -> float | None:
        return values[response["prompt"]][response["chosen_index"]][2]

    curve = best_of_curve([row(first, prompt="first"), row(second, prompt="second")], measure)
    assert [point.mean for point in curve] == [pytest.approx((0.5 + 13 / 3) / 2), pytest.approx((1 + 7) / 2)]
    assert curve[1].error == pytest.approx(3.0)
    assert [point.rows for point in curve] == [2, 2]
    assert best_of_curve([], measure) == []


def test_many_candidates() -> None:
    """The largest of k out of the numbers 0 to n-1 is k (n+1) / (k+1) - 1 on average."""
    many: Candidates = [(float(number), True, float(number)) for number in range(400)]
    curve = best_of_curve([row(many)], measure_of(many))
    assert curve[0].mean == pytest.approx(fmean(range(400)))
    assert curve[-1].mean == 399
    assert curve[199].mean == pytest.approx(200 * 401 / 201 - 1)


def test_what_has_no_best() -> None:
    scored: Candidates = [(0.0, True, 0.0), (1.0, True, 1.0)]
    for k in (0, 3):
        with pytest.raises(UsageError, match=f"k is {k}, and the response '0123456789abcdef' has 2 candidates"):
            best_of(row(scored), k)
    with pytest.raises(UsageError, match="beam search, whose candidates are not independent"):
        best_of(row(scored, method="beam"), 1)
    unscored = row(scored)
    for candidate in unscored["candidates"]:
        candidate["score"] = None
    assert best_of(unscored | {"step_scores": None}, 1)["text"] == "answer 0"
    with pytest.raises(UsageError, match=r"have no scores; build responses with responses\.prm"):
        best_of(unscored, 2)
