"""Trainings that differ by their seed alone: how far their scores lie apart, beside the interval over prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from stairdata.statistics.clusters import SEED, Floats
from stairdata.statistics.intervals import LEVEL, SHARES, MeanEstimate, estimate_mean
from stairdata_schemas.errors import InputError


@dataclass(frozen=True, slots=True)
class SeedSpread:
    """Scores of several trainings.

    The interval over prompts says how the mean of these models would differ on other prompts; the spread says how it
    would differ for other seeds. Neither holds the other.
    """

    seeds: dict[str, MeanEstimate]
    """Of each training, with its interval over prompts."""
    over_prompts: MeanEstimate
    """The mean over all trainings, each prompt with all its rows of all of them as one cluster."""
    mean: float
    """Of the trainings' means, each of which counts the same."""
    deviation: float | None
    """Standard deviation between the trainings' means; None of one."""
    lowest: float
    highest: float
    low: float | None
    """95% interval of the mean over seeds, by Student's t; None of one training. Of two or three it is very wide."""
    high: float | None


def spread_of_seeds(
    trainings: Mapping[str, tuple[Sequence[float] | Floats, Sequence[str]]],
    bounds: tuple[float, float] | None = SHARES,
    *,
    seed: int = SEED,
) -> SeedSpread:
    """Measure trainings of different seeds.

    Args:
        trainings: scores and the prompt of each, by the name of the training.
        bounds: of a score.
        seed: of the resamples.

    Raises:
        InputError: no training, or scores that can't be used.
    """
    if not trainings:
        raise InputError("there is no training to measure; give the scores of at least one")
    seeds = {name: estimate_mean(*each, bounds, seed=seed) for name, each in trainings.items()}
    together = estimate_mean(
        np.concatenate([np.asarray(scores, dtype=np.float64) for scores, _ in trainings.values()]),
        [prompt for _, prompts in trainings.values() for prompt in prompts],
        bounds,
        seed=seed,
    )
    means = np.array([each.mean for each in seeds.values()])
    number, mean = len(means), float(means.mean())
    deviation = float(means.std(ddof=1)) if number > 1 else None
    half = None if deviation is None else float(stats.t.ppf(0.5 + LEVEL / 2, number - 1)) * deviation / number**0.5
    return SeedSpread(
        seeds=seeds,
        over_prompts=together,
        mean=mean,
        deviation=deviation,
        lowest=float(means.min()),
        highest=float(means.max()),
        low=None if half is None else mean - half,
        high=None if half is None else mean + half,
    )
