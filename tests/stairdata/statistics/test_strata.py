"""Weighted sums of strata: against closed forms, scipy's bootstrap, and simulated studies."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from scipy import stats

from stairdata.statistics.clusters import Floats
from stairdata.statistics.comparisons import compare_paired
from stairdata.statistics.intervals import wilson
from stairdata.statistics.strata import Stratum, StratumPair, compare_contrasts, estimate_contrast
from stairdata_schemas.errors import InputError


def ids(number: int, name: str = "p") -> list[str]:
    return [f"{name}{index:04}" for index in range(number)]


def shares(yes: int, number: int) -> list[float]:
    return [1.0] * yes + [0.0] * (number - yes)


def test_value_and_error_are_those_of_the_closed_form() -> None:
    found = estimate_contrast(
        [Stratum(1, shares(130, 200), ids(200, "u")), Stratum(-1, shares(40, 250), ids(250, "s"))], resamples=200
    )
    unsafe, safe = 130 / 200, 40 / 250
    error = math.sqrt(unsafe * (1 - unsafe) / 199 + safe * (1 - safe) / 249)
    assert found.value == pytest.approx(unsafe - safe, abs=1e-9)
    assert found.error == pytest.approx(error, abs=1e-9)
    assert found.errors_from_zero == pytest.approx((unsafe - safe) / error, abs=1e-9)
    assert found.least_visible == pytest.approx((stats.norm.ppf(0.975) + stats.norm.ppf(0.8)) * error, abs=1e-9)
    assert (found.prompts, found.method) == ((200, 250), "studentized")


def test_weights_count_by_their_size_and_a_sum_of_one_is_its_mean() -> None:
    scores = [0.1, 0.5, 0.9, 0.3]
    found = estimate_contrast([Stratum(2, scores, ids(4))], resamples=50)
    assert found.value == pytest.approx(2 * np.mean(scores), abs=1e-9)
    assert found.error == pytest.approx(2 * np.std(scores, ddof=1) / 2, abs=1e-9)


def test_the_rows_of_a_prompt_are_one_draw() -> None:
    """Three equal rows a prompt say no more than one."""
    once = estimate_contrast([Stratum(1, shares(3, 10), ids(10)), Stratum(-1, shares(2, 8), ids(8, "s"))])
    thrice = estimate_contrast(
        [Stratum(1, shares(3, 10) * 3, ids(10) * 3), Stratum(-1, shares(2, 8) * 3, ids(8, "s") * 3)]
    )
    assert thrice.error == pytest.approx(once.error, abs=1e-9)
    assert (thrice.low, thrice.high) == pytest.approx((once.low, once.high), abs=1e-9)


def test_the_error_is_that_of_a_bootstrap_within_strata() -> None:
    """scipy draws from each of two samples by itself; its errors have n in place of n - 1."""
    dice = np.random.default_rng(3)
    unsafe, safe = dice.beta(2, 1, 90), dice.beta(1, 4, 140)
    found = estimate_contrast([Stratum(1, unsafe, ids(90, "u")), Stratum(-1, safe, ids(140, "s"))])

    def difference(a: Floats, b: Floats, axis: int) -> Any:
        return a.mean(axis=axis) - b.mean(axis=axis)

    oracle = stats.bootstrap((unsafe, safe), difference, n_resamples=9999, method="basic", rng=5)
    assert found.error == pytest.approx(oracle.standard_error, rel=0.03)
    assert (found.low, found.high) == pytest.approx(tuple(oracle.confidence_interval), abs=0.01)


@pytest.mark.parametrize(("unsafe", "safe"), [(0.95, 0.05), (0.6, 0.3)])
def test_intervals_hold_the_true_value_in_95_of_100_studies(unsafe: float, safe: float) -> None:
    dice, held, studies = np.random.default_rng(11), 0, 600
    for study in range(studies):
        drawn = [dice.random(200) < unsafe, dice.random(250) < safe]
        found = estimate_contrast(
            [Stratum(1, drawn[0].astype(float), ids(200, "u")), Stratum(-1, drawn[1].astype(float), ids(250, "s"))],
            resamples=1000,
            seed=study,
        )
        held += found.low <= unsafe - safe <= found.high
    assert 0.93 <= held / studies <= 0.97  # 0.95 has a standard error of 0.009 in 600 studies


def test_strata_without_spread_have_an_interval_all_the_same() -> None:
    found = estimate_contrast([Stratum(1, shares(30, 30), ids(30, "u")), Stratum(-1, shares(0, 40), ids(40, "s"))])
    assert (found.value, found.error, found.method) == (1.0, 0.0, "combined")
    assert found.errors_from_zero is found.least_visible is None
    quantile = float(stats.norm.ppf(0.975))
    (low, _), (_, high) = wilson(1.0, 30, quantile), wilson(0.0, 40, quantile)
    assert found.low == pytest.approx(1 - math.sqrt((1 - low) ** 2 + high**2), abs=1e-9)
    assert found.high == 1.0


def test_a_single_refusal_is_combined_too() -> None:
    found = estimate_contrast([Stratum(1, shares(1, 30), ids(30, "u")), Stratum(-1, shares(0, 40), ids(40, "s"))])
    assert found.method == "combined"
    assert -1 < found.low < 0 < found.value < found.high < 1


def test_differences_are_paired_by_prompt() -> None:
    """One stratum of weight 1 is the paired comparison of the other module."""
    dice = np.random.default_rng(2)
    a = (dice.integers(0, 2, 60).astype(float), ids(60))
    b = (dice.integers(0, 2, 50).astype(float), ids(50))
    ours = compare_contrasts({"42": [StratumPair(1, a, b)]})
    theirs = compare_paired(a, b)
    assert ours.difference.value == pytest.approx(theirs.difference.mean, abs=1e-9)
    assert (ours.difference.low, ours.difference.high) == pytest.approx(
        (theirs.difference.low, theirs.difference.high), abs=1e-9
    )
    assert ours.difference.least_visible == pytest.approx(theirs.least_visible, abs=1e-9)
    assert (ours.value_a, ours.value_b) == pytest.approx((theirs.mean_a, theirs.mean_b), abs=1e-9)
    assert (ours.only_a, ours.only_b) == (10, 0)


def test_both_strata_of_a_difference_add_up() -> None:
    unsafe_a, unsafe_b = shares(50, 200), shares(80, 200)
    safe_a, safe_b = shares(20, 250), shares(30, 250)
    pairs = [
        StratumPair(1, (unsafe_a, ids(200, "u")), (unsafe_b, ids(200, "u"))),
        StratumPair(-1, (safe_a, ids(250, "s")), (safe_b, ids(250, "s"))),
    ]
    found = compare_contrasts({"42": pairs})
    gained, lost = 30 / 200, 10 / 250
    assert found.difference.value == pytest.approx(gained - lost, abs=1e-9)
    error = math.sqrt(gained * (1 - gained) / 199 + lost * (1 - lost) / 249)
    assert found.difference.error == pytest.approx(error, abs=1e-9)
    assert found.value_b - found.value_a == pytest.approx(found.difference.value, abs=1e-9)


def test_several_trainings_count_a_prompt_once() -> None:
    """Pooled over seeds, a prompt's differences are averaged before its spread counts."""
    dice = np.random.default_rng(8)
    drawn = dice.integers(0, 2, (3, 2, 40)).astype(float)
    pairs = {str(seed): [StratumPair(1, (a, ids(40)), (b, ids(40)))] for seed, (a, b) in enumerate(drawn, start=42)}
    found = compare_contrasts(pairs)
    averaged = (drawn[:, 1] - drawn[:, 0]).mean(axis=0)
    assert found.difference.value == pytest.approx(averaged.mean(), abs=1e-9)
    assert found.difference.error == pytest.approx(averaged.std(ddof=1) / math.sqrt(40), abs=1e-9)
    assert found.difference.prompts == (40,)


def test_what_can_not_be_measured_is_said() -> None:
    with pytest.raises(InputError, match="no stratum to measure"):
        estimate_contrast([])
    with pytest.raises(InputError, match="no scores to measure"):
        estimate_contrast([Stratum(1, [], [])])
    with pytest.raises(InputError, match="a number from 0 to 1"):
        estimate_contrast([Stratum(1, [2.0], ["a"])])
    pair = StratumPair(1, ([1.0], ["a"]), ([1.0], ["b"]))
    with pytest.raises(InputError, match="no prompt in common in 'stratum 1 of 42'"):
        compare_contrasts({"42": [pair]})
    with pytest.raises(InputError, match="measured on the same strata"):
        compare_contrasts({"42": [pair], "43": [pair, pair]})
    with pytest.raises(InputError, match="the trainings given have to be"):
        compare_contrasts({})
