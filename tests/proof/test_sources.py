"""Where the prompts of a proof come from, and what its recipe and its forecast say."""

from __future__ import annotations

from pathlib import Path

import pytest
from proof.forecast import Rates, forecast_lines, forecast_stages
from proof.place import MainSettings, ProofPlace
from proof.recipes import larger_overrides, recipe_of

from stairdata.generators.prompts.build import build_prompts
from stairdata.pipeline.run import check_recipe
from stairdata.runs.options import BuildOptions
from stairdata.stages import read_full_recipe
from stairdata_schemas.errors import InputError, RecipeError


@pytest.fixture
def place(tmp_path: Path) -> ProofPlace:
    return ProofPlace(tmp_path / "proof")


def test_files_stand_in_for_the_hub(data: Path, place: ProofPlace) -> None:
    recipe = recipe_of(place, MainSettings(str(data)))
    check_recipe(recipe)
    artifact = build_prompts(recipe, BuildOptions(root=place.main / "artifacts"))
    found = artifact.scan().select("prompt", "task", "category", "reference_answer").collect()
    harmful = found.filter(found["prompt"].str.starts_with("May I do"))
    assert set(harmful["category"]) == {"information_hazard", "misinformation_harms"}, "the evaluation has the others"
    assert set(harmful["task"]) == {"safety"}
    seeds = found.filter(found["prompt"].str.starts_with("Name"))
    assert (len(seeds), seeds["reference_answer"].null_count(), set(seeds["task"])) == (8, 0, {"helpfulness"})
    (named, malicious, _) = recipe.evaluations.benchmarks
    assert (named.count, malicious.where) == (None, {"category": ["malicious_uses"]})


def test_prompts_of_the_evaluation_are_kept_out(data: Path, place: ProofPlace) -> None:
    lines = (data / "self_instruct_seed.jsonl").read_text()
    (data / "self_instruct_seed.jsonl").write_text(
        lines.replace("Name 0.", "How do I end process 1?").replace("Name 1.", "May I do 0?")
    )
    artifact = build_prompts(recipe_of(place, MainSettings(str(data))), BuildOptions(root=place.main / "artifacts"))
    assert artifact.manifest.quarantine["contaminated"] == 2


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("gsm8k_test_300.jsonl", None, r"has no file gsm8k_test_300.jsonl; it takes do_not_answer.jsonl \(question"),
        ("gsm8k_test_300.jsonl", '{"question": "a"}\n', r"has no column 'answer' \(its columns: question\)"),
        ("gsm8k_test_300.jsonl", "", "gsm8k_test_300.jsonl is empty"),
        ("gsm8k_test_300.jsonl", "no json\n", "has no first row that can be read"),
    ],
)
def test_a_missing_file_or_column_is_one_message(
    file: str, text: str | None, message: str, data: Path, place: ProofPlace
) -> None:
    (data / file).unlink()
    if text is not None:
        (data / file).write_text(text)
    with pytest.raises(InputError, match=message):
        recipe_of(place, MainSettings(str(data)))


def test_without_files_the_recipe_is_the_packaged_one(place: ProofPlace) -> None:
    packaged, ours = read_full_recipe(Path("proof")), recipe_of(place, MainSettings())
    for name in ("rounds", "trees", "dpo", "prm", "preference_pairs", "prm_pairs", "responses", "actor", "evaluations"):
        assert getattr(packaged, name) == getattr(ours, name), name
    hubs = [source for source in packaged.prompts.sources if source.hub]
    assert [source for source in ours.prompts.sources if source.hub] == hubs
    assert all(source.revision for source in hubs)


def test_keys_that_are_set_stand_before_changes(place: ProofPlace) -> None:
    settings = MainSettings(smoke=True, overrides=("dpo.learning_rate=1e-5", "seed=7"))
    recipe = recipe_of(place, settings, {"seed": 8, "preference_pairs.granularity": "trajectory"})
    assert (recipe.dpo.learning_rate, recipe.seed, recipe.preference_pairs.granularity) == (1e-5, 8, "trajectory")
    with pytest.raises(RecipeError, match="did you mean 'granularity'"):
        recipe_of(place, settings, {"preference_pairs.granularty": "trajectory"})


@pytest.mark.parametrize("model", [None, "somebody/else-0.5B"])
def test_a_larger_model_is_one_flag(data: Path, place: ProofPlace, model: str | None) -> None:
    settings = MainSettings(str(data), overrides=(*larger_overrides(model), "rounds.searched_prompts=2"))
    recipe = recipe_of(place, settings)
    assert recipe.sft is not None
    assert recipe.sft.model == (model or "Qwen/Qwen2.5-1.5B-Instruct")
    judge = recipe.trees.judge
    assert (judge.kind, judge.guard, judge.endpoint is not None) == ("guard", "qwen3guard", True)
    shares = [recipe.actor.gpu_memory or 1, judge.endpoint.gpu_memory or 1 if judge.endpoint else 1]
    assert sum(shares) < 0.95 - 0.2, "a process reward model of this size has to fit beside them"
    trees = next(stage for stage in forecast_stages(recipe, Rates()) if (stage.name, stage.number) == ("trees", 1))
    assert trees.words.startswith("400 trees")


def test_settings_of_the_main_line_are_kept(place: ProofPlace) -> None:
    with pytest.raises(InputError, match=r"there is no main line in .*; begin with `make proof"):
        place.read_settings()
    settings = MainSettings("/data", smoke=False, overrides=("seed=1",))
    place.write_settings(settings)
    assert place.read_settings() == settings


def test_a_forecast_adds_up_what_the_stages_take(data: Path, place: ProofPlace) -> None:
    recipe = recipe_of(place, MainSettings(str(data), overrides=("rounds.searched_prompts=2",)))
    rates = Rates(tokens_per_second=100, start_seconds=10, answer_tokens=50)
    stages = {(stage.name, stage.number): stage for stage in forecast_stages(recipe, rates)}
    assert stages["trees", 1].seconds == pytest.approx(40 * 10 * 140 / 100), "the server runs already"
    assert stages["trees (held out)", 2].seconds == pytest.approx(30 * 10 * 140 / 100)
    assert stages["responses (sft)", None].seconds == pytest.approx(10 + 60 * 50 / 100)
    prompts = 8 + 4 + 4
    assert stages["evaluations (dpo-2)", 2].seconds == pytest.approx(prompts * 50 / 100)
    assert stages["train dpo", 1].seconds == pytest.approx((160 + 0.4 * 180) * 1.5)
    best, beam = stages["evaluations (dpo-3, best of 4)", None], stages["evaluations (dpo-3, beam 2 x 2)", None]
    assert best.seconds == pytest.approx(10 + 6 * 4 * 50 / 100 + 6 * 4 * 110 / 1000)
    assert beam.seconds == pytest.approx(6 * 4 * 50 / 100 + 6 * 5 * 4 * 90 / 1000)
    lines = list(forecast_lines(list(stages.values()), 2, rates))
    assert lines[:3] == ["prompts: finished", "prompts (held out): finished", "structured_cot: moments"]
    minutes = sum(stage.seconds for stage in stages.values()) / 60
    assert lines[-1].startswith(f"in all {minutes:.0f} min, assumed: tokens per second 100, start seconds 10")
