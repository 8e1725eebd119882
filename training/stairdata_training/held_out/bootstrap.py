"""Intervals by the bootstrap over prompts.

Pairs of one prompt share its trees and its model, so they aren't independent: whole prompts are drawn, with
replacement, each with all of its rows (the cluster bootstrap; Davison and Hinkley, Bootstrap Methods and their
Application, 1997, section 3.8). The interval is that of the 2.5 and 97.5 percentiles.

The package `stairdata` has `stairdata.statistics`, whose intervals are studentized. This module does without it: the
training package depends on the schemas alone, so that a machine that trains needs nothing else. Percentiles cover too
little where prompts are few and most have the same score: with 50 prompts and scores of 0 and 1 with a mean of 0.05 or
0.95, 90% of the intervals hold the true mean, with 300 prompts 94%, and at a mean of 0.5 95% (simulations in
docs/evaluation.md). Read the intervals of small held-out sets as too narrow.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

RESAMPLES = 2000
SEED = 0
_PERCENTILES = (2.5, 97.5)
_DRAWN_TOGETHER = 2**22
"""Prompts, over resamples, that are in memory at a time."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A figure and its 95% interval."""

    value: float
    low: float | None
    """None where there is one prompt alone: nothing says how much prompts differ."""
    high: float | None
    prompts: int
    rows: int

    def __str__(self) -> str:
        if self.low is None or self.high is None:
            return f"{self.value:.3f} (one prompt, no interval)"
        return f"{self.value:.3f} ({self.low:.3f} to {self.high:.3f}, {self.prompts} prompts)"


def interval_of_mean(
    values: Sequence[float], prompt_ids: Sequence[str], *, resamples: int = RESAMPLES, seed: int = SEED
) -> Interval:
    """Return the mean over rows and its interval; the order of the rows does not matter.

    Where all rows have the same value the interval has no width, however few they are.

    Raises:
        ValueError: there are no rows, or not one prompt for each.
    """
    groups = _groups(values, prompt_ids)
    sums = np.array([math.fsum(group) for group in groups])
    counts = np.array([len(group) for group in groups])
    value = math.fsum(values) / len(values)
    drawn = [
        sums[chosen].sum(1) / counts[chosen].sum(1) for chosen in _draws(len(groups), resamples=resamples, seed=seed)
    ]
    return _interval(value, np.concatenate(drawn), prompts=len(groups), rows=len(values))


def interval_of(
    statistic: Callable[[NDArray[Any]], float],
    rows: NDArray[Any],
    prompt_ids: Sequence[str],
    *,
    resamples: int = RESAMPLES,
    seed: int = SEED,
) -> Interval:
    """Return any statistic of rows and its interval.

    Args:
        statistic: of an array like `rows`, with rows left out and repeated.
        rows: one or more columns, a row in the first axis for each of `prompt_ids`.
        prompt_ids: which rows are drawn together.
        resamples: how often prompts are drawn.
        seed: of the draws.

    Raises:
        ValueError: there are no rows, or not one prompt for each.
    """
    groups = [np.array(group) for group in _groups(range(len(rows)), prompt_ids)]
    drawn = [
        statistic(rows[np.concatenate([groups[index] for index in chosen])])
        for part in _draws(len(groups), resamples=resamples, seed=seed)
        for chosen in part
    ]
    return _interval(float(statistic(rows)), np.array(drawn), prompts=len(groups), rows=len(rows))


def _groups(values: Sequence[Any], prompt_ids: Sequence[str]) -> list[list[Any]]:
    """Return the values of each prompt, prompts in the order of their ids, so that draws don't depend on the rows'."""
    if len(values) == 0:
        raise ValueError("an interval needs rows")
    found: defaultdict[str, list[Any]] = defaultdict(list)
    for value, prompt in zip(values, prompt_ids, strict=True):
        found[prompt].append(value)
    return [found[prompt] for prompt in sorted(found)]


def _draws(prompts: int, *, resamples: int, seed: int) -> Iterator[NDArray[Any]]:
    """Yield numbers of prompts, one row a resample, a part of all resamples at a time."""
    generator = np.random.default_rng(seed)
    part = max(1, _DRAWN_TOGETHER // prompts)
    for start in range(0, resamples, part):
        yield generator.integers(prompts, size=(min(part, resamples - start), prompts))


def _interval(value: float, drawn: NDArray[Any], *, prompts: int, rows: int) -> Interval:
    if prompts == 1:
        return Interval(value, None, None, prompts, rows)
    low, high = (float(bound) for bound in np.percentile(drawn, _PERCENTILES))
    # with few prompts of very different sizes the value itself can lie outside of the percentiles
    return Interval(value, min(low, value), max(high, value), prompts, rows)
