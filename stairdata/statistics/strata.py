"""A weighted sum of the means of several strata, such as refusals of unsafe prompts minus refusals of safe ones.

Each stratum is a fixed part of a benchmark, so prompts are drawn within each (Davison and Hinkley, Bootstrap Methods
and their Application, 1997, section 3.2): its size does not vary between samples, and its variance adds up.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from scipy import stats

from stairdata.statistics.clusters import RESAMPLES, SEED, Clusters, Floats, group_scores, resample, standard_errors
from stairdata.statistics.comparisons import LEVEL_OF_TEST, POWER
from stairdata.statistics.intervals import SHARES, estimate_mean, studentized_ends
from stairdata_schemas.aliases import Json
from stairdata_schemas.errors import InputError, quote

ContrastMethod = Literal["studentized", "combined"]


class Stratum(NamedTuple):
    """One part of the prompts, and the scores of its rows."""

    weight: float
    """Of its mean in the sum."""
    scores: Sequence[float] | Floats
    """Shape (rows,)."""
    prompt_ids: Sequence[str]
    """The prompt of each row; the rows of a prompt are drawn together."""


@dataclass(frozen=True, slots=True)
class ContrastEstimate:
    """A weighted sum of means, and the interval that holds the true one in 95% of such studies."""

    value: float
    low: float
    high: float
    error: float
    """Standard error; 0 where in each stratum all prompts have the same mean."""
    method: ContrastMethod
    """studentized: the bootstrap within strata. combined: from the intervals of the strata (Zou and Donner 2008,
    https://doi.org/10.1002/sim.3095, equation 5), where more than 2.5% of the resamples have no spread."""
    prompts: tuple[int, ...]
    """Of each stratum."""

    @property
    def errors_from_zero(self) -> float | None:
        """How many standard errors it lies from 0; None where there is no spread."""
        return self.value / self.error if self.error else None

    @property
    def least_visible(self) -> float | None:
        """The least value that a two-sided test at 5% finds in 80 of 100 such studies, by the normal approximation."""
        quantiles = float(stats.norm.ppf(1 - LEVEL_OF_TEST / 2) + stats.norm.ppf(POWER))
        return quantiles * self.error if self.error else None

    def as_json(self) -> Json:
        """Return what results hold of it."""
        names = ("value", "low", "high", "error", "errors_from_zero", "least_visible", "method")
        return {name: getattr(self, name) for name in names} | {"prompts": list(self.prompts)}


def estimate_contrast(
    strata: Sequence[Stratum],
    bounds: tuple[float, float] = SHARES,
    *,
    resamples: int = RESAMPLES,
    seed: int = SEED,
) -> ContrastEstimate:
    """Estimate a weighted sum of the means of strata, with an interval over prompts.

    Args:
        strata: at least one; their prompts are not the same ones.
        bounds: of a score.
        resamples: of the prompts within each stratum.
        seed: of the resamples; the same rows and seed give the same interval.

    Raises:
        InputError: no stratum, one without rows, or a score that is not finite or out of bounds.
    """
    if not strata:
        raise InputError("there is no stratum to measure; give the scores of at least one")
    parts = [group_scores(each.scores, each.prompt_ids, bounds) for each in strata]
    weights = np.array([each.weight for each in strata])
    value = float(weights @ np.array([part.mean for part in parts]))
    error = _error(weights, [standard_errors(np.ones((1, len(part.ids))), part)[1] for part in parts])[0]
    prompts = tuple(len(part.ids) for part in parts)
    ends = -math.inf, math.inf
    if error:
        ends = studentized_ends(value, float(error), *_resampled(weights, parts, resamples, seed))
    if not all(map(math.isfinite, ends)):
        return ContrastEstimate(value, *_combined(strata, bounds, value, seed), float(error), "combined", prompts)
    least, most = _range(weights, bounds)
    low, high = np.clip(ends, least, most)
    return ContrastEstimate(value, float(low), float(high), float(error), "studentized", prompts)


def _error(weights: Floats, errors: Sequence[Floats]) -> Floats:
    """Return the errors of weighted sums of independent means, shape (samples,)."""
    return np.sqrt(weights**2 @ np.stack(errors) ** 2)


def _range(weights: Floats, bounds: tuple[float, float]) -> tuple[float, float]:
    ends = np.sort(weights[:, None] * np.array(bounds), axis=1).sum(axis=0)
    return float(ends[0]), float(ends[1])


def _resampled(weights: Floats, parts: Sequence[Clusters], resamples: int, seed: int) -> tuple[Floats, Floats]:
    """Return the weighted sums of resamples within strata, and the standard error of each."""
    # each stratum has draws of its own, or their resamples would go up and down together
    drawn = [resample(part, resamples, seed + number) for number, part in enumerate(parts)]
    return weights @ np.stack([means for means, _ in drawn]), _error(weights, [errors for _, errors in drawn])


def _combined(strata: Sequence[Stratum], bounds: tuple[float, float], value: float, seed: int) -> tuple[float, float]:
    """Return the ends that follow from the intervals of the strata."""
    below = above = 0.0
    for each in strata:
        estimate = estimate_mean(each.scores, each.prompt_ids, bounds, seed=seed)
        assert estimate.low is not None, "bounded scores have an interval"
        assert estimate.high is not None
        reach = each.weight * (estimate.mean - estimate.low), each.weight * (estimate.high - estimate.mean)
        down, up = reach if each.weight > 0 else reach[::-1]
        below, above = below + down**2, above + up**2
    return value - math.sqrt(below), value + math.sqrt(above)


class StratumPair(NamedTuple):
    """The scores of two models in one stratum."""

    weight: float
    a: tuple[Sequence[float] | Floats, Sequence[str]]
    """Scores and the prompt of each."""
    b: tuple[Sequence[float] | Floats, Sequence[str]]


@dataclass(frozen=True, slots=True)
class ContrastComparison:
    """How the weighted sum of B differs from that of A, over the prompts that both have."""

    difference: ContrastEstimate
    """Of B minus A, paired by prompt."""
    value_a: float
    """Over the shared prompts."""
    value_b: float
    only_a: int
    """Prompts without a partner, which are left out."""
    only_b: int

    def as_json(self) -> Json:
        """Return what results hold of it."""
        names = ("value_a", "value_b", "only_a", "only_b")
        return {"difference": self.difference.as_json()} | {name: getattr(self, name) for name in names}


def compare_contrasts(
    pairs: Mapping[str, Sequence[StratumPair]],
    bounds: tuple[float, float] = SHARES,
    *,
    resamples: int = RESAMPLES,
    seed: int = SEED,
) -> ContrastComparison:
    """Compare a weighted sum of two models, paired by prompt; of several trainings each prompt is drawn with all.

    Args:
        pairs: by the name of a training, such as its seed: the strata of both models, in the same order for all.
        bounds: of a score.
        resamples: of the prompts within each stratum.
        seed: of the resamples.

    Raises:
        InputError: no training, trainings of other strata, no prompt in common in a stratum, or a score that is not
            finite or out of bounds.
    """
    weights = [tuple(stratum.weight for stratum in strata) for strata in pairs.values()]
    if not weights or len(set(weights)) > 1:
        raise InputError(f"the trainings {', '.join(pairs) or 'given'} have to be measured on the same strata")
    rows: list[list[_Paired]] = [
        [_paired(stratum, bounds, f"stratum {number} of {name}") for number, stratum in enumerate(strata, 1)]
        for name, strata in pairs.items()
    ]
    by_stratum = [*zip(*rows, strict=True)]
    width = bounds[1] - bounds[0]

    def joined(which: int) -> list[Stratum]:
        return [
            Stratum(weight, np.concatenate([each[which] for each in paired]), [i for each in paired for i in each.ids])
            for weight, paired in zip(weights[0], by_stratum, strict=True)
        ]

    def value(which: int) -> float:
        return sum(each.weight * float(np.mean(each.scores)) for each in joined(which))

    return ContrastComparison(
        difference=estimate_contrast(joined(2), (-width, width), resamples=resamples, seed=seed),
        value_a=value(0),
        value_b=value(1),
        only_a=sum(each.only_a for paired in rows for each in paired),
        only_b=sum(each.only_b for paired in rows for each in paired),
    )


class _Paired(NamedTuple):
    """The shared prompts of one stratum."""

    a: Floats
    b: Floats
    difference: Floats
    ids: list[str]
    only_a: int
    only_b: int


def _paired(stratum: StratumPair, bounds: tuple[float, float], where: str) -> _Paired:
    of_a, of_b = group_scores(*stratum.a, bounds), group_scores(*stratum.b, bounds)
    shared, in_a, in_b = np.intersect1d(of_a.ids, of_b.ids, assume_unique=True, return_indices=True)
    if not len(shared):
        raise InputError(f"the two have no prompt in common in {quote(where)}, so they can't be paired")
    a, b = of_a.means[in_a], of_b.means[in_b]
    return _Paired(a, b, b - a, shared.tolist(), len(of_a.ids) - len(shared), len(of_b.ids) - len(shared))
