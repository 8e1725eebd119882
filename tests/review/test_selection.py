"""Which items go to reviewers, and in which order."""

from __future__ import annotations

from pathlib import Path

import pytest

from stairdata.generators.pairs.build import build_preference_pairs
from stairdata.recipe import Recipe
from stairdata.runs.options import BuildOptions
from stairdata_review.items import item_ids
from stairdata_review.selection import SELECTIONS, select
from stairdata_schemas.artifacts import Artifact, resolve
from stairdata_schemas.errors import ArtifactNotFoundError, UsageError
from tests.review.samples import pairs_of
from tests.stairdata.forests import artifact_of, tree_of


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return pairs_of(tmp_path_factory.mktemp("artifacts"), 6)


def ids(artifact: Artifact, selection: str, limit: int | None = None, seed: int = 42) -> list[str]:
    return select(artifact, selection, limit, seed, artifact.folder.parent.parent)["item_id"].to_list()


@pytest.mark.parametrize("selection", SELECTIONS)
def test_a_selection_is_an_order_of_all_and_a_limit_takes_the_first(selection: str, pairs: Artifact) -> None:
    all_ids = item_ids(pairs)["item_id"].to_list()
    ordered = ids(pairs, selection)
    assert sorted(ordered) == sorted(all_ids)
    assert ids(pairs, selection, 5) == ordered[:5]
    assert ids(pairs, selection) == ordered
    assert (ids(pairs, selection, seed=7) == ordered) == (selection in {"all", "margin"})


def test_the_smallest_margin_comes_first(pairs: Artifact) -> None:
    margins = dict(pairs.scan().select("pair_id", "margin").collect().iter_rows())
    found = [margins[item_id] for item_id in ids(pairs, "margin")]
    assert found == sorted(found)


def test_each_task_and_depth_has_its_turn(pairs: Artifact) -> None:
    strata = {row[0]: row[1:] for row in pairs.scan().select("pair_id", "task", "depth").collect().iter_rows()}
    assert len({strata[item_id] for item_id in ids(pairs, "stratified", 4)}) == 4


def test_the_judge_contradicts_the_values_most_in_the_first(tmp_path: Path) -> None:
    trees = []
    for number, ratings in enumerate([None, (1.0, -1.0), (-1.0, 1.0), (1.0, 0.0)]):
        tree = tree_of([(1, 0, "good", False, 1.0, 4), (2, 0, "bad", False, -1.0, 4)], number)
        for node, rating in enumerate(ratings or (), 1):
            rollout = {"text": "x", "helpfulness": None, "safety": None, "reward": rating}
            tree["nodes"][node]["rollouts"] = [rollout, rollout]
        trees.append(tree)
    artifact_of(tmp_path, trees)
    found = build_preference_pairs(Recipe(), BuildOptions(root=tmp_path))
    prompts = dict(found.scan().select("pair_id", "prompt").collect().iter_rows())
    assert [prompts[item_id] for item_id in ids(found, "disagreement")] == ["p2", "p3", "p1", "p0"]


def test_disagreement_needs_the_trees(pairs: Artifact, tmp_path: Path) -> None:
    with pytest.raises(ArtifactNotFoundError, match="are in the trees"):
        select(pairs, "disagreement", None, 42, tmp_path)
    trees = resolve("trees", pairs.folder.parent.parent)
    with pytest.raises(UsageError, match="is only for pairs"):
        select(trees, "margin", None, 42, tmp_path)
    with pytest.raises(UsageError, match="unknown selection"):
        select(pairs, "best", None, 42, tmp_path)
