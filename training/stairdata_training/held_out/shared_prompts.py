"""The check that pairs to evaluate on come from other prompts than the training's."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from stairdata_schemas.errors import TrainingError
from stairdata_schemas.text.words import comparable


def shared_prompts(training: Any, evaluation: Any) -> int:
    """Count the prompts to evaluate on that the training has too.

    A prompt counts by its id, and by its text without difference of case, spaces and invisible characters.

    Args:
        training: a `Dataset`, or a list of rows, with `prompt_id` and `prompt`.
        evaluation: the same.
    """
    seen = {key for keys in _prompts(training).values() for key in keys}
    return sum(not keys.isdisjoint(seen) for keys in _prompts(evaluation).values())


def check_no_shared_prompts(training: Any, evaluation: Any) -> None:
    """Refuse pairs to evaluate on that would say how well the training's prompts were learnt by heart.

    Raises:
        TrainingError: at least one prompt is in both.
    """
    shared = shared_prompts(training, evaluation)
    if shared:
        raise TrainingError(
            f"{shared} of the {len(_prompts(evaluation))} prompts to evaluate on are in the training too, so the "
            "measures would say nothing about new prompts; build both parts with preference_pairs.hold_out (or "
            "prm_pairs.hold_out), and give the part held_out of the same trees as --eval-input"
        )


def _prompts(rows: Any) -> dict[str, set[str]]:
    """Return each prompt by its id, with the keys that it is recognised by."""
    return {prompt_id: {prompt_id, " ".join(comparable(prompt).split())} for prompt_id, prompt in _columns(rows)}


def _columns(rows: Any) -> Iterator[tuple[str, str]]:
    if hasattr(rows, "select_columns"):  # a Dataset reads whole rows otherwise
        rows = rows.select_columns(["prompt_id", "prompt"])
    return ((row["prompt_id"], row["prompt"]) for row in rows)
