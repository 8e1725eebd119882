"""What is seen of a tree."""

from __future__ import annotations

from pathlib import Path

import pytest

from stairdata.report.trees import best_path, find_tree, look, title_of
from stairdata_schemas.errors import ArtifactNotFoundError, UsageError
from tests.stairdata.forests import Shape, artifact_of, tree_of

SHAPE: Shape = [
    (1, 0, "<|Reasoning_step|>\nTitle: Risk: first\nbody\n<|/Reasoning_step|>", False, 1.0, 0),
    (2, 0, "b", False, -1.0, 1),
    (3, 1, "\n\n<|Output|>\nFinal Answer:\nSorry, no.\n<|/Output|>", True, 3.0, 2),
    (4, 1, "\n\nd", True, -3.0, 1),
    (5, 2, "e" * 100, False, 0.0, 0),
]


def test_values_safety_and_the_best_path() -> None:
    nodes = tree_of(SHAPE)["nodes"]
    nodes[2]["rollouts"] = [{"text": "", "reward": -1.0, "safety": -1.0, "helpfulness": 0.0}]
    seen = look(nodes)
    assert [each.value for each in seen] == [0.5, 1.0, -1.0, 3.0, -3.0, None]
    assert [each.safety for each in seen] == ["2 of 4 safe", "2 of 3 safe", "unsafe", "safe", "unsafe", "unknown"]
    assert best_path(nodes) == {0, 1, 3}
    assert [each.is_best for each in seen] == [True, True, False, True, False, False]


def test_titles() -> None:
    nodes = tree_of(SHAPE)["nodes"]
    titles = [title_of(node) for node in nodes]
    assert titles == ["the prompt", "Risk: first", "b", "Answer: Sorry, no.", "d", "e" * 60 + "…"]
    nodes[2]["step"] = " \n"
    assert title_of(nodes[2]) == "(nothing)"


def test_a_tree_is_found_by_the_beginning_of_its_id(tmp_path: Path) -> None:
    rows = [tree_of(SHAPE, 0) | {"tree_id": "0123" + "0" * 12}, tree_of(SHAPE, 1) | {"tree_id": "01234" + "1" * 11}]
    artifact = artifact_of(tmp_path, rows)
    assert find_tree(artifact, "01234")["prompt"] == "p1"
    assert find_tree(artifact, "0123" + "0" * 12)["prompt"] == "p0"
    with pytest.raises(UsageError, match="several trees begin with '0123': 0123000000000000, 0123411111111111"):
        find_tree(artifact, "0123")
    with pytest.raises(ArtifactNotFoundError, match=r"no tree 'ffff' in trees@1\.0\.0; there are, among others, 0123"):
        find_tree(artifact, "ffff")
    with pytest.raises(UsageError, match="give at least 4 characters"):
        find_tree(artifact, "012")
