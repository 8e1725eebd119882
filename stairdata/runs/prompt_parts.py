"""Parts of the prompts that share none: those held out, and those of each round.

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
    rounds: tuple[PromptPart, ...]
    others: PromptPart
    """All that are not held out."""


def split_prompts(total: int, rounds: RoundsSection) -> PromptSplit:
    """Cut the seeded order of so many prompts into parts.

    With `prompts_per_round` the parts of the first rounds do not depend on how many rounds follow.

    Raises:
        RecipeError: there are too few prompts.
    """
    held_out, count, each = rounds.held_out, rounds.count, rounds.prompts_per_round
    needed = held_out + count * (each or 1)
    if total < needed:
        wanted = f"{count} rounds of {each or 'at least 1'}" + (f" and {held_out} held out" if held_out else "")
        raise RecipeError(
            f"there are {total} prompts, and {wanted} need {needed}; add sources to prompts, or lower rounds.count, "
            "rounds.prompts_per_round or rounds.held_out"
        )
    rest = total - held_out
    cuts = [held_out + (number * each if each else number * rest // count) for number in range(count + 1)]
    parts = tuple(PromptPart(first, end) for first, end in pairwise(cuts))
    return PromptSplit(PromptPart(0, held_out), parts, PromptPart(held_out, total))


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
