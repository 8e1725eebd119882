"""Kind `trees`: SI-MCTS on a served model, many trees at once, resumable to the request."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from stairdata.fingerprints import row_settings
from stairdata.generators.fleet import open_fleet
from stairdata.generators.growing import Prompt
from stairdata.generators.inputs import open_inputs
from stairdata.generators.judges import TEMPLATE_VERSION
from stairdata.generators.options import BuildOptions
from stairdata.generators.runner import (
    Opened,
    OpenWork,
    RunResult,
    Unit,
    open_budget,
    run_units,
    table_of_outcomes,
    usage_of,
)
from stairdata.llm.budget import Budget
from stairdata.llm.session import identify
from stairdata.recipe import Recipe, TreesSection
from stairdata_schemas import identity
from stairdata_schemas.artifacts import Artifact
from stairdata_schemas.building import Build, BuildPlan, Report, begin_build
from stairdata_schemas.errors import UsageError

GENERATOR = "trees/2"


def build_trees(recipe: Recipe, options: BuildOptions) -> Artifact:
    """Grow a tree from each prompt.

    Raises:
        UsageError: servers are given for an actor that is to be served here.
        ServerError: the server can't be started or has gone; what is finished is kept.
        BudgetError: a limit is reached; what is finished is kept.
        QuarantineError: too many trees could not be finished.
    """
    check_endpoints(recipe, options)
    prompts = open_inputs(options.root, options.inputs).of_kind("prompts")
    begun = begin_trees(recipe, options, prompts)
    if isinstance(begun, Artifact):
        return begun
    with begun as build:
        budget = open_budget(build, recipe, options)
        result = grow_trees(build, recipe, options, prompts, budget)
        options.tell(table_of_outcomes(result))
        report = _report(build, recipe, result, budget)
        return build.finish(result.frames(), result.refused, report, max_quarantine=options.max_quarantine)


def check_endpoints(recipe: Recipe, options: BuildOptions) -> None:
    """Check --endpoints, before anything is fetched or read.

    Raises:
        UsageError: servers are given for an actor that is to be served here.
    """
    if options.endpoints and (recipe.actor.path or recipe.actor.model is None or recipe.actor.tokenizer is None):
        raise UsageError("--endpoints needs actor.model and actor.tokenizer in the recipe, and no actor.path")


def begin_trees(recipe: Recipe, options: BuildOptions, prompts: Artifact) -> Artifact | Build:
    """Find or make the folder of a build of trees."""
    return begin_build(plan_trees(recipe, options, prompts), options.root, options.version, fresh=options.fresh)


def plan_trees(recipe: Recipe, options: BuildOptions, prompts: Artifact) -> BuildPlan:
    """Say what decides the rows."""
    if options.endpoints:
        recipe = recipe.model_copy(update={"actor": recipe.actor.model_copy(update={"base_url": options.endpoints[0]})})
    models = [identify(recipe.actor, "actor")]
    judge_endpoint = recipe.trees.judge.endpoint
    if judge_endpoint is not None:
        models.append(identify(judge_endpoint, "judge", needs_tokenizer=False))
    return BuildPlan(
        "trees",
        GENERATOR,
        {
            **row_settings(recipe.actor),
            **_search_settings(recipe.trees),
            "max_model_len": recipe.actor.max_model_len,  # decides which prompts leave room, whoever serves the actor
            "seed": recipe.seed,
            "limit": options.limit,
        },
        settings={"actor": recipe.actor.model_dump(mode="json"), "executor": options.executor},
        parents=[prompts.as_parent()],
        models=models,
        seeds={"search": recipe.seed},
    )


def grow_trees(build: Build, recipe: Recipe, options: BuildOptions, parent: Artifact, budget: Budget) -> RunResult:
    """Grow what is still missing of a build from its prompts."""
    units, prompts = units_of(recipe, options, parent)
    concurrency = recipe.trees.concurrency
    if options.executor == "ray":
        from stairdata.generators.ray_trees import run_on_ray

        return run_on_ray(build, units, prompts, recipe, options, budget)
    return run_units(build, units, _opener(build, recipe, prompts, options, budget), budget, options, concurrency)


def units_of(recipe: Recipe, options: BuildOptions, parent: Artifact) -> tuple[list[Unit], dict[str, Prompt]]:
    """Return the trees to be grown from an artifact of prompts, and the prompt of each."""
    units, prompts = [], {}
    for number, row in enumerate(options.rows(parent, list(Prompt._fields))):
        prompt = Prompt(**row)
        for ordinal in range(recipe.trees.trees_per_prompt):
            key = identity.tree_id(prompt.prompt_id, recipe.seed, ordinal)
            units.append(Unit(key, number, prompt.prompt))
            prompts[key] = prompt
    return units, prompts


def _search_settings(section: TreesSection) -> dict[str, Any]:
    settings = row_settings(section)
    settings["judge"]["template"] = TEMPLATE_VERSION
    return settings


def _opener(
    build: Build, recipe: Recipe, prompts: dict[str, Prompt], options: BuildOptions, budget: Budget
) -> OpenWork:
    @asynccontextmanager
    async def open_work() -> AsyncIterator[Opened]:
        name = build.plan.models[0].name
        async with open_fleet(recipe, options, budget, name, build.work) as (fleet, clients):
            yield Opened(lambda unit: fleet.grow(unit.key, prompts[unit.key]), fleet.room, clients, fleet.iterations)

    return open_work


def _report(build: Build, recipe: Recipe, result: RunResult, budget: Budget) -> Report:
    section = recipe.trees
    notes = ["a step cut at max_tokens is dropped (the published code keeps it)"]
    if section.judge.cache:
        notes.append("equal answers of one tree were judged once (the paper judges each)")
    if section.fused:
        notes.append("expansions were fused with first rollouts (the same distribution wherever no token limit cut)")
    if section.parallel > 1:
        notes.append(f"{section.parallel} rollouts of a tree at a time, with virtual loss (the paper has one)")
    usage = usage_of(result, budget, [model.name for model in build.plan.models])
    details = {**result.counts, "requests": result.requests, "tokens_of_all_runs": budget.spent.tokens}
    return Report(result.outcomes, usage, notes, details)
