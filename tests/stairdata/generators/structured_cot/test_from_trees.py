"""SFT rows out of trees, against the rules in plain Python."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stairdata.generators.structured_cot.build import build_structured_cot
from stairdata.recipe import Recipe
from stairdata.runs.options import BuildOptions
from stairdata_schemas import grammar, identity
from stairdata_schemas.artifacts import Artifact, validate_artifact
from stairdata_schemas.errors import BuildError
from tests.stairdata.forests import Shape, artifact_of, tree_of

BLOCK = "<|Reasoning_step|>\nTitle: Thought {}:\nbody\n<|/Reasoning_step|>"
OUTPUT = "\n\n<|Output|>\nFinal Answer:\nanswer {}\n<|/Output|>"


def build(root: Path, section: dict[str, Any] | None = None, *inputs: str) -> Artifact:
    recipe = Recipe.model_validate({"structured_cot": {"from_trees": section}} if section is not None else {})
    artifact = build_structured_cot(recipe, BuildOptions(root=root, inputs=inputs))
    assert artifact is not None
    return artifact


@st.composite
def forests(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Trees of thoughts and answers, some of them broken, some of them found twice; up to two trees a prompt."""
    rows = []
    for number in range(draw(st.integers(1, 3))):
        for ordinal in range(draw(st.integers(1, 2))):
            shape: Shape = []
            for _ in range(draw(st.integers(1, 12))):
                inner = [0, *(each[0] for each in shape if not each[3])]
                parent = draw(st.sampled_from(inner))
                is_terminal = draw(st.booleans())
                first = "" if parent == 0 else "\n\n"
                step = OUTPUT.format(draw(st.integers(0, 2))) if is_terminal else first + BLOCK.format(len(shape))
                step = draw(st.sampled_from([step, step, step, "broken"]))
                value = draw(st.sampled_from([-1.0, 0.5, 1.0, 3.0]))
                shape.append((len(shape) + 1, parent, step, is_terminal, value, draw(st.integers(0, 5))))
            row = tree_of(shape, number, tokens=draw(st.sampled_from([3, 40])), actor="actor")
            rows.append(row | {"tree_id": identity.tree_id(row["prompt_id"], 0, ordinal)})
    return rows


def answers(tree: dict[str, Any], min_value: float, max_tokens: int) -> list[str]:
    """The rules of the design, slowly: good whole answers that parse."""
    found = []
    for node in tree["nodes"]:
        has_children = any(other["parent_id"] == node["node_id"] for other in tree["nodes"])
        path: list[dict[str, Any]] = []
        at = node
        while at["node_id"]:
            path.insert(0, at)
            at = tree["nodes"][at["parent_id"]]
        text = "".join(each["step"] for each in path)
        tokens = tree["nodes"][0]["tokens"] + sum(each["tokens"] for each in path) + 1  # the end of turn
        is_good = node["visits"] and node["is_terminal"] and node["reward"] >= min_value
        if node["node_id"] and not has_children and is_good and tokens <= max_tokens and grammar.is_grammatical(text):
            found.append(text)
    return found


@given(forest=forests(), cap=st.integers(1, 9), max_tokens=st.sampled_from([11, 45, 50, 2048]))
@settings(max_examples=40)
def test_rows_are_those_of_the_rules(
    forest: list[dict[str, Any]], cap: int, max_tokens: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    root = tmp_path_factory.mktemp("sft")
    artifact_of(root, forest)
    expected: dict[str, set[str]] = {}
    for tree in forest:
        expected.setdefault(tree["prompt_id"], set()).update(answers(tree, 0.8, max_tokens))
    section = {"max_per_prompt": cap, "max_tokens": max_tokens}
    if not any(expected.values()):
        with pytest.raises(BuildError, match="not one answer for structured_cot"):
            build(root, section)
        return
    artifact = build(root, section)
    assert validate_artifact(artifact) == []
    rows = artifact.scan().collect()
    assert set(rows["teacher"]) == {"actor"}
    for prompt_id, texts in expected.items():
        mine = rows.filter(prompt_id=prompt_id)["completion"].to_list()
        assert len(mine) == min(len(texts), cap)
        assert set(mine) <= texts


TREE: Shape = [
    (1, 0, BLOCK.format(0), False, 1.0, 1), (2, 1, OUTPUT.format(1), True, 3.0, 1),
    (3, 1, OUTPUT.format(2), True, 2.0, 1),
    (4, 1, OUTPUT.format(3), True, -3.0, 1), (5, 0, "half", False, 3.0, 9), (6, 0, "no grammar", True, 3.0, 1),
]  # fmt: skip


def test_by_hand(tmp_path: Path) -> None:
    trees = artifact_of(tmp_path, [tree_of(TREE, actor="sft")])
    artifact = build(tmp_path, {})
    rows = artifact.scan().sort("completion").collect().to_dicts()
    assert [row["output"] for row in rows] == ["answer 1", "answer 2"]
    assert rows[0]["steps"] == [{"title": "Thought 0:", "body": "body"}]
    assert rows[0]["completion"] == BLOCK.format(0) + OUTPUT.format(1)
    assert artifact.manifest.parents == [trees.as_parent()]
    assert "partial answers" in artifact.manifest.notes[0]
    assert artifact.manifest.details["funnel"] == {
        "candidates": 5, "removed_value_too_low": 1, "removed_not_a_whole_answer": 1, "removed_too_long": 0,
        "removed_not_in_the_grammar": 1, "removed_found_before": 0, "removed_over_cap_of_prompt": 0, "rows": 2,
    }  # fmt: skip
    assert build(tmp_path, {}) == artifact


def test_an_input_of_trees_says_it_too(tmp_path: Path) -> None:
    artifact_of(tmp_path, [tree_of(TREE)])
    assert build(tmp_path, None, "trees@1.0.0").manifest.rows == 2


def test_trees_without_a_task(tmp_path: Path) -> None:
    artifact_of(tmp_path, [tree_of(TREE, task=None)])
    with pytest.raises(BuildError, match=r"has no task.*--set structured_cot\.from_trees\.task=safety"):
        build(tmp_path, {})
    assert set(build(tmp_path, {"task": "helpfulness"}).scan().collect()["task"]) == {"helpfulness"}


def test_not_one_answer(tmp_path: Path) -> None:
    artifact_of(tmp_path, [tree_of(TREE)])
    with pytest.raises(BuildError) as caught:
        build(tmp_path, {"min_value": 3.5})
    assert "(1 trees, 5 leaves). Removed: value too low 5, not a whole answer 0" in str(caught.value)


def test_rollouts_give_rows_where_asked(tmp_path: Path) -> None:
    tree = tree_of([(1, 0, BLOCK.format(1), False, 3.0, 1)])
    rest = [OUTPUT.format(1), f"\n\n{BLOCK.format(2)}{OUTPUT.format(2)}", "\n\nnot in the grammar", OUTPUT.format(3)]
    rewards = [3.0, 1.0, 3.0, -1.0]
    tree["nodes"][1]["rollouts"] = [
        {"text": text, "helpfulness": None, "safety": None, "reward": reward}
        for text, reward in zip(rest, rewards, strict=True)
    ]
    artifact_of(tmp_path, [tree])
    with pytest.raises(BuildError, match="not one answer"):
        build(tmp_path, {})
    artifact = build(tmp_path, {"rollouts": True})
    found = set(artifact.scan().collect()["completion"])
    assert found == {BLOCK.format(1) + rest[0], BLOCK.format(1) + rest[1]}
    assert validate_artifact(artifact) == []
