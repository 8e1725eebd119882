"""One way to run many units of work: bounded, resumable, within a budget, and each failure typed.

A unit (a prompt, a tree) becomes one row. Invariant: a row is in the journal before the next result is looked at, and
what was spent is on disk before the next request is sent; so a kill loses the requests in flight and nothing else, and
the next run skips what is in the journal. A row counts, and what it was made of is removed, once a power cut can't undo
it. A unit whose request fails for good is refused with the history of its
outcomes and tried again by the next run. Ctrl-C and a spent budget first wait for the requests in flight.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING, NamedTuple

import polars as pl

from stairdata.llm.budget import Budget, Expense, StoppedError
from stairdata.llm.endpoint_pool import EndpointUse, sum_uses, table_of_endpoints
from stairdata.llm.outcomes import THINKS_TOO_LONG, Outcome
from stairdata.recipe import Recipe
from stairdata.runs.event_loop import run_to_end
from stairdata.runs.executors.executor import Executor
from stairdata.runs.interrupts import interruptible
from stairdata.runs.options import BuildOptions
from stairdata.runs.progress import Meter, Progress
from stairdata.runs.row_journal import JOURNAL, RowJournal, WrittenRow
from stairdata.runs.shards.shard import note_refused, own_units
from stairdata.runs.units import Unit, UnitFailedError, UnitResult
from stairdata_schemas.building import Build
from stairdata_schemas.manifest import BuildUsage
from stairdata_schemas.quarantine import QuarantineRow

if TYPE_CHECKING:
    from stairdata.runs.units import UnitFailure

SPENT = "spent.json"
SPENT_BYTES = 64
TICK_SECONDS = 1.0
YOUNG_OBJECTS = 10_000
"""Until the garbage collector looks at new objects. Python's 700 are there after three requests, and still in use."""


class RunResult(NamedTuple):
    """What a run leaves."""

    refused: list[QuarantineRow]
    outcomes: dict[str, int]
    """Units by how they ended."""
    requests: dict[str, int]
    """Requests by how they ended."""
    counts: dict[str, int]
    usage: BuildUsage
    frames: Callable[[], Iterator[pl.DataFrame]]
    """The rows in the units' order, in frames of bounded size."""
    uses: dict[str, EndpointUse]
    """What each server of the asked model did in this run, by URL."""


def run_units(
    build: Build,
    units: Sequence[Unit],
    executor: Executor,
    budget: Budget,
    progress: Progress,
    *,
    pilot: int | None = None,
    journal_name: str = JOURNAL,
) -> RunResult:
    """Turn units into journaled rows, begun in the order given.

    The executor is asked for nothing, and starts no server, where every unit has its row.

    Args:
        build: where to.
        units: what is to be done; those in the journal are skipped.
        executor: works on them.
        budget: stops the run when it is spent.
        progress: told how far it is.
        pilot: stop after that many rows and leave the build unfinished.
        journal_name: of the journal's file, where a build has several runs.

    Raises:
        ServerError: the server is gone; what is finished is kept.
        BudgetError: a limit is reached; what is finished is kept.
        UsageError: a shard is to be built of what can't be cut.
        KeyboardInterrupt: after requests in flight have been answered, for some seconds at most.
    """
    every, units = units, own_units(build, units)
    journal = RowJournal(build, journal_name)
    run = UnitRun(build, journal, budget, progress, len(units))
    missing = journal.missing(units, pilot)
    try:
        if missing:
            with collecting_new_objects():
                run_to_end(run.collect(executor, missing))
    except BaseExceptionGroup as errors:
        raise _first(errors) from errors
    finally:
        journal.close()
    if budget.reason is not None:
        raise budget.reason
    result = run.result(units, executor.uses)
    note_refused(build, every, result.refused)
    return result


def join_results(results: Sequence[RunResult]) -> RunResult:
    """Return what several runs of one build leave together."""
    return RunResult(
        [refusal for each in results for refusal in each.refused],
        _summed(each.outcomes for each in results),
        _summed(each.requests for each in results),
        _summed(each.counts for each in results),
        BuildUsage(**_summed(each.usage.model_dump(exclude={"cost"}) for each in results)),
        lambda: (frame for each in results for frame in each.frames()),
        sum_uses(each.uses for each in results),
    )


def _summed(counts: Iterable[dict[str, int]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for each in counts:
        total.update(each)
    return dict(total)


@contextlib.contextmanager
def collecting_new_objects() -> Iterator[None]:
    """Let the garbage collector look at nothing that was there before, such as modules and units.

    There are half a million such objects, and looking at them takes tenths of a second, in which no answer is read and
    no request sent.
    """
    before = gc.get_threshold()
    gc.freeze()
    gc.set_threshold(YOUNG_OBJECTS, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()


def open_budget(build: Build, recipe: Recipe, options: BuildOptions, models: Sequence[str] = ()) -> Budget:
    """Make a build's budget, charged with what its earlier runs spent.

    Args:
        build: where the spending is written down.
        recipe: prices.
        options: limits.
        models: names that prices go by, where the plan's are others.

    Raises:
        RecipeError: a limit on cost, and a model without a price.
    """
    budget = Budget(options.limits, recipe.prices)
    budget.check_prices([*models] or [model.name for model in build.plan.models])
    with contextlib.suppress(FileNotFoundError, ValueError):  # empty, if the machine went down as it was made
        budget.charge(Expense(*json.loads((build.work / SPENT).read_text(encoding="utf-8"))))
    return budget


def usage_of(result: RunResult, budget: Budget, models: Sequence[str]) -> BuildUsage:
    """Return the usage of the rows, with the cost of all that was sent, where every price is known."""
    known = bool(models) and all(name in budget.prices for name in models)
    cost = budget.spent.cost + budget.elsewhere.cost
    return result.usage.model_copy(update={"cost": round(cost, 6) if known else None})


class UnitRun:
    """One run of a build: what is finished, refused and spent, and who is told."""

    def __init__(self, build: Build, journal: RowJournal, budget: Budget, progress: Progress, total: int) -> None:
        self._build = build
        self._journal = journal
        self._budget = budget
        self._progress = progress
        self._refused: list[QuarantineRow] = []
        self._meter = Meter(len(journal.begins), total, budget)
        budget.on_charge = self._save_spent
        self.report()

    async def collect(self, executor: Executor, units: Sequence[Unit]) -> None:
        """Write down how each unit ends, until all have or the budget is stopped."""
        with interruptible(self._budget):
            async with asyncio.TaskGroup() as group:
                ticker = group.create_task(self._tick(executor))
                async with aclosing(executor.run(units)) as ended:
                    async for unit, result in ended:
                        self._meter.watch(executor.context)
                        if isinstance(result, UnitResult):
                            row = self._journal.write(unit.key, result)
                            group.create_task(self._keep(row, result))
                        else:
                            self._refuse(unit, result)
                ticker.cancel()

    async def _keep(self, row: WrittenRow, result: UnitResult) -> None:
        """Count a row once it is safe; rows that come in while the disk is at work share a sync."""
        await self._journal.keep(row)
        self._meter.count(result.counts.get("evaluations", 0))
        self.report()

    def _refuse(self, unit: Unit, failure: UnitFailure) -> None:
        self._refused.append(_refusal(self._build, unit, failure))
        self._meter.count(0)
        self.report()

    async def _tick(self, executor: Executor) -> None:
        while True:
            await asyncio.sleep(TICK_SECONDS)
            with contextlib.suppress(StoppedError):
                self._budget.check_running()  # nobody else looks at the clock while all requests wait
            self._meter.watch(executor.context)
            self.report()

    def report(self) -> None:
        meter = self._meter
        self._progress(self._build.plan.kind, meter.done, meter.total, meter.describe())

    def _save_spent(self) -> None:
        """Keep what was spent for the next run of this build: after each request, so that no kill loses one."""
        descriptor = os.open(self._build.work / SPENT, os.O_WRONLY | os.O_CREAT, 0o644)
        try:  # in place and in one piece of constant length: there is no moment without a number
            os.pwrite(descriptor, json.dumps(self._budget.spent).ljust(SPENT_BYTES).encode(), 0)
        finally:
            os.close(descriptor)

    def result(self, units: Sequence[Unit], uses: dict[str, EndpointUse]) -> RunResult:
        """Sum up this run and those before it."""
        journal, refused = self._journal, sorted(self._refused, key=lambda refusal: refusal.row)
        requests = journal.requests + _outcomes_of(refused)
        outcomes = Counter(refusal.rule for refusal in refused)
        return RunResult(
            refused,
            {"ok": len(journal.begins), **dict(sorted(outcomes.items()))},
            dict(sorted(requests.items())),
            dict(journal.counts),
            BuildUsage(**journal.usage),
            lambda: journal.frames(units),
            uses,
        )


def table_of_outcomes(result: RunResult) -> str:
    """Return a table of how requests ended, of units where one was refused, and of what each of several servers did.

    It is empty where nothing is to be told.
    """
    rows = list(result.requests.items())
    if set(result.outcomes) - {"ok"}:
        rows += [(f"refused: {rule}", count) for rule, count in result.outcomes.items() if rule != "ok"]
    width = max((len(name) for name, _ in rows), default=0)
    lines = [f"  {name:<{width}}  {count:>9,}" for name, count in rows]
    if Outcome.ONLY_REASONING in {*result.requests, *result.outcomes}:
        lines.append(f"  {Outcome.ONLY_REASONING}: {THINKS_TOO_LONG}")
    tables = ["\n".join(["how requests ended:", *lines]) if rows else "", table_of_endpoints(result.uses)]
    return "\n".join(filter(None, tables))


def _outcomes_of(refused: Sequence[QuarantineRow]) -> Counter[str]:
    total: Counter[str] = Counter()
    for refusal in refused:
        with contextlib.suppress(ValueError, TypeError, KeyError):
            history = json.loads(refusal.raw)
            total.update(history["outcomes"])
            total.update(history.get("before", {}))
    return total


def _refusal(build: Build, unit: Unit, error: UnitFailure) -> QuarantineRow:
    if isinstance(error, UnitFailedError):
        return QuarantineRow(build.plan.kind, unit.number, error.rule, error.raw)
    history = {
        "text": unit.text,
        "outcomes": [str(outcome) for outcome in error.outcomes],
        "detail": error.detail,
    } | ({"before": error.before} if error.before else {})
    raw = json.dumps(history, ensure_ascii=False)
    return QuarantineRow(build.plan.kind, unit.number, error.rule, raw)


def _first(errors: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return the error that ended the group; the others are its echoes."""
    error: BaseException = errors
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
