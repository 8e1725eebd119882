"""Structured reasoning by teachers, at once or in batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import polars as pl

from stairdata.generators.classroom import Ask, Class, open_classroom
from stairdata.generators.inputs import Inputs
from stairdata.generators.lesson_plan import (
    BATCHES,
    begin,
    find_tries,
    gather_class,
    make_lessons,
    under_way_elsewhere,
)
from stairdata.generators.options import BuildOptions
from stairdata.generators.runner import (
    RunResult,
    open_budget,
    run_units,
    table_of_outcomes,
    usage_of,
)
from stairdata.generators.teacher import Lesson, make_request
from stairdata.llm.budget import Budget
from stairdata.llm.client import Client, Generation
from stairdata.llm.outcomes import Outcome, RequestFailedError, has_no_format
from stairdata.recipe import Recipe
from stairdata_schemas.artifacts import Artifact, iterate_frames
from stairdata_schemas.building import Build, Report
from stairdata_schemas.errors import QuarantineError, ServerError, UsageError, quote

Known = Callable[[int, Lesson], Generation | None]
"""The answer of a teacher that came in a batch."""


def build_from_teachers(recipe: Recipe, options: BuildOptions, inputs: Inputs) -> Artifact | None:
    """Build a structured_cot artifact by asking teachers, at once or in batches.

    Raises:
        RecipeError: no teacher, a template that is none, or two teachers without a judge.
        ServerError: a server can't be reached; what is finished is kept.
    """
    pupils = gather_class(recipe, options, inputs)
    begun = begin(pupils, options)
    if isinstance(begun.build, Artifact):
        if options.batch is not None:
            options.tell(f"{begun.build.reference} is finished{under_way_elsewhere(begun.build.folder)}")
        return begun.build
    with begun.build as build:
        tries = find_tries(begun, options)
        pupils.lessons = make_lessons(pupils.prompts, options, tries, begun.depth)
        if begun.earlier is not None:
            pupils.wanted = set(tries.failures)
        if options.batch is not None:
            from stairdata.generators.teacher_batches import run_batches

            budget = open_budget(build, recipe, options, pupils.names)
            result = run_batches(build, pupils, options, budget)
            if result is None:
                return None
        else:
            result, budget = _ask_now(build, pupils, options)
        return _finish(build, pupils, begun.earlier, result, budget, options)


def _finish(
    build: Build, pupils: Class, earlier: Artifact | None, result: RunResult, budget: Budget, options: BuildOptions
) -> Artifact:
    options.tell(table_of_outcomes(result))
    usage = usage_of(result, budget, pupils.names)
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
        raise QuarantineError(f"{error}; --retry-quarantined asks them again and says what was wrong") from error


def _frames(earlier: Artifact | None, result: RunResult) -> Iterator[pl.DataFrame]:
    if earlier is not None:
        for path in earlier.data_files:
            yield from iterate_frames(path)
    yield from result.frames()


# -- at once -------------------------------------------------------------------------------------------------


def batch_answers(build: Build, pupils: Class, budget: Budget) -> Known:
    """Return what batches of the same build have answered: that is not asked again.

    Raises:
        UsageError: batches are under way.
    """
    if not (build.work / BATCHES).is_dir():
        return lambda _number, _lesson: None
    from stairdata.generators.teacher_batches import Desk

    desk = Desk(build.work, pupils, budget)
    desk.forget_unsent()
    if desk.pending:
        raise UsageError(
            f"{len(desk.pending)} requests of {build.reference} are under way in batches; collect them with `--batch "
            "collect`, or cancel them with `--batch cancel` and then collect"
        )
    return desk.known


def _ask_now(build: Build, pupils: Class, options: BuildOptions) -> tuple[RunResult, Budget]:
    budget = open_budget(build, pupils.recipe, options, pupils.names)

    known = batch_answers(build, pupils, budget)

    def ask_with(client: Client, number: int) -> Ask:
        return partial(_ask, client, pupils, number, known)

    work = partial(open_classroom, build, pupils, options, budget, ask_with)
    section = pupils.recipe.structured_cot
    return run_units(build, pupils.units(), work, budget, options, section.concurrency), budget


async def _ask(client: Client, pupils: Class, number: int, known: Known, lesson: Lesson) -> Generation:
    earlier = known(number, lesson)
    if earlier is not None:
        return earlier
    teacher = pupils.teachers[number]
    request = make_request(lesson, teacher, pupils.templates, pupils.recipe.seed)
    try:
        return await client.chat(request.messages, max_tokens=request.max_tokens, seed=request.seed, **request.options)
    except RequestFailedError as error:
        if error.outcomes[-1] is Outcome.INVALID_REQUEST and has_no_format(error.detail):
            raise ServerError(
                f"the server of teacher {quote(teacher.name)} has no structured outputs (it says "
                f"{quote(error.detail)}); set structured_cot.teacher.format to text, finished work is kept"
            ) from error
        raise
