"""Which recipes a run refuses, where it trains to, and what it says before anything is there."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from stairdata.generators.prompts.build import build_prompts
from stairdata.llm.budget import BudgetLimits, Expense
from stairdata.pipeline import dry_run, results, run
from stairdata.pipeline.dry_run import planned_stages, preview, shown
from stairdata.pipeline.measures import broken_limit, training_measures
from stairdata.pipeline.model_folders import folder_for
from stairdata.pipeline.quickstart import SMALL, SMOKE, Sizes, quickstart_recipe
from stairdata.pipeline.run import Pipeline, check_recipe, locked
from stairdata.pipeline.spending import RunSpending
from stairdata.pipeline.steps import RunOptions, RunSteps, saved_whole
from stairdata.recipe import MEASURES
from stairdata.runs.forecast import Forecast
from stairdata.runs.options import BuildOptions
from stairdata.stages import FullRecipe, parse_full_recipe, read_full_recipe
from stairdata_schemas.errors import BudgetError, BuildLockedError, RecipeError
from stairdata_training.config import DpoConfig
from tests.stairdata.pipeline.conftest import PROMPTS


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"actor": {"base_url": "http://127.0.0.1:1/v1"}}, "actor.base_url is a server elsewhere: leave it out, and"),
        ({"sft": {"model": None}}, "run needs a model to start from: give sft.model"),
        ({"sft": {"model": "start", "reasoning": False}}, "sft.reasoning: false trains a model that knows no steps"),
        ({"structured_cot": {"from_trees": {}}}, "a run has none before its first round: give structured_cot.path"),
        ({"responses": {"n": 4}}, "leave responses.method, .n and .prm out, and give rounds.best_of"),
    ],
)
def test_what_a_run_can_not_do_is_refused_before_anything_is_made(
    changes: dict[str, Any], words: str, sections: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(RecipeError, match=words):
        Pipeline(parse_full_recipe(sections | changes), RunOptions(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("rounds", "words"),
    [
        ({"stop_below": {"grammer": 0.5}}, "rounds.stop_below.grammer"),
        ({"count": 2, "reviews": {3: "reviews"}}, "reviews name round 3, and the rounds are 1 to 2"),
    ],
)
def test_a_wrong_value_of_rounds_is_named(rounds: dict[str, Any], words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        parse_full_recipe({"rounds": rounds})


@pytest.mark.parametrize(
    ("changes", "first"),
    [
        ({}, "base"),
        ({"structured_cot": {"teacher": {"path": "teacher"}}}, "teacher"),
        ({"structured_cot": {"teacher": {"base_url": "http://127.0.0.1:1/v1", "model": "teacher"}}}, None),
        ({"rounds": {"count": 1, "held_out": 0}}, None),
        ({"rounds": {"count": 1, "held_out": 0}, "evaluations": {"benchmarks": [{"name": "xstest"}]}}, "base"),
        ({"rounds": {"count": 1, "held_out": 0}, "structured_cot": {}}, "base"),
        ({"prompts": {"sources": [{"path": "p"}], "task_judge": {"path": "judge"}}}, None),
    ],
)
def test_the_first_server_starts_early_where_its_turn_comes_before_long(
    changes: dict[str, Any],
    first: str | None,
    sections: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sections["sft"]["model"] = "base"
    asked: list[str] = []
    monkeypatch.setattr(run, "start_early", lambda options: asked.append(options.model))
    pipeline = Pipeline(parse_full_recipe(sections | changes), RunOptions(tmp_path / "run"))
    pipeline._start_first_server()
    assert asked == [first] * (first is not None)


def test_too_few_prompts_are_told_with_the_numbers(sections: dict[str, Any], tmp_path: Path) -> None:
    sections["rounds"]["prompts_per_round"] = 30
    with pytest.raises(RecipeError, match="there are 24 prompts, and 2 rounds of 30 and 6 held out need 66"):
        Pipeline(parse_full_recipe(sections), RunOptions(tmp_path / "run")).run()


def test_a_dry_run_before_anything_is_there_writes_nothing(sections: dict[str, Any], tmp_path: Path) -> None:
    recipe = parse_full_recipe(sections)
    stages = preview(recipe, RunOptions(tmp_path / "run"))
    assert not (tmp_path / "run").exists()
    assert [stage["stage"] for stage in stages] == [stage.name for stage in planned_stages(recipe)]
    assert {stage["state"] for stage in stages} == {"to do"}
    text = shown(stages)
    assert "round 1: trees: 6 prompts, unknown before models/sft" in text
    assert "round 2: trees: 6 prompts, unknown before models/dpo-1" in text


@pytest.mark.parametrize("held_out", [0, 6])
def test_what_a_teacher_would_be_asked_is_known_once_the_prompts_are_there(
    held_out: int, sections: dict[str, Any], tmp_path: Path
) -> None:
    sections["structured_cot"] = {"teacher": {"base_url": "http://127.0.0.1:1/v1", "model": "teacher"}}
    sections["rounds"]["held_out"] = held_out
    recipe, options = parse_full_recipe(sections), RunOptions(tmp_path / "run")
    asked = [stage for stage in preview(recipe, options) if stage["stage"] == "structured_cot"]
    assert [stage["models"] for stage in asked] == [[]]
    build_prompts(recipe, BuildOptions(root=tmp_path / "run" / "artifacts"))
    stages = preview(recipe, options)
    models = {stage["stage"]: stage.get("models", []) for stage in stages}
    assert models["structured_cot"][0]["requests"] == PROMPTS - held_out
    assert models["trees"][0]["requests"] > 0
    if held_out:
        assert models["responses (base)"][0]["requests"] == held_out
    assert [stage["stage"] for stage in stages] == [stage.name for stage in planned_stages(recipe)]


def test_evaluations_are_forecast_once_for_all_models(
    sections: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def forecast(recipe: FullRecipe, options: BuildOptions) -> Forecast:
        asked.append(recipe.responses.method)
        return Forecast("evaluations", words=recipe.responses.method)

    monkeypatch.setattr(dry_run, "forecast_evaluations", forecast)
    sections["evaluations"] = {"benchmarks": [{"name": "xstest", "path": str(tmp_path / "xstest.csv")}]}
    sections["rounds"]["searches"] = [{"n": 4}, {"method": "sample", "n": 4}]
    stages = preview(parse_full_recipe(sections), RunOptions(tmp_path / "run"))
    told = {stage["stage"]: stage["forecast"] for stage in stages if stage["stage"].startswith("evaluations")}
    assert list(told.values()) == ["sample"] * 4 + ["best_of_n", "sample"]
    assert "evaluations (dpo-2, 4 scored samples)" in told
    assert asked == ["sample", "best_of_n", "sample"]


def test_a_run_may_end_with_sft_or_with_the_rounds(sections: dict[str, Any]) -> None:
    recipe = parse_full_recipe(sections)
    every = [stage.name for stage in planned_stages(recipe)]
    rounds, sft = ([stage.name for stage in planned_stages(recipe, until)] for until in ("rounds", "sft"))
    assert (rounds, sft) == (every[: len(rounds)], every[: len(sft)])
    assert (rounds[-1], sft[-1]) == ("responses (dpo-2)", "responses (sft)")
    check_recipe(parse_full_recipe(sections | {"sft": {"model": "start", "reasoning": False}}), "sft")


def test_a_model_never_takes_the_place_of_another_training(tmp_path: Path) -> None:
    one, two = "1" * 64, "2" * 64
    assert folder_for(tmp_path, "sft", one) == tmp_path / "sft"
    partial = tmp_path / "sft.partial"
    partial.mkdir()
    (partial / "started.json").write_text(json.dumps({"fingerprint": one}))
    assert folder_for(tmp_path, "sft", one) == tmp_path / "sft"
    assert folder_for(tmp_path, "sft", two) == tmp_path / "sft@22222222"
    partial.rename(tmp_path / "sft")
    (tmp_path / "sft" / "training.json").write_text(json.dumps({"fingerprint": two}))
    assert folder_for(tmp_path, "sft", one) == tmp_path / "sft@11111111"
    assert folder_for(tmp_path, "sft", two) == tmp_path / "sft"
    (tmp_path / "sft" / "training.json").unlink()  # files of a user's own
    assert folder_for(tmp_path, "sft", two) == tmp_path / "sft@22222222"


def test_models_are_saved_and_served_so_that_no_round_is_rounded_away(sections: dict[str, Any], tmp_path: Path) -> None:
    steps = RunSteps(parse_full_recipe(sections), RunOptions(tmp_path))
    assert steps.with_actor("models/sft").actor.dtype == "auto"
    chosen = RunSteps(parse_full_recipe(sections | {"actor": {"dtype": "float32"}}), RunOptions(tmp_path))
    assert chosen.with_actor("models/sft").actor.dtype == "float32"

    assert saved_whole(DpoConfig()).save_dtype == "float32"
    assert saved_whole(DpoConfig(save_dtype="bfloat16")).save_dtype == "bfloat16"


def test_a_served_model_needs_no_price(sections: dict[str, Any], tmp_path: Path) -> None:
    steps = RunSteps(parse_full_recipe(sections), RunOptions(tmp_path, limits=BudgetLimits(cost=1.0)))
    assert steps.with_actor("models/dpo-1").prices["dpo-1"].output == 0


def test_two_runs_in_one_folder_are_one_too_many(tmp_path: Path) -> None:
    with locked(tmp_path), pytest.raises(BuildLockedError, match="another run is at work in"), locked(tmp_path):
        raise AssertionError


def test_limits_are_those_of_the_run_less_what_was_spent() -> None:
    spending = RunSpending(BudgetLimits(total_tokens=100, cost=2.0), Expense(70, 2.5))
    assert spending.left() == BudgetLimits(30, 0.0, None)
    error = spending.explained(BudgetError("over"))
    limits = "over (the run has --max-total-tokens 100 and --max-cost 2, of which"
    assert str(error) == f"{limits} earlier stages used 70 tokens, cost 2.5000)"
    assert RunSpending(BudgetLimits()).left() == BudgetLimits()


def test_the_accuracy_of_dpo_is_that_of_the_last_tenth_of_its_steps(tmp_path: Path) -> None:
    assert training_measures(tmp_path) == {"dpo_accuracy": None}
    (tmp_path / "training.json").write_text("{}")
    assert training_measures(tmp_path) == {"dpo_accuracy": None}
    metrics = [{"step": step, "loss": 1.0, "rewards/accuracies": float(step > 18)} for step in range(1, 21)]
    (tmp_path / "training.json").write_text(json.dumps({"metrics": metrics}))
    assert training_measures(tmp_path) == {"dpo_accuracy": 1.0}
    metrics[-1]["rewards/accuracies"] = 0.5
    (tmp_path / "training.json").write_text(json.dumps({"metrics": metrics}))
    assert training_measures(tmp_path) == {"dpo_accuracy": 0.75}


def test_a_limit_is_broken_by_a_value_below_it_alone() -> None:
    measures = {"grammar": 0.5, "word_f1": None}
    assert broken_limit(measures, {"grammar": 0.5}) is None
    assert broken_limit(measures, {"word_f1": 0.9, "grammar": 0.6}) == ("grammar", 0.5, 0.6)


def test_the_plot_is_left_out_without_matplotlib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[dict[str, Any]] = [
        {"round": None, "model": "base", "grammar": 0.0},
        {"round": 0, "model": "sft", "grammar": 0.5},
    ]
    results.write_table(tmp_path, rows)
    (base, sft) = csv.DictReader((tmp_path / "rounds.csv").read_text().splitlines())
    assert [base["round"], sft["grammar"], sft["word_f1"]] == ["", "0.5", ""]
    assert set(MEASURES) < set(base)
    told: list[str] = []
    results.write_plot(tmp_path, rows, told.append)
    assert (tmp_path / "rounds.png").read_bytes().startswith(b"\x89PNG")
    assert told == []
    (tmp_path / "rounds.png").unlink()
    monkeypatch.setattr(results, "find_spec", lambda _: None)
    results.write_plot(tmp_path, rows, told.append)
    assert "pip install 'stairdata[publish]'" in told[0]
    assert not (tmp_path / "rounds.png").exists()


def test_the_sizes_of_the_quickstart_are_those_of_its_recipe(tmp_path: Path) -> None:
    packaged = read_full_recipe(Path("quickstart"))
    with_data = quickstart_recipe(tmp_path, SMALL, None)
    for name in ("rounds", "trees", "dpo", "prm", "preference_pairs", "prm_pairs", "responses", "actor"):
        assert getattr(packaged, name) == getattr(with_data, name), name
    assert packaged.sft.model_copy(update={"model": with_data.sft.model}) == with_data.sft
    smoke = quickstart_recipe(tmp_path, SMOKE, None)
    assert (smoke.rounds.sft_rows, smoke.rounds.held_out, smoke.dpo.max_rows) == (96, 4, 12)
    assert smoke.prm.max_rows == SMOKE.pairs


@pytest.mark.parametrize("sizes", [SMALL, SMOKE])
def test_the_quickstart_is_a_recipe_that_runs(sizes: Sizes, tmp_path: Path) -> None:
    names = [stage.name for stage in planned_stages(quickstart_recipe(tmp_path, sizes, None))]
    assert names[:2] == ["prompts", "prompts (held out)"]
    assert names[-1] == f"responses (dpo-1, best of {sizes.candidates})"
    teacher = {"base_url": "http://127.0.0.1:1/v1", "model": "teacher"}
    assert "prompts (sft)" in [stage.name for stage in planned_stages(quickstart_recipe(tmp_path, sizes, teacher))]
