"""One way to run many units of work against servers: bounded, resumable, within a budget, and each failure typed.

A unit (a prompt, a tree) becomes one row. Rows are journaled as they come, so that a kill loses none; the next
run skips what stands in the journal. A unit whose request fails for good is refused with the history of its
outcomes and tried again by the next run. Ctrl-C and a spent budget let the requests in flight come home first.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

import polars as pl

from stairdata.generators.options import BuildOptions
from stairdata.generators.progress import Meter
from stairdata.llm.budget import Budget, Expense, StoppedError
from stairdata.llm.client import Client
from stairdata.llm.outcomes import RequestFailedError
from stairdata.recipe import Recipe
from stairdata_schemas.building import Build, Refused
from stairdata_schemas.files import read_record, scan_journal
from stairdata_schemas.kinds import polars_schema
from stairdata_schemas.manifest import Usage

JOURNAL = "rows.jsonl"
SPENT = "spent.json"
SPENT_BYTES = 64
FRAME_ROWS = 64
TICK_SECONDS = 1.0
DRAIN_SECONDS = 6.0  # what Ctrl-C grants to requests in flight; ending a server of ours takes 3 s more

Row = dict[str, Any]


class UnitFailedError(Exception):
    """A unit that got answers but can't become a row: the rule it broke, and the text that broke it."""

    def __init__(self, rule: str, raw: str) -> None:
        self.rule = rule
        self.raw = raw
        super().__init__(rule)


class Unit(NamedTuple):
    """A piece of work: its key, its ordinal in the input, and what quarantine shows of it."""

    key: str
    number: int
    text: str


class Done(NamedTuple):
    """What work makes of a unit: its row, and counts that the manifest sums up."""

    row: Row
    counts: dict[str, int]
    outcomes: dict[str, int]
    """How its requests ended, those that were made again included."""
    leftover: Path | None = None
    """The unit's own journal, to be removed once its row is safe."""
    usage: dict[str, int] | None = None
    """Requests, prompt_tokens and completion_tokens, where its row's columns don't say all that it took."""


Work = Callable[[Unit], Awaitable[Done]]


class Opened(NamedTuple):
    """What works on units, once it stands ready."""

    work: Work
    room: Callable[[], Awaitable[None]]
    """Returns when one more unit would find its server idle."""
    clients: Sequence[Client]
    iterations: Callable[[], int] | None = None
    """How many iterations of a search were made so far, where work is one."""


OpenWork = Callable[[], AbstractAsyncContextManager[Opened]]


class RunResult(NamedTuple):
    """What a run leaves."""

    refused: list[Refused]
    outcomes: dict[str, int]
    """Units by how they ended."""
    requests: dict[str, int]
    """Requests by how they ended."""
    counts: dict[str, int]
    usage: Usage
    frames: Callable[[], Iterator[pl.DataFrame]]
    """The rows in the units' order, in frames of bounded size."""


class Record:
    """The journal of finished rows, and sums over them."""

    def __init__(self, build: Build) -> None:
        self.path = build.work / JOURNAL
        self._journal = build.journal(JOURNAL)  # cuts off what a kill left half-written
        self.begins: dict[str, int] = {}
        self.counts: Counter[str] = Counter()
        self.requests: Counter[str] = Counter()
        self.usage: Counter[str] = Counter()
        for begin, record in scan_journal(self.path):
            self._add(begin, record)

    def keep(self, key: str, done: Done) -> None:
        """Write a row down for good."""
        record = {"key": key, "row": done.row, "counts": done.counts, "outcomes": done.outcomes}
        if done.usage is not None:
            record["usage"] = done.usage
        self._add(self._journal.append(record, durable=True), record)
        if done.leftover:
            done.leftover.unlink(missing_ok=True)

    def missing(self, units: Sequence[Unit], pilot: int | None) -> list[Unit]:
        """Return the units that have no row, as many as a pilot still wants."""
        missing = [unit for unit in units if unit.key not in self.begins]
        return missing if pilot is None else missing[: max(0, pilot - len(self.begins))]

    def frames(self, kind: str, units: Sequence[Unit]) -> Iterator[pl.DataFrame]:
        """Yield the rows in the units' order, in frames of bounded size."""
        begins = [self.begins[unit.key] for unit in units if unit.key in self.begins]
        if not begins:
            return
        with self.path.open("rb") as file:
            for start in range(0, len(begins), FRAME_ROWS):
                rows = [read_record(file, begin)["row"] for begin in begins[start : start + FRAME_ROWS]]
                yield pl.DataFrame(rows, schema=polars_schema(kind))

    def close(self) -> None:
        """Close the file."""
        self._journal.close()

    def _add(self, begin: int, record: dict[str, Any]) -> None:
        row = record["row"]
        self.begins[record["key"]] = begin
        self.counts.update(record["counts"])
        self.requests.update(record["outcomes"])
        used = record.get("usage", row)
        self.usage["requests"] += used.get("requests", 1)
        for name in ("prompt_tokens", "completion_tokens"):
            self.usage[name] += used.get(name) or 0


def run_units(
    build: Build,
    units: Sequence[Unit],
    open_work: OpenWork,
    budget: Budget,
    options: BuildOptions,
    concurrency: int | Literal["auto"],
) -> RunResult:
    """Turn units into journaled rows, begun in the order given.

    What `open_work` opens (a server, say) is opened only where something is left to do.

    Args:
        build: where to.
        units: what is to be done; those in the journal are skipped.
        open_work: makes a unit into a row.
        budget: stops the run when it is spent.
        options: progress, and how many units a pilot runs.
        concurrency: units in flight at most; auto: as many as the servers have room for.

    Raises:
        ServerError: the server is gone; what is finished is kept.
        BudgetError: a limit is reached; what is finished is kept.
        KeyboardInterrupt: after requests in flight have been answered, for some seconds at most.
    """
    record = Record(build)
    run = Run(build, record, budget, options, len(units))
    missing = record.missing(units, options.pilot)
    try:
        if missing:
            asyncio.run(run.all(missing, open_work, concurrency))
    except BaseExceptionGroup as errors:
        raise _first(errors) from errors
    finally:
        record.close()
    if budget.reason is not None:
        raise budget.reason
    return run.result(units)


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


def usage_of(result: RunResult, budget: Budget, models: Sequence[str]) -> Usage:
    """Return the usage of the rows, with the cost of all that was sent, where every price is known."""
    known = bool(models) and all(name in budget.prices for name in models)
    cost = budget.spent.cost + budget.elsewhere.cost
    return result.usage.model_copy(update={"cost": round(cost, 6) if known else None})


class Run:
    """One run of a build: what is finished, refused and spent, and who is told."""

    def __init__(self, build: Build, record: Record, budget: Budget, options: BuildOptions, total: int) -> None:
        self._build = build
        self._record = record
        self._budget = budget
        self._progress = options.progress
        self._refused: list[Refused] = []
        self._meter = Meter(len(record.begins), total, [])
        budget.on_charge = self._save_spent
        self._iterations: Callable[[], int] | None = None
        self.tell()

    async def all(self, units: Sequence[Unit], open_work: OpenWork, concurrency: int | Literal["auto"]) -> None:
        """Run units until all are done or the budget is stopped."""
        async with open_work() as opened:
            self._meter = Meter(self._meter.done, self._meter.total, opened.clients)
            self._iterations = opened.iterations
            room = opened.room if concurrency == "auto" else None
            places = asyncio.Semaphore(len(units) if concurrency == "auto" else concurrency)
            with _interruptible(self._budget):
                async with asyncio.TaskGroup() as outer:
                    ticker = outer.create_task(self._tick())
                    async with asyncio.TaskGroup() as group:
                        for unit in units:
                            await places.acquire()
                            if room:
                                await room()
                            if self._budget.reason is not None:
                                break
                            task = group.create_task(self._one(opened.work, unit))
                            task.add_done_callback(lambda _: places.release())
                            await asyncio.sleep(0)  # it asks for its first answer before the next one begins
                    ticker.cancel()

    async def _one(self, work: Work, unit: Unit) -> None:
        try:
            self.keep(unit, await work(unit))
        except StoppedError:
            return
        except (RequestFailedError, UnitFailedError) as error:
            self.refuse(unit, error)

    def keep(self, unit: Unit, done: Done) -> None:
        """Write a finished unit down."""
        self._record.keep(unit.key, done)
        if self._iterations is None:
            self._meter.iterations += done.counts.get("evaluations", 0)
        self._meter.done += 1
        self.tell()

    def refuse(self, unit: Unit, error: RequestFailedError | UnitFailedError) -> None:
        """Put a unit into quarantine."""
        self._refused.append(_refusal(self._build, unit, error))
        self._meter.done += 1
        self.tell()

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_SECONDS)
            with contextlib.suppress(StoppedError):
                self._budget.check_running()  # nobody else looks at the clock while all requests wait
            self.tell()

    def tell(self) -> None:
        """Report how far it is."""
        meter = self._meter
        if self._iterations is not None:
            meter.iterations = self._iterations()
        self._progress(self._build.plan.kind, meter.done, meter.total, meter.describe())

    def _save_spent(self) -> None:
        """Keep what was spent for the next run of this build: after each request, so that no kill forgets one."""
        descriptor = os.open(self._build.work / SPENT, os.O_WRONLY | os.O_CREAT, 0o644)
        try:  # in place and in one piece of constant length: there is no moment without a number
            os.pwrite(descriptor, json.dumps(self._budget.spent).ljust(SPENT_BYTES).encode(), 0)
        finally:
            os.close(descriptor)

    def result(self, units: Sequence[Unit]) -> RunResult:
        """Sum up this run and those before it."""
        record, refused = self._record, sorted(self._refused, key=lambda refusal: refusal.row)
        requests = record.requests + _outcomes_of(refused)
        outcomes = Counter(refusal.rule for refusal in refused)
        return RunResult(
            refused,
            {"ok": len(record.begins), **dict(sorted(outcomes.items()))},
            dict(sorted(requests.items())),
            dict(record.counts),
            Usage(**record.usage),
            lambda: record.frames(self._build.plan.kind, units),
        )


@contextmanager
def _interruptible(budget: Budget) -> Iterator[None]:
    """Let Ctrl-C stop the budget first, and cut off what is still in flight some seconds later, or when asked again."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None

    cuts: list[asyncio.TimerHandle] = []

    def interrupt() -> None:
        if budget.reason is not None:
            task.cancel()
        budget.stop(KeyboardInterrupt())
        cuts.append(loop.call_later(DRAIN_SECONDS, task.cancel))

    try:
        loop.add_signal_handler(signal.SIGINT, interrupt)
    except (NotImplementedError, ValueError, RuntimeError):  # not the main thread, or no Unix
        yield
        return
    try:
        yield
    except asyncio.CancelledError:
        if not isinstance(budget.reason, KeyboardInterrupt):
            raise
        task.uncancel()
    finally:
        loop.remove_signal_handler(signal.SIGINT)
        for cut in cuts:
            cut.cancel()


def table_of_outcomes(result: RunResult) -> str:
    """Return a table of how requests ended, and units where one was refused; empty where nothing is to be told."""
    rows = list(result.requests.items())
    if set(result.outcomes) - {"ok"}:
        rows += [(f"refused: {rule}", count) for rule, count in result.outcomes.items() if rule != "ok"]
    width = max((len(name) for name, _ in rows), default=0)
    lines = [f"  {name:<{width}}  {count:>9,}" for name, count in rows]
    return "\n".join(["how requests ended:", *lines]) if rows else ""


def _outcomes_of(refused: Sequence[Refused]) -> Counter[str]:
    total: Counter[str] = Counter()
    for refusal in refused:
        with contextlib.suppress(ValueError, TypeError, KeyError):
            history = json.loads(refusal.raw)
            total.update(history["outcomes"])
            total.update(history.get("before", {}))
    return total


def _refusal(build: Build, unit: Unit, error: RequestFailedError | UnitFailedError) -> Refused:
    if isinstance(error, UnitFailedError):
        return Refused(build.plan.kind, unit.number, error.rule, error.raw)
    history = {
        "text": unit.text,
        "outcomes": [str(outcome) for outcome in error.outcomes],
        "detail": error.detail,
    } | ({"before": error.before} if error.before else {})
    raw = json.dumps(history, ensure_ascii=False)
    return Refused(build.plan.kind, unit.number, error.rule, raw)


def _first(errors: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return the error that ended the group; the others are its echoes."""
    error: BaseException = errors
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
