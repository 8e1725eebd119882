"""Accuracy and margin of a DPO policy on held-out pairs of steps.

The implicit reward of a step is `beta * (log pi(step) - log ref(step))` (Rafailov et al. 2023, arXiv 2305.18290,
section 4), with the log-probabilities of what follows the shared prefix, as in the training.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from stairdata_schemas.errors import TrainingError
from stairdata_training.held_out.bootstrap import Interval, interval_of_mean
from stairdata_training.held_out.groups import intervals_by, wins, wrong_way
from stairdata_training.held_out.lengths import LengthRule, length_correlation, length_rule
from stairdata_training.inference.batches import batches_by_length
from stairdata_training.inference.forward import AnswerLogProbs, PaddedBatch, pad
from stairdata_training.tokens import DpoIds, RowMapping


@dataclass(frozen=True, slots=True)
class DpoMeasures:
    """How a policy ranks held-out pairs; `dataclasses.asdict` makes JSON of it."""

    accuracy: Interval
    """Share of pairs whose chosen side has the higher implicit reward; a tie counts half."""
    margin: Interval
    """Mean difference of the two implicit rewards, in nats times beta."""
    accuracy_by_task: dict[str, Interval]
    accuracy_by_end: dict[str, Interval]
    """By whether the compared steps end their answers: terminal or partial."""
    wrong_way: list[str]
    """Tasks on whose pairs the whole interval of the accuracy lies below one half."""
    margin_by_task: dict[str, Interval]
    margin_by_end: dict[str, Interval]
    length_rule: LengthRule
    """Of the compared steps."""
    length_correlation: float | None
    """Of the margins with how many more tokens the chosen step has."""


def measure_dpo(
    policy: AnswerLogProbs,
    reference: AnswerLogProbs,
    rows: Sequence[RowMapping],
    ids: Sequence[DpoIds],
    *,
    pad_id: int,
    beta: float,
    batch_size: int = 4,
) -> DpoMeasures:
    """Compare a policy with its reference on rows of `preference_pairs`.

    Both see the same batches, so that the noise of bf16, which depends on the padding, cancels where they agree.
    The policy is done with before the reference is called first: one of the two has to be in memory at a time.
    Under several processes each one measures all rows, so that sharded models are called in step.

    Args:
        policy: the trained model, as `forward.answer_log_probs` makes it.
        reference: the model before training; for adapters `forward.base_log_probs`.
        rows: pairs whose prompts are not those of the training.
        ids: of each row, as the training's tokenizer makes them.
        pad_id: id of the pad token.
        beta: that of the training.
        batch_size: pairs in one forward pass.

    Raises:
        TrainingError: there are no rows.
    """
    if len(rows) == 0:
        raise TrainingError("there are no held-out pairs to measure; hold out a larger share")
    order = list(batches_by_length([pair["length"] for pair in ids], batch_size))
    trained = _log_probs(policy, ids, order, pad_id)
    before = _log_probs(reference, ids, order, pad_id)
    margins = [
        beta * ((chosen - chosen_before) - (rejected - rejected_before))
        for (chosen, rejected), (chosen_before, rejected_before) in zip(trained, before, strict=True)
    ]
    correct, prompts = wins(margins), [row["prompt_id"] for row in rows]
    by_task = intervals_by("task", rows, correct)
    return DpoMeasures(
        accuracy=interval_of_mean(correct, prompts),
        margin=interval_of_mean(margins, prompts),
        accuracy_by_task=by_task,
        accuracy_by_end=intervals_by("end", rows, correct),
        wrong_way=wrong_way(by_task),
        margin_by_task=intervals_by("task", rows, margins),
        margin_by_end=intervals_by("end", rows, margins),
        length_rule=length_rule(ids, prompts),
        length_correlation=length_correlation(margins, ids),
    )


def _log_probs(
    model: AnswerLogProbs, ids: Sequence[DpoIds], order: list[list[int]], pad_id: int
) -> list[tuple[float, float]]:
    """Return the log-probabilities of both sides of each pair."""
    found: list[tuple[float, float]] = [(0.0, 0.0)] * len(ids)
    for indices in order:
        values = model(_padded([ids[index] for index in indices], pad_id))
        for index, chosen, rejected in zip(indices, values[: len(indices)], values[len(indices) :], strict=True):
            found[index] = chosen, rejected
    return found


def _padded(pairs: list[DpoIds], pad_id: int) -> PaddedBatch:
    """Make a batch of all chosen sides, then all rejected ones."""
    sequences = [pair["prompt_ids"] + pair["chosen_ids"] for pair in pairs]
    sequences += [pair["prompt_ids"] + pair["rejected_ids"] for pair in pairs]
    return pad(sequences, pad_id, [len(pair["prompt_ids"]) for pair in pairs] * 2)
