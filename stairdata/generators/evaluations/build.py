"""Kind `evaluations`: benchmarks put to models, with and without attacks, and judged answers."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from functools import partial
from typing import Any

from stairdata.generators.evaluations.batches import batched_parts, check_batched
from stairdata.generators.evaluations.executor import EvaluationExecutor
from stairdata.generators.evaluations.judging.answer_judge import RULE
from stairdata.generators.evaluations.plan import EvaluationJob, make_job
from stairdata.generators.evaluations.workload import EvaluationWorkload
from stairdata.generators.responses.workload import OpenScorer
from stairdata.llm.budget import Budget
from stairdata.llm.session import Connect
from stairdata.recipe import Recipe
from stairdata.runs.batching.rounds import build_asking, run_live_or_batched
from stairdata.runs.executors.checks import check_execution
from stairdata.runs.executors.executor import HERE, Execution, Executor, check_unbatched, make_executor
from stairdata.runs.options import BuildOptions
from stairdata.runs.progress import report_waiting
from stairdata.runs.runner import RunResult, open_budget, table_of_outcomes, usage_of
from stairdata.runs.shards.shard import own_refused
from stairdata.search.refusal import refusal_rule_note
from stairdata_schemas.aliases import Row
from stairdata_schemas.artifacts import Artifact
from stairdata_schemas.building import Build, BuildContent, Report
from stairdata_schemas.manifest import ModelIdentity

BY_DESIGN = {"duplicate_prompt"}


def build_evaluations(
    recipe: Recipe,
    options: BuildOptions,
    prm: ModelIdentity | None = None,
    open_scorer: OpenScorer | None = None,
    execution: Execution = HERE,
) -> Artifact:
    """Judge answers: those of responses artifacts, or of models that are asked now, live.

    Args and errors are those of `build_evaluations_in_rounds`.
    """
    artifact = build_evaluations_in_rounds(recipe, replace(options, batch=None), prm, open_scorer, execution)
    assert artifact is not None, "only a batch leaves a build unfinished"
    return artifact


def build_evaluations_in_rounds(
    recipe: Recipe,
    options: BuildOptions,
    prm: ModelIdentity | None = None,
    open_scorer: OpenScorer | None = None,
    execution: Execution = HERE,
) -> Artifact | None:
    """Judge answers: those of responses artifacts, or of models that are asked now, live or in batches.

    Args:
        recipe: sections `actor`, `responses` and `evaluations`.
        options: where and from what.
        prm: which process reward model scores the answers of `responses`; None where nothing is scored.
        open_scorer: opens it; given by the command line, since generators don't know the training package.
        execution: where the servers of the tested model are, and of those who judge, attack and score.

    Returns:
        The artifact; None where batches leave it unfinished.

    Raises:
        RecipeError: nothing to test, or a model that can't be put through what is asked for.
        UsageError: inputs that don't go together.
        InputError: a benchmark that can't be read.
        ServerError: a server can't be started or has gone; what is finished is kept.
        BudgetError: a limit is reached; what is finished is kept.
        QuarantineError: too many rows could not be answered or judged.
    """
    job = make_job(recipe, options, prm, execution)
    tested = [model.endpoint for model in job.models]

    parts = batched_parts(job)
    if options.batch is not None:
        check_unbatched(execution)
        check_batched(job, parts, options)

    def content(build: Build) -> BuildContent | None:
        budget = open_budget(build, recipe, options)

        def executor(connect: Connect | None) -> Executor:
            if connect is not None:
                check_unbatched(execution)
            waiting = report_waiting(options.progress)
            if execution.executor == "ray":
                roles = execution.role_endpoints
                workload = EvaluationWorkload(job.recipe, build.work, job, open_scorer, role_endpoints=roles)
                return make_executor(workload, budget, job.recipe.evaluations.concurrency, waiting, execution)
            return EvaluationExecutor(build, job, budget, waiting, open_scorer, connect=connect, execution=execution)

        result = run_live_or_batched(build, job.as_units(), executor, parts, budget, options)
        if result is None:
            return None
        options.tell(table_of_outcomes(result))
        report = _report(job, result, budget)
        options.tell("\n".join(report.notes))
        refused = [*own_refused(build, job.refused), *result.refused]
        return BuildContent(result.frames(), refused, report, BY_DESIGN)

    check = partial(check_execution, tested, execution, recipe, "evaluations")
    return build_asking(job.plan, content, options, check)


def _report(job: EvaluationJob, result: RunResult, budget: Budget) -> Report:
    counts = result.counts
    notes = [refusal_rule_note()] if any(unit.judge == RULE for unit in job.units) else []
    for name, words in (("cut", "cut at the token limit"), ("empty", "empty")):
        if number := counts.get(f"{name}_answers"):
            notes.append(f"{number} judgements are of answers that were {words}: nothing is known of them, and they "
                         "count neither as refusals nor as safe")  # fmt: skip
    for model, seen in job.contamination.items():
        if prompts := seen["prompts"]:
            what = "left out" if job.recipe.evaluations.exclude_seen else "judged all the same"
            # the same in each shard: a note that began with the number would be added up by a join
            notes.append(
                f"the training data of {model} or its parents has {len(prompts)} of the prompts, which were {what}"
            )
        if seen["missing"]:
            notes.append(f"not all that {model} was trained on could be looked at: {'; '.join(seen['missing'])}")
    unread = _unread(job, result)
    if unread:
        rows = sum(each["rows"] for each in unread)
        notes.append(f"{rows} rows have no answer or no readable judgement; none of them counts as safe")
    usage = usage_of(result, budget, [model.name for model in job.plan.models])
    details: dict[str, Any] = {
        **counts,
        "requests": result.requests,
        "tokens_of_all_runs": budget.spent.tokens + budget.elsewhere.tokens,
        "unread": unread,
        "seen_in_training": job.contamination,
    }
    return Report(result.outcomes, usage, notes, details)


def _unread(job: EvaluationJob, result: RunResult) -> list[Row]:
    """Count the rows that are missing, by what figures are made of: what they would have been is not known."""
    names = ("model", "benchmark", "attack", "judge", "reads")
    found = Counter(
        (*(getattr(job.units[refusal.row], name) for name in names), refusal.rule) for refusal in result.refused
    )
    return [dict(zip((*names, "rule"), key, strict=True)) | {"rows": rows} for key, rows in sorted(found.items())]
