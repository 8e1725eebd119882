"""Scores grouped by prompt, and resamples of whole prompts.

The rows of one prompt (its attacks and samples) are alike, so that a prompt counts as one draw: a cluster.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import numpy.typing as npt

from stairdata_schemas.errors import InputError, quote

Floats = npt.NDArray[np.float64]
RESAMPLES = 10_000
SEED = 42
ROUNDING = 1e-10
"""Share of the sums that make up a difference, below which the difference is taken for rounding."""
CELLS_AT_ONCE = 2_000_000
"""Weights that are held at the same time: 16 MB."""


@dataclass(frozen=True, slots=True)
class Clusters:
    """Sums and counts of scores by prompt."""

    ids: npt.NDArray[np.str_]
    """Shape (clusters,), sorted."""
    sums: Floats
    """Sum of the scores of each, shape (clusters,)."""
    counts: Floats
    """Rows of each, shape (clusters,)."""

    @property
    def mean(self) -> float:
        """The mean over all rows."""
        return float(self.sums.sum() / self.counts.sum())

    @property
    def means(self) -> Floats:
        """The mean of each cluster, shape (clusters,)."""
        return self.sums / self.counts

    @property
    def all_equal(self) -> bool:
        """Whether the means of all clusters are the same but for rounding, so that no resample differs."""
        means = self.means
        return float(np.ptp(means)) <= 1e-12 * max(1.0, float(np.abs(means).max()))


def group_scores(
    scores: Sequence[float] | Floats, prompt_ids: Sequence[str], bounds: tuple[float, float] | None = None
) -> Clusters:
    """Group scores by prompt.

    Args:
        scores: shape (rows,).
        prompt_ids: the prompt of each row.
        bounds: the least and the largest score that can be; None: there are none.

    Raises:
        InputError: no rows, or a score that is not finite or out of bounds; the message names its prompt.
    """
    values = np.asarray(scores, dtype=np.float64)
    if len(values) != len(prompt_ids):
        raise InputError(f"there are {len(values)} scores of {len(prompt_ids)} prompts; each score needs its prompt")
    if not len(values):
        raise InputError("there are no scores to measure; give at least one row")
    _check(values, prompt_ids, bounds)
    ids, places = np.unique(np.asarray(prompt_ids, dtype=np.str_), return_inverse=True)
    return Clusters(ids, np.bincount(places, weights=values).astype(np.float64), np.bincount(places).astype(np.float64))


def _check(values: Floats, prompt_ids: Sequence[str], bounds: tuple[float, float] | None) -> None:
    low, high = bounds or (-math.inf, math.inf)
    wrong = np.flatnonzero(~(np.isfinite(values) & (values >= low) & (values <= high)))
    if len(wrong):
        value, prompt = float(values[wrong[0]]), quote(prompt_ids[wrong[0]])
        allowed = "a finite number" if bounds is None else f"a number from {low:g} to {high:g}"
        raise InputError(
            f"{len(wrong)} of {len(values)} scores can't be used; the first is {value!r}, of prompt {prompt}, "
            f"and it has to be {allowed}; correct or leave out such rows"
        )


def standard_errors(weights: Floats, clusters: Clusters) -> tuple[Floats, Floats]:
    """Return the means of weighted samples of clusters, and the standard errors of those means.

    The mean over rows is a ratio of sums, whose error is linearised: Cochran, Sampling Techniques, section 6.4.

    Args:
        weights: how often each cluster is in each sample, shape (samples, clusters).
        clusters: of the scores.

    Returns:
        Two arrays of shape (samples,).
    """
    # centred scores keep the digits that a difference of large squares would lose
    centre = clusters.mean
    sums, counts = clusters.sums - centre * clusters.counts, clusters.counts
    table = np.stack([np.ones_like(sums), sums, counts, sums * sums, sums * counts, counts * counts], axis=1)
    drawn, total, rows, squares, products, sizes = (weights @ table).T
    means = total / rows
    crossed, spread = 2 * means * products, means * means * sizes
    residuals = squares - crossed + spread
    # what rounding leaves of equal scores is no spread: its root would be a small error, and a ratio to it enormous
    residuals[residuals <= ROUNDING * (squares + np.abs(crossed) + spread)] = 0
    drawn_twice = np.maximum(drawn, 2)
    return means + centre, np.sqrt(residuals * drawn_twice / (drawn_twice - 1)) / rows


def resample(clusters: Clusters, resamples: int = RESAMPLES, seed: int = SEED) -> tuple[Floats, Floats]:
    """Return the means and standard errors of samples of as many clusters, drawn with replacement.

    Clusters of the same sum and count are drawn together, which is the same distribution: few different scores take
    little time however many prompts there are.

    Returns:
        Two arrays of shape (resamples,).
    """
    kinds, copies = np.unique(np.stack([clusters.sums, clusters.counts]), axis=1, return_counts=True)
    different = Clusters(np.arange(len(copies)).astype(np.str_), kinds[0], kinds[1])
    parts = [standard_errors(weights, different) for weights in resample_weights(copies, resamples, seed)]
    means, errors = (np.concatenate(each) for each in zip(*parts, strict=True))
    return means, errors


def resample_weights(copies: npt.NDArray[np.int64], resamples: int = RESAMPLES, seed: int = SEED) -> Iterator[Floats]:
    """Yield how often each kind of cluster is drawn, arrays of shape (samples, kinds).

    Args:
        copies: how many clusters there are of each kind.
        resamples: all samples together.
        seed: of the draws.
    """
    dice = np.random.default_rng(seed)
    drawn, kinds = int(copies.sum()), len(copies)
    at_once = max(1, CELLS_AT_ONCE // drawn)
    for start in range(0, resamples, at_once):
        samples = min(at_once, resamples - start)
        if kinds < drawn / 2:
            yield dice.multinomial(drawn, copies / drawn, size=samples).astype(np.float64)
        else:  # faster where nearly all clusters differ
            which = np.repeat(np.arange(kinds), copies)[dice.integers(0, drawn, size=(samples, drawn))]
            which += np.arange(samples)[:, None] * kinds
            counted = np.bincount(which.ravel(), minlength=samples * kinds).reshape(samples, kinds)
            yield cast("Floats", counted.astype(np.float64))
