"""Intervals over prompts."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stairdata_training.held_out.bootstrap import interval_of, interval_of_mean

ROWS = st.lists(st.tuples(st.floats(-10, 10, allow_nan=False), st.sampled_from("abcdefg")), min_size=1, max_size=40)


@settings(max_examples=60, deadline=None)
@given(ROWS)
def test_the_interval_holds_the_value_and_lies_between_the_rows(rows: list[tuple[float, str]]) -> None:
    values, prompts = [value for value, _ in rows], [prompt for _, prompt in rows]
    found = interval_of_mean(values, prompts, resamples=200)
    assert found.value == pytest.approx(np.mean(values))
    assert (found.prompts, found.rows) == (len(set(prompts)), len(rows))
    if len(set(prompts)) > 1:
        assert found.low is not None
        assert found.high is not None
        assert min(values) - 1e-9 <= found.low <= found.value <= found.high <= max(values) + 1e-9


@settings(max_examples=60, deadline=None)
@given(ROWS, st.randoms(use_true_random=False))
def test_the_order_of_rows_changes_nothing(rows: list[tuple[float, str]], generator: random.Random) -> None:
    other = generator.sample(rows, len(rows))
    first, second = (
        interval_of_mean([value for value, _ in given], [prompt for _, prompt in given], resamples=200)
        for given in (rows, other)
    )
    assert first == second


@settings(max_examples=30, deadline=None)
@given(ROWS)
def test_a_mean_by_the_way_of_any_statistic_is_the_same(rows: list[tuple[float, str]]) -> None:
    values, prompts = np.array([value for value, _ in rows]), [prompt for _, prompt in rows]
    fast = interval_of_mean(list(values), prompts, resamples=100, seed=3)
    general = interval_of(lambda drawn: float(drawn.mean()), values, prompts, resamples=100, seed=3)
    for name in ("value", "low", "high"):
        assert getattr(general, name) == pytest.approx(getattr(fast, name), abs=1e-9)
    assert (general.prompts, general.rows) == (fast.prompts, fast.rows)


def test_rows_of_a_prompt_count_as_one_draw() -> None:
    """100 equal rows of each of 10 prompts say no more about new prompts than one row of each."""
    once = interval_of_mean([0, 1] * 5, [str(prompt) for prompt in range(10)])
    often = interval_of_mean([0, 1] * 500, [str(prompt % 10) for prompt in range(1000)])
    assert (often.low, often.high) == (once.low, once.high)
    alone = interval_of_mean([0, 1] * 500, [str(row) for row in range(1000)])
    assert alone.low is not None
    assert once.low is not None
    assert alone.low == pytest.approx(0.5 - 1.96 * 0.5 / 1000**0.5, abs=0.005)
    assert once.low < 0.25


def test_nineteen_of_twenty_intervals_hold_the_truth() -> None:
    generator, held = random.Random(1), 0  # noqa: S311
    prompts = [str(prompt) for prompt in range(80) for _ in range(2)]
    for _ in range(200):
        values = [float(generator.random() < 0.7) for _ in range(80) for _ in range(2)]
        found = interval_of_mean(values, prompts, resamples=400)
        assert found.low is not None
        assert found.high is not None
        held += found.low <= 0.7 <= found.high
    assert 180 <= held < 200


def test_one_prompt_alone_has_no_interval() -> None:
    found = interval_of_mean([0.0, 1.0, 1.0, 1.0], ["a"] * 4)
    assert (found.value, found.low, found.high, found.prompts, found.rows) == (0.75, None, None, 1, 4)
    assert str(found) == "0.750 (one prompt, no interval)"


def test_seeds_decide_the_draws() -> None:
    values, prompts = [row**0.5 for row in range(60)], [str(row // 2) for row in range(60)]
    assert interval_of_mean(values, prompts, seed=1) == interval_of_mean(values, prompts, seed=1)
    assert interval_of_mean(values, prompts, seed=1) != interval_of_mean(values, prompts, seed=2)


@pytest.mark.parametrize(("values", "prompts"), [([], []), ([1.0], ["a", "b"])])
def test_rows_without_prompts_are_refused(values: list[float], prompts: list[str]) -> None:
    with pytest.raises(ValueError, match=r"needs rows|zip"):
        interval_of_mean(values, prompts)
