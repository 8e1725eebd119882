"""Artifacts that earlier generators finished are read, validated, shown and chosen from as those of today.

`responses_2` was made by the code before responses/3, with a small PRM of random weights: it lacks the columns of cost,
and of rows in which a cut answer has the best score that one is chosen.
"""

from __future__ import annotations

import pyarrow.parquet
import pytest

import stairdata
from stairdata.report.pages import artifact_page
from stairdata_schemas.artifacts import Artifact, open_artifact, validate_artifact
from tests.frozen.builds import DATA

ADDED = {"step_scores", "requests", "prompt_tokens", "prm_calls", "prm_tokens", "seconds"}
"""Columns of responses/3."""


@pytest.fixture
def old() -> Artifact:
    return open_artifact(DATA / "finished" / "responses_2" / "responses" / "1.0.0")


def test_it_is_valid_and_read_with_nulls(old: Artifact) -> None:
    (file,) = (old.folder / "data").iterdir()
    assert old.manifest.generator == "responses/2"
    assert not ADDED & set(pyarrow.parquet.read_schema(file).names)
    assert validate_artifact(old) == []
    frame = old.scan().collect()
    assert len(frame) == old.manifest.rows == 6
    assert {name: frame[name].null_count() for name in ADDED} == dict.fromkeys(ADDED, 6)


def test_its_page_shows_the_rows(old: Artifact) -> None:
    page = artifact_page(old)
    for said in ("responses/2", "What about number 5?", "best_of_n", "prm"):
        assert said in page


def test_its_candidates_are_chosen_from_by_the_rule_of_today(old: Artifact) -> None:
    rows = old.scan().collect().to_dicts()
    for row in rows:
        for k in (1, 2, 4):
            best = stairdata.best_of(row, k)
            among = row["candidates"][:k]
            complete = [each for each in among if each["is_complete"]] or among
            assert best["score"] == max(each["score"] for each in complete)
            assert best["step_scores"] is None
    cut = [not row["candidates"][row["chosen_index"]]["is_complete"] for row in rows]
    assert any(cut), "an old choice that is another one now"
    curve = stairdata.best_of_curve(rows, lambda row: float(row["candidates"][row["chosen_index"]]["is_complete"]))
    assert [point.rows for point in curve] == [6] * 4
    assert curve[-1].mean == 1.0, "a complete one each"
    means = [point.mean or 0.0 for point in curve]
    assert means == sorted(means), "more candidates can only add a complete one"
