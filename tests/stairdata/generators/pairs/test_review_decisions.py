"""What verdicts do to pairs."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stairdata.generators.pairs.build import build_preference_pairs
from stairdata.generators.pairs.review_decisions import DECISIONS, apply_reviews, decide, flip
from stairdata.recipe import PreferencePairsSection, Recipe, ReviewsSection
from stairdata.runs.options import BuildOptions
from stairdata_review.reviews import Source, build_reviews
from stairdata_schemas import identity
from stairdata_schemas.artifacts import Artifact, validate_artifact
from stairdata_schemas.errors import BuildError, UsageError
from stairdata_schemas.kinds import row_schema
from tests.review.samples import review
from tests.stairdata.forests import Shape, artifact_of, tree_of

SHAPE: Shape = [(1, 0, "good", False, 2.0, 4), (2, 0, "bad", False, -1.0, 4), (3, 0, "end", True, 1.5, 4)]
C, R, T, B = "chosen", "rejected", "tie", "both_bad"


def section(**options: Any) -> ReviewsSection:
    return ReviewsSection.model_validate(options)


def counts(said: dict[str, list[str]]) -> pl.DataFrame:
    rows = [{"pair_id": key, **{f"says_{v}": each.count(v) for v in (C, R, T, B)}} for key, each in said.items()]
    return pl.DataFrame(rows)


@pytest.mark.parametrize(
    ("said", "majority", "unanimous", "veto"),
    [
        ([C], "confirmed", "confirmed", "confirmed"),
        ([R], "overruled", "overruled", "overruled"),
        ([T], "tie", "tie", "tie"),
        ([B], "both_bad", "both_bad", "overruled"),
        ([C, R], "tie", "tie", "overruled"),
        ([C, C, R], "confirmed", "tie", "overruled"),
        ([C, R, R], "overruled", "tie", "overruled"),
        ([C, T], "tie", "tie", "confirmed"),
        ([C, C, T], "confirmed", "tie", "confirmed"),
        ([C, R, T], "tie", "tie", "overruled"),
        ([B, B, C], "both_bad", "tie", "overruled"),
        ([C, C, B], "confirmed", "tie", "overruled"),
        ([T, T], "tie", "tie", "tie"),
        ([], "unreviewed", "unreviewed", "unreviewed"),
    ],
)
def test_who_decides(said: list[str], majority: str, unanimous: str, veto: str) -> None:
    pairs = pl.DataFrame({"pair_id": ["p"]})
    verdicts = counts({"p": said} if said else {"other": [C]})
    for policy, expected in (("majority", majority), ("unanimous", unanimous), ("any-veto", veto)):
        assert decide(pairs, verdicts, section(policy=policy)).to_list() == [expected], policy


def test_a_pair_may_need_several_verdicts() -> None:
    pairs = pl.DataFrame({"pair_id": ["one", "two", "none"]})
    found = decide(pairs, counts({"two": [C, C], "one": [R]}), section(min_reviews=2)).to_list()
    assert found == ["unreviewed", "confirmed", "unreviewed"]


VERDICTS = st.lists(st.sampled_from([C, R, T, B]), max_size=5)


@given(st.lists(VERDICTS, min_size=1, max_size=6), st.sampled_from(["majority", "unanimous", "any_veto"]))
def test_what_all_say_is_decided_and_nobody_is_flipped_against_the_reviewers(
    said: list[list[str]], policy: str
) -> None:
    pairs = pairs_frame(len(said))
    verdicts = counts(dict(zip(pairs["pair_id"], said, strict=True)))
    tally: Counter[str] = Counter()
    kept = apply_reviews(pairs, verdicts, section(policy=policy, overruled="flip"), tally)
    assert sum(tally[name] for name in DECISIONS) == len(said)
    assert len(kept) == len(said) - tally["dropped"]
    for number, each in enumerate(said):
        row = kept.filter(pl.col("tree_id") == pairs["tree_id"][number])
        if set(each) == {C}:
            assert row["margin"].to_list() == [1.0]
        if set(each) == {R}:
            assert row["margin"].to_list() == [-1.0]
        if set(each) in ({T}, {B}):
            assert row.is_empty()
        if len(row) and row["margin"][0] < 0:
            assert each.count(R) > each.count(C) + each.count(B)


def pairs_frame(number: int) -> pl.DataFrame:
    rows = []
    for place in range(number):
        tree = f"{place:016x}"
        rows.append({
            "pair_id": identity.pair_id(tree, 1, 2, "step"), "tree_id": tree, "prompt_id": tree, "prompt": "p",
            "task": "safety", "round": 1, "chosen": "xa", "rejected": "xb", "prefix_length": 1, "depth": 1,
            "chosen_value": 1.0, "rejected_value": 0.0, "margin": 1.0, "chosen_visits": 4, "rejected_visits": 5,
            "chosen_is_terminal": True, "rejected_is_terminal": False, "chosen_node_id": 1, "rejected_node_id": 2,
            "granularity": "step",
        })  # fmt: skip
    return row_schema("preference_pairs").cast(pl.DataFrame(rows))


def test_a_turned_pair_is_sound_and_knows_its_sides() -> None:
    turned = flip(pairs_frame(2))
    sound, failure = row_schema("preference_pairs").filter(turned)
    assert failure.counts() == {}
    row = sound.row(0, named=True)
    assert (row["chosen"], row["rejected"], row["margin"]) == ("xb", "xa", -1.0)
    assert (row["chosen_visits"], row["chosen_is_terminal"], row["chosen_node_id"]) == (5, False, 2)
    assert row["pair_id"] == identity.pair_id(row["tree_id"], 2, 1, "step")


@pytest.fixture
def trees(tmp_path: Path) -> Artifact:
    return artifact_of(tmp_path, [tree_of(SHAPE, 0), tree_of(SHAPE, 1)])


def reviews_of(pairs: Artifact, said: list[list[str]]) -> Artifact:
    ids = pairs.scan().select("pair_id").collect()["pair_id"]
    rows = [review(ids[n], f"r{who}", verdict) for n, each in enumerate(said) for who, verdict in enumerate(each)]
    return build_reviews(rows, pairs, Source("dataset", "pairs", "pairs/1"), pairs.folder.parent.parent)


def test_pairs_are_built_again_by_what_reviewers_said(trees: Artifact, tmp_path: Path) -> None:
    plain = build_preference_pairs(Recipe(), BuildOptions(root=tmp_path))
    assert plain.manifest.rows == 4
    reviews = reviews_of(plain, [[C], [R, R, T], [T]])
    recipe = Recipe(preference_pairs=PreferencePairsSection(reviews=section(overruled="flip")))
    built = build_preference_pairs(recipe, BuildOptions(root=tmp_path), "reviews")
    assert validate_artifact(built) == []
    before, after = (artifact.scan().collect() for artifact in (plain, built))
    assert after["margin"].to_list().count(-before["margin"][1]) == 1
    assert set(before["pair_id"][[0, 3]]) < set(after["pair_id"])
    assert len(after) == 3
    assert built.manifest.details["reviews"] == {
        "confirmed": 1, "overruled": 1, "tie": 1, "both_bad": 0, "unreviewed": 1, "flipped": 1, "dropped": 1,
        "reviewed_but_no_pair": 0,
    }  # fmt: skip
    assert built.manifest.details["funnel"]["removed_by_reviewers"] == 1
    assert [parent.kind for parent in built.manifest.parents] == ["trees", "reviews"]
    assert built.manifest.parents[1].content_hash == reviews.manifest.content_hash
    assert any("flipped by reviewers" in note for note in built.manifest.notes)


def test_a_second_round_on_turned_pairs_counts_with_sides_exchanged(trees: Artifact, tmp_path: Path) -> None:
    pairs = build_preference_pairs(Recipe(), BuildOptions(root=tmp_path))
    reviews_of(pairs, [[R], [C]])
    recipe = Recipe(preference_pairs=PreferencePairsSection(reviews=section(overruled="flip")))
    first = build_preference_pairs(recipe, BuildOptions(root=tmp_path), "reviews@1.0.0")
    frame = first.scan().collect()
    turned = frame["margin"].to_list().index(min(frame["margin"]))
    reviews_of(first, [[C] if number == turned else [] for number in range(turned + 1)])
    second = build_preference_pairs(recipe, BuildOptions(root=tmp_path), "reviews@1.1.0")
    assert frame["pair_id"][turned] in set(second.scan().collect()["pair_id"])
    assert second.manifest.details["reviews"]["flipped"] == 1
    assert second.manifest.details["reviews"]["reviewed_but_no_pair"] == 0


def test_without_reviews_nothing_changes_and_no_finished_build_is_made_again(trees: Artifact, tmp_path: Path) -> None:
    plain = build_preference_pairs(Recipe(), BuildOptions(root=tmp_path))
    assert "reviews" not in plain.manifest.configuration
    recipe = Recipe(preference_pairs=PreferencePairsSection(reviews=section(policy="unanimous")))
    assert build_preference_pairs(recipe, BuildOptions(root=tmp_path)).reference == plain.reference


def test_only_what_was_reviewed_may_train(trees: Artifact, tmp_path: Path) -> None:
    plain = build_preference_pairs(Recipe(), BuildOptions(root=tmp_path))
    reviews_of(plain, [[C], [C]])
    recipe = Recipe(preference_pairs=PreferencePairsSection(reviews=section(unreviewed="drop")))
    assert build_preference_pairs(recipe, BuildOptions(root=tmp_path), "reviews@1.0.0").manifest.rows == 2


def test_reviews_of_other_trees_are_refused(trees: Artifact, tmp_path: Path) -> None:
    pairs = build_preference_pairs(Recipe(), BuildOptions(root=tmp_path))
    reviews_of(pairs, [[C]])
    artifact_of(tmp_path, [tree_of(SHAPE, 0, actor="another")])
    with pytest.raises(UsageError, match=r"about pairs of other trees than trees@1\.1\.0"):
        build_preference_pairs(Recipe(), BuildOptions(root=tmp_path), "reviews")
    rows = [review("0" * 16, "r", None, item_kind="trees", answers="{}")]
    build_reviews(rows, trees, Source("trees", "trees", "answers/1"), tmp_path)
    with pytest.raises(UsageError, match="is about trees; name reviews of preference_pairs"):
        build_preference_pairs(Recipe(), BuildOptions(root=tmp_path), "reviews")
    with pytest.raises(UsageError, match="of kind trees"):
        build_preference_pairs(Recipe(), BuildOptions(root=tmp_path), "trees@1.0.0")


def test_no_pair_left_says_so(trees: Artifact, tmp_path: Path) -> None:
    pairs = build_preference_pairs(Recipe(), BuildOptions(root=tmp_path))
    reviews_of(pairs, [[T]] * 4)
    with pytest.raises(BuildError, match="by reviewers 4"):
        build_preference_pairs(Recipe(), BuildOptions(root=tmp_path), "reviews")
