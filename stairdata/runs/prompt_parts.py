"""Parts of the prompts that share none: those held out, those of each round, and those of held-out trees.

All parts are cut out of one seeded order, which depends on the seed and on the prompts' ids and tasks, not on the order
in which they are stored.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from typing import NamedTuple

from stairdata.recipe import RoundsSection
from stairdata.runs.row_sampling import share_of
from stairdata_schemas.artifacts import Artifact
from stairdata_schemas.errors import RecipeError
from stairdata_schemas.text.words import comparable


class PromptPart(NamedTuple):
    """Places in the seeded order, from `first` to before `end`."""

    first: int
    end: int

    @property
    def size(self) -> int:
        return self.end - self.first


class PromptSplit(NamedTuple):
    """Which prompts are held out, and which belong to which round."""

    held_out: PromptPart
    """Answered by each model."""
    rounds: tuple[PromptPart, ...]
    evaluation: PromptPart
    """Those whose trees give pairs to measure on, in every round the same."""
    others: PromptPart
    """All that are not held out."""


def split_prompts(total: int, rounds: RoundsSection) -> PromptSplit:
    """Cut the seeded order of so many prompts into parts.

    With `prompts_per_round` the parts of the first rounds do not depend on how many rounds follow, nor on how many
    prompts are evaluated on, which are taken from the end.

    Raises:
        RecipeError: there are too few prompts.
    """
    held_out, count, each, evaluated = rounds.held_out, rounds.count, rounds.prompts_per_round, rounds.eval_prompts
    needed = held_out + count * (each or 1) + evaluated
    if total < needed:
        wanted = f"{count} rounds of {each or 'at least 1'}" + (f" and {held_out} held out" if held_out else "")
        wanted += f" and {evaluated} to evaluate on" if evaluated else ""
        raise RecipeError(
            f"there are {total} prompts, and {wanted} need {needed}; add sources to prompts, or lower rounds.count, "
            "rounds.prompts_per_round, rounds.held_out or rounds.eval_prompts"
        )
    rest = total - held_out - evaluated
    cuts = [held_out + (number * each if each else number * rest // count) for number in range(count + 1)]
    parts = tuple(PromptPart(first, end) for first, end in pairwise(cuts))
    return PromptSplit(
        PromptPart(0, held_out), parts, PromptPart(total - evaluated, total), PromptPart(held_out, total)
    )


def order_prompts(prompts: Iterable[tuple[str, str]], seed: int) -> list[str]:
    """Return prompt ids in a seeded order in which every stretch has about the mixture of tasks of the whole.

    Args:
        prompts: prompt_id and task.
        seed: of the order.
    """
    by_task: dict[str, list[str]] = {}
    for prompt_id, task in prompts:
        by_task.setdefault(task, []).append(prompt_id)
    places = []
    for task, ids in by_task.items():
        ids.sort(key=lambda each: (share_of(seed, "rounds", each), each))
        places += [((place + 0.5) / len(ids), task, each) for place, each in enumerate(ids)]
    return [prompt_id for *_, prompt_id in sorted(places)]


def ids_of(prompts: Artifact, part: PromptPart, seed: int) -> frozenset[str]:
    """Return the ids of a part of an artifact's prompts."""
    rows = prompts.scan().select("prompt_id", "task").collect()
    return frozenset(order_prompts(rows.iter_rows(), seed)[part.first : part.end])


def check_no_repeats(prompts: Artifact, split: PromptSplit, seed: int) -> None:
    """Check that no prompt to evaluate on repeats one of a round, in another case or spacing.

    Raises:
        RecipeError: some do, so that what is measured on them would say little about new prompts.
    """
    if not split.evaluation.size:
        return
    rows = prompts.scan().select("prompt_id", "task", "prompt").collect()
    texts = {prompt_id: " ".join(comparable(prompt).split()) for prompt_id, _, prompt in rows.iter_rows()}
    order = [texts[prompt_id] for prompt_id in order_prompts(rows.select("prompt_id", "task").iter_rows(), seed)]
    trained_on = {text for part in split.rounds for text in order[part.first : part.end]}
    repeated = sum(text in trained_on for text in order[split.evaluation.first : split.evaluation.end])
    if repeated:
        raise RecipeError(
            f"{repeated} of the {split.evaluation.size} prompts of rounds.eval_prompts repeat a prompt of a round but "
            "for case and spaces; leave repeated prompts out with prompts.near_duplicates: {}"
        )
