"""How far yes-or-no verdicts agree with labels: accuracy, precision, recall, kappa, each with a 95% interval."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from stairdata.statistics.clusters import SEED, Floats, resample_weights
from stairdata.statistics.intervals import LEVEL, MeanEstimate, estimate_mean
from stairdata_schemas.aliases import Json


@dataclass(frozen=True, slots=True)
class Kappa:
    """Cohen's kappa: 1 where all agree, 0 where they agree as often as chance would."""

    value: float
    low: float | None
    """Ends of the percentile interval over prompts; None where some resamples have no kappa, or all are equal."""
    high: float | None


@dataclass(frozen=True, slots=True)
class Agreement:
    """Verdicts against labels, over rows; intervals are over prompts."""

    true_positives: int
    false_positives: int
    false_negatives: int
    true_negatives: int
    accuracy: MeanEstimate
    precision: MeanEstimate | None
    """None without a positive verdict."""
    recall: MeanEstimate | None
    """None without a positive label."""
    kappa: Kappa | None
    """None where labels and verdicts are all the same one, so that chance agrees always."""

    def as_json(self) -> Json:
        """Return what `--json` prints."""
        return {
            "true_positives": self.true_positives,
            "false_positives": self.false_positives,
            "false_negatives": self.false_negatives,
            "true_negatives": self.true_negatives,
            "accuracy": self.accuracy.as_json(),
            "precision": self.precision and self.precision.as_json(),
            "recall": self.recall and self.recall.as_json(),
            "kappa": self.kappa and {"value": self.kappa.value, "low": self.kappa.low, "high": self.kappa.high},
        }


def measure_agreement(
    labels: Sequence[bool], verdicts: Sequence[bool], prompt_ids: Sequence[str], *, seed: int = SEED
) -> Agreement:
    """Compare verdicts with labels.

    Args:
        labels: what people said, shape (rows,), at least one.
        verdicts: what the judge said of the same rows.
        prompt_ids: the prompt of each row.
        seed: of the resamples.

    Raises:
        InputError: no rows.
    """
    said, found = np.asarray(labels, dtype=bool), np.asarray(verdicts, dtype=bool)
    ids = np.asarray(prompt_ids, dtype=np.str_)
    accuracy = estimate_mean((said == found).astype(np.float64), ids.tolist(), seed=seed)

    def share(of: np.ndarray, among: np.ndarray) -> MeanEstimate | None:
        chosen = of[among].astype(np.float64)
        return estimate_mean(chosen, ids[among].tolist(), seed=seed) if len(chosen) else None

    cells = np.stack([said & found, ~said & found, said & ~found, ~said & ~found], axis=1).astype(np.float64)
    hit, false, missed, left = (int(each) for each in cells.sum(axis=0))
    return Agreement(
        true_positives=hit,
        false_positives=false,
        false_negatives=missed,
        true_negatives=left,
        accuracy=accuracy,
        precision=share(said, found),
        recall=share(found, said),
        kappa=_kappa(cells, ids, seed),
    )


def _kappa(cells: Floats, ids: np.ndarray, seed: int) -> Kappa | None:
    value = float(kappas(cells.sum(axis=0, keepdims=True))[0])
    if np.isnan(value):
        return None
    _, places = np.unique(ids, return_inverse=True)
    by_prompt = np.stack([np.bincount(places, weights=column) for column in cells.T], axis=1)
    kinds, copies = np.unique(by_prompt, axis=0, return_counts=True)
    drawn = np.concatenate([kappas(weights @ kinds) for weights in resample_weights(copies, seed=seed)])
    if np.isnan(drawn).any() or np.ptp(drawn) == 0:
        return Kappa(value, None, None)
    low, high = np.quantile(drawn, [0.5 - LEVEL / 2, 0.5 + LEVEL / 2])
    return Kappa(value, float(low), float(high))


def kappas(cells: Floats) -> Floats:
    """Return Cohen's kappa (1960, https://doi.org/10.1177/001316446002000104) of tables of two by two.

    Args:
        cells: true positives, false positives, false negatives, true negatives; shape (tables, 4).

    Returns:
        Shape (tables,); NaN where chance agrees always.
    """
    hit, false, missed, left = cells.T
    total = cells.sum(axis=1)
    observed = (hit + left) / total
    chance = ((hit + false) * (hit + missed) + (missed + left) * (false + left)) / total**2
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(chance < 1, (observed - chance) / (1 - chance), np.nan)
