"""Rating the answers of trees once more, by another judge or with other weights: nothing is sampled.

A tree keeps its nodes, texts and visits, which are what the search chose by the rewards that it had; rewards, values
and what judges wrote are new.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, closing
from typing import Any, NamedTuple

from stairdata.generators.trees.judge_servers import (
    identify_judges,
    judge_settings,
    make_judge,
    open_judge_servers,
)
from stairdata.generators.trees.judges import Judge
from stairdata.generators.trees.rejudged_rows import StoredAnswer, judgement_rows, stored_answers, with_rewards
from stairdata.generators.trees.rows import Prompt
from stairdata.generators.trees.stored_trees import StoredTree, TreeReader, survey
from stairdata.generators.trees.tree_journal import Reply, TreeJournal
from stairdata.generators.trees.tree_runner import AnswerRater
from stairdata.hub.lineage import nearest_ancestor
from stairdata.hub.pull import open_reference
from stairdata.llm.actor import RequestUsage
from stairdata.llm.budget import Budget
from stairdata.llm.outcomes import RequestFailedError
from stairdata.llm.session import identify, make_actor, open_pool
from stairdata.llm.wire.gathering import gather_all
from stairdata.recipe import Recipe
from stairdata.runs.build import build_as_told
from stairdata.runs.executors.checks import at_endpoints, check_execution, roles_at_endpoints
from stairdata.runs.executors.executor import HERE, Execution
from stairdata.runs.executors.local import LocalExecutor
from stairdata.runs.inputs import Inputs
from stairdata.runs.options import BuildOptions
from stairdata.runs.progress import report_waiting
from stairdata.runs.runner import RunResult, open_budget, run_units, table_of_outcomes, usage_of
from stairdata.runs.units import Unit, UnitResult, WorkContext, clients_of, room_of
from stairdata.search.reward import Reward
from stairdata_schemas.aliases import Row, WaitProgress
from stairdata_schemas.artifacts import Artifact
from stairdata_schemas.building import Build, BuildContent, BuildPlan, Report
from stairdata_schemas.errors import InputError, UsageError
from stairdata_schemas.fingerprints import counted_settings

GENERATOR = "trees/rejudged/1"
JUDGES_OF_TASKS = ("rule", "reference")
"""Kinds of judges that rate by the prompt's task."""
Work = Callable[[Unit], Awaitable[UnitResult]]
OpenWork = Callable[[], AbstractAsyncContextManager[WorkContext]]


class RejudgingJob(NamedTuple):
    """What is rated, and what decides the result."""

    trees: Artifact
    stored: list[StoredTree]
    references: dict[str, str | None]
    """Reference answers by prompt_id, for a judge that reads them."""
    plan: BuildPlan


def rejudge_trees(recipe: Recipe, reference: str, options: BuildOptions, execution: Execution = HERE) -> Artifact:
    """Rate the answers of trees by the judge of a recipe, and recompute rewards and values.

    Args:
        recipe: section `trees`: `judge`, `k1` and `k2`; section `actor`, where the actor rates.
        reference: of the trees.
        options: where; as input the prompts of the trees, for a judge of kind reference.
        execution: where the servers of those who rate are.

    Raises:
        UsageError: a reference of another kind, inputs that nothing reads, servers that nobody asks, or Ray.
        InputError: trees without the texts of their rollouts, or without what the judge reads.
        ServerError, BudgetError, QuarantineError: as for `build_trees`.
    """
    job = plan_rejudging(recipe, reference, options, execution)

    def content(build: Build) -> BuildContent:
        budget = open_budget(build, recipe, options)
        opening = _opening(build, job, recipe, budget, report_waiting(options.progress), execution)
        executor = LocalExecutor(opening, budget, recipe.trees.concurrency)
        result = run_units(build, _units(job), executor, budget, options.progress)
        options.tell(table_of_outcomes(result))
        return BuildContent(result.frames(), result.refused, _report(job, recipe, result, budget))

    return build_as_told(
        job.plan, content, options, lambda: check_execution([recipe.actor], execution, recipe, "trees")
    )


def plan_rejudging(recipe: Recipe, reference: str, options: BuildOptions, execution: Execution = HERE) -> RejudgingJob:
    """Look at the trees, and return what decides the rows.

    Raises:
        UsageError, InputError: as for `rejudge_trees`.
    """
    trees = open_reference(reference, options.root)
    if trees.kind != "trees":
        raise UsageError(f"--rejudge needs an artifact of kind trees; {trees.reference} is of kind {trees.kind}")
    recipe = _at_endpoints(recipe, execution)
    judge = recipe.trees.judge
    if options.inputs and judge.kind != "reference":
        raise UsageError(
            "--rejudge reads the trees that it names; --input is for the prompts that a judge of kind reference reads"
        )
    stored = survey(trees, options.limit)
    if judge.kind in JUDGES_OF_TASKS:
        _check_tasks(stored, trees, judge.kind)
    prompts = _prompts_of(trees, options) if judge.kind == "reference" else None
    references = _reference_answers(prompts, trees, stored) if prompts else {}
    rater = [identify(recipe.actor, "actor").model_copy(update={"role": "judge"})] if judge.asks_actor else []
    section = recipe.trees
    configuration: dict[str, Any] = {
        **(counted_settings(recipe.actor) if judge.asks_actor else {}),
        "judge": judge_settings(judge),
        "k1": section.k1,
        "k2": section.k2,
        "seed": recipe.seed,
        "limit": options.limit,
    }
    plan = BuildPlan(
        "trees",
        GENERATOR,
        configuration,
        settings={"actor": recipe.actor.model_dump(mode="json")} if judge.asks_actor else {},
        parents=[each.as_parent() for each in (trees, prompts) if each],
        models=[*rater, *identify_judges(judge)],
        seeds={"judge": recipe.seed},
    )
    return RejudgingJob(trees, stored, references, plan)


def _at_endpoints(recipe: Recipe, execution: Execution) -> Recipe:
    """Return the recipe with those who rate at their endpoints."""
    if execution.executor == "ray":
        raise UsageError(
            "--rejudge grows no tree: leave --executor and --address out, --endpoints works in this process"
        )
    if execution.endpoints and not recipe.trees.judge.asks_actor:
        raise UsageError(
            "--endpoints are servers of the actor, and with --rejudge and this trees.judge it is not asked; give the "
            "judge's as --endpoints judge=URL,URL"
        )
    recipe = recipe.model_copy(update={"actor": at_endpoints(recipe.actor, execution, "actor")})
    return roles_at_endpoints(recipe, "trees", execution)


def _check_tasks(stored: list[StoredTree], trees: Artifact, kind: str) -> None:
    for number, tree in enumerate(stored):
        if tree.task is None:
            raise InputError(
                f"row {number} of {trees.reference} has no task, by which a judge of kind {kind} rates; use another "
                "trees.judge.kind"
            )


def _prompts_of(trees: Artifact, options: BuildOptions) -> Artifact:
    """Find the prompts that trees were grown from, for their reference answers."""
    if options.inputs:
        return Inputs(options.inputs, options.root).of("prompts")
    found = nearest_ancestor(trees, "prompts", options.root)
    if found is None:
        raise InputError(
            f"the prompts that {trees.reference} was grown from are not under {options.root}, and a judge of kind "
            "reference reads their reference answers; name them with --input"
        )
    return found


def _reference_answers(prompts: Artifact, trees: Artifact, stored: list[StoredTree]) -> dict[str, str | None]:
    rows = prompts.scan().select("prompt_id", "reference_answer").collect()
    known: dict[str, str | None] = dict(rows.iter_rows())
    for number, tree in enumerate(stored):
        if tree.prompt_id not in known:
            raise InputError(
                f"row {number} of {trees.reference}: its prompt is not in {prompts.reference}; name the prompts that "
                "these trees were grown from with --input"
            )
    return {tree.prompt_id: known[tree.prompt_id] for tree in stored}


def _units(job: RejudgingJob) -> list[Unit]:
    return [Unit(tree.tree_id, number, tree.prompt, {}) for number, tree in enumerate(job.stored)]


def _opening(
    build: Build, job: RejudgingJob, recipe: Recipe, budget: Budget, waiting: WaitProgress, execution: Execution
) -> OpenWork:
    @asynccontextmanager
    async def opened() -> AsyncIterator[WorkContext]:
        judging, folder = recipe.trees.judge, build.work
        async with AsyncExitStack() as stack:
            judges = open_judge_servers(judging, folder, waiting, budget, execution.role_endpoints)
            servers = await stack.enter_async_context(judges)
            pools, actor = servers.pools, None
            if judging.asks_actor:
                opening = open_pool(recipe.actor, execution.endpoints, folder / "server.log", waiting, budget)
                pools = [await stack.enter_async_context(opening), *pools]
                actor = make_actor(pools[0], recipe.actor, recipe.trees)
            work: Work = Rejudger(build, job, recipe, make_judge(judging, servers, actor)).work
            if actor is not None:
                work = pools[0].keeping(work)
            yield WorkContext(work, room_of(pools), clients_of(pools), pools=pools)

    return opened


class Rejudger:
    """Rates the answers of one tree at a time for as many callers as there are, begun in the order of the rows."""

    def __init__(self, build: Build, job: RejudgingJob, recipe: Recipe, judge: Judge) -> None:
        self._running = build.work / "running"
        self._recipe = recipe
        self._judge = judge
        self._reader = TreeReader(job.trees)
        self._references = job.references

    async def work(self, unit: Unit) -> UnitResult:
        """Rate a tree, from its journal as far as that goes.

        Raises:
            RequestFailedError: a rating that could not be had.
        """
        row = self._reader.read(unit.number)  # before anything is waited for: the next unit reads a later row
        started = time.monotonic()
        prompt = Prompt(row["prompt_id"], row["prompt"], row["task"] or "", self._references.get(row["prompt_id"]))
        with closing(TreeJournal(self._running / f"{unit.key}.jsonl")) as journal:
            rater = AnswerRater(self._recipe, self._judge, unit.key, prompt, journal)
            rewards, used = await self._rate(stored_answers(row["nodes"]), rater)
        nodes = with_rewards(row["nodes"], rewards)
        rated = row | {
            "nodes": nodes,
            "judgements": judgement_rows(rewards) if self._recipe.trees.judge.keep_text else None,
            "requests": used.requests,
            "prompt_tokens": used.prompt_tokens,
            "completion_tokens": used.completion_tokens,
            "seconds": round(time.monotonic() - started, 3),
        }
        counts = {"nodes": len(nodes), "answers": len(rewards)}
        return UnitResult(rated, counts, dict(Counter(used.outcomes)), journal.path)

    async def _rate(
        self, answers: dict[StoredAnswer, str], rater: AnswerRater
    ) -> tuple[dict[StoredAnswer, Reward], RequestUsage]:
        """Have all answers rated at the same time; equal ones once, where the judge's section says so."""
        texts = list(dict.fromkeys(answers.values()) if self._recipe.trees.judge.cache else answers.values())
        used = RequestUsage()

        async def rate(call: int, text: str) -> Reply:
            nonlocal used
            reply = rater.journal.get(call)
            if reply is None:
                reply = await rater.rate(call, text)
                rater.journal.keep(call, reply)
            used = used.plus(reply.usage)
            return reply

        try:
            replies = await gather_all([rate(call, text) for call, text in enumerate(texts)])
        except RequestFailedError as error:
            error.before = dict(Counter(used.outcomes))
            raise
        results = [reply.result for reply in replies]
        if self._recipe.trees.judge.cache:
            of_text = dict(zip(texts, results, strict=True))
            results = [of_text[text] for text in answers.values()]
        return {place: _reward(result) for place, result in zip(answers, results, strict=True)}, used


def _reward(result: object) -> Reward:
    assert isinstance(result, Reward)
    return result


def _report(job: RejudgingJob, recipe: Recipe, result: RunResult, budget: Budget) -> Report:
    before, judge = job.trees.manifest, recipe.trees.judge
    old = before.configuration.get("judge")
    by = f", {old['kind']}" if isinstance(old, dict) and "kind" in old else ""
    notes = [
        f"the answers of {job.trees.reference} were rated again by judge {judge.kind}, and nothing was sampled: "
        f"visits, and what was searched at all, are those of the judge before{by}",
        "requests, tokens and seconds of a tree are those of rating it again",
    ]
    if judge.cache:
        notes.append("equal answers of one tree were judged once (the paper judges each)")
    details: Row = {
        **result.counts,
        "requests": result.requests,
        "tokens_of_all_runs": budget.spent.tokens,
        # node for node the same trees, so verdicts on pairs of these are about pairs of the new ones, too
        "same_trees": [before.content_hash, *before.same_trees],
    }
    if before.actor is not None:
        details["actor"] = before.actor.noted()
    usage = usage_of(result, budget, [model.name for model in job.plan.models])
    return Report(result.outcomes, usage, notes, details)
