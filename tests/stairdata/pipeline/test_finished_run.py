"""What a second command does with a run that is finished: nothing, or what a changed setting makes necessary."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from stairdata.cli.run import print_server_times
from stairdata.llm import vllm_server
from stairdata.llm.budget import BudgetLimits
from stairdata.llm.server_times import ServerTimes
from stairdata.pipeline.dry_run import planned_stages, preview, shown
from stairdata.pipeline.measures import accuracy_measures
from stairdata.pipeline.run import Pipeline, RoundTrees
from stairdata.pipeline.steps import RunOptions
from stairdata.stages import FullRecipe, parse_full_recipe
from stairdata_review.reviews import Source, build_reviews
from stairdata_schemas.artifacts import open_artifact
from stairdata_schemas.errors import BudgetError
from stairdata_training.output import read_record
from tests.review.samples import review
from tests.stairdata.pipeline.conftest import FinishedRun

pytestmark = pytest.mark.slow


@pytest.fixture
def folder(finished: FinishedRun, tmp_path: Path) -> Path:
    """A copy of the finished run."""
    return Path(shutil.copytree(finished.folder, tmp_path / "run"))


def changed(finished: FinishedRun, **settings: Any) -> FullRecipe:
    """Return the recipe of the finished run with keys of sections set."""
    sections = {name: dict(section) for name, section in finished.sections.items()}
    for key, value in settings.items():
        section, _, name = key.partition("__")
        sections[section][name] = value
    return parse_full_recipe(sections)


def files_of(folder: Path) -> dict[Path, int]:
    """Return the data and weights of a folder, with the times of their last change."""
    kinds = {".parquet", ".safetensors"}
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.suffix in kinds}


def made(summary: dict[str, Any]) -> list[str]:
    return [Path(stage.get("model") or stage["artifact"]).name for stage in summary["stages"]]


def test_rounds_grow_trees_from_prompts_that_no_other_part_has(finished: FinishedRun) -> None:
    artifacts = finished.folder / "artifacts"
    held_out = open_artifact(artifacts / "prompts" / "1.1.0").scan().collect()
    trees = [open_artifact(artifacts / "trees" / version).scan().collect() for version in ("1.0.0", "1.1.0")]
    parts = [held_out, *trees]
    assert [len(part) for part in parts] == [6, 6, 6]
    assert pl.concat([part["prompt_id"] for part in parts]).n_unique() == 18
    assert all(part["task"].value_counts()["count"].to_list() == [3, 3] for part in parts)
    assert [tree["round"].unique().to_list() for tree in trees] == [[1], [2]]
    actors = [open_artifact(artifacts / "trees" / version).manifest.models[0].name for version in ("1.0.0", "1.1.0")]
    assert actors == ["sft", "dpo-1"]


def test_a_model_is_served_once_unless_a_training_comes_between(finished: FinishedRun) -> None:
    assert finished.served == ["start", "sft", "dpo-1", "dpo-2", "dpo-2"]


def test_the_first_server_starts_while_prompts_are_made(finished: FinishedRun) -> None:
    assert (finished.folder / "server.log").is_file()
    assert finished.served.count("start") == 1


def test_the_summary_says_what_servers_did_in_each_stage(
    finished: FinishedRun, capsys: pytest.CaptureFixture[str]
) -> None:
    servers = finished.summary["servers"]
    assert [(each["stage"], each.get("round")) for each in servers] == [
        *((stage["stage"], stage.get("round")) for stage in finished.summary["stages"]),
        ("results", None),
    ]
    seconds = {(each["stage"], each.get("round")): each for each in servers}
    for served in ("responses (sft)", None), ("responses (dpo-2, best of 2)", None):
        assert seconds[served]["starting"] > 0
        assert seconds[served]["unused"] == 0
    assert all(seconds["trees", number]["starting"] == 0 for number in (1, 2)), "the server runs already"
    assert seconds["train dpo", 1] == {"stage": "train dpo", "round": 1} | ServerTimes()._asdict() | {
        "unused": seconds["train dpo", 1]["unused"]
    }
    print_server_times(finished.summary)
    words = capsys.readouterr().out
    assert "seconds of this command, by what the model servers did" in words
    assert "round 1: train dpo" in words


def test_a_second_run_does_nothing(finished: FinishedRun, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm_server, "vllm_command", None)  # a server that is started after all ends the run
    before = files_of(folder)
    summary = Pipeline(changed(finished), RunOptions(folder)).run()
    assert files_of(folder) == before
    assert made(summary) == made(finished.summary)
    assert summary["table"] == finished.summary["table"]
    page = folder / "report" / "index.html"
    assert summary["report"] == str(page)
    assert page.read_bytes() == (finished.folder / "report" / "index.html").read_bytes()
    assert all(
        f"{stage['stage']}" in page.read_text(encoding="utf-8") for stage in summary["stages"] if "folder" in stage
    )


def test_a_setting_of_a_later_stage_redoes_that_stage_and_what_follows(
    finished: FinishedRun, folder: Path, stub: None
) -> None:
    before = files_of(folder)
    summary = Pipeline(changed(finished, prm__learning_rate=5e-4), RunOptions(folder)).run()
    new = {path.relative_to(folder).parts[1] for path in files_of(folder).keys() - before.keys()}
    assert {path: files_of(folder)[path] for path in before} == before, "the first model is still there"
    assert new == {Path(summary["stages"][-2]["model"]).name, "responses"}
    assert made(summary)[:-2] == made(finished.summary)[:-2]
    assert Path(summary["stages"][-2]["model"]).name.startswith("prm@")
    back = Pipeline(changed(finished), RunOptions(folder)).run()
    assert made(back) == made(finished.summary)


def test_a_measure_below_its_limit_ends_the_run_after_that_round(
    finished: FinishedRun, folder: Path, stub: None
) -> None:
    told: list[str] = []
    recipe = changed(finished, rounds__count=2, rounds__stop_below={"mean_tokens": 1e6})
    summary = Pipeline(recipe, RunOptions(folder, tell=told.append)).run()
    assert summary["stopped"]["round"] == 1
    assert summary["stopped"]["not_trained"] == ["dpo-2"]
    assert [row["model"] for row in summary["rounds"]] == ["base", "sft", "dpo-1"]
    assert [line.split(",")[1] for line in (folder / "rounds.csv").read_text().splitlines()[1:]] == [
        "base", "sft", "dpo-1",
    ]  # fmt: skip
    assert "dpo-2" not in made(summary)
    trained = next(stage for stage in summary["stages"] if stage["stage"] == "train prm")
    assert open_artifact(folder / "artifacts" / "prm_pairs" / "1.1.0").reference == trained["data"]
    (words,) = [words for words in told if words.startswith("stopped")]
    assert "stopped after round 1 of 2: mean_tokens is" in words
    assert "dpo-2 will not be trained, and the process reward model is trained from dpo-1" in words


def test_held_out_pairs_are_measured_without_a_training_again(finished: FinishedRun, folder: Path, stub: None) -> None:
    before = files_of(folder)
    recipe = changed(finished, rounds__eval_prompts=6)
    states = {stage["stage"]: stage["state"] for stage in preview(recipe, RunOptions(folder)) if stage["round"] == 1}
    assert (states["responses (dpo-1)"], states["trees (held out)"]) == ("to do", "to do")
    summary = Pipeline(recipe, RunOptions(folder)).run()
    new = {path.relative_to(folder).parts[:2] for path in files_of(folder).keys() - before.keys()}
    assert {path: files_of(folder)[path] for path in before} == before, "no round was redone"
    assert new == {("artifacts", kind) for kind in ("trees", "preference_pairs", "prm_pairs")}

    stages = summary["stages"]
    trained = {stage["round"]: stage for stage in stages if stage["stage"] == "train dpo"}
    evaluated = [
        open_artifact(folder / "artifacts" / reference_path(trained[number]["evaluation"])) for number in (1, 2)
    ]
    trees = [open_artifact(Path(stage["folder"])) for stage in stages if stage["stage"] == "trees (held out)"]
    assert [each.manifest.models[0].name for each in trees] == ["sft", "dpo-1"]
    one, two = ({*each.scan().collect()["prompt_id"]} for each in trees)
    assert one == two
    others = [Path(stage["folder"]) for stage in stages if stage["stage"] in {"trees", "prompts (held out)"}]
    assert all(one.isdisjoint(open_artifact(each).scan().collect()["prompt_id"]) for each in others)
    assert all({*each.scan().collect()["prompt_id"]} <= one for each in evaluated)
    assert {each.manifest.configuration["part"] for each in evaluated} == {"held_out"}, "none can be trained on"

    rows = {row["model"]: row for row in csv.DictReader((folder / "rounds.csv").read_text().splitlines())}
    assert rows["sft"]["held_out_accuracy"] == ""
    for number in (1, 2):
        found = read_record(folder / "models" / f"dpo-{number}")["held_out"]
        assert float(rows[f"dpo-{number}"]["held_out_accuracy"]) == round(found["accuracy"]["value"], 3)
        low, high = (float(rows[f"dpo-{number}"][f"held_out_accuracy_{end}"]) for end in ("low", "high"))
        assert low <= found["accuracy"]["value"] + 1e-3
        assert found["accuracy"]["value"] <= high + 1e-3
    assert summary["prm"]["accuracy"] == read_record(folder / "models" / "prm")["held_out"]["accuracy"]
    assert summary["prm"]["length_rule"]["prefers"] in {"longer", "shorter"}
    stages = preview(recipe, RunOptions(folder))
    assert {stage["state"] for stage in stages} == {"finished"}
    assert [stage["stage"] for stage in stages] == [stage.name for stage in planned_stages(recipe)]

    told: list[str] = []
    recipe = changed(finished, rounds__eval_prompts=6, rounds__stop_below={"held_out_accuracy": 1.1})
    assert Pipeline(recipe, RunOptions(folder, tell=told.append)).run()["stopped"]["measure"] == "held_out_accuracy"
    assert any(words.startswith("stopped after round 1 of 2: held_out_accuracy is") for words in told)


def test_trees_without_a_pair_to_measure_on_do_not_end_the_run(
    finished: FinishedRun, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    pipeline = Pipeline(changed(finished), RunOptions(folder, tell=told.append))
    trees = open_artifact(folder / "artifacts" / "trees" / "1.0.0")
    pipeline.recipe = changed(finished, prm_pairs__min_margin=100)
    assert pipeline._held_out_pairs("prm_pairs", RoundTrees(trees, trees)) is None
    assert told[0].startswith("warning: nothing to measure on, raise rounds.eval_prompts: no pair for prm_pairs")
    assert accuracy_measures(folder / "models" / "dpo-1", None) == {}


def reference_path(reference: str) -> Path:
    kind, _, version = reference.partition("@")
    return Path(kind) / version


def test_rounds_are_added_to_those_that_are_there(finished: FinishedRun, folder: Path) -> None:
    stages = preview(changed(finished, rounds__count=3), RunOptions(folder))
    states = {(stage["stage"], stage["round"]): stage["state"] for stage in stages}
    assert states["responses (dpo-2)", 2] == "finished"
    assert states["trees", 3] == "to do"
    assert "round 3: trees: 6 prompts" in shown(stages)


def test_a_dry_run_says_what_is_finished_and_what_would_be_asked(finished: FinishedRun, folder: Path) -> None:
    recipe = changed(finished)
    before = sorted(folder.rglob("*"))
    stages = preview(recipe, RunOptions(folder))
    assert [(stage["stage"], stage["round"]) for stage in stages] == [
        (stage.name, stage.number) for stage in planned_stages(recipe)
    ]
    assert {stage["state"] for stage in stages} == {"finished"}
    stages = preview(changed(finished, dpo__learning_rate=5e-4), RunOptions(folder))
    assert [stage["state"] for stage in stages] == ["finished"] * 8 + ["to do"] * 9
    trees = next(stage for stage in stages if stage["stage"] == "trees" and stage["state"] == "to do")
    assert (trees["round"], trees["prompts"]) == (2, 6)
    assert trees["models"][0]["requests"] > 0
    text = shown(stages)
    assert "round 2: preference_pairs: unknown before the trees of round 2" in text
    assert sorted(folder.rglob("*")) == before


def test_limits_hold_for_the_whole_run(finished: FinishedRun, folder: Path, stub: None) -> None:
    used = sum(
        stage["tokens"] for stage in finished.summary["stages"] if "artifact" in stage
    )  # completions alone: all of it together is more
    limits = BudgetLimits(total_tokens=used)
    summary = Pipeline(changed(finished), RunOptions(folder, limits=limits)).run()
    assert made(summary) == made(finished.summary), "what is finished asks for nothing"
    with pytest.raises(BudgetError, match=f"the run has --max-total-tokens {used}, of which earlier stages used"):
        Pipeline(changed(finished, prm__learning_rate=2e-4), RunOptions(folder, limits=limits)).run()
    limits = BudgetLimits(seconds=0)
    with pytest.raises(BudgetError, match="--max-seconds 0 has passed before training prm"):
        Pipeline(changed(finished, prm__learning_rate=3e-4), RunOptions(folder, limits=limits)).run()


def test_a_run_without_structured_reasoning_starts_from_a_model_that_knows_the_grammar(
    finished: FinishedRun, tmp_path: Path
) -> None:
    sections = {name: section for name, section in finished.sections.items() if name != "structured_cot"}
    recipe = parse_full_recipe(sections)
    assert [stage.name for stage in planned_stages(recipe)][:4] == [
        "prompts", "prompts (held out)", "responses (base)", "trees",
    ]  # fmt: skip
    assert preview(recipe, RunOptions(tmp_path / "none"))[0]["state"] == "to do"
    assert not (tmp_path / "none").exists()


def test_reviews_of_a_round_decide_its_pairs(finished: FinishedRun, folder: Path) -> None:
    root = folder / "artifacts"
    pairs = open_artifact(root / "preference_pairs" / "1.0.0")
    pair_id = pairs.scan().select("pair_id").collect()["pair_id"][0]
    build_reviews([review(pair_id, "ann", "both_bad")], pairs, Source("dataset", "pairs", "pairs/1"), root)
    recipe = changed(finished, rounds__reviews={1: "reviews"})
    with pytest.raises(BudgetError, match="before training dpo-1"):
        Pipeline(recipe, RunOptions(folder, limits=BudgetLimits(seconds=0))).run()
    reviewed = open_artifact(root / "preference_pairs" / "1.2.0")
    assert [parent.kind for parent in reviewed.manifest.parents] == ["trees", "reviews"]
    assert set(pairs.scan().collect()["pair_id"]) - set(reviewed.scan().collect()["pair_id"]) == {pair_id}


def test_fresh_builds_anew_beside_what_is_there_and_the_next_command_goes_on_from_that(
    finished: FinishedRun, folder: Path
) -> None:
    recipe, before = changed(finished), files_of(folder)
    limits = BudgetLimits(seconds=0)  # the first server is not started
    with pytest.raises(BudgetError, match="--max-seconds 0 has passed"):
        Pipeline(recipe, RunOptions(folder, fresh=True, limits=limits)).run()
    assert {path: files_of(folder)[path] for path in before} == before
    stages = preview(recipe, RunOptions(folder))
    found = {stage["stage"]: stage.get("made") for stage in stages if stage["round"] is None}
    assert (found["prompts"], found["prompts (held out)"]) == ("prompts@1.2.0", "prompts@1.3.0")
    assert found["structured_cot"] == "structured_cot@1.1.0"
    assert found["train sft"] == str(folder / "models" / "sft")


def test_models_and_searches_are_tested_on_benchmarks(
    finished: FinishedRun, folder: Path, stub: None, tmp_path: Path
) -> None:
    file = tmp_path / "asked.csv"
    file.write_text(
        "prompt,task\n" + "".join(f"Do number {n}?,{'safety' if n % 2 else 'helpfulness'}\n" for n in range(6))
    )
    recipe = changed(
        finished,
        rounds__searches=[{"n": 2}, {"method": "beam", "width": 2, "expansions": 1}],
        rounds__searched_prompts=4,
    )
    benchmark = {"name": "own", "path": str(file), "columns": {"prompt": "prompt", "task": "task"}, "score": "refusal"}
    evaluations = {"benchmarks": [benchmark], "attacks": {"names": ["none", "role_play"]}}
    recipe = parse_full_recipe(recipe.model_dump(exclude_unset=True) | {"evaluations": evaluations})
    before = files_of(folder)
    planned = [stage for stage in preview(recipe, RunOptions(folder)) if stage["stage"].startswith("evaluations")]
    names = ["base", "sft", "dpo-1", "dpo-2", "dpo-2, best of 2", "dpo-2, beam 2 x 1"]
    assert [stage["stage"] for stage in planned] == [f"evaluations ({name})" for name in names]
    scored = [{load["role"]: load["requests"] for load in stage["models"]}.get("prm") for stage in planned]
    assert scored[:5] == [None] * 4 + [2 * 4]
    assert (scored[5] or 0) > 4
    summary = Pipeline(recipe, RunOptions(folder)).run()
    tested = [stage for stage in summary["stages"] if stage["stage"].startswith("evaluations")]
    assert [(stage["stage"], stage["rows"]) for stage in tested] == [
        (f"evaluations ({name})", rows)
        for name, rows in zip(names, [9, 9, 9, 9, 4, 4], strict=True)  # harmful prompts are attacked
    ]
    assert {path: files_of(folder)[path] for path in before} == before
    for row, stage in zip(summary["rounds"], tested, strict=False):
        rows = open_artifact(Path(stage["folder"])).scan().filter(attack="none").collect()
        for task, name in (("safety", "refused_harmful"), ("helpfulness", "refused_harmless")):
            assert row[name] == pytest.approx(rows.filter(task=task)["refused"].drop_nulls().mean(), abs=1e-3)
    asked = [set(open_artifact(Path(stage["folder"])).scan().collect()["prompt_id"]) for stage in tested]
    assert asked[4] == asked[5] < asked[3]
    made_before = files_of(folder)
    assert made(Pipeline(recipe, RunOptions(folder)).run()) == made(summary)
    assert files_of(folder) == made_before
