"""Steps of rollouts as nodes: the same pairs as of trees in which they are nodes, put there in plain loops."""

from __future__ import annotations

import copy
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stairdata.generators.pairs.build import NoPairsError, build_prm_pairs, pairs_of
from stairdata.generators.pairs.forest import path_texts, unfold
from stairdata.recipe import PreferencePairsSection, PrmPairsSection, Recipe
from stairdata.runs.options import BuildOptions
from stairdata_schemas.artifacts import validate_artifact
from stairdata_schemas.grammar import OUTPUT_CLOSE, OUTPUT_OPEN, STEP_CLOSE, STEP_OPEN, split_steps
from tests.stairdata.forests import artifact_of, frame_of, new_node, tree_of

STEP, OUTPUT = f"{STEP_OPEN}a{STEP_CLOSE}", f"{OUTPUT_OPEN}b{OUTPUT_CLOSE}"
PIECES = [STEP, OUTPUT, "\n\n", "c", "é👩🏽‍🚀\x00", STEP_CLOSE, "<|/", OUTPUT_OPEN, "\r\n"]
texts = st.lists(st.sampled_from(PIECES), max_size=5).map("".join)
ENDS = st.sampled_from(["", OUTPUT_CLOSE, OUTPUT])
rollouts = st.builds(
    lambda text, end, reward: {"text": text + end, "helpfulness": None, "safety": None, "reward": reward},
    texts,
    ENDS,
    st.sampled_from([-1.0, 0.5, 1.0, 2.0]),
)


@st.composite
def trees(draw: st.DrawFn, number: int = 0) -> dict[str, Any]:
    """A tree of two levels, whose inner nodes have some rollouts."""
    shape: list[Any] = []
    for node_id in range(1, draw(st.integers(1, 6))):
        parents = [0, *(each for each, _, _, is_terminal, _, _ in shape if not is_terminal)]
        parent = draw(st.sampled_from(parents))
        shape.append((node_id, parent, f"n{node_id}", draw(st.booleans()), draw(st.sampled_from([-1.0, 1.0])), 1))
    tree = tree_of(shape, number, tokens=None)
    for node in tree["nodes"]:
        if not node["is_terminal"]:
            node["rollouts"] = draw(st.lists(rollouts, max_size=3))
    return tree


def grafted(tree: dict[str, Any]) -> dict[str, Any]:
    """Append the steps of whole rollouts as nodes."""
    tree = copy.deepcopy(tree)
    nodes = tree["nodes"]
    for node in list(nodes):
        for rollout in node["rollouts"]:
            if not rollout["text"].endswith(OUTPUT_CLOSE):
                continue
            parent = node
            for step in split_steps(rollout["text"]):
                parent = new_node(len(nodes), parent["node_id"], parent["depth"] + 1, step, None)
                parent |= {"visits": 1, "value_sum": rollout["reward"]}
                nodes.append(parent)
            parent |= {"is_terminal": True, "reward": rollout["reward"]}
    return tree


forests = st.integers(1, 3).flatmap(lambda count: st.tuples(*[trees(number) for number in range(count)]))
LOOSE: dict[str, Any] = {"min_margin": 0.25, "min_chosen_value": -5.0}
SECTIONS = [
    ("prm_pairs", PrmPairsSection(rollouts=True, min_visits=1, **LOOSE)),
    ("prm_pairs", PrmPairsSection(rollouts=True, **LOOSE)),
    ("preference_pairs", PreferencePairsSection(rollouts=True, min_visits=1, **LOOSE)),
    ("preference_pairs", PreferencePairsSection(rollouts=True, granularity="trajectory", **LOOSE)),
    (
        "preference_pairs",
        PreferencePairsSection(rollouts=True, granularity="trajectory", trajectory_rule="margin", **LOOSE),
    ),
]


@given(forest=forests)
@settings(max_examples=50)
def test_nodes_are_those_of_trees_with_the_steps_in_them(forest: Any) -> None:
    found = unfold(frame_of([*forest]), rollouts=True)
    expected = unfold(frame_of([grafted(tree) for tree in forest]))
    assert found.trees.equals(expected.trees)
    assert found.nodes.equals(expected.nodes)
    rows = list(range(len(found.nodes)))
    assert path_texts(found, rows).equals(path_texts(expected, rows))  # type: ignore[arg-type]


@pytest.mark.parametrize(("kind", "section"), SECTIONS)
@given(forest=forests)
@settings(max_examples=20)
def test_pairs_are_those_of_trees_with_the_steps_in_them(kind: str, section: Any, forest: Any) -> None:
    plain = section.model_copy(update={"rollouts": False})
    found = pairs_of(kind, frame_of([*forest]), section, Counter())
    expected = pairs_of(kind, frame_of([grafted(tree) for tree in forest]), plain, Counter())
    assert found.equals(expected)


def rated(text: str, reward: float) -> dict[str, Any]:
    return {"text": text, "helpfulness": None, "safety": None, "reward": reward}


def test_a_build_takes_whole_answers_of_rollouts(tmp_path: Path) -> None:
    tree = tree_of([(1, 0, STEP, False, 1.0, 1), (2, 0, f"{STEP_OPEN}z{STEP_CLOSE}", False, -1.0, 1)])
    tree["nodes"][1]["rollouts"] = [rated(f"\n\n{STEP}\n\n{OUTPUT}", 1.0)]
    tree["nodes"][2]["rollouts"] = [rated(f"\n\n{OUTPUT}", -1.0), rated("cut off", -2.0)]
    trees = artifact_of(tmp_path, [tree])
    recipe = Recipe.model_validate({"prm_pairs": {"min_margin": 0.25}})
    options = BuildOptions(root=tmp_path, inputs=(trees.reference,))
    with pytest.raises(NoPairsError, match="no pair for prm_pairs"):
        build_prm_pairs(recipe, options)
    recipe = Recipe.model_validate({"prm_pairs": {"min_margin": 0.25, "rollouts": True}})
    pairs = build_prm_pairs(recipe, options)
    (row,) = pairs.scan().collect().to_dicts()
    assert (row["chosen"], row["rejected"]) == (
        f"{STEP}\n\n{STEP}\n\n{OUTPUT}",
        f"{STEP_OPEN}z{STEP_CLOSE}\n\n{OUTPUT}",
    )
    assert (row["chosen_is_terminal"], row["rejected_is_terminal"], row["granularity"]) == (True, True, "trajectory")
    assert (row["chosen_node_id"], row["rejected_node_id"]) == (4, 5), "numbered on from the three nodes of the tree"
    assert validate_artifact(pairs) == []
