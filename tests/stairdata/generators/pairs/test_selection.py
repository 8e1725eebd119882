"""Selection of pairs: each option against the rule it is documented with, in plain Python."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stairdata.generators.pairs.build import AnyPairsSection, build_preference_pairs, build_prm_pairs, pairs_of
from stairdata.recipe import PreferencePairsSection, PrmPairsSection, Recipe
from stairdata.runs.options import BuildOptions
from stairdata.runs.row_sampling import keys_of, share_of
from stairdata_schemas import identity
from stairdata_schemas.errors import BuildError, RecipeError
from stairdata_schemas.grammar import is_block
from tests.stairdata.forests import Shape, artifact_of, frame_of, tree_of

STEPS = ["one two three", "one two four", "one two three!", "ONE, two three", "", "five", "five six", "é è", "..."]
BLOCK = "<|Reasoning_step|>\nTitle: Why:\nbody\n<|/Reasoning_step|>"
OUTPUT = "<|Output|>\nFinal Answer:\nbody\n<|/Output|>"


def wide_tree(number: int, steps: list[str], values: list[float]) -> dict[str, Any]:
    """A root with many children, each visited four times with one value."""
    shape: Shape = [
        (i + 1, 0, f"{step} ", True, value, 4) for i, (step, value) in enumerate(zip(steps, values, strict=True))
    ]
    return tree_of(shape, number)


@st.composite
def wide_forests(draw: st.DrawFn) -> list[dict[str, Any]]:
    forest = []
    for number in range(draw(st.integers(1, 3))):
        steps = draw(st.lists(st.sampled_from(STEPS), min_size=2, max_size=8))
        values = draw(st.lists(st.sampled_from([-3.0, -1.0, 1.0, 2.0, 3.0]), min_size=len(steps), max_size=len(steps)))
        forest.append(wide_tree(number, steps, values))
    return forest


def take(forest: list[dict[str, Any]], kind: str = "preference_pairs", seed: int = 1, **options: Any) -> pl.DataFrame:
    section: AnyPairsSection = (
        PreferencePairsSection(**options)
        if kind == "preference_pairs"
        else PrmPairsSection(**{"max_per_depth": None, "max_per_tree": None, **options})
    )
    return pairs_of(kind, frame_of(forest), section, Counter(), seed)


def jaccard(one: str, other: str) -> float:
    a, b = (set(re.findall(r"\w+", text.lower())) for text in (one, other))
    return len(a & b) / len(a | b) if a | b else 1.0


@pytest.mark.slow
@given(
    forest=wide_forests(),
    limit=st.sampled_from([0.3, 0.5, 0.66, 1.0]),
    kind=st.sampled_from(["preference_pairs", "prm_pairs"]),
)
@settings(max_examples=80)
def test_near_duplicates(forest: list[dict[str, Any]], limit: float, kind: str) -> None:
    order = ("chosen_node_id", "rejected_node_id")
    expected = []
    for rows in take(forest, kind).partition_by("tree_id"):
        ranked = sorted(rows.to_dicts(), key=lambda row: (-row["margin"], *(row[name] for name in order)))
        for place, row in enumerate(ranked):
            near = (
                jaccard(row["chosen"], other["chosen"]) >= limit
                and jaccard(row["rejected"], other["rejected"]) >= limit
                for other in ranked[:place]
            )
            if not any(near):
                expected.append(row["pair_id"])
    assert sorted(take(forest, kind, max_similarity=limit)["pair_id"]) == sorted(expected)


@given(forest=wide_forests(), cap=st.integers(1, 6), seed=st.integers(0, 3))
@settings(max_examples=25)
def test_caps_sample_inside_each_tree_whatever_stands_beside_it(
    forest: list[dict[str, Any]], cap: int, seed: int
) -> None:
    for kind in ("preference_pairs", "prm_pairs"):
        for option in ("max_per_tree", "max_per_depth"):
            everything = take(forest, kind, seed)
            some = take(forest, kind, seed, **{option: cap})
            assert set(some["pair_id"]) <= set(everything["pair_id"])
            for tree in forest:
                size = everything.filter(tree_id=tree["tree_id"]).height
                mine = some.filter(tree_id=tree["tree_id"])
                # all nodes of these trees are terminal and of depth 1: one group of steps, or one of trajectories
                assert len(mine) == min(size, cap)
                assert mine.equals(take([tree], kind, seed, **{option: cap}))


def test_a_cap_of_depth_counts_each_depth_by_itself() -> None:
    shape: Shape = [(1, 0, "a", False, 1.0, 4), (2, 0, "b", False, -1.0, 4), (3, 0, "c", False, -1.0, 4)]
    shape += [(number, 1, f"d{number}", False, 3.0 if number < 7 else -3.0, 5) for number in range(4, 10)]
    forest = [tree_of(shape)]
    assert Counter(take(forest, "prm_pairs", min_chosen_value=0.0)["depth"]) == {1: 2, 2: 9}
    assert Counter(take(forest, "prm_pairs", min_chosen_value=0.0, max_per_depth=2)["depth"]) == {1: 2, 2: 2}
    assert len(take(forest, "prm_pairs", min_chosen_value=0.0, max_per_depth=2, max_per_tree=3)) == 3


@pytest.mark.slow
def test_samples_are_uniform() -> None:
    """Each of 90 pairs is in a sample of 30 about a third of the time."""
    forest = [wide_tree(0, [f"step {i}" for i in range(20)], [3.0] * 10 + [-3.0] * 9 + [0.0])]
    everything = take(forest, min_margin=4.0)
    assert len(everything) == 90
    counts: Counter[str] = Counter()
    for seed in range(300):
        counts.update(take(forest, seed=seed, min_margin=4.0, max_per_tree=30)["pair_id"])
    chi_squared = sum((counts[pair] - 100) ** 2 / (100 * (1 - 30 / 90)) for pair in everything["pair_id"])
    assert chi_squared < 89 + 5 * (2 * 89) ** 0.5


def test_keys_are_those_of_splitmix() -> None:
    assert keys_of(0, np.array([0])).tolist() == [16294208416658607535]  # the generator's published first output
    assert len(set(keys_of(1, np.arange(10_000)))) == 10_000


@pytest.mark.parametrize(
    ("step", "is_first", "expected"),
    [
        (BLOCK, True, True),
        (f"\n\n{BLOCK}", False, True),
        (f"\n\n{OUTPUT}", False, True),
        (OUTPUT, True, False),
        (f"\n\n{BLOCK}", True, False),
        (BLOCK, False, False),
        (f"\n{BLOCK}", False, False),
        (f"\n\n{BLOCK}\n", False, False),
        (f"\n\n{BLOCK}{BLOCK}", False, False),
        (BLOCK.replace("Title: Why:\n", ""), True, False),
        (BLOCK.removesuffix("<|/Reasoning_step|>"), True, False),
        ("", True, False),
        ("text", False, False),
    ],
)
def test_a_step_that_is_a_block(step: str, is_first: bool, expected: bool) -> None:
    assert is_block(step, is_first=is_first) == expected


def test_pairs_whose_chosen_step_fails_the_grammar_are_dropped() -> None:
    forest = [
        tree_of([(1, 0, BLOCK, False, 2.0, 4), (2, 0, "no block", False, 1.0, 4), (3, 0, "bad", False, -3.0, 4),
                 (4, 1, f"\n\n{OUTPUT}", True, 3.0, 1), (5, 1, "\n\nbad", True, -1.0, 1)])
    ]  # fmt: skip
    assert sorted(take(forest).select("chosen_node_id", "rejected_node_id").rows()) == [(1, 2), (1, 3), (2, 3), (4, 5)]
    kept = take(forest, grammatical=True).select("chosen_node_id", "rejected_node_id")
    assert sorted(kept.rows()) == [(1, 2), (1, 3), (4, 5)]


def forest_of_prompts(count: int, tasks: list[str | None], trees_each: int = 1) -> list[dict[str, Any]]:
    shape: Shape = [(1, 0, "safe.", True, 3.0, 4), (2, 0, "unsafe.", True, -3.0, 4), (3, 0, "dull.", True, 1.0, 4)]
    rows = []
    for number in range(count):
        for ordinal in range(trees_each):
            row = tree_of(shape, number, task=tasks[number % len(tasks)])
            rows.append(row | {"tree_id": identity.tree_id(row["prompt_id"], 0, ordinal)})
    return rows


def build(root: Path, **section: Any) -> pl.DataFrame:
    recipe = Recipe.model_validate({"preference_pairs": section})
    return build_preference_pairs(recipe, BuildOptions(root=root)).scan().collect()


def test_held_out_prompts_are_the_same_for_both_kinds_and_in_no_pair_to_train_on(tmp_path: Path) -> None:
    artifact_of(tmp_path, forest_of_prompts(60, ["safety"], trees_each=2))
    everything = build(tmp_path)
    train = build(tmp_path, hold_out=0.25)
    held = build(tmp_path, hold_out=0.25, part="held_out")
    assert not set(train["prompt_id"]) & set(held["prompt_id"])
    assert set(train["pair_id"]) | set(held["pair_id"]) == set(everything["pair_id"])
    assert 5 <= held["prompt_id"].n_unique() <= 25
    recipe = Recipe.model_validate({"prm_pairs": {"hold_out": 0.25, "part": "held_out"}})
    prm = build_prm_pairs(recipe, BuildOptions(root=tmp_path))
    assert set(prm.scan().collect()["prompt_id"]) == set(held["prompt_id"])
    assert prm.manifest.configuration["part"] == "held_out"
    assert "held out" in prm.manifest.notes[0]


def test_the_held_out_part_needs_a_share() -> None:
    from stairdata.recipe import load_recipe

    with pytest.raises(RecipeError, match="part: held_out needs a hold_out above 0"):
        load_recipe(Recipe, None, ["preference_pairs.part=held_out"])


def test_a_share_of_prompts_is_about_that_share() -> None:
    places = [share_of(42, "hold_out", identity.prompt_id(str(number))) for number in range(4000)]
    assert all(0 <= place < 1 for place in places)
    assert abs(sum(place < 0.1 for place in places) - 400) < 5 * 19
    assert places != [share_of(43, "hold_out", identity.prompt_id(str(number))) for number in range(4000)]


def test_a_cap_of_prompt_counts_all_its_trees(tmp_path: Path) -> None:
    artifact_of(tmp_path, forest_of_prompts(5, ["safety"], trees_each=4))
    assert len(build(tmp_path)) == 5 * 4 * 3, "of three siblings each better one makes a pair"
    capped = build(tmp_path, max_per_prompt=3)
    assert capped["prompt_id"].value_counts()["count"].to_list() == [3] * 5
    assert set(capped["pair_id"]) <= set(build(tmp_path)["pair_id"])


@pytest.mark.parametrize("name", ["round[2]", "all*", "{a,b}"])
def test_rows_wait_in_a_folder_whose_name_looks_like_a_pattern(name: str, tmp_path: Path) -> None:
    artifact_of(tmp_path / name, forest_of_prompts(5, ["safety"], trees_each=4))
    assert build(tmp_path / name, max_per_prompt=3)["prompt_id"].value_counts()["count"].to_list() == [3] * 5


def test_balance_takes_as_many_of_each_task(tmp_path: Path) -> None:
    artifact_of(tmp_path, forest_of_prompts(12, ["safety", "safety", "helpfulness", None]))
    balanced = build(tmp_path, balance=True)
    counts = dict(balanced["task"].value_counts().iter_rows())
    assert counts == {"safety": 9, "helpfulness": 9}
    assert not list((tmp_path / "preference_pairs").rglob("spool"))


def test_balance_without_one_of_the_tasks(tmp_path: Path) -> None:
    artifact_of(tmp_path, forest_of_prompts(4, ["safety"]))
    with pytest.raises(BuildError, match="no pair has the task helpfulness"):
        build(tmp_path, balance=True)
    assert not [path for path in (tmp_path / "preference_pairs").iterdir() if path.is_dir()], (
        "the version is free again"
    )


@pytest.mark.parametrize(("rule", "advice"), [("thresholds", "set trajectory_rule: margin, or"), ("margin", "or")])
def test_balance_of_answers_by_thresholds_names_the_other_rule(rule: str, advice: str, tmp_path: Path) -> None:
    """Harmless prompts have no answer that the published rule calls bad."""
    artifact_of(tmp_path, forest_of_prompts(4, ["safety"]))
    recipe = {"preference_pairs": {"granularity": "trajectory", "trajectory_rule": rule, "balance": True}}
    with pytest.raises(BuildError, match=f"build from trees of both tasks, {advice} leave"):
        build_preference_pairs(Recipe.model_validate(recipe), BuildOptions(root=tmp_path))


def test_every_selection_is_in_the_manifest(tmp_path: Path) -> None:
    artifact_of(tmp_path, forest_of_prompts(40, ["safety", "helpfulness"], trees_each=2))
    section = {"max_per_tree": 2, "max_per_depth": 2, "max_per_prompt": 3, "max_similarity": 0.9, "balance": True,
               "hold_out": 0.2, "grammatical": False}  # fmt: skip
    artifact = build_prm_pairs(Recipe.model_validate({"prm_pairs": section}), BuildOptions(root=tmp_path))
    details = artifact.manifest.details
    assert section.items() <= artifact.manifest.configuration.items()
    assert details["funnel"]["pairs"] == artifact.manifest.rows
    assert details["funnel"]["removed_over_cap_of_tree"] + details["funnel"]["removed_over_cap_of_depth"] > 0
    assert details["funnel"]["removed_trees_of_the_other_part"] > 0
    assert details["mixture"]["task"] == {
        "helpfulness": artifact.manifest.rows // 2,
        "safety": artifact.manifest.rows // 2,
    }
    assert details["mixture"]["granularity"] == {"trajectory": artifact.manifest.rows}
    assert details["mixture"]["chosen_rejected"] == {"terminal-terminal": artifact.manifest.rows}


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stairdata.generators.pairs.forest.NODES_AT_ONCE", 8)
    monkeypatch.setattr("stairdata.generators.pairs.pairing_rules.PAIRS_AT_ONCE", 2)


def test_pieces_make_no_difference(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    artifact_of(tmp_path, forest_of_prompts(12, ["safety", "helpfulness"], trees_each=2))
    section = {"max_per_tree": 2, "max_per_prompt": 3, "balance": True, "hold_out": 0.2}
    whole = build(tmp_path, **section)
    request.getfixturevalue("small_pieces")
    recipe = Recipe.model_validate({"preference_pairs": section})
    pieces = build_preference_pairs(recipe, BuildOptions(root=tmp_path, fresh=True)).scan().collect()
    assert pieces.sort("pair_id").equals(whole.sort("pair_id"))
