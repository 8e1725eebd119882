"""What differs between artifacts, against plain Python."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stairdata.generators.pairs.build import build_preference_pairs
from stairdata.recipe import Recipe
from stairdata.report.differences import _distance, compare
from stairdata.runs.options import BuildOptions
from stairdata_schemas.artifacts import Artifact
from stairdata_schemas.errors import UsageError
from tests.stairdata.forests import Shape, artifact_of, tree_of

SHAPE: Shape = [(1, 0, "a", True, 3.0, 4), (2, 0, "b", True, -3.0, 4), (3, 0, "c", True, 1.0, 1)]


def tree(number: int, **changes: Any) -> dict[str, Any]:
    return tree_of(SHAPE, number) | changes


def test_rows_by_key(tmp_path: Path) -> None:
    a = artifact_of(tmp_path, [tree(number) for number in range(6)])
    other = tree(4)
    other["nodes"][2]["step"] = "another"
    b = artifact_of(tmp_path, [tree(2), tree(3, actor="x"), other, tree(5), tree(6)])
    found = compare(a, b)
    assert found.rows == {"a": 6, "b": 5, "added": 1, "removed": 2, "changed": 2, "same": 2}
    assert found.changed_columns == {"actor": 1, "nodes": 1}
    assert found.classes["actor"] == {"none": (6, 4), "x": (0, 1)}
    assert set(found.recipe) == {"forest"}
    back = compare(b, a)
    assert (back.rows["added"], back.rows["removed"]) == (2, 1)


def test_an_artifact_and_itself(tmp_path: Path) -> None:
    a = artifact_of(tmp_path, [tree(number) for number in range(3)])
    found = compare(a, a)
    assert found.rows == {"a": 3, "b": 3, "added": 0, "removed": 0, "changed": 0, "same": 3}
    assert (found.changed_columns, found.recipe) == ({}, {})
    assert {shift.distance for shift in found.shifts} == {0.0}


def pairs(root: Path, **section: Any) -> Artifact:
    return build_preference_pairs(Recipe.model_validate({"preference_pairs": section}), BuildOptions(root=root))


def test_recipes_and_distributions(tmp_path: Path) -> None:
    artifact_of(tmp_path, [tree(number) for number in range(3)])
    found = compare(pairs(tmp_path), pairs(tmp_path, min_margin=3.0, min_visits=1))
    assert found.recipe == {"min_margin": (0.5, 3.0), "min_visits": (4, 1)}
    assert found.rows == {"a": 9, "b": 6, "added": 0, "removed": 3, "changed": 0, "same": 6}
    (margin,) = [shift for shift in found.shifts if shift.name == "margin"]
    assert (margin.count_a, margin.count_b, margin.mean_a, margin.mean_b) == (9, 6, 4.0, 5.0)
    assert margin.distance == pytest.approx(1 / 3)
    assert found.as_json()["shifts"][0]["name"] == "margin"


def test_how_values_and_pairs_moved(tmp_path: Path) -> None:
    """Two ratings of one tree: of three pairs one is turned round, one has another margin, one is new."""
    before = artifact_of(tmp_path, [tree(0)])
    other: Shape = [(1, 0, "a", True, 3.0, 4), (2, 0, "b", True, 2.0, 4), (3, 0, "c", True, 1.0, 1)]
    after = artifact_of(tmp_path, [tree_of(other)])
    moved = compare(before, after).moved
    assert (moved["nodes with a value in both"], moved["values that changed"]) == (4, 2), "b, and the root above it"
    rules = Recipe.model_validate({"preference_pairs": {"min_visits": 1}})
    sets = [
        build_preference_pairs(rules, BuildOptions(root=tmp_path, inputs=(each.reference,))) for each in (before, after)
    ]
    found = compare(*sets)
    assert found.moved == {
        "pairs turned round": 1, "pairs in both": 2, "margins that changed": 1, "mean change": pytest.approx(2.5),
    }  # fmt: skip
    assert (found.rows["added"], found.rows["removed"]) == (1, 1)


def test_two_kinds_can_not_be_compared(tmp_path: Path) -> None:
    trees = artifact_of(tmp_path, [tree(0)])
    with pytest.raises(UsageError, match="of different kinds"):
        compare(trees, pairs(tmp_path))


NUMBERS = st.lists(st.sampled_from([-1.0, 0.0, 0.5, 2.0]), min_size=1, max_size=9)


@given(a=NUMBERS, b=NUMBERS)
@settings(max_examples=50)
def test_the_distance_is_that_of_kolmogorov_and_smirnov(a: list[float], b: list[float]) -> None:
    def share(values: list[float], point: float) -> float:
        return sum(value <= point for value in values) / len(values)

    expected = max(abs(share(a, point) - share(b, point)) for point in a + b)
    assert _distance(np.array(a), np.array(b)) == pytest.approx(expected)
