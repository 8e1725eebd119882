"""Means and their intervals, against a plain loop and closed forms of scipy."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from stairdata.statistics.clusters import Floats, group_scores, resample, standard_errors
from stairdata.statistics.intervals import estimate_mean, wilson
from stairdata.statistics.training_seeds import spread_of_seeds
from stairdata_schemas.errors import InputError


def clustered(seed: int, prompts: int = 12) -> tuple[Floats, list[str]]:
    dice = np.random.default_rng(seed)
    ids = [f"p{number}" for number in range(prompts) for _ in range(dice.integers(1, 6))]
    return dice.random(len(ids)), ids


@pytest.mark.parametrize("seed", range(5))
def test_resamples_on_given_indices_are_those_of_a_plain_loop(seed: int) -> None:
    scores, ids = clustered(seed)
    clusters = group_scores(scores, ids)
    indices = np.random.default_rng(seed).integers(0, 12, size=(50, 12))
    weights = np.array([np.bincount(each, minlength=12) for each in indices], dtype=np.float64)
    means, errors = standard_errors(weights, clusters)
    for drawn, mean, error in zip(indices, means, errors, strict=True):
        rows = [[score for score, id_ in zip(scores, ids, strict=True) if id_ == clusters.ids[each]] for each in drawn]
        number = sum(map(len, rows))
        expected = math.fsum(map(math.fsum, rows)) / number
        residuals = [math.fsum(row) - expected * len(row) for row in rows]
        squares = math.fsum(residual**2 for residual in residuals)
        assert mean == pytest.approx(expected, abs=1e-9)
        assert error == pytest.approx(math.sqrt(squares * 12 / 11) / number, abs=1e-9)


def test_the_standard_error_of_single_rows_is_that_of_the_mean() -> None:
    scores = np.random.default_rng(1).normal(size=40)
    ((mean,), (error,)) = standard_errors(np.ones((1, 40)), group_scores(scores, [str(each) for each in range(40)]))
    assert mean == pytest.approx(scores.mean(), abs=1e-9)
    assert error == pytest.approx(stats.sem(scores), abs=1e-9)


@pytest.mark.parametrize("seen", [0, 1, 13, 40])
def test_wilson_is_that_of_scipy(seen: int) -> None:
    expected = stats.binomtest(seen, 40).proportion_ci(method="wilson")
    assert wilson(seen / 40, 40, stats.norm.ppf(0.975)) == pytest.approx(tuple(expected), abs=1e-9)


@pytest.mark.parametrize("kinds", [2, 400], ids=["few scores", "all differ"])
def test_both_ways_to_draw_have_the_spread_of_the_mean(kinds: int) -> None:
    scores = np.random.default_rng(3).integers(0, kinds, 400) / kinds + (0 if kinds == 2 else np.arange(400) * 1e-9)
    means, errors = resample(group_scores(scores, [str(each) for each in range(400)]))
    expected = scores.std() / math.sqrt(400)
    assert len(means) == 10_000
    assert means.mean() == pytest.approx(scores.mean(), abs=5 * expected / 100)
    assert means.std() == pytest.approx(expected, rel=0.05)
    assert np.median(errors) == pytest.approx(expected, rel=0.05)


def test_the_interval_is_seeded_and_near_that_of_normal_scores() -> None:
    scores = np.random.default_rng(4).normal(0.5, 0.1, 300)
    ids = [str(each) for each in range(300)]
    found = estimate_mean(scores, ids, None)
    expected = stats.t.interval(0.95, 299, scores.mean(), stats.sem(scores))
    assert found == estimate_mean(scores, ids, None)
    assert found != estimate_mean(scores, ids, None, seed=7)
    assert found.method == "studentized"
    assert (found.low, found.high) == pytest.approx(expected, abs=0.05 * 0.1)


def test_rows_of_a_prompt_count_once() -> None:
    """A hundred copies of each row say no more than one."""
    scores, ids = [0.0, 1.0, 1.0, 0.0, 1.0, 0.5] * 5, [str(each) for each in range(30)]
    once, often = estimate_mean(scores, ids), estimate_mean(np.repeat(scores, 100), np.repeat(ids, 100).tolist())
    assert (often.low, often.high) == pytest.approx((once.low, once.high), abs=1e-9)
    assert (often.clusters, often.rows) == (30, 3000)


def ends_of_a_score_interval(share: float, number: float, quantile: float) -> tuple[float, float]:
    """Solve (share - p)^2 = quantile^2 p (1 - p) / number for p."""
    squared = quantile**2 / number
    low, high = sorted(np.roots([1 + squared, -2 * share - squared, share**2]))
    return float(low), float(high)


@pytest.mark.parametrize(
    ("scores", "bounds", "method", "ends"),
    [
        ([0.0] * 100, (0, 1), "wilson", stats.binomtest(0, 100).proportion_ci(method="wilson")),
        ([1.0] * 100, (0, 1), "wilson", stats.binomtest(100, 100).proportion_ci(method="wilson")),
        ([0.0] * 100, (-1, 1), "wilson", (-0.19231, 0.19231)),  # of 50 in 100, on a scale twice as wide
        ([5.0] * 100, None, "none", (None, None)),
        ([0.0] * 99 + [1.0], (0, 1), "wilson_effective", ends_of_a_score_interval(0.01, 99, stats.t.ppf(0.975, 99))),
        ([0.0] * 99 + [1.0], None, "t", (0.01 - 0.0198422, 0.01 + 0.0198422)),
    ],
)
def test_scores_that_hardly_differ(
    scores: list[float], bounds: tuple[float, float] | None, method: str, ends: tuple[float, float]
) -> None:
    found = estimate_mean(scores, [str(each) for each in range(100)], bounds)
    assert found.method == method
    assert (found.low, found.high) == (ends if ends[0] is None else pytest.approx(tuple(ends), abs=1e-4))


@given(
    st.floats(0.01, 0.99),
    st.lists(st.floats(0.01, 0.99), min_size=1, max_size=4),
    st.integers(20, 60),
    st.integers(1, 5),
)
def test_equal_scores_have_no_spread_whatever_rounding_leaves(
    usual: float, others: list[float], alike: int, rows: int
) -> None:
    """A sample without the few prompts that differ has an error of 0, exactly."""
    scores = [usual] * alike + others
    clusters = group_scores(np.repeat(scores, rows), np.repeat([f"{n:03}" for n in range(len(scores))], rows).tolist())
    weights = np.array([[1.0] * alike + [0.0] * len(others)])
    weights[0, 0] = len(others) + 1
    assert standard_errors(weights, clusters)[1] == 0


def test_two_prompts_that_differ_among_many_leave_an_interval() -> None:
    """Their resamples without spread were divided by what rounding had left: 0 to 1."""
    found = estimate_mean([1.0] * 42 + [5 / 6, 11 / 12], [f"p{number}" for number in range(44)])
    assert found.method == "wilson_effective"
    assert found.low is not None
    assert 0.95 < found.low < found.mean


def test_one_prompt_says_so() -> None:
    found = estimate_mean([1.0, 0.0, 1.0], ["a"] * 3)
    assert (found.clusters, found.method, found.note) == (
        1,
        "wilson",
        "one prompt only: the interval says nearly nothing",
    )
    assert (found.low, found.high) == pytest.approx(ends_of_a_score_interval(2 / 3, 1, stats.norm.ppf(0.975)))


@pytest.mark.parametrize(
    ("scores", "ids", "words"),
    [
        ([0.5, math.nan], ["a", "b\x1b"], r"1 of 2 scores can't be used; the first is nan, of prompt 'b\\x1b'"),
        ([0.5, -0.2, 3.0], ["a", "b", "c"], "2 of 3 scores can't be used; the first is -0.2, of prompt 'b'"),
        ([], [], "no scores"),
        ([0.5], ["a", "b"], "1 scores of 2 prompts"),
    ],
)
def test_scores_that_cannot_be_used(scores: list[float], ids: list[str], words: str) -> None:
    with pytest.raises(InputError, match=words):
        estimate_mean(scores, ids)


@given(
    st.lists(st.tuples(st.sampled_from("abcdefgh"), st.sampled_from([0.0, 0.125, 0.5, 1.0])), min_size=1, max_size=60)
)
def test_the_interval_holds_the_mean_and_keeps_its_bounds(rows: list[tuple[str, float]]) -> None:
    found = estimate_mean([score for _, score in rows], [id_ for id_, _ in rows], resamples=200)
    assert found.low is not None
    assert found.high is not None
    assert 0 <= found.low <= found.mean + 1e-12
    assert found.mean - 1e-12 <= found.high <= 1


def test_spread_between_seeds_stands_beside_the_interval_over_prompts() -> None:
    ids = [str(each) for each in range(10)]
    found = spread_of_seeds(
        {"1": ([0.0] * 5 + [1.0] * 5, ids), "2": ([0.0] * 3 + [1.0] * 7, ids), "3": ([1.0] * 10, ids)}
    )
    assert [each.mean for each in found.seeds.values()] == [0.5, 0.7, 1.0]
    assert found.deviation == pytest.approx(np.std([0.5, 0.7, 1.0], ddof=1), abs=1e-9)
    expected = stats.ttest_1samp([0.5, 0.7, 1.0], 0).confidence_interval()
    assert (found.low, found.high) == pytest.approx(tuple(expected), abs=1e-9)
    assert (found.lowest, found.highest, found.over_prompts.clusters, found.over_prompts.rows) == (0.5, 1.0, 10, 30)
    alone = spread_of_seeds({"1": ([0.0, 1.0], ["a", "b"])})
    assert (alone.deviation, alone.low) == (None, None)
    with pytest.raises(InputError, match="no training"):
        spread_of_seeds({})
