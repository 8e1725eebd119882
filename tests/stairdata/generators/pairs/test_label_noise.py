"""How many pairs are in the order of true values, against trees whose true values are known."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stairdata.generators.pairs.build import build_preference_pairs, build_prm_pairs
from stairdata.generators.pairs.forest import Forest, unfold
from stairdata.generators.pairs.label_noise import (
    BLOCKS,
    LabelNoise,
    chance_of_order,
    label_noise,
    noise_note,
    reliability,
)
from stairdata.recipe import PreferencePairsSection, Recipe
from stairdata.runs.options import BuildOptions
from tests.stairdata.forests import Shape, artifact_of, frame_of, tree_of

positive = st.floats(0.01, 4)


def grown(trees: int, own: float, noise: float, seed: int = 0, **columns: Any) -> list[dict[str, Any]]:
    """Trees of four nodes with three children each; what a node is worth is drawn, and so is each visit around it."""
    dice = np.random.default_rng(seed)
    rows = []
    for number in range(trees):
        worth = dice.normal(0, sqrt(own), 4)
        parents = [0, 0, 0, 0, *np.repeat(range(1, 5), 3).tolist()]
        values = dice.normal([*worth, *np.repeat(worth, 3)], sqrt(noise)).tolist()
        shape: Shape = [
            (node_id, parent, f"step {node_id}", False, value, 1)
            for node_id, (parent, value) in enumerate(zip(parents, values, strict=True), 1)
        ]
        rows.append(tree_of(shape, number, **columns))
    return rows


def spread_of(rows: Sequence[dict[str, Any]], at_once: int = 10**6) -> LabelNoise:
    found = LabelNoise()
    for start in range(0, len(rows), at_once):
        found.add_trees(forest_of(rows[start : start + at_once]))
    return found


def forest_of(rows: Sequence[dict[str, Any]]) -> Forest:
    return unfold(frame_of([*rows]))


@pytest.mark.parametrize(("own", "noise"), [(0.5, 0.5), (0.05, 0.95), (1.0, 0.1)])
def test_known_variances_are_found(own: float, noise: float) -> None:
    found = spread_of(grown(600, own, noise)).component("safety")
    assert found is not None
    assert found.noise == pytest.approx(noise, rel=0.06)
    assert found.low < own < found.high
    assert found.value == pytest.approx(own, abs=0.1)


def test_nodes_that_are_worth_the_same_have_no_variance_between_them() -> None:
    found = spread_of(grown(600, 0.0, 1.0)).component("safety")
    assert found is not None
    assert found.low < 0 < found.high


def test_an_interval_holds_what_it_should() -> None:
    held = 0
    for seed in range(60):
        found = spread_of(grown(40, 0.2, 0.6, seed)).component("safety")
        assert found is not None
        held += found.low <= 0.2 <= found.high
    assert held >= 51, "95% of 60 are 57; four standard errors below"


@given(at_once=st.integers(1, 30))
def test_pieces_of_trees_make_no_difference(at_once: int) -> None:
    rows = grown(30, 0.3, 0.5)
    whole, pieces = spread_of(rows).component("safety"), spread_of(rows, at_once).component("safety")
    assert whole is not None
    assert pieces == pytest.approx(whole)


def test_few_trees_say_nothing() -> None:
    noise = spread_of(grown(BLOCKS // 2 - 1, 0.3, 0.5))
    noise.add_pairs(pairs_like([(1.0, 1, 1)]))
    assert noise.component("safety") is None
    assert noise.share_in_order() is None
    assert noise.as_json()["tasks"]["safety"]["share_in_order"] is None


def test_trees_without_a_task_and_pairs_without_one_belong_together() -> None:
    noise = spread_of(grown(40, 0.3, 0.5, task=None))
    noise.add_pairs(pairs_like([(1.0, 1, 1)], task=None))
    assert set(noise.as_json()["tasks"]) == {"unknown"}
    assert noise.share_in_order() is not None


def pairs_like(sides: Sequence[tuple[float, int, int]], task: str | None = "safety", end: bool = False) -> pl.DataFrame:
    """Pairs by margin and visits of both sides."""
    schema = {"task": pl.String, "margin": pl.Float64, "chosen_visits": pl.Int64, "rejected_visits": pl.Int64,
              "chosen_is_terminal": pl.Boolean, "rejected_is_terminal": pl.Boolean}  # fmt: skip
    return pl.DataFrame([(task, *side, end, end) for side in sides], schema, orient="row")


@pytest.mark.parametrize("least", [0.1, 1.0])
@pytest.mark.parametrize(("own", "noise", "visits"), [(0.1, 0.9, 1), (0.5, 0.5, 1), (0.3, 0.9, 4)])
def test_the_share_is_that_of_pairs_whose_true_values_are_known(
    own: float, noise: float, visits: int, least: float
) -> None:
    dice = np.random.default_rng(5)
    true = dice.normal(0, sqrt(own), (2, 40_000))
    seen = true + dice.normal(0, sqrt(noise / visits), true.shape)
    margin = np.abs(seen[0] - seen[1])
    kept = margin > least
    right = ((true[0] > true[1]) == (seen[0] > seen[1]))[kept]
    found = LabelNoise(spreads=spread_of(grown(2000, own, noise)).spreads)
    found.add_pairs(pairs_like([(each, visits, visits) for each in margin[kept].tolist()]))
    share = found.share_in_order()
    assert share is not None
    assert share.value == pytest.approx(right.mean(), abs=0.03)
    assert share.low < right.mean() + 0.02
    assert share.high > right.mean() - 0.02


@given(margin=positive, own=positive, noise=positive, visits=st.integers(1, 50))
def test_more_visits_more_margin_and_more_spread_make_order_surer(
    margin: float, own: float, noise: float, visits: int
) -> None:
    chance = chance_of_order(margin, 2 / visits, own, noise)
    assert 0.5 <= chance <= 1
    assert chance_of_order(margin, 2 / (visits + 1), own, noise) >= chance
    assert chance_of_order(margin * 2, 2 / visits, own, noise) >= chance
    assert chance_of_order(margin, 2 / visits, own, noise * 2) <= chance
    assert chance_of_order(margin, 0.0, own, noise) == 1
    assert chance_of_order(margin, 2 / visits, 0.0, noise) == chance_of_order(margin, 2 / visits, -1.0, noise) == 0.5
    share = reliability(own, noise)
    assert share is not None
    assert 0 < share < 1
    assert reliability(-1.0, noise) == 0
    assert reliability(0.0, 0.0) is None


def test_whole_answers_are_in_order_and_turned_pairs_are_left_out() -> None:
    noise = spread_of(grown(40, 0.0, 1.0))
    noise.add_pairs(pairs_like([(0.5, 1, 1)] * 3, end=True))
    noise.add_pairs(pairs_like([(-0.5, 1, 1)]))
    share = noise.share_in_order()
    assert share is not None
    assert share.value == 1.0


@pytest.mark.parametrize("build", [build_preference_pairs, build_prm_pairs])
def test_a_build_says_how_far_its_order_can_be_trusted(build: Any, tmp_path: Path) -> None:
    told: list[str] = []
    trees = artifact_of(tmp_path, grown(60, 0.0, 1.0))
    loose = {"min_margin": 0.25, "min_visits": 1, "min_chosen_value": -9.0}
    recipe = Recipe.model_validate({"preference_pairs": loose, "prm_pairs": loose})
    pairs = build(recipe, BuildOptions(root=tmp_path, inputs=(trees.reference,), tell=told.append))
    manifest = pairs.manifest
    share = label_noise([trees], pairs).share_in_order()
    assert share is not None
    assert manifest.details["label_noise"]["share_in_order"] == share.as_json()
    assert noise_note(share) in manifest.notes
    assert [words for words in told if words.startswith("warning: by how far visits of one node differ")]


def test_a_build_of_sound_values_warns_of_nothing(tmp_path: Path) -> None:
    told: list[str] = []
    trees = artifact_of(tmp_path, grown(60, 4.0, 0.01))
    section = PreferencePairsSection(min_margin=0.25, min_visits=1, min_chosen_value=-9.0)
    pairs = build_preference_pairs(
        Recipe(preference_pairs=section), BuildOptions(root=tmp_path, inputs=(trees.reference,), tell=told.append)
    )
    assert not [words for words in told if "warning" in words]
    assert pairs.manifest.details["label_noise"]["share_in_order"]["value"] > 0.95
