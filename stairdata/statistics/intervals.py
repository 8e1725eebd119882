"""A mean with its 95% interval over prompts.

The interval is the studentized bootstrap over clusters (Efron and Tibshirani, An Introduction to the Bootstrap, 1993,
section 12.5): the plain percentile interval covers too little where most prompts have the same score, since the
resamples of few prompts vary too little there. benchmarks/score_statistics.py measures the coverage of both.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import stats

from stairdata.statistics.clusters import RESAMPLES, SEED, Clusters, Floats, group_scores, resample, standard_errors
from stairdata_schemas.aliases import Json

LEVEL = 0.95
SHARES = (0.0, 1.0)
"""The bounds of shares and of scores such as goodness."""
IntervalMethod = Literal["studentized", "wilson_effective", "wilson", "t", "none"]


@dataclass(frozen=True, slots=True)
class MeanEstimate:
    """A mean over rows, and the interval that holds the true mean in 95% of such studies."""

    mean: float
    low: float | None
    """None where nothing is known of the width: unbounded scores that are all equal, or of one prompt."""
    high: float | None
    method: IntervalMethod
    """studentized: the bootstrap. wilson_effective: Wilson's with as many prompts as the standard error is worth, where
    more than 2.5% of the resamples have no spread; t in its place for scores without bounds. wilson: over prompts,
    where all of them have the same mean."""
    clusters: int
    """Prompts."""
    rows: int

    @property
    def note(self) -> str | None:
        """What a reader has to know beside the figure."""
        if self.clusters == 1:
            return "one prompt only: the interval says nearly nothing"
        return "all prompts have the same score" if self.method in {"wilson", "none"} else None

    def as_json(self) -> Json:
        """Return what `--json` prints."""
        return {
            "mean": self.mean,
            "low": self.low,
            "high": self.high,
            "method": self.method,
            "prompts": self.clusters,
            "rows": self.rows,
            "note": self.note,
        }


def estimate_mean(
    scores: Sequence[float] | Floats,
    prompt_ids: Sequence[str],
    bounds: tuple[float, float] | None = SHARES,
    *,
    resamples: int = RESAMPLES,
    seed: int = SEED,
) -> MeanEstimate:
    """Estimate the mean over rows, with an interval over prompts.

    Args:
        scores: shape (rows,).
        prompt_ids: the prompt of each row, before an attack.
        bounds: of a score; None for scores without, such as a PRM's.
        resamples: of the prompts.
        seed: of the resamples; the same rows and seed give the same interval.

    Raises:
        InputError: no rows, or a score that is not finite or out of bounds.
    """
    clusters = group_scores(scores, prompt_ids, bounds)
    low, high, method = _interval(clusters, bounds, resamples, seed)
    return MeanEstimate(clusters.mean, low, high, method, len(clusters.ids), int(clusters.counts.sum()))


def _interval(
    clusters: Clusters, bounds: tuple[float, float] | None, resamples: int, seed: int
) -> tuple[float | None, float | None, IntervalMethod]:
    mean, number = clusters.mean, len(clusters.ids)
    if clusters.all_equal:
        if bounds is None:
            return None, None, "none"
        return *wilson(mean, number, stats.norm.ppf(0.5 + LEVEL / 2), bounds), "wilson"
    ((_,), (error,)) = standard_errors(np.ones((1, number)), clusters)
    ends = studentized_ends(mean, float(error), *resample(clusters, resamples, seed))
    if all(map(math.isfinite, ends)):
        low, high = ends if bounds is None else np.clip(ends, *bounds)
        return float(low), float(high), "studentized"
    quantile = float(stats.t.ppf(0.5 + LEVEL / 2, number - 1))
    if bounds is None:
        return mean - quantile * error, mean + quantile * error, "t"
    share = (mean - bounds[0]) / (bounds[1] - bounds[0])
    worth = share * (1 - share) / (error / (bounds[1] - bounds[0])) ** 2
    return *wilson(mean, worth, quantile, bounds), "wilson_effective"


def studentized_ends(value: float, error: float, values: Floats, errors: Floats) -> tuple[float, float]:
    """Return the ends of the studentized interval; infinite where too many resamples have no spread.

    Args:
        value: the estimate.
        error: its standard error, above 0.
        values: of the resamples, shape (resamples,).
        errors: the standard error of each.
    """
    away = values - value
    has_spread = errors > 1e-9 * error
    ratios = np.copysign(math.inf, away)
    ratios[has_spread] = away[has_spread] / errors[has_spread]
    least, most = np.quantile(ratios, [0.5 - LEVEL / 2, 0.5 + LEVEL / 2], method="inverted_cdf")
    return value - float(most) * error, value - float(least) * error


def wilson(mean: float, number: float, quantile: float, bounds: tuple[float, float] = SHARES) -> tuple[float, float]:
    """Return Wilson's score interval (Brown, Cai and DasGupta 2001, https://doi.org/10.1214/ss/1009213286, equation 4).

    For scores between their bounds it is wider than needed: none of a given mean vary more than those that are 0 or 1.

    Args:
        mean: of the scores.
        number: of scores, or what they are worth (Korn and Graubard 1998, Survey Methodology 24, 193-201).
        quantile: of the normal or t distribution.
        bounds: of a score.
    """
    width = bounds[1] - bounds[0]
    share = min(max((mean - bounds[0]) / width, 0.0), 1.0)
    squared = quantile * quantile / number
    centre = (share + squared / 2) / (1 + squared)
    half = quantile / (1 + squared) * math.sqrt(share * (1 - share) / number + squared / (4 * number))
    # the exact end, which rounding would put beside it
    low = 0.0 if share == 0 else max(centre - half, 0.0)
    high = 1.0 if share == 1 else min(centre + half, 1.0)
    return bounds[0] + width * low, bounds[0] + width * high
