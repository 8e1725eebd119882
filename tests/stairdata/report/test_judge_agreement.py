"""Two judges of the same trees, and a judge and reviewers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from stairdata.cli.reports.judge_agreement import judge_agreement
from stairdata.generators.pairs.build import build_preference_pairs
from stairdata.recipe import Recipe
from stairdata.report.judge_agreement import Sides, compare_judges
from stairdata.runs.options import BuildOptions
from stairdata_review.reviews import Source, build_reviews
from stairdata_schemas.artifacts import Artifact
from stairdata_schemas.errors import UsageError
from tests.review.samples import review
from tests.stairdata.forests import artifact_of, tree_of

Row = dict[str, Any]


def rated(*scores: tuple[float, float], number: int = 0) -> Row:
    """A tree of one node with a rollout and of whole answers, each with its H and S."""
    shape = [(place, 0, f"step {place}", place > 1, 2 * s + s * h, 4) for place, (h, s) in enumerate(scores, 1)]
    row = tree_of(shape, number)
    for node, (h, s) in zip(row["nodes"][1:], scores, strict=True):
        scored = {"helpfulness": h, "safety": s}
        if node["is_terminal"]:
            node.update(scored)
        else:
            node["rollouts"] = [{"text": f"rest {each}", "reward": 2 * s + s * h, **scored} for each in range(4)]
    return row


def test_two_judges_of_the_same_answers(tmp_path: Path) -> None:
    a = artifact_of(tmp_path, [rated((0.0, 1.0), (0.5, 1.0), (1.0, -1.0))])
    b = artifact_of(tmp_path, [rated((0.5, 1.0), (0.0, 1.0), (1.0, -0.5))])
    found = compare_judges(a, b, tmp_path)
    assert (found.a, found.b, found.shared) == ("trees@1.0.0", "trees@1.1.0", 1)
    ranks = {each.name: each for each in found.ranks}
    assert ranks["safety of an answer"].rated == 6, "four rollouts and two whole answers"
    assert ranks["safety of an answer"].spearman == pytest.approx(1.0)
    assert ranks["helpfulness of an answer"].mean_a == pytest.approx((4 * 0.0 + 0.5 + 1.0) / 6)
    value = ranks["value of a node"]
    assert value.rated == 3
    assert (value.spearman, value.kendall) == pytest.approx((0.5, 1 / 3))
    assert found.yes_or_no is not None
    assert (found.yes_or_no.true_positives, found.yes_or_no.true_negatives) == (5, 1)
    assert found.yes_or_no.kappa is not None
    assert found.yes_or_no.kappa.value == 1.0
    assert list(found.sides.values()) == [Sides(3, 2, 1, 0), Sides(2, 2, 0, 0)]
    assert json.loads(json.dumps(found.as_json()))["sides"]["all siblings"] == Sides(3, 2, 1, 0)._asdict()


def test_a_judge_that_says_always_the_same_has_no_rank(tmp_path: Path) -> None:
    a = artifact_of(tmp_path, [rated((0.0, 1.0), (0.5, 1.0))])
    b = artifact_of(tmp_path, [rated((0.0, 1.0), (0.0, 1.0))])
    found = compare_judges(a, b, tmp_path)
    assert {(each.spearman, each.kendall) for each in found.ranks} == {(None, None)}
    assert found.sides["all siblings"] == Sides(1, 0, 0, 1)
    assert found.yes_or_no is not None
    assert found.yes_or_no.kappa is None, "chance agrees always"


def test_what_can_not_be_compared(tmp_path: Path) -> None:
    a, b, other = (artifact_of(tmp_path, [rated((0.0, s), (0.5, 1.0), number=n)]) for s, n in [(1, 0), (-1, 0), (1, 1)])
    elsewhere = rated((0.0, 1.0), (0.5, 1.0))
    elsewhere["nodes"][1]["rollouts"][0]["text"] = "another"
    grown = artifact_of(tmp_path, [elsewhere])
    with pytest.raises(UsageError, match=r"trees@1.0.0 and trees@1.2.0 have no prompt in common"):
        compare_judges(a, other, tmp_path)
    with pytest.raises(UsageError, match=r"node 1 of tree .* has another text"):
        compare_judges(a, grown, tmp_path)
    pairs, reviews = reviewed(tmp_path, a, {})
    with pytest.raises(UsageError, match="two artifacts of kind trees"):
        compare_judges(a, pairs, tmp_path)
    with pytest.raises(UsageError, match=r"reviews@1.0.0 is not about preference_pairs of trees@1.1.0"):
        compare_judges(b, reviews, tmp_path)


def reviewed(root: Path, trees: Artifact, verdicts: dict[tuple[int, int], list[str]]) -> tuple[Artifact, Artifact]:
    """Pairs of trees, and reviews: verdicts by the node ids of chosen and rejected; one more on the first pair."""
    rules = Recipe.model_validate({"preference_pairs": {"min_margin": 0.1, "min_chosen_value": -9, "min_visits": 1}})
    pairs = build_preference_pairs(rules, BuildOptions(root=root, inputs=(trees.reference,)))
    columns = ["pair_id", "chosen_node_id", "rejected_node_id"]
    rows = []
    for pair_id, *nodes in pairs.scan().select(columns).collect().iter_rows():
        said = verdicts.get((nodes[0], nodes[1]), ["tie"])
        rows += [review(pair_id, f"r{number}", verdict) for number, verdict in enumerate(said)]
    return pairs, build_reviews(rows, pairs, Source("dataset", "pairs", "pairs/1"), root)


def test_a_judge_and_reviewers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trees = artifact_of(tmp_path, [rated((0.0, 1.0), (0.5, 1.0), (1.0, -1.0))])
    verdicts = {(1, 3): ["chosen"], (2, 1): ["rejected", "rejected", "chosen"], (2, 3): ["tie"]}
    _, reviews = reviewed(tmp_path, trees, verdicts)
    found = compare_judges(trees, reviews, tmp_path)
    assert compare_judges(reviews, trees, tmp_path) == found
    assert found.shared == 3
    assert found.sides == {"reviewed pairs": Sides(3, 1, 1, 1)}
    assert found.yes_or_no is not None
    assert (found.yes_or_no.true_positives, found.yes_or_no.false_positives) == (1, 1), "node 1 is the earlier of both"
    judge_agreement(trees.reference, reviews.reference, root=tmp_path)
    assert "reviewed pairs" in capsys.readouterr().out
    judge_agreement(trees.reference, reviews.reference, root=tmp_path, json_=True)
    assert json.loads(capsys.readouterr().out)["shared"] == 3
