"""Parts of the prompts: disjoint, balanced by task, and the same whatever the order of the rows."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stairdata.generators.prompts.part import build_prompt_part
from stairdata.generators.trees.build import units_of
from stairdata.recipe import Recipe, RoundsSection
from stairdata.runs.build import NotBuiltError
from stairdata.runs.options import BuildOptions
from stairdata.runs.prompt_parts import PromptPart, check_no_repeats, ids_of, order_prompts, split_prompts
from stairdata_schemas.artifacts import Artifact
from stairdata_schemas.errors import RecipeError

PROMPTS = st.lists(st.sampled_from(["safety", "helpfulness"]), min_size=8, max_size=80).map(
    lambda tasks: [(f"{number:016x}", task) for number, task in enumerate(tasks)]
)


@given(
    prompts=PROMPTS, seed=st.integers(0, 2**40), held_out=st.integers(0, 2), count=st.integers(1, 4),
    each=st.booleans(), evaluated=st.integers(0, 2),
)  # fmt: skip
def test_no_prompt_is_in_two_parts_and_each_part_has_the_mixture_of_the_whole(
    prompts: list[tuple[str, str]], seed: int, held_out: int, count: int, each: bool,
    evaluated: int,
) -> None:  # fmt: skip
    total = len(prompts)
    per_round = (total - held_out - evaluated) // count if each else None
    split = split_prompts(
        total, RoundsSection(held_out=held_out, count=count, prompts_per_round=per_round, eval_prompts=evaluated)
    )
    order = order_prompts(prompts, seed)
    parts = [order[part.first : part.end] for part in (split.held_out, split.evaluation, *split.rounds)]
    assert sum(map(len, parts)) == len(set().union(*parts))
    assert [len(parts[0]), len(parts[1])] == [held_out, evaluated]
    sizes = [len(part) for part in parts[2:]]
    assert max(sizes) - min(sizes) <= (0 if each else 1)
    if not each:
        assert sum(sizes) == total - held_out - evaluated
    tasks = dict(prompts)
    share = Counter(tasks.values())
    for part in parts:
        found = Counter(tasks[prompt_id] for prompt_id in part)
        assert all(abs(found[task] - len(part) * share[task] / total) <= 1.5 for task in share)


@given(prompts=PROMPTS, seed=st.integers(0, 2**40))
def test_the_order_depends_on_seed_and_prompts_alone(prompts: list[tuple[str, str]], seed: int) -> None:
    shuffled = random.Random(seed).sample(prompts, len(prompts))  # noqa: S311
    assert order_prompts(shuffled, seed) == order_prompts(prompts, seed)
    assert sorted(order_prompts(prompts, seed)) == [prompt_id for prompt_id, _ in prompts]


def test_another_seed_gives_another_order() -> None:
    prompts = [(f"{number:016x}", "safety") for number in range(40)]
    assert order_prompts(prompts, 1) != order_prompts(prompts, 2)


def test_the_parts_of_the_first_rounds_stay_when_rounds_are_added() -> None:
    few, more = (split_prompts(100, RoundsSection(count=count, prompts_per_round=20, held_out=10)) for count in (2, 4))
    assert more.rounds[:2] == few.rounds
    assert more.held_out == few.held_out
    evaluated = split_prompts(100, RoundsSection(count=4, prompts_per_round=20, held_out=10, eval_prompts=10))
    assert (evaluated.rounds, evaluated.others) == (more.rounds, more.others)
    assert evaluated.evaluation == PromptPart(90, 100)
    with pytest.raises(RecipeError, match="10 held out and 11 to evaluate on need 101"):
        split_prompts(100, RoundsSection(count=4, prompts_per_round=20, held_out=10, eval_prompts=11))


def test_a_prompt_to_evaluate_on_repeats_none_of_a_round(prompts_of: Callable[[list[str]], Artifact]) -> None:
    prompts = prompts_of([f"{word} {number}" for number in range(6) for word in ("Ask", "ASK")])
    split = split_prompts(12, RoundsSection(count=1, held_out=0, eval_prompts=5))
    with pytest.raises(RecipeError, match=r"of the 5 prompts of rounds.eval_prompts repeat .*near_duplicates"):
        check_no_repeats(prompts, split, 42)
    check_no_repeats(prompts, split_prompts(12, RoundsSection(count=1, held_out=0)), 42)


def test_a_round_needs_a_prompt() -> None:
    with pytest.raises(RecipeError, match="there are 3 prompts, and 4 rounds of at least 1 need 4"):
        split_prompts(3, RoundsSection(count=4, held_out=0))


def test_trees_are_grown_from_the_prompts_of_a_part_alone(make_prompts: Callable[[int], Artifact]) -> None:
    prompts, recipe = make_prompts(12), Recipe()
    part = PromptPart(2, 8)
    every, some = (units_of(recipe, prompts, BuildOptions(part=each)) for each in (None, part))
    assert {unit.payload["prompt_id"] for unit in some} == ids_of(prompts, part, recipe.seed)
    assert [unit for unit in every if unit in some] == some, "with the numbers that they have among all"
    limited = units_of(recipe, prompts, BuildOptions(part=part, limit=4))
    assert limited == some[:4]


def test_a_part_of_the_prompts_is_an_artifact_with_the_rows_as_they_are(
    make_prompts: Callable[[int], Artifact], tmp_path: Path
) -> None:
    prompts, options = make_prompts(12), BuildOptions(root=tmp_path / "parts")
    with pytest.raises(NotBuiltError, match="prompts of this recipe is not built"):
        build_prompt_part(prompts, PromptPart(0, 4), 1, replace(options, only_finished=True))
    assert not (tmp_path / "parts").exists()
    held_out = build_prompt_part(prompts, PromptPart(0, 4), 1, options)
    rows = prompts.scan().collect()
    assert held_out.scan().collect().rows() == [
        row for row in rows.rows() if row[0] in ids_of(prompts, PromptPart(0, 4), 1)
    ]
    assert held_out.manifest.parents[0].content_hash == prompts.manifest.content_hash
    assert build_prompt_part(prompts, PromptPart(0, 4), 1, replace(options, only_finished=True)) == held_out
    assert build_prompt_part(prompts, PromptPart(4, 12), 1, options).manifest.rows == 8
