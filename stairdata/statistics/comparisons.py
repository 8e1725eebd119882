"""Differences between two models, paired by prompt: tests, corrections for many, and what could have been seen."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from stairdata.statistics.clusters import CELLS_AT_ONCE, RESAMPLES, SEED, Floats, group_scores
from stairdata.statistics.intervals import SHARES, MeanEstimate, estimate_mean
from stairdata_schemas.aliases import Json
from stairdata_schemas.errors import InputError

POWER = 0.8
LEVEL_OF_TEST = 0.05
"""Two-sided."""


@dataclass(frozen=True, slots=True)
class PairedComparison:
    """How B differs from A over the prompts that both have; each of them counts the same, whatever its rows."""

    mean_a: float
    mean_b: float
    difference: MeanEstimate
    """Of B minus A, over the shared prompts."""
    p_value: float
    """Of the sign-flip test, two-sided."""
    deviation: float | None
    """Standard deviation of the differences of prompts; None of one."""
    least_visible: float | None
    """The least difference that the test finds in 80 of 100 such studies; None where the deviation is 0 or unknown."""
    shared: int
    only_a: int
    """Prompts without a partner, which are left out."""
    only_b: int

    @property
    def note(self) -> str | None:
        """What a reader has to know beside the figure."""
        notes = [self.difference.note] if self.difference.note else []
        if self.only_a or self.only_b:
            notes.append(
                f"paired on the {self.shared} prompts that both have; left out: {self.only_a} of A, {self.only_b} of B"
            )
        return "; ".join(notes) or None

    def as_json(self) -> Json:
        """Return what `--json` prints."""
        names = ("mean_a", "mean_b", "p_value", "deviation", "least_visible", "shared", "only_a", "only_b", "note")
        return {"difference": self.difference.as_json()} | {name: getattr(self, name) for name in names}


def compare_paired(
    a: tuple[Sequence[float] | Floats, Sequence[str]],
    b: tuple[Sequence[float] | Floats, Sequence[str]],
    bounds: tuple[float, float] | None = SHARES,
    *,
    seed: int = SEED,
) -> PairedComparison:
    """Compare the scores of two models on the prompts that they share.

    Args:
        a: scores and the prompt of each, shape (rows,); a prompt's scores are averaged.
        b: the same of the other model.
        bounds: of a score.
        seed: of resamples and flips.

    Raises:
        InputError: no prompt in common, or a score that is not finite or out of bounds.
    """
    of_a, of_b = group_scores(*a, bounds), group_scores(*b, bounds)
    shared, in_a, in_b = np.intersect1d(of_a.ids, of_b.ids, assume_unique=True, return_indices=True)
    if not len(shared):
        raise InputError(
            f"the two have no prompt in common ({len(of_a.ids)} and {len(of_b.ids)} prompts), so they can't be paired; "
            "compare answers to the same prompts"
        )
    means_a, means_b = of_a.means[in_a], of_b.means[in_b]
    differences = means_b - means_a
    widest = None if bounds is None else bounds[1] - bounds[0]
    ends = None if widest is None else (-widest, widest)
    deviation = float(differences.std(ddof=1)) if len(shared) > 1 else None
    return PairedComparison(
        mean_a=float(means_a.mean()),
        mean_b=float(means_b.mean()),
        difference=estimate_mean(
            differences if ends is None else np.clip(differences, *ends), shared.tolist(), ends, seed=seed
        ),
        p_value=sign_flip_test(differences, seed=seed),
        deviation=deviation,
        least_visible=least_visible_difference(deviation, len(shared)) if deviation else None,
        shared=len(shared),
        only_a=len(of_a.ids) - len(shared),
        only_b=len(of_b.ids) - len(shared),
    )


def sign_flip_test(differences: Sequence[float] | Floats, flips: int = RESAMPLES, seed: int = SEED) -> float:
    """Return the two-sided p-value of a mean difference of 0, by flipping the signs of the prompts' differences.

    Exact (all flips) where they are no more than `flips`; else the share among `flips` random ones and the observed one
    (Phipson and Smyth 2010, https://doi.org/10.2202/1544-6115.1585), which is never 0.

    Args:
        differences: one a prompt, shape (prompts,), finite.
        flips: random ones.
        seed: of them.
    """
    # a difference of 0 has no sign; equal ones are flipped together, which is the same distribution
    sizes = np.round(np.abs(np.asarray(differences, dtype=np.float64)), 12)
    sizes = sizes[sizes > 0]
    if not len(sizes):
        return 1.0
    observed = abs(float(np.sum(differences))) * (1 - 1e-9) - 1e-9
    if 2 ** len(sizes) <= flips:
        signs = 1 - 2 * (np.arange(2 ** len(sizes))[:, None] >> np.arange(len(sizes)) & 1)
        return float(np.mean(np.abs(signs @ sizes) >= observed))
    kinds, copies = np.unique(sizes, return_counts=True)
    dice, beyond = np.random.default_rng(seed), 0
    at_once = max(1, CELLS_AT_ONCE // len(kinds))
    for start in range(0, flips, at_once):
        kept = dice.binomial(copies, 0.5, size=(min(at_once, flips - start), len(kinds)))
        beyond += int(np.count_nonzero(np.abs((2 * kept - copies) @ kinds) >= observed))
    return (1 + beyond) / (1 + flips)


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust the p-values of one table for their number (Holm 1979, Scandinavian Journal of Statistics 6, 65-70).

    Args:
        p_values: of the table's tests.

    Returns:
        Adjusted p-values in the same order; those below 0.05 stand with 95% certainty that none of them is chance.
    """
    values = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(values, kind="stable")
    adjusted = np.empty_like(values)
    adjusted[order] = np.minimum(np.maximum.accumulate(values[order] * np.arange(len(values), 0, -1)), 1)
    return [float(value) for value in adjusted]


def least_visible_difference(deviation: float, prompts: int) -> float:
    """Return the least difference that a two-sided test at 5% finds with 80% power, by the normal approximation.

    Args:
        deviation: standard deviation of the prompts' differences.
        prompts: that are paired.
    """
    return _quantiles() * deviation / math.sqrt(prompts)


def prompts_needed(difference: float, deviation: float) -> int:
    """Return how many paired prompts show a difference with 80% power: about 350 for 0.06 at a deviation of 0.4."""
    return math.ceil((_quantiles() * deviation / difference) ** 2)


def _quantiles() -> float:
    return float(stats.norm.ppf(1 - LEVEL_OF_TEST / 2) + stats.norm.ppf(POWER))
