"""What is reviewed, and by which id it is known."""

from __future__ import annotations

from pathlib import Path

from stairdata.generators.structured_cot.from_trees import build_from_trees
from stairdata.recipe import Recipe
from stairdata.runs.options import BuildOptions
from stairdata_review.items import item_ids, read_items
from tests.review.samples import answer, block
from tests.stairdata.forests import artifact_of, tree_of


def test_answers_of_one_prompt_have_ids_of_their_own(tmp_path: Path) -> None:
    shape = [
        (1, 0, block("Facts:", "f"), False, 1.0, 4),
        (2, 1, answer("one"), True, 2.0, 4),
        (3, 1, answer("two"), True, 2.0, 4),
    ]
    trees = artifact_of(tmp_path, [tree_of(shape, 0), tree_of(shape[:2], 1)])
    rows = build_from_trees(Recipe(), trees, BuildOptions(root=tmp_path))
    found = item_ids(rows)["item_id"].to_list()
    assert sorted("/" in item_id for item_id in found) == [False, True, True]
    assert len(set(found)) == 3
    assert [item.item_id for item in read_items(rows, item_ids(rows))] == found
