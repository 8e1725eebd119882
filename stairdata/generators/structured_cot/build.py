"""Kind `structured_cot`: reasoning in the step grammar, by teachers, written by hand, from the Hub, or out of trees."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import polars as pl

from stairdata.generators.structured_cot.candidates import Ask, TeacherWorkload
from stairdata.generators.structured_cot.from_file import build_from_file
from stairdata.generators.structured_cot.from_hub import build_published
from stairdata.generators.structured_cot.from_trees import build_from_trees
from stairdata.generators.structured_cot.plan import (
    ASK_ONE,
    KIND,
    RETRYING,
    TeacherJob,
    TeacherOptions,
    TeacherPanel,
    begin,
    look_ahead,
    make_panel,
    source_of,
)
from stairdata.generators.structured_cot.requests import TeacherPrompt, make_request
from stairdata.generators.structured_cot.retries import find_retries, make_prompts
from stairdata.llm.budget import Budget
from stairdata.llm.client import Generation
from stairdata.llm.endpoint_pool import EndpointPool
from stairdata.llm.outcomes import Outcome, RequestFailedError, has_no_format
from stairdata.recipe import Recipe
from stairdata.runs.batching.options import BATCHES, under_way_elsewhere
from stairdata.runs.executors.checks import check_execution
from stairdata.runs.executors.executor import HERE, Execution, make_executor
from stairdata.runs.inputs import Inputs
from stairdata.runs.options import BatchOptions, BuildOptions
from stairdata.runs.progress import report_waiting
from stairdata.runs.runner import RunResult, open_budget, run_units, table_of_outcomes, usage_of
from stairdata_schemas.artifacts import Artifact, iterate_frames, with_later_columns
from stairdata_schemas.building import Build, Report
from stairdata_schemas.errors import QuarantineError, ServerError, UsageError, quote

BatchAnswer = Callable[[int, TeacherPrompt], Generation | None]
"""From a teacher's number and a prompt to the answer that came in a batch."""


def build_structured_cot(
    recipe: Recipe, options: BuildOptions, asking: TeacherOptions = ASK_ONE, execution: Execution = HERE
) -> Artifact | None:
    """Build a structured_cot artifact out of trees, from a hand-written file, or by asking the recipe's teachers.

    Args:
        recipe: section `structured_cot`.
        options: where and from what.
        asking: which teachers, live or in batches; for recipes that ask teachers alone.
        execution: where teachers are asked.

    Returns:
        The artifact; None where a batch leaves it unfinished.

    Raises:
        InputError: the file can't be read.
        ServerError: a teacher can't be reached.
        UsageError: `asking` or `execution` for a recipe that asks no teacher.
    """
    inputs = Inputs(options.inputs, options.root)
    source = source_of(recipe, inputs)
    if options.shard is not None and (source != "teachers" or asking.batch is not None or asking.retry_quarantined):
        raise UsageError(
            "--shard cuts what teachers are asked live, from the beginning; leave out --shard, or --batch and "
            "--retry-quarantined, and give structured_cot a teacher"
        )
    if source == "teachers":
        return build_from_teachers(recipe, inputs.of("prompts"), options, asking, execution)
    if asking != ASK_ONE or execution != HERE:
        where = "trees" if source == "trees" else "a file or a dataset"
        raise UsageError(
            "--teachers, --batch, --retry-quarantined, --endpoints, --executor and --address go with teachers; this "
            f"recipe takes its rows out of {where}"
        )
    if source == "trees":
        return build_from_trees(recipe, inputs.of("trees"), options)
    return build_published(recipe, options) if source == "hub" else build_from_file(recipe, options)


def build_from_teachers(
    recipe: Recipe,
    prompts: Artifact,
    options: BuildOptions,
    asking: TeacherOptions,
    execution: Execution = HERE,
) -> Artifact | None:
    """Build a structured_cot artifact by asking teachers, live or in batches.

    Raises:
        RecipeError: no teacher, a template that can't be used, or two teachers without a judge.
        ServerError: a server can't be reached; what is finished is kept.
    """
    panel = make_panel(recipe, prompts, options, asking, execution)
    if execution != HERE:
        there, _ = look_ahead(panel, options, retry=asking.retry_quarantined)
        if not isinstance(there, Artifact):
            check_execution(panel.teachers, execution, panel.recipe, KIND)
    start = begin(panel, options, retry=asking.retry_quarantined)
    if isinstance(start.build, Artifact):
        if asking.batch is not None:
            options.tell(f"{start.build.reference} is finished{under_way_elsewhere(start.build.folder, RETRYING)}")
        return start.build
    with start.build as build:
        retries = find_retries(start, options.tell, retry=asking.retry_quarantined)
        wanted = None if start.earlier is None else frozenset(retries.failures)
        job = TeacherJob(panel, make_prompts(panel.prompts, options.limit, retries, start.depth), wanted)
        budget = open_budget(build, recipe, options, panel.price_names)
        if asking.batch is not None:
            from stairdata.generators.structured_cot.batches import run_batches

            how = BatchOptions(asking.batch, asking.batch_files)
            result = run_batches(build, job, how, options, budget)
            if result is None:
                return None
        else:
            result = _ask_live(build, job, options, budget, execution)
        return _finish(build, panel, start.earlier, result, budget, options)


def _finish(
    build: Build,
    panel: TeacherPanel,
    earlier: Artifact | None,
    result: RunResult,
    budget: Budget,
    options: BuildOptions,
) -> Artifact:
    options.tell(table_of_outcomes(result))
    usage = usage_of(result, budget, panel.price_names)
    details: dict[str, Any] = {
        **dict(sorted(result.counts.items())),
        "requests": result.requests,
        "tokens_of_all_runs": budget.spent.tokens + budget.elsewhere.tokens,
    }
    if earlier is not None:
        details["rows_taken_over"] = earlier.manifest.rows
    report = Report(result.outcomes, usage, details=details)
    try:
        return build.finish(_frames(earlier, result), result.refused, report, options.max_quarantine)
    except QuarantineError as error:
        raise QuarantineError(f"{error}; --retry-quarantined asks about them again and says what was wrong") from error


def _frames(earlier: Artifact | None, result: RunResult) -> Iterator[pl.DataFrame]:
    if earlier is not None:
        for path in earlier.data_files:
            yield from (with_later_columns(KIND, frame) for frame in iterate_frames(path))
    yield from result.frames()


def batch_answers(build: Build, job: TeacherJob, budget: Budget) -> BatchAnswer:
    """Return what batches of the same build have answered: that is not asked again.

    Raises:
        UsageError: batches are under way.
    """
    if not (build.work / BATCHES).is_dir():
        return lambda _number, _prompt: None
    from stairdata.generators.structured_cot.batches import TeacherBatches

    batches = TeacherBatches(build.work, job, budget)
    batches.queue.withdraw_unsent()
    pending = batches.queue.pending
    if pending:
        raise UsageError(
            f"{len(pending)} requests of {build.reference} are in progress in batches; collect them with `--batch "
            "collect`, or cancel them with `--batch cancel` and then collect"
        )
    return batches.known


def _ask_live(build: Build, job: TeacherJob, options: BuildOptions, budget: Budget, execution: Execution) -> RunResult:
    batched, panel = batch_answers(build, job, budget), job.panel

    def ask_with(pool: EndpointPool, number: int) -> Ask:
        return partial(_ask, pool, panel, number, batched)

    workload = TeacherWorkload(panel.recipe, build.work, build, job, ask_with)
    waiting, concurrency = report_waiting(options.progress), panel.recipe.structured_cot.concurrency
    executor = make_executor(workload, budget, concurrency, waiting, execution)
    return run_units(build, job.units(), executor, budget, options.progress)


async def _ask(
    pool: EndpointPool, panel: TeacherPanel, number: int, batched: BatchAnswer, prompt: TeacherPrompt
) -> Generation:
    earlier = batched(number, prompt)
    if earlier is not None:
        return earlier
    teacher = panel.teachers[number]
    request = make_request(prompt, teacher, panel.templates, panel.recipe.seed)
    try:
        return await pool.chat(request.messages, max_tokens=request.max_tokens, seed=request.seed, **request.options)
    except RequestFailedError as error:
        if error.outcomes[-1] is Outcome.INVALID_REQUEST and has_no_format(error.detail):
            raise ServerError(
                f"the server of teacher {quote(teacher.name)} has no structured outputs (it says "
                f"{quote(error.detail)}); set structured_cot.teacher.format to text, finished work is kept"
            ) from error
        raise
