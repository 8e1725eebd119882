"""Trees that don't hold together: refused with the rule's name, and the others used all the same."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from stairdata.generators.pairs.build import build_preference_pairs
from stairdata.generators.pairs.forest import read_trees, sound_trees
from stairdata.recipe import Recipe
from stairdata.report.trees import find_tree
from stairdata.runs.options import BuildOptions
from stairdata_schemas.artifacts import Artifact, open_artifact
from stairdata_schemas.errors import ArtifactError
from stairdata_schemas.kinds import arrow_schema
from stairdata_schemas.manifest import sha256_of_file
from stairdata_schemas.quarantine import QuarantineRow
from tests.stairdata.forests import Node, artifact_of, frame_of, tree_of

SHAPE: list[Any] = [
    (1, 0, "a", False, 1.0, 2), (2, 0, "b", True, -3.0, 4), (3, 1, "c", True, 3.0, 4), (4, 1, "d", False, -1.0, 4),
]  # fmt: skip


def change(index: int, **values: Any) -> Callable[[list[Node]], None]:
    return lambda nodes: nodes[index].update(values)


BROKEN: list[tuple[str, Callable[[list[Node]], None]]] = [
    ("nodes|min_length", lambda nodes: nodes.clear()),
    ("nodes_have_no_nulls", change(2, step=None)),
    ("nodes_have_no_nulls", change(2, visits=None)),
    ("node_ids_are_dense", change(4, node_id=3)),  # a duplicate id
    ("node_ids_are_dense", change(4, node_id=7)),
    ("first_node_is_the_root", change(0, step="x")),
    ("first_node_is_the_root", change(0, depth=1)),
    ("parents_come_first", change(3, parent_id=9)),  # an unknown parent
    ("parents_come_first", change(3, parent_id=3)),  # a cycle of one
    ("parents_come_first", change(1, parent_id=3)),  # a cycle of two
    ("parents_come_first", change(3, parent_id=-1)),  # an orphan: a second root
    ("depth_is_one_below_the_parent", change(3, depth=1)),
    ("terminal_nodes_have_no_children", change(1, is_terminal=True)),
    ("visits_are_not_negative", change(4, visits=-1)),
    ("tokens_are_not_negative", change(4, tokens=-1)),
    ("values_are_numbers", change(4, value_sum=float("nan"))),
    ("values_are_numbers", change(3, reward=float("nan"))),
    ("values_are_numbers", change(4, value_sum=float("inf"))),
    ("unvisited_nodes_have_no_value", change(4, visits=0)),
    ("value_is_the_mean", change(3, reward=3.00001)),
    ("value_is_the_mean", change(3, value_sum=11.9999)),
]


@pytest.mark.parametrize(("rule", "break_it"), BROKEN)
def test_a_broken_tree_is_refused_by_name(rule: str, break_it: Callable[[list[Node]], None], tmp_path: Path) -> None:
    trees = [tree_of(SHAPE, number) for number in range(3)]
    break_it(trees[1]["nodes"])
    refused: list[QuarantineRow] = []
    source = artifact_of(tmp_path, [tree_of(SHAPE)])
    sound = sound_trees(frame_of(trees), 10, source, refused)
    assert sound["prompt"].to_list() == ["p0", "p2"]
    assert [(each.source, each.row, each.rule) for each in refused] == [("trees@1.0.0", 11, rule)]
    assert trees[1]["tree_id"] in refused[0].raw


def test_rounding_is_no_fault(tmp_path: Path) -> None:
    trees = [tree_of(SHAPE)]
    trees[0]["nodes"][3]["reward"] = 3.0 * (1 + 5e-7)
    assert len(sound_trees(frame_of(trees), 0, artifact_of(tmp_path, [tree_of(SHAPE)]), [])) == 1


def test_visits_are_added_up_on_trees_grown_here_alone(tmp_path: Path) -> None:
    grown = artifact_of(tmp_path / "grown", [tree_of(SHAPE)], "trees/1")
    elsewhere = artifact_of(tmp_path / "elsewhere", [tree_of(SHAPE)], "import_thu_ml_trees/1")
    tree = tree_of(SHAPE)
    refused: list[QuarantineRow] = []
    assert sound_trees(frame_of([tree]), 0, grown, refused).is_empty(), "partial nodes were visited, without rollouts"
    assert [each.rule for each in refused] == ["visits_add_up"]
    assert len(sound_trees(frame_of([tree]), 0, elsewhere, [])) == 1
    for node, own in ((1, 2), (4, 4)):
        tree["nodes"][node]["rollouts"] = [{"text": "x", "reward": 1.0}] * own
    assert len(sound_trees(frame_of([tree]), 0, grown, [])) == 1


def rewritten(artifact: Artifact, frame: pl.DataFrame) -> Artifact:
    """Put other rows into a finished artifact, as a program that knows no rules would."""
    import pyarrow.parquet as pq

    (path,) = artifact.data_files
    pq.write_table(frame.to_arrow().cast(arrow_schema("trees")), path)
    manifest = artifact.manifest.model_copy(deep=True)
    manifest.files = [
        manifest.files[0].model_copy(update={"bytes": path.stat().st_size, "sha256": sha256_of_file(path)})
    ]
    (artifact.folder / "manifest.json").write_text(manifest.model_dump_json())
    return open_artifact(artifact.folder)


@pytest.mark.slow
@pytest.mark.parametrize("nodes_at_once", [5, 1000])
def test_a_build_uses_the_sound_trees_and_keeps_the_broken_ones_in_quarantine(
    nodes_at_once: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stairdata.generators.pairs.forest.NODES_AT_ONCE", nodes_at_once)
    trees = [tree_of(SHAPE, number) for number in range(40)]
    artifact = artifact_of(tmp_path, trees)
    trees[7]["nodes"][3]["parent_id"] = 9
    rewritten(artifact, frame_of(trees))
    pairs = build_preference_pairs(Recipe(), BuildOptions(root=tmp_path))
    assert pairs.manifest.quarantine == {"parents_come_first": 1}
    assert pairs.scan().collect()["tree_id"].n_unique() == 39
    refused = pl.read_parquet(pairs.folder / "quarantine" / "refused.parquet")
    assert refused.select("source", "row", "rule").rows() == [("trees@1.0.0", 7, "parents_come_first")]


def test_what_is_no_tree_is_not_drawn(tmp_path: Path) -> None:
    tree = tree_of(SHAPE)
    artifact = artifact_of(tmp_path, [tree])
    for change_it, is_drawn in ((change(1, parent_id=3), False), (change(3, reward=1.0), True)):
        broken = tree_of(SHAPE)
        change_it(broken["nodes"])
        changed = rewritten(artifact, frame_of([broken]))
        if is_drawn:
            assert find_tree(changed, tree["tree_id"])["nodes"][3]["reward"] == 1.0
        else:
            with pytest.raises(ArtifactError, match="can't be drawn: it breaks the rule parents_come_first"):
                find_tree(changed, tree["tree_id"])


@pytest.mark.parametrize("nodes_at_once", [1, 5, 12, 1000])
def test_shards_are_read_in_pieces(nodes_at_once: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stairdata.generators.pairs.forest.NODES_AT_ONCE", nodes_at_once)
    artifact = artifact_of(tmp_path, [tree_of(SHAPE, number) for number in range(7)])
    frames = list(read_trees(artifact))
    assert max(map(len, frames)) == max(1, min(7, nodes_at_once // 5))
    assert pl.concat(frames)["prompt"].to_list() == [f"p{number}" for number in range(7)]
    fields = set(frames[0].select(pl.col("nodes").explode()).unnest("nodes").columns)
    assert fields == {"node_id", "parent_id", "depth", "step", "is_terminal", "visits", "value_sum", "reward", "tokens",
                      "rollouts"}  # fmt: skip


def test_limit_counts_trees(tmp_path: Path) -> None:
    artifact_of(tmp_path, [tree_of(SHAPE, number) for number in range(7)])
    pairs = build_preference_pairs(Recipe(), BuildOptions(root=tmp_path, limit=3))
    assert pairs.scan().collect()["tree_id"].n_unique() == 3
