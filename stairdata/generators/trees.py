"""Kind `trees`: SI-MCTS on a served model, many trees at once, resumable to the request."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from stairdata.generators.growing import Grower, Prompt
from stairdata.generators.judges import open_judge
from stairdata.generators.options import BuildOptions
from stairdata.generators.runner import RunResult, Unit, Work, counts_of, journaled_frames, run_units, usage_of
from stairdata.llm.session import identify, make_actor, open_client
from stairdata.recipe import Recipe, TreesSection
from stairdata_schemas import identity
from stairdata_schemas.artifacts import Artifact
from stairdata_schemas.building import Build, BuildPlan, Report, begin_build

GENERATOR = "trees/1"
_NOT_ROWS = {"concurrency"}


def build_trees(recipe: Recipe, options: BuildOptions) -> Artifact:
    """Grow a tree from each prompt.

    Raises:
        ServerError: the server can't be started or has gone; what is finished is kept.
        QuarantineError: too many trees could not be finished.
    """
    parent = options.parent("prompts")
    models = [identify(recipe.actor, "actor")]
    judge_endpoint = recipe.trees.judge.endpoint
    if judge_endpoint is not None:
        models.append(identify(judge_endpoint, "judge", needs_tokenizer=False))
    plan = BuildPlan(
        "trees",
        GENERATOR,
        {
            **_row_settings(recipe.trees),
            "max_model_len": recipe.actor.max_model_len,
            "seed": recipe.seed,
            "limit": options.limit,
        },
        settings={"actor": recipe.actor.model_dump(mode="json")},
        parents=[parent.as_parent()],
        models=models,
        seeds={"search": recipe.seed},
    )
    build = begin_build(plan, options.root, options.version, fresh=options.fresh)
    if isinstance(build, Artifact):
        return build
    with build:
        units, prompts = _units(parent, recipe, options)
        work = partial(_open_work, build, recipe, prompts, options)
        result = asyncio.run(run_units(build, units, work, _concurrency(recipe), options.progress))
        return build.finish(
            journaled_frames(build, units),
            result.refused,
            _report(build, recipe, units, result),
            max_quarantine=options.max_quarantine,
        )


def _row_settings(section: TreesSection) -> dict[str, Any]:
    settings = section.model_dump(mode="json", exclude=_NOT_ROWS)
    settings["judge"].pop("endpoint")  # counts as a model
    return settings


def _units(parent: Artifact, recipe: Recipe, options: BuildOptions) -> tuple[list[Unit], dict[str, Prompt]]:
    units, prompts = [], {}
    for number, row in enumerate(options.rows(parent, list(Prompt._fields))):
        prompt = Prompt(**row)
        for ordinal in range(recipe.trees.trees_per_prompt):
            key = identity.tree_id(prompt.prompt_id, recipe.seed, ordinal)
            units.append(Unit(key, number, prompt.prompt))
            prompts[key] = prompt
    return units, prompts


def _concurrency(recipe: Recipe) -> int:
    """Return the trees in flight; with `auto` twice the actor's requests, since a tree mostly waits for one."""
    wanted = recipe.trees.concurrency
    return 2 * recipe.actor.concurrency if wanted == "auto" else wanted


@asynccontextmanager
async def _open_work(
    build: Build, recipe: Recipe, prompts: dict[str, Prompt], options: BuildOptions
) -> AsyncIterator[Work]:
    async with open_client(recipe.actor, build.work / "server.log", options.waiting) as client:
        actor = make_actor(client, recipe.actor, recipe.trees)
        async with open_judge(recipe.trees, client, build.work / "judge.log", options.waiting) as judge:
            grower = Grower(recipe, actor, judge, build.plan.models[0].name, build.work / "running")
            yield lambda unit: grower.grow(unit.key, prompts[unit.key])


def _report(build: Build, recipe: Recipe, units: list[Unit], result: RunResult) -> Report:
    notes = ["a step cut at max_tokens is dropped (the published code keeps it)"]
    if recipe.trees.judge.cache:
        notes.append("equal answers of one tree were judged once (the paper judges each)")
    if recipe.trees.fused:
        notes.append("expansions were fused with first rollouts (the same distribution wherever no token limit cut)")
    return Report(result.outcomes, usage_of(build, units), notes, counts_of(build))
