"""Accuracy and calibration of a process reward model on held-out pairs, beside a rule that knows lengths alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from stairdata_schemas.errors import TrainingError
from stairdata_training.held_out import NOT_BETTER, WRONG_WAY
from stairdata_training.held_out.bootstrap import Interval, interval_of_mean
from stairdata_training.held_out.groups import intervals_by, wins, wrong_way
from stairdata_training.held_out.lengths import LengthRule, length_rule
from stairdata_training.inference.batches import batches_by_length
from stairdata_training.inference.forward import Rewards, pad
from stairdata_training.tokens import PrmIds, RowMapping

BINS = 10


@dataclass(frozen=True, slots=True)
class CalibrationBin:
    """The pairs about which the model is as sure as this."""

    low: float
    """Confidence from which on pairs belong here."""
    high: float
    pairs: int
    confidence: float | None
    """Mean of `sigmoid(|difference of scores|)`; None where there are no pairs."""
    accuracy: float | None
    """Share of them in which the chosen side has the higher score."""


@dataclass(frozen=True, slots=True)
class PrmMeasures:
    """How a reward model ranks held-out pairs; `dataclasses.asdict` makes JSON of it."""

    accuracy: Interval
    """Share of pairs whose chosen side has the higher score; a tie counts half."""
    accuracy_by_task: dict[str, Interval]
    accuracy_by_end: dict[str, Interval]
    """By whether the two texts are whole answers: terminal, partial, or mixed (one of each)."""
    accuracy_by_depth: dict[str, Interval]
    """By the depth of the chosen node."""
    length_rule: LengthRule
    better_than_length: bool
    """The whole interval of the accuracy lies above that of the length rule's value."""
    wrong_way: list[str]
    """Tasks on whose pairs the whole interval of the accuracy lies below one half."""
    calibration: list[CalibrationBin]
    expected_calibration_error: float

    @property
    def marks(self) -> list[str]:
        """What has to be said wherever the model is named."""
        marks = [] if self.better_than_length else [NOT_BETTER]
        return [*marks, *(WRONG_WAY.format(task=task) for task in self.wrong_way)]


def measure_prm(
    scores: Rewards, rows: Sequence[RowMapping], ids: Sequence[PrmIds], *, pad_id: int, batch_size: int = 4
) -> PrmMeasures:
    """Score both sides of rows of `prm_pairs`, which stand in the same batch.

    Under several processes each one measures all rows, so that a sharded model is called in step.

    Args:
        scores: the model, as `forward.rewards` makes it.
        rows: pairs whose prompts are not those of the training.
        ids: of each row, as the training's tokenizer makes them.
        pad_id: id of the pad token.
        batch_size: pairs in one forward pass.

    Raises:
        TrainingError: there are no rows.
    """
    if len(rows) == 0:
        raise TrainingError("there are no held-out pairs to measure; hold out a larger share")
    differences = _differences(scores, ids, pad_id, batch_size)
    correct, prompts = wins(differences), [row["prompt_id"] for row in rows]
    accuracy, rule = interval_of_mean(correct, prompts), length_rule(ids, prompts)
    bins, by_task = calibration(differences), intervals_by("task", rows, correct)
    return PrmMeasures(
        accuracy=accuracy,
        accuracy_by_task=by_task,
        accuracy_by_end=intervals_by("end", rows, correct),
        accuracy_by_depth=intervals_by("depth", rows, correct),
        length_rule=rule,
        better_than_length=accuracy.low is not None and accuracy.low > rule.accuracy.value,
        wrong_way=wrong_way(by_task),
        calibration=bins,
        expected_calibration_error=expected_calibration_error(bins),
    )


def _differences(scores: Rewards, ids: Sequence[PrmIds], pad_id: int, batch_size: int) -> list[float]:
    found = [0.0] * len(ids)
    for indices in batches_by_length([pair["length"] for pair in ids], batch_size):
        sequences = [ids[index]["chosen_ids"] for index in indices] + [ids[index]["rejected_ids"] for index in indices]
        values = scores(pad(sequences, pad_id))
        for index, chosen, rejected in zip(indices, values[: len(indices)], values[len(indices) :], strict=True):
            found[index] = chosen - rejected
    return found


def calibration(differences: Sequence[float], bins: int = BINS) -> list[CalibrationBin]:
    """Return the reliability diagram of a model of preferences.

    By the model's own account (Bradley and Terry), it prefers a side with the probability `sigmoid(difference)`. The
    diagram compares how sure it is, from 0.5 to 1, with how often it is right, in bins of equal width (Guo et al.
    2017, arXiv 1706.04599, section 2, with the side it prefers as the predicted class). With each pair in both
    directions the diagram would begin at 0 and say the same twice.

    Args:
        differences: score of the chosen side minus that of the rejected one.
        bins: number of bins.
    """
    width = 0.5 / bins
    members: list[list[tuple[float, float]]] = [[] for _ in range(bins)]
    for difference, is_right in zip(differences, wins(differences), strict=True):
        confidence = 1 / (1 + math.exp(-abs(difference)))
        members[min(int((confidence - 0.5) / width), bins - 1)].append((confidence, is_right))
    return [
        CalibrationBin(
            low=round(0.5 + index * width, 6),
            high=round(0.5 + (index + 1) * width, 6),
            pairs=len(found),
            confidence=math.fsum(confidence for confidence, _ in found) / len(found) if found else None,
            accuracy=math.fsum(is_right for _, is_right in found) / len(found) if found else None,
        )
        for index, found in enumerate(members)
    ]


def expected_calibration_error(bins: Sequence[CalibrationBin]) -> float:
    """Return the mean over pairs of the gap between confidence and accuracy of their bin (Guo et al., equation 3)."""
    pairs = sum(found.pairs for found in bins)
    gaps = [
        found.pairs * abs(found.accuracy - found.confidence)
        for found in bins
        if found.accuracy is not None and found.confidence is not None
    ]
    return math.fsum(gaps) / pairs
