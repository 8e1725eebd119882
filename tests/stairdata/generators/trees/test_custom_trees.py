"""Trees of a policy of the caller's own as an artifact: the rows of those searches, and the same artifact each time."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

import stairdata
from stairdata.search.mcts import SearchConfig, Tree
from stairdata_schemas import identity
from stairdata_schemas.artifacts import Artifact
from stairdata_schemas.errors import UsageError

STEP = "<|Reasoning_step|>\nTitle: {0}:\n{0} it is.\n<|/Reasoning_step|>"
OUTPUT = "<|Output|>\nFinal Answer:\n{0}\n<|/Output|>"


def grow(seed: int = 42) -> Tree:
    async def complete(text: str, n: int) -> list[str]:
        steps = [""] if text else [STEP.format("Good"), STEP.format("Bad")]
        return [f"{steps[sample % len(steps)]}\n\n{OUTPUT.format(sample)}" for sample in range(n)]

    async def judge(answer: str) -> tuple[float, float]:
        return (-1.0 if "Bad" in answer else 1.0), 1.0

    return asyncio.run(stairdata.search_tree(complete, judge, config=SearchConfig(iterations=10), seed=seed))


@pytest.fixture
def prompts(tmp_path: Path) -> Artifact:
    source = tmp_path / "prompts.jsonl"
    source.write_text('{"prompt": "Why?", "task": "safety"}\n{"prompt": "How?", "task": "helpfulness"}\n')
    return stairdata.build("prompts", {"prompts": {"sources": [{"path": str(source)}]}}, root=tmp_path)


def test_trees_become_rows_and_pairs(prompts: Artifact, tmp_path: Path) -> None:
    tree, how = grow(), identity.prompt_id("How?")
    trees = stairdata.save_trees({how: tree}, prompts, actor="mine", root=tmp_path)
    assert stairdata.validate(trees) == []
    assert [parent.kind for parent in trees.manifest.parents] == ["prompts"]
    row = trees.scan().collect().row(0, named=True)
    assert (row["prompt"], row["task"], row["actor"], row["iterations"]) == ("How?", "helpfulness", "mine", None)
    assert [node["step"] for node in row["nodes"]] == [node.step for node in tree.nodes]
    assert [node["value_sum"] for node in row["nodes"]] == [node.value_sum for node in tree.nodes]
    pairs = stairdata.build("preference-pairs", {"preference_pairs": {"min_visits": 1}}, root=tmp_path)
    best = pairs.scan().collect().row(0, named=True)
    assert "Good" in best["chosen"]
    assert "Bad" in best["rejected"]


def test_the_same_trees_are_the_same_artifact(prompts: Artifact, tmp_path: Path) -> None:
    ids = [identity.prompt_id(prompt) for prompt in ("How?", "Why?")]
    first = stairdata.save_trees(dict.fromkeys(ids, grow()), prompts, actor="mine", root=tmp_path)
    again = stairdata.save_trees(dict.fromkeys(reversed(ids), grow()), prompts, actor="mine", root=tmp_path)
    assert first.folder == again.folder
    assert first.scan().collect()["prompt"].to_list() == ["Why?", "How?"]  # the order of the prompts
    other = stairdata.save_trees(dict.fromkeys(ids, grow(seed=1)), prompts, actor="mine", root=tmp_path)
    assert other.reference == "trees@1.1.0"


def test_what_is_no_tree_of_these_prompts_is_refused(prompts: Artifact, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"has no prompt 'Why\?'; name each tree by the prompt_id"):
        stairdata.save_trees({"Why?": grow()}, prompts, actor="mine", root=tmp_path)
    with pytest.raises(UsageError, match="no trees to save"):
        stairdata.save_trees({}, prompts, actor="mine", root=tmp_path)
    trees = stairdata.save_trees({identity.prompt_id("Why?"): grow()}, prompts, actor="mine", root=tmp_path)
    with pytest.raises(UsageError, match="grown from prompts, not from trees@"):
        stairdata.save_trees({identity.prompt_id("Why?"): grow()}, trees, actor="mine", root=tmp_path)
