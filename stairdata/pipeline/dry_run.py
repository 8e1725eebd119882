"""What a run would do, without doing any of it: no server, no weights, nothing written."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stairdata.generators.evaluations.cost_estimate import forecast_evaluations
from stairdata.generators.forecast import forecast_prompts, forecast_responses, forecast_trees
from stairdata.generators.structured_cot.cost_estimate import forecast_structured_cot
from stairdata.pipeline.run import BASE, PRM, SFT, Pipeline, asks_teacher, searched, start_model, trains_sft
from stairdata.runs.build import NotBuiltError

if TYPE_CHECKING:
    from stairdata.pipeline.steps import RunOptions, Until
    from stairdata.recipe import SearchSettings
    from stairdata.runs.forecast import Forecast
    from stairdata.stages import FullRecipe

TREES = ("trees", "trees (held out)")


@dataclass(frozen=True, slots=True)
class PlannedStage:
    """A stage of a run."""

    name: str
    """As in summary.json."""
    number: int | None = None
    """Of the round."""
    needs: str = ""
    """What has to be there before more can be said."""
    search: SearchSettings | None = None
    """How the last actor searches in it."""


def planned_stages(recipe: FullRecipe, until: Until = "end") -> Iterator[PlannedStage]:
    """Yield the stages of a run, in order.

    Args:
        recipe: all sections.
        until: what is trained last.
    """
    rounds = recipe.rounds
    start = Path(start_model(recipe) or "").name
    yield PlannedStage("prompts")
    if rounds.held_out:
        yield PlannedStage("prompts (held out)", needs="the prompts")
    if not trains_sft(recipe):
        yield from _answers(recipe, BASE, None, start)
    else:
        needs = "the prompts" if asks_teacher(recipe) else ""
        if asks_teacher(recipe) and (rounds.sft_prompts or rounds.held_out):
            yield PlannedStage("prompts (sft)", needs="" if rounds.sft_prompts else needs)
            needs = "prompts (sft)"
        yield PlannedStage("structured_cot", needs=needs)
        yield from _answers(recipe, BASE, None, start)
        yield PlannedStage("train sft", needs="structured_cot")
        yield from _answers(recipe, SFT, None, "models/sft")
    if until == "sft":
        return
    for number in range(1, rounds.count + 1):
        before = f"models/dpo-{number - 1}" if number > 1 else "models/sft" if trains_sft(recipe) else start
        for kind, needs in (("trees", before), ("preference_pairs", f"the trees of round {number}")):
            yield from _of_both_parts(recipe, kind, number, needs)
        yield PlannedStage("train dpo", number, f"the pairs of round {number}")
        yield from _answers(recipe, f"dpo-{number}", number, f"models/dpo-{number}")
    if until == "rounds":
        return
    yield from _of_both_parts(recipe, "prm_pairs", None, f"the trees of round {rounds.count}")
    yield PlannedStage("train prm", needs="prm_pairs")
    if rounds.held_out and rounds.best_of > 1:
        yield PlannedStage(f"responses (dpo-{rounds.count}, best of {rounds.best_of})", needs=f"models/{PRM}")
    for search in rounds.searches:
        name = f"evaluations (dpo-{rounds.count}, {search.title})"
        yield PlannedStage(name, needs=f"models/{PRM}", search=search)


def _of_both_parts(recipe: FullRecipe, kind: str, number: int | None, needs: str) -> Iterator[PlannedStage]:
    if recipe.rounds.eval_prompts:
        yield PlannedStage(f"{kind} (held out)", number, needs)
    yield PlannedStage(kind, number, needs)


def _answers(recipe: FullRecipe, model: str, number: int | None, needs: str) -> Iterator[PlannedStage]:
    if recipe.rounds.held_out:
        yield PlannedStage(f"responses ({model})", number, needs)
    if recipe.evaluations.benchmarks:
        yield PlannedStage(f"evaluations ({model})", number, needs)


def preview(recipe: FullRecipe, options: RunOptions) -> list[dict[str, Any]]:
    """Return what is finished of a run and what is left, each stage with what can be said of it.

    Raises:
        RecipeError: as of the run itself.
    """
    pipeline, is_finished = _finished_part(recipe, options)
    done = [*pipeline.steps.records]
    if is_finished:
        return [*map(_finished, done)]  # also where stop_below ended the run
    left = [*planned_stages(recipe, options.until)][len(done) :]
    kept: dict[str, Forecast] = {}
    to_do = [_to_do(pipeline, stage, kept, is_next=not place) for place, stage in enumerate(left)]
    return [*map(_finished, done), *to_do]


def finished_stages(recipe: FullRecipe, options: RunOptions) -> list[dict[str, Any]]:
    """Return the finished stages of a run, in order, as summary.json has them; nothing is made.

    Raises:
        RecipeError: as of the run itself.
    """
    return _finished_part(recipe, options)[0].steps.records


def _finished_part(recipe: FullRecipe, options: RunOptions) -> tuple[Pipeline, bool]:
    """Go as far as everything is finished, and tell whether that is the end."""
    pipeline = Pipeline(recipe, replace(options, only_finished=True))
    try:
        pipeline.make()
    except NotBuiltError:
        return pipeline, False
    return pipeline, True


def shown(stages: list[dict[str, Any]]) -> str:
    """Return the preview for a reader."""
    return "\n".join(line for stage in stages for line in _lines(stage))


def _lines(stage: dict[str, Any]) -> Iterator[str]:
    title = stage["stage"] if stage.get("round") is None else f"round {stage['round']}: {stage['stage']}"
    if stage["state"] == "finished":
        yield f"{title}: finished, {stage['made']}"
        return
    facts = [f"{stage['prompts']:,} prompts"] if stage.get("prompts") else []
    facts += [f"at most {stage['rows']:,} rows"] if stage.get("rows") else []
    yield f"{title}: " + ", ".join([*facts, stage["words"]] if stage["words"] else facts or ["to do"])
    forecast = stage.get("forecast")
    if forecast:
        yield from (f"    {line}" for line in forecast.split("\n"))


def _finished(record: dict[str, Any]) -> dict[str, Any]:
    return {
        "stage": record["stage"],
        "round": record.get("round"),
        "state": "finished",
        "made": record.get("artifact") or record["model"],
    }


def _to_do(pipeline: Pipeline, stage: PlannedStage, kept: dict[str, Forecast], *, is_next: bool) -> dict[str, Any]:
    forecast = _forecast(pipeline, stage, kept)
    unknown = not is_next and forecast is None and stage.needs
    return {
        "stage": stage.name,
        "round": stage.number,
        "state": "to do",
        "prompts": _prompts_of(pipeline, stage),
        "rows": _most_rows(pipeline.recipe, stage),
        "words": f"unknown before {stage.needs}" if unknown else "",
        "forecast": forecast.shown(json_=False) if forecast else None,
        "models": [{"role": load.role, "requests": load.requests, "prompt_tokens": load.prompt_tokens,
                    "completion_tokens": load.completion_tokens, "cost": load.cost} for load in forecast.models]
        if forecast
        else [],
    }  # fmt: skip


def _prompts_of(pipeline: Pipeline, stage: PlannedStage) -> int | None:
    """Return how many prompts a stage works on, where that can be said."""
    rounds = pipeline.recipe.rounds
    if stage.name == "trees (held out)":
        return rounds.eval_prompts
    if stage.name == "trees" and stage.number is not None:
        if pipeline.split is not None:
            return pipeline.split.rounds[stage.number - 1].size
        return rounds.prompts_per_round
    return rounds.held_out if stage.name.startswith(("responses", "prompts (held out)")) else None


def _most_rows(recipe: FullRecipe, stage: PlannedStage) -> int | None:
    method = stage.name.removeprefix("train ")
    rows: int | None = getattr(recipe, method).max_rows if method != stage.name else None
    return rows


def _forecast(pipeline: Pipeline, stage: PlannedStage, kept: dict[str, Forecast]) -> Forecast | None:
    """Forecast what a stage asks of models, where the rows that it works on are there.

    Args:
        pipeline: as far as it is finished.
        stage: to be forecast.
        kept: forecasts of evaluations by the title of the search, each of which reads the benchmarks and hashes a
            model: they are the same for all models.
    """
    recipe, steps = pipeline.recipe, pipeline.steps
    if stage.name == "prompts":
        is_asking = recipe.prompts.task_judge is not None or recipe.prompts.twins is not None
        return forecast_prompts(recipe, steps.build_options([])) if is_asking else None
    if stage.name in TREES and pipeline.prompts is not None and pipeline.split is not None:
        assert stage.number is not None
        part = pipeline.split.rounds[stage.number - 1] if stage.name == "trees" else pipeline.split.evaluation
        section = recipe.trees.model_copy(update={"round": stage.number})
        options = steps.build_options([pipeline.prompts], part=part)
        return forecast_trees(steps.with_actor(_place(pipeline, stage), trees=section), options)
    if stage.name.startswith("responses") and (prompts := pipeline.held_out or pipeline.prompts) is not None:
        best = {"method": "best_of_n", "n": recipe.rounds.best_of, "prm": PRM}
        section_of = recipe.responses.model_copy(update=best if "best of" in stage.name else {"n": 1})
        # as many of all prompts stand for those that are not set aside yet
        options = steps.build_options([prompts], recipe.rounds.held_out)
        return forecast_responses(steps.with_actor(_place(pipeline, stage), responses=section_of), options)
    if stage.name.startswith("evaluations"):
        key = stage.search.title if stage.search is not None else ""
        if key not in kept:
            sections: dict[str, Any] = {}
            if stage.search is not None:
                answering = recipe.responses.model_copy(update={**stage.search.settings(), "prm": PRM})
                sections = {"evaluations": searched(recipe), "responses": answering}
            # the start model stands for those that are to be trained from it; what it was asked is no part of theirs
            tested = steps.with_actor(start_model(recipe) or "", is_ours=False, **sections)
            kept[key] = forecast_evaluations(tested, replace(steps.build_options([]), fresh=True))
        return kept[key]
    return _forecast_teacher(pipeline) if stage.name == "structured_cot" else None


def _place(pipeline: Pipeline, stage: PlannedStage) -> str:
    """Return a path with the name of the model that a stage asks; another recipe's model of that name is not meant."""
    return str((pipeline.options.folder / "to be trained" / Path(stage.needs).name).absolute())


def _forecast_teacher(pipeline: Pipeline) -> Forecast | None:
    recipe, split = pipeline.recipe, pipeline.split
    if not asks_teacher(recipe) or split is None or pipeline.prompts is None:
        return None
    most = recipe.rounds.sft_rows
    try:
        parents = pipeline.teacher_prompts()
    except NotBuiltError:
        if recipe.rounds.sft_prompts:
            return None
        parents, most = [pipeline.prompts], min(most or split.others.size, split.others.size)
    return forecast_structured_cot(recipe, pipeline.steps.build_options(parents, most))
