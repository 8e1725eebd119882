"""Running any workload on batches: each run makes the rows whose requests are answered, and submits what is missing.

What a unit asks after an answer (a judge about it, or once more) is submitted by the next run. A live run, without
`--batch`, takes over what batches have answered.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass

from stairdata.llm.batches.asking import Asking, BatchedRequests
from stairdata.llm.batches.ledger import BatchLimits
from stairdata.llm.batches.queue import BatchQueue
from stairdata.llm.budget import Budget
from stairdata.llm.client import Client
from stairdata.llm.session import Connect, open_client, open_unconnected
from stairdata.recipe import BatchSection, Endpoint
from stairdata.runs.batching.options import BATCHES, LIMITS, check_nothing_under_way, under_way_elsewhere
from stairdata.runs.batching.table import batch_table
from stairdata.runs.build import build_in_rounds
from stairdata.runs.event_loop import run_to_end
from stairdata.runs.executors.executor import Executor
from stairdata.runs.options import BuildOptions
from stairdata.runs.progress import report_waiting
from stairdata.runs.row_journal import JOURNAL
from stairdata.runs.runner import RunResult, run_units
from stairdata.runs.units import Unit
from stairdata_schemas.artifacts import Artifact
from stairdata_schemas.building import Build, BuildContent, BuildPlan
from stairdata_schemas.errors import ServerError, UsageError, quote
from stairdata_schemas.files import read_journal

MakeExecutor = Callable[[Connect | None], Executor]
"""Makes what works on the units of a build, given what connects to its servers."""


@dataclass(frozen=True, slots=True)
class BatchedParts:
    """Whom a build asks, and which of them in batches."""

    section: str
    """Of the recipe, for messages."""
    limits: BatchSection
    endpoints: Mapping[str, Endpoint]
    """By the name of their part in the build. A ledger knows them by their number here: the order stays."""
    batched: Collection[str]
    """The parts that are asked in batches; the others are asked live."""

    def number(self, part: str) -> int:
        """Return the number of a part's endpoint; one behind all for a part that never has batches."""
        return list(self.endpoints).index(part) if part in self.endpoints else len(self.endpoints)


def run_in_batches(
    build: Build,
    units: Sequence[Unit],
    make_executor: MakeExecutor,
    parts: BatchedParts,
    budget: Budget,
    options: BuildOptions,
) -> RunResult | None:
    """Do what `--batch` says.

    Returns:
        The rows, where every unit has one or is refused; None where batches are under way or requests wait.

    Raises:
        UsageError: nothing was submitted that could be looked at.
        RecipeError: a single request is larger than the queue.
        ServerError: a server can't be reached or refuses; what was submitted is known and kept.
        BudgetError: a limit keeps requests from being submitted, or from being asked live.
    """
    assert options.batch is not None
    action = options.batch.action
    run = BatchedRun(build, parts, budget, options)
    if action != "submit" and not run.queue.jobs:
        raise UsageError(
            f"no batch was submitted for this build{under_way_elsewhere(build.folder)}; `--batch` alone submits one"
        )
    try:
        run_to_end(run.exchange(action))
        if action in {"status", "cancel"}:
            return None
        result = run.make_rows(units, make_executor, live="later")
        if action == "submit":
            if run.requests.needs_live:
                result = run.make_rows(units, make_executor, live="live")
            run_to_end(run.submit())
        return result if run.requests.is_complete else None
    finally:
        options.tell(run.table())


def run_live_or_batched(
    build: Build,
    units: Sequence[Unit],
    make_executor: MakeExecutor,
    parts: BatchedParts,
    budget: Budget,
    options: BuildOptions,
) -> RunResult | None:
    """Make the rows of a build as its options say: live without `--batch`, else as `run_in_batches` does."""
    if options.batch is not None:
        return run_in_batches(build, units, make_executor, parts, budget, options)
    executor = make_executor(taking_over(build, parts, budget, options))
    return run_units(build, units, executor, budget, options.progress)


def build_asking(
    plan: BuildPlan,
    make_content: Callable[[Build], BuildContent | None],
    options: BuildOptions,
    check: Callable[[], None] = lambda: None,
) -> Artifact | None:
    """Build the artifact of a plan whose models may be asked in batches; None where these leave it unfinished.

    Args are those of `build_in_rounds`.

    Raises:
        UsageError: starting over would forget what is under way in batches.
        StairDataError: as `build_artifact` says.
    """
    if options.fresh:
        check_nothing_under_way(plan, options)
    found = build_in_rounds(plan, make_content, options, check)
    if options.batch is not None and found is not None:
        options.tell(f"{found.reference} is finished{under_way_elsewhere(found.folder)}")
    return found


def taking_over(build: Build, parts: BatchedParts, budget: Budget, options: BuildOptions) -> Connect | None:
    """Return what connects a live run to its servers, so that what batches have answered is not asked again.

    Returns:
        None where the build never had a batch.

    Raises:
        UsageError: batches are under way.
    """
    if not (build.work / BATCHES).is_dir():
        return None
    run = BatchedRun(build, parts, budget, options)
    run.queue.withdraw_unsent()
    pending = run.queue.pending
    if pending:
        raise UsageError(
            f"{len(pending)} requests of {build.reference} are in progress in batches; collect them with `--batch "
            "collect`, or cancel them with `--batch cancel` and then collect"
        )
    run.requests.clear()
    return lambda endpoint, part: run.connect(endpoint, part, "live")


class BatchedRun:
    """One run of a build that asks in batches."""

    def __init__(self, build: Build, parts: BatchedParts, budget: Budget, options: BuildOptions) -> None:
        self._build = build
        self._parts = parts
        self._budget = budget
        self._options = options
        limits = BatchLimits(*(getattr(parts.limits, name) for name in LIMITS))
        endpoints = list(parts.endpoints.values())
        files = options.batch.files if options.batch is not None else None
        self.queue = BatchQueue(build.work / BATCHES, endpoints, limits, parts.section, budget, files)
        self.requests = BatchedRequests(self.queue)
        self._is_waiting = False

    async def exchange(self, action: str) -> None:
        """Ask how batches stand and fetch their answers, or cancel them.

        Raises:
            ServerError: a server can't be reached, or refused a batch as a whole or for all that it asks.
        """
        async with self.queue.connect():
            await (self.queue.cancel() if action == "cancel" else self.queue.refresh())
            if action in {"submit", "collect"} and (refusals := await self.queue.collect()):
                raise ServerError(
                    f"the server rejected requests of a batch for a reason that affects all ({quote(refusals[0])}); "
                    "they count as missing: fix the key, the account or the model's name; then `--batch` submits them "
                    "again"
                )
            self.queue.check_failed()

    def make_rows(self, units: Sequence[Unit], make_executor: MakeExecutor, live: Asking) -> RunResult:
        """Make the rows whose requests are answered, and note what is missing for the others.

        Args:
            units: all of the build.
            make_executor: makes what works on them.
            live: whether parts that are asked live are asked now.
        """
        self.requests.clear()

        def connect(endpoint: Endpoint, part: str) -> AbstractAsyncContextManager[Client]:
            return self.connect(endpoint, part, "batches" if part in self._parts.batched else live)

        executor = make_executor(connect)
        return run_units(self._build, units, executor, self._budget, self._options.progress)

    async def submit(self) -> None:
        """Submit what is missing, as far as there is room.

        Raises:
            RecipeError: a single request is larger than the queue.
            ServerError: a server can't be reached, or refuses.
            BudgetError: a limit keeps requests from being submitted.
        """
        missing = self.requests.missing
        numbers = {number for number, requests in missing.items() if requests}
        numbers |= {job.endpoint for job in self.queue.jobs if job.is_open and job.batch_id is None}
        async with self.queue.connect(numbers):
            for number in sorted(numbers):
                self._is_waiting |= not await self.queue.submit(number, missing[number].values())

    def connect(self, endpoint: Endpoint, part: str, asking: Asking) -> AbstractAsyncContextManager[Client]:
        """Connect to a part's server, or to what batches have answered in its place."""
        make_client = self.requests.client_maker(self._parts.number(part), asking)
        if asking != "live":
            return open_unconnected(endpoint, make_client, self._budget)
        log, waiting = self._build.work / f"{part}.log", report_waiting(self._options.progress)
        return open_client(endpoint, log, waiting, self._budget, make_client)

    def table(self) -> str:
        """Return the batches and what is left, for the user."""
        pending, rows = self.queue.pending, sum(1 for _ in read_journal(self._build.work / JOURNAL))
        missing = sum(id_ not in pending for requests in self.requests.missing.values() for id_ in requests)
        counts = f"{rows:,} rows made, {len(pending):,} requests in progress, {missing:,} missing"
        table = batch_table(self.queue, counts, missing=missing > 0, is_waiting=self._is_waiting)
        live = "\n  some answers are asked live before there is more to submit: run `--batch` again"
        return table + live * self.requests.needs_live
