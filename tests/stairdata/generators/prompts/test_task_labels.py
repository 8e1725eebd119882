"""Tasks labelled by a model: read strictly, resumed, counted, and refused where no task can be read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl
import pytest

from stairdata.generators.forecast import forecast_prompts
from stairdata.generators.prompts.build import build_prompts
from stairdata.generators.prompts.task_labels import read_task
from stairdata.llm.budget import BudgetLimits
from stairdata.recipe import Recipe
from stairdata.runs.options import BuildOptions
from stairdata_schemas.artifacts import Artifact
from stairdata_schemas.errors import BudgetError, InputError, QuarantineError

if TYPE_CHECKING:
    from tests.conftest import StubServer


@pytest.fixture
def recipe(stub_llm: StubServer, tmp_path: Path, waits: list[float]) -> dict[str, Any]:
    rows = [{"prompt": "given", "task": "safety"}, *({"prompt": f"open {n}", "task": None} for n in range(6))]
    path = tmp_path / "q.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    judge = {"base_url": stub_llm.base_url, "model": "actor"}
    return {"prompts": {"sources": [{"path": str(path)}], "task_judge": judge}, "prices": {"actor": {"input": 1}}}


def build(recipe: dict[str, Any], root: Path, **options: Any) -> Artifact:
    return build_prompts(Recipe.model_validate(recipe), BuildOptions(root=root / "artifacts", **options))


@pytest.mark.parametrize(
    ("text", "task"),
    [
        ("Task: safety", "safety"),
        ("task: **Helpfulness**.", "helpfulness"),
        ("It may be safety, it may be helpfulness. Task: helpfulness", "helpfulness"),
        ("Safety", "safety"),
        ("I would say this is a question of safety; safety first.", "safety"),
        ("safety or helpfulness", None),
        ("Task: other", None),
        ("The safetyless task", None),
        ("", None),
    ],
)
def test_a_task_is_read_or_not(text: str, task: str | None) -> None:
    assert read_task(text) == task


def test_rows_without_a_task_are_labelled(recipe: dict[str, Any], stub_llm: StubServer, tmp_path: Path) -> None:
    stub_llm.control(judge_text="Task: helpfulness")
    artifact = build(recipe, tmp_path)
    rows = artifact.scan().collect()
    assert rows["prompt"].to_list() == ["given", *(f"open {n}" for n in range(6))]
    assert rows["task"].to_list() == ["safety"] + ["helpfulness"] * 6
    manifest = artifact.manifest
    assert (manifest.usage.requests, manifest.outcomes, manifest.models[0].name) == (6, {"ok": 6}, "actor")
    assert manifest.usage.cost is not None
    assert "open" in stub_llm.last()["body"]["messages"][0]["content"]
    assert manifest.configuration["task_judge"]["template"] == 1
    sent = stub_llm.stats()["requests"]
    assert build(recipe, tmp_path) == artifact
    assert stub_llm.stats()["requests"] == sent


def test_an_answer_without_a_task_is_asked_again_and_refused(
    recipe: dict[str, Any], stub_llm: StubServer, tmp_path: Path
) -> None:
    stub_llm.control(judge_text="Hard to say.")
    with pytest.raises(QuarantineError, match="judge_failure 6"):
        build(recipe, tmp_path)
    stub_llm.control(judge_text="Task: safety")
    artifact = build(recipe, tmp_path)
    assert (artifact.reference, artifact.manifest.rows) == ("prompts@1.0.0", 7)
    assert not (artifact.folder / "quarantine").exists()


def test_a_failed_request_is_refused_with_its_outcome(
    recipe: dict[str, Any], stub_llm: StubServer, tmp_path: Path
) -> None:
    stub_llm.control(judge_text="Task: safety", script=[{"status": 400, "text": "no"}])
    artifact = build(recipe, tmp_path, max_quarantine=0.5)
    assert artifact.manifest.quarantine == {"invalid_request": 1}
    (raw,) = pl.read_parquet(artifact.folder / "quarantine" / "*.parquet")["raw"]
    assert json.loads(raw)["text"].startswith("open")


def test_a_spent_budget_stops_it_and_the_next_run_goes_on(
    recipe: dict[str, Any], stub_llm: StubServer, tmp_path: Path
) -> None:
    stub_llm.control(judge_text="Task: safety")
    recipe["prompts"]["concurrency"] = 1
    with pytest.raises(BudgetError):
        build(recipe, tmp_path, limits=BudgetLimits(700, None, None))
    sent = stub_llm.stats()["requests"]
    artifact = build(recipe, tmp_path)
    assert artifact.manifest.rows == 7
    assert artifact.manifest.usage.requests == 6
    assert 0 < sent < 6
    chats = stub_llm.stats()["requests"] - sent
    assert chats <= 7  # those that were left, and the question which models there are


def test_without_a_judge_the_task_is_asked_for(recipe: dict[str, Any], tmp_path: Path) -> None:
    del recipe["prompts"]["task_judge"]
    artifact = build(recipe, tmp_path, max_quarantine=1.0)
    assert artifact.manifest.quarantine == {"missing_value": 6}
    path = tmp_path / "untold.jsonl"
    path.write_text('{"prompt": "x"}\n')
    recipe["prompts"]["sources"] = [{"path": str(path)}]
    with pytest.raises(InputError, match="no column 'task'"):
        build(recipe, tmp_path)


def test_a_forecast_says_how_many_are_asked_about(recipe: dict[str, Any], stub_llm: StubServer, tmp_path: Path) -> None:
    words = forecast_prompts(Recipe.model_validate(recipe), BuildOptions(root=tmp_path / "artifacts")).words
    assert "6 without a task" in words
    assert "cost" in words
    assert not (tmp_path / "artifacts").exists()
    assert stub_llm.stats()["requests"] == 0
    del recipe["prompts"]["task_judge"]
    words = forecast_prompts(Recipe.model_validate(recipe), BuildOptions(root=tmp_path)).shown(json_=False)
    assert words == "prompts: asks no model"
