"""Kind `responses`: answers of a model to prompts: samples, the best of n, or the end of a beam search."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from stairdata.generators.responses.answering import resolved_settings
from stairdata.generators.responses.workload import ACTOR, OpenScorer, ResponseWorkload
from stairdata.llm.budget import Budget
from stairdata.llm.session import Connect, identify, served_model
from stairdata.recipe import PrmEndpoint, Recipe
from stairdata.runs.batching.options import check_batch, check_places
from stairdata.runs.batching.rounds import BatchedParts, build_asking, run_live_or_batched
from stairdata.runs.executors.checks import at_endpoints, check_execution, roles_at_endpoints
from stairdata.runs.executors.executor import HERE, Execution, Executor, check_unbatched, make_executor
from stairdata.runs.inputs import Inputs, input_rows
from stairdata.runs.options import BuildOptions
from stairdata.runs.progress import report_waiting
from stairdata.runs.runner import RunResult, open_budget, table_of_outcomes, usage_of
from stairdata.runs.units import Unit
from stairdata_schemas.artifacts import Artifact
from stairdata_schemas.building import Build, BuildContent, BuildPlan, Report
from stairdata_schemas.errors import RecipeError
from stairdata_schemas.fingerprints import counted_settings
from stairdata_schemas.manifest import ModelIdentity

GENERATOR = "responses/3"


def build_responses(
    recipe: Recipe,
    options: BuildOptions,
    prm: ModelIdentity | None = None,
    open_scorer: OpenScorer | None = None,
    execution: Execution = HERE,
) -> Artifact:
    """Let the actor answer each prompt, by the recipe's method, live.

    Args and errors are those of `build_responses_in_rounds`.
    """
    artifact = build_responses_in_rounds(recipe, replace(options, batch=None), prm, open_scorer, execution)
    assert artifact is not None, "only a batch leaves a build unfinished"
    return artifact


def build_responses_in_rounds(
    recipe: Recipe,
    options: BuildOptions,
    prm: ModelIdentity | None = None,
    open_scorer: OpenScorer | None = None,
    execution: Execution = HERE,
) -> Artifact | None:
    """Let the actor answer each prompt, by the recipe's method, live or in batches.

    Args:
        recipe: sections `actor` and `responses`.
        options: where and from what.
        prm: which process reward model scores; None where nothing is scored.
        open_scorer: opens it; given by the command line, since generators don't know the training package.
        execution: where the prompts are answered.

    Returns:
        The artifact; None where batches leave it unfinished.

    Raises:
        RecipeError: the recipe names a PRM and none is given, or what can't be asked in batches.
        ServerError: a server can't be started or has gone; what is finished is kept.
        QuarantineError: too many prompts were refused.
    """
    if options.batch is not None:
        check_unbatched(execution)
        _check_batched(recipe, options)
    if recipe.responses.prm is not None and open_scorer is None:
        raise RecipeError("responses.prm is named, and nothing here can score: build with the command line")
    recipe = recipe.model_copy(update={"actor": at_endpoints(recipe.actor, execution, "actor")})
    recipe = roles_at_endpoints(recipe, "responses", execution)
    parent = Inputs(options.inputs, options.root).of("prompts")
    plan = plan_responses(recipe, parent, options, prm)
    parts = BatchedParts("responses.batch", recipe.responses.batch, {ACTOR: recipe.actor}, {ACTOR})

    def content(build: Build) -> BuildContent | None:
        prompts = {row["prompt_id"]: row for row in input_rows(parent, ["prompt_id", "prompt", "task"], options.limit)}
        units = [Unit(key, number, row["prompt"], row) for number, (key, row) in enumerate(prompts.items())]
        budget = open_budget(build, recipe, options, [plan.models[0].name])
        actor = served_model(recipe.actor, plan.models[0])

        def executor(connect: Connect | None) -> Executor:
            if connect is not None:
                check_unbatched(execution)
            workload = ResponseWorkload(recipe, build.work, actor, prm, open_scorer, connect)
            waiting = report_waiting(options.progress)
            return make_executor(workload, budget, recipe.responses.concurrency, waiting, execution)

        result = run_live_or_batched(build, units, executor, parts, budget, options)
        if result is None:
            return None
        options.tell(table_of_outcomes(result))
        return BuildContent(result.frames(), result.refused, _report(build, result, budget))

    check = partial(check_execution, [recipe.actor], execution, recipe, "responses")
    return build_asking(plan, content, options, check)


def _check_batched(recipe: Recipe, options: BuildOptions) -> None:
    check_batch(options)
    if recipe.responses.method != "sample" or recipe.responses.prm is not None:
        raise RecipeError(
            f"--batch takes answers that nobody scores, and responses.method is {recipe.responses.method}"
            f"{' with a prm' if recipe.responses.prm is not None else ''}; set it to sample and leave responses.prm "
            "out, or leave --batch out"
        )
    check_places([recipe.actor], options)


def plan_responses(
    recipe: Recipe, prompts: Artifact, options: BuildOptions, prm: ModelIdentity | None = None
) -> BuildPlan:
    """Return what decides the rows."""
    section = recipe.responses
    served = section.prm if isinstance(section.prm, PrmEndpoint) else None
    return BuildPlan(
        "responses",
        GENERATOR,
        {
            **counted_settings(recipe.actor),
            **resolved_settings(section),
            "max_model_len": recipe.actor.max_model_len,  # decides which prompts leave room, whoever serves the actor
            "seed": recipe.seed,
            "limit": options.limit,
        }
        | ({"prm": counted_settings(served)} if served else {}),
        settings={"actor": recipe.actor.model_dump(mode="json")}
        | ({"prm": served.model_dump(mode="json")} if served else {}),
        parents=[prompts.as_parent()],
        models=[identify(recipe.actor, "actor"), *([prm] if prm else [])],
        seeds={"sampling": recipe.seed},
    )


def _report(build: Build, result: RunResult, budget: Budget) -> Report:
    usage = usage_of(result, budget, [build.plan.models[0].name])
    return Report(result.outcomes, usage, details={**result.counts, "requests": result.requests})
