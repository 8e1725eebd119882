"""Kind `trees`: SI-MCTS on a served model, many trees at once, resumable to the request."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from itertools import islice

from stairdata.generators.trees.judge_servers import identify_judges, judge_settings, make_judge, open_judge_servers
from stairdata.generators.trees.rejudging import rejudge_trees
from stairdata.generators.trees.rows import Prompt
from stairdata.generators.trees.tree_runner import TreeRunner
from stairdata.llm.budget import Budget
from stairdata.llm.session import identify, make_actor, open_pool, served_model
from stairdata.recipe import Endpoint, Recipe
from stairdata.runs.build import build_as_told
from stairdata.runs.executors.checks import at_endpoints, check_execution, roles_at_endpoints
from stairdata.runs.executors.executor import HERE, Execution, make_executor
from stairdata.runs.inputs import Inputs, input_rows
from stairdata.runs.options import BuildOptions
from stairdata.runs.progress import report_waiting
from stairdata.runs.prompt_parts import ids_of
from stairdata.runs.runner import RunResult, open_budget, run_units, table_of_outcomes, usage_of
from stairdata.runs.units import Unit, UnitResult, WorkContext, Workload, clients_of
from stairdata_schemas import identity
from stairdata_schemas.aliases import WaitProgress
from stairdata_schemas.artifacts import Artifact
from stairdata_schemas.building import Build, BuildContent, BuildPlan, Report
from stairdata_schemas.fingerprints import counted_settings

GENERATOR = "trees/3"


def build_trees(
    recipe: Recipe, options: BuildOptions, execution: Execution = HERE, rejudge: str | None = None
) -> Artifact:
    """Grow a tree from each prompt, or have the answers of grown trees rated again.

    Args:
        recipe: sections `actor` and `trees`.
        options: where and from what.
        execution: where the trees are grown.
        rejudge: reference of trees; they are rated by `rejudge_trees`, and none is grown.

    Raises:
        ServerError: the server can't be started or has gone; what is finished is kept.
        BudgetError: a limit is reached; what is finished is kept.
        QuarantineError: too many trees could not be finished.
    """
    if rejudge is not None:
        return rejudge_trees(recipe, rejudge, options, execution)
    prompts = Inputs(options.inputs, options.root).of("prompts")
    plan = plan_trees(recipe, prompts, options, execution)

    def content(build: Build) -> BuildContent:
        budget = open_budget(build, recipe, options)
        result = grow_trees(build, recipe, units_of(recipe, prompts, options), options, budget, execution)
        options.tell(table_of_outcomes(result))
        report = _report(build, recipe, result, budget)
        return BuildContent(result.frames(), result.refused, report)

    return build_as_told(plan, content, options, lambda: check_execution([recipe.actor], execution, recipe, "trees"))


def plan_trees(recipe: Recipe, prompts: Artifact, options: BuildOptions, execution: Execution = HERE) -> BuildPlan:
    """Return what decides the rows.

    Raises:
        UsageError: servers are given for a model that is to be served here, or that nobody asks.
    """
    recipe = recipe.model_copy(update={"actor": at_endpoints(recipe.actor, execution, "actor")})
    recipe = roles_at_endpoints(recipe, "trees", execution)
    models = [identify(recipe.actor, "actor"), *identify_judges(recipe.trees.judge)]
    return BuildPlan(
        "trees",
        GENERATOR,
        {
            **counted_settings(recipe.actor),
            **counted_settings(recipe.trees),
            "judge": judge_settings(recipe.trees.judge),
            "max_model_len": recipe.actor.max_model_len,  # decides which prompts leave room, whoever serves the actor
            "seed": recipe.seed,
            "limit": options.limit,
        }
        | ({"part": [options.part.first, options.part.end]} if options.part else {}),
        settings={"actor": recipe.actor.model_dump(mode="json"), "executor": execution.executor},
        parents=[prompts.as_parent()],
        models=models,
        seeds={"search": recipe.seed},
    )


def grow_trees(
    build: Build,
    recipe: Recipe,
    units: list[Unit],
    options: BuildOptions,
    budget: Budget,
    execution: Execution = HERE,
    *,
    pilot: int | None = None,
) -> RunResult:
    """Grow what is still missing of a build, of a pilot only that many trees."""
    workload = TreeWorkload(recipe, build.work, build.plan.models[0].name)
    executor = make_executor(workload, budget, recipe.trees.concurrency, report_waiting(options.progress), execution)
    return run_units(build, units, executor, budget, options.progress, pilot=pilot)


def units_of(recipe: Recipe, prompts: Artifact, options: BuildOptions) -> list[Unit]:
    """Return the trees to be grown; the payload is the prompt."""
    rows = enumerate(input_rows(prompts, list(Prompt._fields), None if options.part else options.limit))
    wanted = ids_of(prompts, options.part, recipe.seed) if options.part else None
    chosen = islice((each for each in rows if wanted is None or each[1]["prompt_id"] in wanted), options.limit)
    return [
        Unit(identity.tree_id(row["prompt_id"], recipe.seed, ordinal), number, row["prompt"], row)
        for number, row in chosen
        for ordinal in range(recipe.trees.trees_per_prompt)
    ]


@dataclass(frozen=True)
class TreeWorkload(Workload):
    """Grows a tree for each unit."""

    name: str
    """The actor's, in the rows."""

    @property
    def asked(self) -> Endpoint:
        return self.recipe.actor

    @asynccontextmanager
    async def open(self, budget: Budget, waiting: WaitProgress) -> AsyncIterator[WorkContext]:
        recipe, folder = self.recipe, self.folder
        async with AsyncExitStack() as stack:
            log = folder / "server.log"
            opening = open_pool(self.asked, self.endpoints, log, waiting, budget, is_spread=self.is_spread)
            pool = await stack.enter_async_context(opening)
            judges = open_judge_servers(recipe.trees.judge, folder, waiting, budget, self.role_endpoints)
            judging = await stack.enter_async_context(judges)
            actor = make_actor(pool, recipe.actor, recipe.trees)
            judge = make_judge(recipe.trees.judge, judging, actor)
            runner = TreeRunner(recipe, actor, judge, self.name, folder / "running")

            async def work(unit: Unit) -> UnitResult:
                return await runner.run(unit.key, Prompt(**unit.payload))

            pools = [pool, *judging.pools]
            yield WorkContext(pool.keeping(work), pool.room, clients_of(pools), lambda: runner.judged, pools)


def _report(build: Build, recipe: Recipe, result: RunResult, budget: Budget) -> Report:
    section = recipe.trees
    notes = ["a step cut at max_tokens is dropped (the published code keeps it)"]
    if dropped := result.counts.get("control_token_steps"):
        notes.append(f"{dropped} steps with control tokens of the actor were dropped (the published code keeps them)")
    if section.judge.cache:
        notes.append("equal answers of one tree were judged once (the paper judges each)")
    if section.fused:
        notes.append("expansions were fused with first rollouts (the same distribution wherever no token limit cut)")
    if section.parallel > 1:
        notes.append(f"{section.parallel} rollouts of a tree at a time, with virtual loss (the paper has one)")
    usage = usage_of(result, budget, [model.name for model in build.plan.models])
    details = {**result.counts, "requests": result.requests, "tokens_of_all_runs": budget.spent.tokens}
    planned = build.plan.models[0]
    actor = served_model(recipe.actor, planned)
    if actor != planned:  # the plan's models enter the fingerprint, where a server's has no hash
        details["actor"] = actor.noted()
    return Report(result.outcomes, usage, notes, details)
