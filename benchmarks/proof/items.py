"""What is run besides the main line: other seeds, learning rates, and comparisons. One line of ITEMS each.

Items that are no seeds share the main line's artifacts and models, so that what is the same is not made again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from stairdata.pipeline.steps import Until
from stairdata.runs.row_sampling import share_of
from stairdata.stages import FullRecipe
from stairdata_schemas.aliases import Json
from stairdata_schemas.errors import InputError, suggest
from stairdata_schemas.files import write_atomic

from .place import ProofPlace

Group = Literal["seeds", "sweep", "comparisons"]
Change = Any | Callable[[FullRecipe, ProofPlace], Any]
"""A value, or what makes one of the main line's recipe."""


class Item(NamedTuple):
    """One thing that is run."""

    name: str
    group: Group
    words: str
    """What it is, for the tables."""
    changes: Mapping[str, Change]
    """Keys of the recipe that differ from the main line."""
    until: Until = "end"
    """What is trained last."""
    model: str = ""
    """Whose answers are new; {last} is the actor of the main line's last round. Empty: none, or all."""
    against: str = ""
    """The main line's model that it is compared with."""

    @property
    def has_own_folder(self) -> bool:
        """Other seeds choose other prompts, and share nothing."""
        return self.group == "seeds"

    def resolved(self, recipe: FullRecipe, place: ProofPlace) -> Json:
        """Return the changes as values."""
        return {key: change(recipe, place) if callable(change) else change for key, change in self.changes.items()}


def times(section: str, factor: float) -> Callable[[FullRecipe, ProofPlace], float]:
    """Return a learning rate as a multiple of the main line's."""
    return lambda recipe, _: float(f"{getattr(recipe, section).learning_rate * factor:.6g}")


def all_prompts(recipe: FullRecipe, _: ProofPlace) -> int:
    """Return the prompts of all rounds together."""
    return recipe.rounds.count * (recipe.rounds.prompts_per_round or 0)


def all_pairs(recipe: FullRecipe, _: ProofPlace) -> int | None:
    """Return the pairs of all rounds together; None: there is no limit."""
    return None if recipe.dpo.max_rows is None else recipe.rounds.count * recipe.dpo.max_rows


def mixed_rows(safety: int, helpfulness: int) -> Callable[[FullRecipe, ProofPlace], str]:
    """Return what writes structured reasoning in a mixture of tasks, as many rows for each mixture of up to 1 : 3."""

    def write(recipe: FullRecipe, place: ProofPlace) -> str:
        path = recipe.structured_cot.path
        if path is None:
            raise InputError("a mixture of tasks is made of structured_cot.path, and the recipe has none")
        place.data.mkdir(parents=True, exist_ok=True)
        file = place.data.absolute() / f"sft-{safety}-to-{helpfulness}.jsonl"
        write_atomic(file, "".join(mix(path, {"safety": safety, "helpfulness": helpfulness}, recipe.seed)))
        return str(file)

    return write


def mix(path: Path, parts: Mapping[str, int], seed: int) -> list[str]:
    """Return a seeded sample of a file's lines in a mixture, in the order of the file.

    All mixtures have as many rows: those of which the smaller task has four thirds.

    Args:
        path: JSONL with a column task.
        parts: of each task.
        seed: of the sample.
    """
    lines = [f"{line}\n" for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]
    by_task: dict[str, list[str]] = {task: [] for task in parts}
    for line in lines:
        by_task[json.loads(line)["task"]].append(line)
    total = min(map(len, by_task.values())) * 4 // 3
    kept: set[str] = set()
    for task, part in parts.items():
        ordered = sorted(by_task[task], key=lambda line: share_of(seed, "mixture", line))
        kept.update(ordered[: round(total * part / sum(parts.values()))])
    return [line for line in lines if line in kept]


def _seed(seed: int) -> Item:
    changes = {"seed": seed, "sft.seed": seed, "dpo.seed": seed, "prm.seed": seed}
    return Item(f"seed-{seed}", "seeds", f"the main line with seed {seed}", changes)


def _rate(method: Literal["sft", "dpo", "prm"], factor: float) -> Item:
    name, changes = f"{method}-rate-x{factor:g}", {f"{method}.learning_rate": times(method, factor)}
    words = f"learning rate of {method.upper()} {factor:g} times the main line's"
    if method == "sft":
        return Item(name, "sweep", words, changes, "sft", "sft", "sft")
    if method == "dpo":
        return Item(name, "sweep", f"{words}, round 1", changes | {"rounds.count": 1}, "rounds", "dpo-1", "dpo-1")
    return Item(name, "sweep", words, changes | {"rounds.searches": []})


def _mixture(safety: int, helpfulness: int) -> Item:
    words = f"SFT on {safety} : {helpfulness} rows of safety and helpfulness, as many rows in each mixture"
    changes = {"structured_cot.path": mixed_rows(safety, helpfulness)}
    return Item(f"sft-{safety}-to-{helpfulness}", "comparisons", words, changes, "sft", "sft", "sft")


SCORED: Mapping[str, Change] = {"rounds.searches": [{"method": "sample", "n": 4}]}
WHOLE_ANSWERS: Mapping[str, Change] = {
    # by thresholds, as published, harmless prompts have no pair; without rollouts trees of this size have few
    "preference_pairs.granularity": "trajectory",
    "preference_pairs.trajectory_rule": "margin",
    "preference_pairs.rollouts": True,
    "preference_pairs.max_per_tree": 12,
}
ITEMS: Sequence[Item] = (
    _seed(43),
    _seed(44),
    # the main line is the third value of each
    _rate("sft", 0.25),
    _rate("sft", 2),
    _rate("dpo", 0.25),
    _rate("dpo", 4),
    _rate("prm", 0.25),
    _rate("prm", 4),
    Item(
        "trajectory-pairs", "comparisons", "DPO on whole answers of rollouts, not on steps; round 1, the same trees",
        {**WHOLE_ANSWERS, "rounds.count": 1}, "rounds", "dpo-1", "dpo-1",
    ),
    Item(
        "one-round", "comparisons", "one round on the prompts of all rounds, with as many pairs in all",
        {"rounds.count": 1, "rounds.prompts_per_round": all_prompts, "dpo.max_rows": all_pairs},
        "rounds", "dpo-1", "{last}",
    ),
    _mixture(1, 3),
    _mixture(1, 1),
    _mixture(3, 1),
    Item(
        "direct-refusal", "comparisons", "SFT on final answers alone, without reasoning",
        {"sft.reasoning": False}, "sft", "sft", "sft",
    ),
    Item("best-of-rules", "comparisons", "the best of 4 scored samples, by several ways to choose", SCORED),
    Item(
        "prm-without-whole-answers", "comparisons", "the process reward model trained without pairs of whole answers",
        {"prm_pairs.whole_answers": False, "rounds.searches": []},
    ),
    Item(
        "prm-rollouts", "comparisons",
        "the process reward model trained on whole answers of rollouts and steps of two visits or more; the best of 4",
        {"prm_pairs.rollouts": True, "prm_pairs.min_visits": 2, **SCORED},
    ),
)  # fmt: skip


def items_of(group: Group) -> list[Item]:
    """Return the items of a group."""
    return [item for item in ITEMS if item.group == group]


def item_of(name: str) -> Item:
    """Return an item by its name.

    Raises:
        InputError: there is none.
    """
    found = next((item for item in ITEMS if item.name == name), None)
    if found is None:
        raise InputError(f"there is no item {name!r}; {suggest(name, [item.name for item in ITEMS])}")
    return found
