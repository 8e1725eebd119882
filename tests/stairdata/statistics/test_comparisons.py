"""Differences paired by prompt, corrections, and reductions over attacks and samples."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import polars as pl
import pytest
from scipy import stats

from stairdata.statistics.comparisons import (
    compare_paired,
    holm,
    least_visible_difference,
    prompts_needed,
    sign_flip_test,
)
from stairdata.statistics.reductions import mean_over_attacks, safe_at_1, safe_at_k, worst_attacks
from stairdata_schemas.errors import InputError


@pytest.mark.parametrize("seed", range(3))
def test_few_flips_are_exact_as_in_scipy(seed: int) -> None:
    differences = np.random.default_rng(seed).normal(0.4, 1, 9)
    expected = stats.permutation_test((differences,), np.mean, permutation_type="samples", n_resamples=np.inf)
    assert sign_flip_test(differences) == pytest.approx(expected.pvalue, abs=1e-9)
    assert sign_flip_test([*differences, 0.0, 0.0]) == sign_flip_test(differences)


def test_flips_of_ones_are_a_sign_test() -> None:
    """Of 40 that changed, 28 did for the better: a binomial test, which the random flips come near."""
    differences = [1.0] * 28 + [-1.0] * 12 + [0.0] * 60
    assert sign_flip_test(differences) == pytest.approx(stats.binomtest(28, 40).pvalue, abs=0.004)
    assert sign_flip_test([0.1] * 13) == pytest.approx(2 / 2**13, abs=1e-12)
    assert sign_flip_test(np.random.default_rng(1).normal(5, 1, 500)) == 1 / 10_001
    assert sign_flip_test([0.0, 0.0]) == sign_flip_test([3.0]) == 1


def test_p_values_of_no_difference_are_even() -> None:
    dice = np.random.default_rng(5)
    values = [sign_flip_test(dice.normal(size=30), flips=500, seed=number) for number in range(400)]
    assert stats.kstest(values, "uniform").pvalue > 0.01


def test_holm() -> None:
    """The example of R's p.adjust(c(0.01, 0.04, 0.03, 0.005), "holm")."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02], abs=1e-12)
    assert holm([0.6, 0.7]) == [1, 1]
    assert holm([]) == []


def test_the_least_visible_difference_is_seen_in_eight_of_ten_studies() -> None:
    assert least_visible_difference(0.4, 350) == pytest.approx(0.05990, abs=1e-5)
    assert prompts_needed(0.06, 0.4) == 349
    dice = np.random.default_rng(2)
    draws = dice.normal(least_visible_difference(0.4, 60), 0.4, size=(400, 60))
    seen = np.mean([sign_flip_test(draw, flips=1000, seed=number) < 0.05 for number, draw in enumerate(draws)])
    assert 0.73 < seen < 0.87


def test_a_paired_comparison() -> None:
    dice = np.random.default_rng(8)
    a, b = dice.random(50), dice.random(50)
    ids = [f"{each:02}" for each in range(50)]
    found = compare_paired((a, ids), (b[::-1], ids[::-1]))
    assert found.difference.mean == pytest.approx(float(np.mean(b - a)), abs=1e-9)
    assert found.deviation == pytest.approx(float(np.std(b - a, ddof=1)), abs=1e-9)
    assert found.p_value == pytest.approx(stats.ttest_rel(b, a).pvalue, abs=0.03)
    assert (found.shared, found.note) == (50, None)
    assert found.as_json()["difference"]["prompts"] == 50


def test_different_prompts_are_paired_on_what_they_share_and_it_says_so() -> None:
    a = ([0.0, 1.0, 0.0, 0.5], ["x", "x", "y", "only"])
    b = ([1.0, 1.0, 0.0], ["y", "x", "z"])
    found = compare_paired(a, b)
    assert (found.mean_a, found.mean_b, found.difference.mean) == (0.25, 1.0, 0.75)
    assert found.note == "paired on the 2 prompts that both have; left out: 1 of A, 1 of B"
    with pytest.raises(InputError, match="no prompt in common"):
        compare_paired(([1.0], ["a"]), ([1.0], ["b"]))


def test_one_prompt_and_equal_models() -> None:
    one = compare_paired(([0.0, 0.0], ["a", "a"]), ([1.0], ["a"]))
    assert (one.p_value, one.deviation, one.least_visible) == (1, None, None)
    assert one.note == "one prompt only: the interval says nearly nothing"
    same = compare_paired(([1.0, 0.0], ["a", "b"]), ([1.0, 0.0], ["a", "b"]))
    assert (same.p_value, same.difference.mean, same.least_visible) == (1, 0, None)
    assert same.note == "all prompts have the same score"


def rows(*cases: tuple[str, str, list[float]], name: str = "score") -> pl.DataFrame:
    found = [
        {"prompt_id": prompt, "attack": attack, "sample": sample, name: value}
        for prompt, attack, values in cases
        for sample, value in enumerate(values)
    ]
    return pl.DataFrame(found)


def test_reductions_over_attacks() -> None:
    table = rows(
        *(("b", f"attack-{number:02}", [number / 30, number / 30]) for number in range(30)),
        ("a", "none", [0.25]),
        ("a", "base64", [0.75, 0.75, 0.75]),
    )
    over = mean_over_attacks(table)
    assert over.prompt_ids == ["a", "b"]
    assert over.scores == pytest.approx([0.5, 29 / 60])
    assert worst_attacks(table).scores == pytest.approx([0.25, 1 / 30])  # of 2 the worst one, of 30 three
    assert worst_attacks(table.head(2 * 21)).scores == pytest.approx([1 / 30])  # of 21 three, rounded up
    assert worst_attacks(table, 1.0).scores == pytest.approx(over.scores)
    with pytest.raises(InputError, match="share of the worst"):
        worst_attacks(table, 0)


def test_safe_at_k_is_the_share_of_choices_that_are_all_safe() -> None:
    safe = [True, True, False, True, True]
    table = rows(("a", "none", safe), ("a", "rot13", [True, True]), ("b", "none", [False]), name="safe")
    expected = np.mean([all(chosen) for chosen in combinations(safe, 2)])
    found = safe_at_k(table, 2)
    assert (found.prompt_ids, found.left_out) == (["a", "a"], 1)
    assert found.scores == pytest.approx([expected, 1])
    assert safe_at_1(table).scores == pytest.approx([0.8, 1, 0])
    assert safe_at_k(table, 1).scores == pytest.approx(safe_at_1(table).scores)
    with pytest.raises(InputError, match="no prompt has 6 samples, so there is no Safe@6; the most is 5"):
        safe_at_k(table, 6)
    with pytest.raises(InputError, match="at least 1, not 0"):
        safe_at_k(table, 0)
    with pytest.raises(InputError, match=r"safe is 0.5 for prompt 'a'"):
        safe_at_k(rows(("a", "none", [0.5]), name="safe"), 1)


def test_rows_that_cannot_be_reduced() -> None:
    with pytest.raises(InputError, match="no column 'attack'"):
        mean_over_attacks(pl.DataFrame({"prompt_id": ["a"], "sample": [0], "score": [1.0]}))
    with pytest.raises(InputError, match="1 of 2 rows have no finite score; the first is of prompt 'b'"):
        mean_over_attacks(rows(("a", "none", [1.0]), ("b", "none", [float("nan")])))
    with pytest.raises(InputError, match="no scores"):
        mean_over_attacks(rows(("a", "none", [1.0])).clear())
