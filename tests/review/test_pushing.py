"""What goes to reviewers: selection, order of the sides, records, batches."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stairdata.generators.options import BuildOptions
from stairdata.generators.pairs import build_preference_pairs
from stairdata.generators.sft import build_from_trees
from stairdata.recipe import Recipe
from stairdata_review.blinding import first_side, other_side, unblind
from stairdata_review.items import Item, item_ids, read_items
from stairdata_review.push import BATCH_BYTES, BATCH_RECORDS, batches
from stairdata_review.selecting import SELECTIONS, select
from stairdata_review.settings import guidelines_of, layout_of, record_of
from stairdata_review.texts import CHAT_LIMIT, TEXT_LIMIT
from stairdata_schemas.artifacts import Artifact, resolve
from stairdata_schemas.errors import ArtifactNotFoundError, UsageError
from tests.review.rounds import answer, block, pairs_of
from tests.stairdata.forests import artifact_of, tree_of

FACTS = {"margin": 1.0, "depth": 1, "task": None, "chosen_value": 1.0, "rejected_value": 0.0, "iteration": 1}


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
    with pytest.raises(ArtifactNotFoundError, match="stand in the trees"):
        select(pairs, "disagreement", None, 42, tmp_path)
    trees = resolve("trees", pairs.folder.parent.parent)
    with pytest.raises(UsageError, match="is for pairs"):
        select(trees, "margin", None, 42, tmp_path)
    with pytest.raises(UsageError, match="unknown selection"):
        select(pairs, "best", None, 42, tmp_path)


def test_sides_are_drawn_evenly_and_the_same_each_time() -> None:
    sides = [first_side(42, f"{number:016x}") for number in range(2000)]
    assert 900 < sides.count("chosen") < 1100
    assert sides == [first_side(42, f"{number:016x}") for number in range(2000)]
    assert sides != [first_side(43, f"{number:016x}") for number in range(2000)]


@given(st.sampled_from(["chosen", "rejected"]), st.sampled_from(["A", "B", "tie", "both_bad"]))
def test_answers_are_turned_back(first: str, said: str) -> None:
    assert unblind(said, first) == {"A": first, "B": other_side(first)}.get(said, said)


def test_a_record_is_blind_and_whole(pairs: Artifact) -> None:
    hidden = {part["name"] for part in layout_of(pairs.kind, "x").metadata if not part["visible_for_annotators"]}
    assert hidden == {"chosen_value", "rejected_value", "a_is"}
    for item in read_items(pairs, item_ids(pairs)):
        record, left_out = record_of(item, pairs.kind, 42)
        first = record["metadata"]["a_is"]
        assert record["fields"]["a"].splitlines()[-1] in item.texts[first]
        assert record["fields"]["b"].splitlines()[-1] in item.texts[other_side(first)]
        assert ("prefix" in record["fields"]) == bool(item.prefix)
        assert left_out == 0
        assert "suggestions" not in record
        assert record["external_id"] == item.item_id


@given(st.text("a&<😀\n", min_size=1, max_size=20), st.integers(0, 5))
@settings(max_examples=8)
def test_long_texts_are_cut_to_what_argilla_takes(piece: str, more: int) -> None:
    text = piece * (60_000 // len(piece) + more)
    record, left_out = record_of(Item("i", text, "", {"chosen": text, "rejected": "b"}, FACTS), "preference_pairs", 1)
    assert len(record["fields"]["prompt"][0]["content"]) <= CHAT_LIMIT
    assert all(len(record["fields"][name]) <= TEXT_LIMIT for name in ("a", "b"))
    assert left_out > 0


@given(st.lists(st.integers(1, BATCH_BYTES), max_size=30), st.integers(0, 1200))
def test_batches_are_small_and_lose_nothing(sizes: list[int], many: int) -> None:
    records = [({"text": "x" * size}, 0) for size in [*sizes[:6], *[1] * many]]
    found = list(batches(records))
    assert [record for batch in found for record in batch] == records
    for batch in found:
        assert 0 < len(batch) <= BATCH_RECORDS
        assert len(batch) == 1 or sum(len(json.dumps(record)) for record, _ in batch) <= BATCH_BYTES


def test_no_field_runs_what_a_model_wrote_and_nothing_is_suggested(pairs: Artifact) -> None:
    for kind in ("preference_pairs", "prm_pairs", "trees", "structured_cot"):
        layout = layout_of(kind, "x")
        for part in layout.fields:
            assert part["settings"] == {"type": part["settings"]["type"], "use_markdown": False}
            assert part["settings"]["type"] in {"chat", "text"}
        required = [part["name"] for part in layout.questions if part["required"]]
        assert required == (["verdict", "safe"] if "pairs" in kind else ["safe", "helpfulness", "reasoning"])
        assert len(layout.guidelines) <= 10_000


@pytest.mark.parametrize("kind", ["preference_pairs", "trees"])
@pytest.mark.parametrize("in_argilla", [True, False])
def test_guidelines_begin_with_a_warning_and_a_way_to_skip(kind: str, in_argilla: bool) -> None:
    version, text = guidelines_of(kind, in_argilla=in_argilla, contact="Ann & Bob <a@b>")
    assert version in {"pairs/1", "answers/1"}
    first = text.split("## ")[1]
    assert "harmful or disturbing" in first
    assert "You may skip any item" in first
    assert "<a@b>" not in text


def test_answers_of_one_prompt_have_ids_of_their_own(tmp_path: Path) -> None:
    shape = [
        (1, 0, block("Facts:", "f"), False, 1.0, 4),
        (2, 1, answer("one"), True, 2.0, 4),
        (3, 1, answer("two"), True, 2.0, 4),
    ]
    trees = artifact_of(tmp_path, [tree_of(shape, 0), tree_of(shape[:2], 1)])
    rows = build_from_trees(Recipe(), BuildOptions(root=tmp_path), trees)
    found = item_ids(rows)["item_id"].to_list()
    assert sorted("/" in item_id for item_id in found) == [False, True, True]
    assert len(set(found)) == 3
    assert [item.item_id for item in read_items(rows, item_ids(rows))] == found
