"""Kind `trees`: SI-MCTS on a served model, many trees at once, resumable to the request."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from stairdata.generators.growing import Grower, Prompt
from stairdata.generators.judges import open_judge
from stairdata.generators.options import BuildOptions
from stairdata.generators.runner import RunResult, Unit, counts_of, journaled_frames, run_units, usage_of
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
        result = asyncio.run(_grow_all(build, recipe, units, prompts, options))
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


async def _grow_all(
    build: Build, recipe: Recipe, units: list[Unit], prompts: dict[str, Prompt], options: BuildOptions
) -> RunResult:
    async with _open_grower(build, recipe, options) as grower:
        return await run_units(
            build,
            units,
            lambda unit: grower.grow(unit.key, prompts[unit.key]),
            _concurrency(recipe),
            options.progress,
        )


def _concurrency(recipe: Recipe) -> int:
    """Return the trees in flight; with `auto` twice the actor's requests, since a tree mostly waits for one."""
    wanted = recipe.trees.concurrency
    return 2 * recipe.actor.concurrency if wanted == "auto" else wanted


@asynccontextmanager
async def _open_grower(build: Build, recipe: Recipe, options: BuildOptions) -> AsyncIterator[Grower]:
    def waiting(message: str, seconds: float) -> None:
        options.progress(f"{message} ({seconds:.0f} s)", 0, 0)

    async with open_client(recipe.actor, build.work / "server.log", waiting) as client:
        actor = make_actor(client, recipe.actor, recipe.trees)
        async with open_judge(recipe.trees, client, build.work / "judge.log", waiting) as judge:
            name = build.plan.models[0].name
            yield Grower(recipe, actor, judge, name, build.work / "running")


def _report(build: Build, recipe: Recipe, units: list[Unit], result: RunResult) -> Report:
    notes = ["a step cut at max_tokens is dropped (the published code keeps it)"]
    if recipe.trees.judge.cache:
        notes.append("equal answers of one tree were judged once (the paper judges each)")
    if recipe.trees.fused:
        notes.append("expansions were fused with first rollouts (the same distribution wherever no token limit cut)")
    return Report(result.outcomes, usage_of(build, units), notes, counts_of(build))
