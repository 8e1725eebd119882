"""Rows without a task, labelled by a model: safety or helpfulness."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import jinja2

from stairdata.llm.actor import RequestUsage
from stairdata.llm.budget import Budget
from stairdata.llm.endpoint_pool import EndpointPool
from stairdata.llm.outcomes import unreadable
from stairdata.llm.session import open_pool
from stairdata.llm.wrapping import without_thoughts
from stairdata.recipe import Recipe, TaskJudge
from stairdata.runs.executors.executor import HERE, Execution, make_executor
from stairdata.runs.options import BuildOptions
from stairdata.runs.progress import report_waiting
from stairdata.runs.runner import RunResult, open_budget, run_units, usage_of
from stairdata.runs.templates import find_template
from stairdata.runs.units import Unit, UnitResult, WorkContext, Workload
from stairdata_schemas import identity
from stairdata_schemas.aliases import Row, WaitProgress
from stairdata_schemas.building import Build, Report
from stairdata_schemas.errors import quote
from stairdata_schemas.kinds import TASKS

TEMPLATE_VERSION = 1
_LABELLED = re.compile(rf"\btask\b[\W_]*+(?<=\W)({'|'.join(TASKS)})\b", re.IGNORECASE)
_WORD = re.compile(rf"\b({'|'.join(TASKS)})\b", re.IGNORECASE)


def label_tasks(
    build: Build, rows: Sequence[Row], recipe: Recipe, options: BuildOptions, execution: Execution = HERE
) -> tuple[RunResult, Report]:
    """Label rows; what is finished is journaled, and the next run of the build goes on from there.

    Args:
        build: whose first model is the judge.
        rows: rows of ours without a task.
        recipe: section `prompts.task_judge`.
        options: limits and progress.
        execution: where the judge's servers are.

    Returns:
        The run, whose frames hold the labelled rows, and what the manifest says about it.

    Raises:
        ServerError: the judge can't be reached.
        BudgetError: a limit is reached; what is finished is kept.
    """
    prompts = {row["prompt_id"]: row for row in rows}
    units = [Unit(key, number, row["prompt"], row) for number, (key, row) in enumerate(prompts.items())]
    budget = open_budget(build, recipe, options)
    workload = LabelWorkload(recipe, build.work)
    waiting = report_waiting(options.progress)
    executor = make_executor(workload, budget, recipe.prompts.concurrency, waiting, execution)
    result = run_units(build, units, executor, budget, options.progress)
    usage = usage_of(result, budget, [build.plan.models[0].name])
    return result, Report(result.outcomes, usage, details={"requests": result.requests})


@dataclass(frozen=True)
class LabelWorkload(Workload):
    """Labels the row of each unit."""

    @property
    def asked(self) -> TaskJudge:
        assert self.recipe.prompts.task_judge is not None
        return self.recipe.prompts.task_judge

    @asynccontextmanager
    async def open(self, budget: Budget, waiting: WaitProgress) -> AsyncIterator[WorkContext]:
        log = self.folder / "server.log"
        async with open_pool(self.asked, self.endpoints, log, waiting, budget, is_spread=self.is_spread) as pool:

            async def work(unit: Unit) -> UnitResult:
                return await _label(pool, self.asked, self.recipe.seed, unit.payload)

            yield WorkContext(pool.keeping(work), pool.room, pool.clients, pools=[pool])


async def _label(pool: EndpointPool, judge: TaskJudge, seed: int, row: Row) -> UnitResult:
    question = template().render(prompt=row["prompt"])
    outcomes: Counter[str] = Counter()
    used: Counter[str] = Counter()
    said = ""
    for ask in range(judge.reasks + 1):
        generation = await pool.chat(
            [{"role": "user", "content": question}],
            max_tokens=judge.max_tokens,
            seed=identity.request_seed(seed, row["prompt_id"], 0, ask),
            temperature=judge.temperature,
        )
        outcomes.update(map(str, generation.outcomes))
        used.update(RequestUsage.of(generation).counts())
        said = generation.samples[0].text
        task = read_task(said)
        if task is not None:
            return UnitResult({**row, "task": task, **used}, {}, dict(outcomes))
    raise unreadable(f"no task can be read in {quote(said)}", judge.reasks + 1, [*outcomes.elements()])


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
