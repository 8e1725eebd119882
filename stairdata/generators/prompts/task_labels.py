"""Rows without a task, labelled by a model: safety or helpfulness."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import jinja2

from stairdata.generators.prompts.asking import PromptWorkload, ask_about
from stairdata.generators.prompts.filters import Rejection
from stairdata.llm.budget import Budget
from stairdata.llm.client import Generation
from stairdata.llm.endpoint_pool import EndpointPool
from stairdata.llm.outcomes import unreadable
from stairdata.llm.wrapping import without_thoughts
from stairdata.recipe import Recipe
from stairdata.runs.executors.executor import HERE, Execution
from stairdata.runs.options import BuildOptions
from stairdata.runs.runner import RunResult
from stairdata.runs.templates import find_template
from stairdata.runs.units import UnitResult
from stairdata_schemas.aliases import Row
from stairdata_schemas.building import Build
from stairdata_schemas.errors import quote
from stairdata_schemas.kinds import TASKS

TEMPLATE_VERSION = 1
_LABELLED = re.compile(rf"\btask\b[\W_]*+(?<=\W)({'|'.join(TASKS)})\b", re.IGNORECASE)
_WORD = re.compile(rf"\b({'|'.join(TASKS)})\b", re.IGNORECASE)


def label_tasks(
    build: Build,
    rows: Sequence[Row],
    recipe: Recipe,
    options: BuildOptions,
    budget: Budget,
    execution: Execution = HERE,
) -> RunResult:
    """Label rows; what is finished is journaled, and the next run of the build goes on from there.

    Args:
        build: where what is finished is kept.
        rows: rows of ours without a task.
        recipe: section `prompts.task_judge`.
        options: progress.
        budget: of the build.
        execution: where the judge's servers are.

    Returns:
        The run, whose frames hold the labelled rows.

    Raises:
        ServerError: the judge can't be reached.
        BudgetError: a limit is reached; what is finished is kept.
    """
    judge = recipe.prompts.task_judge
    assert judge is not None
    return ask_about(build, rows, LabelWorkload(recipe, build.work, judge), options, budget, execution=execution)


@dataclass(frozen=True)
class LabelWorkload(PromptWorkload):
    """Labels the row of each unit."""

    async def answer(self, pool: EndpointPool, row: Row) -> UnitResult:
        answer = await self.ask(pool, row, 0, template().render(prompt=row["prompt"]), _read)
        if isinstance(answer.found, Rejection):
            ended = [*Counter(answer.outcomes).elements()]
            raise unreadable(answer.found.detail, self.model.reasks + 1, ended)
        return UnitResult({**row, "task": answer.found, **answer.used}, {}, answer.outcomes)


def _read(generation: Generation) -> str | Rejection:
    said = generation.samples[0].text
    return read_task(said) or Rejection("judge_failure", f"no task can be read in {quote(said)}")


def read_task(text: str) -> str | None:
    """Read a task out of a judge's words: behind "Task", the last one; else the one task that is named at all.

    Thoughts before the answer are not read: they weigh both.
    """
    answer = without_thoughts(text)
    labelled = _LABELLED.findall(answer)
    if labelled:
        return str(labelled[-1]).lower()
    named = {word.lower() for word in _WORD.findall(answer)}
    return named.pop() if len(named) == 1 else None


def template() -> jinja2.Template:
    """Return the question's template."""
    return find_template(__package__, f"task_v{TEMPLATE_VERSION}")
