"""Who works on units: this process, or replicas on a Ray cluster (`ray_executor`)."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

from stairdata.llm.budget import Budget, StoppedError
from stairdata.llm.outcomes import RequestFailedError
from stairdata.runs.units import Unit, UnitFailedError, UnitResult, WorkContext, Workload
from stairdata_schemas.progress import WaitProgress

if TYPE_CHECKING:
    from stairdata.runs.units import UnitFailure

Concurrency = int | Literal["auto"]


@dataclass(frozen=True, slots=True)
class Execution:
    """Where the units of a build are worked on."""

    executor: Literal["local", "ray"] = "local"
    """local: this process. ray: replicas on a Ray cluster, one for each server or GPU."""
    address: str | None = None
    """The Ray cluster's; default: one that is started here for the duration."""
    endpoints: tuple[str, ...] = ()
    """URLs of the actor's servers, in place of the recipe's one."""


HERE = Execution()


class Executor(Protocol):
    """Works on units and yields how each ended, in the order in which they end.

    A unit is yielded once or, where the run is stopped, not at all. Whoever iterates writes a result down before
    asking for the next one. When the budget is stopped no further unit is begun, and the iteration ends once the
    requests in flight are answered.
    """

    @property
    def context(self) -> WorkContext | None:
        """What works in this process, for the progress report; None before it is open, or where it is elsewhere."""

    def run(self, units: Sequence[Unit]) -> AsyncGenerator[tuple[Unit, UnitResult | UnitFailure]]:
        """Work on units, begun in the order given; iterate under `contextlib.aclosing`.

        Raises:
            ServerError: the servers are gone.
        """


class LocalExecutor:
    """Works on units in this process, many at a time on one event loop.

    Args:
        open_work: connects to the servers; not called where there are no units.
        budget: stops the run when it is spent.
        concurrency: units in flight at most; auto: as many as the servers have room for.
    """

    def __init__(
        self,
        open_work: Callable[[], AbstractAsyncContextManager[WorkContext]],
        budget: Budget,
        concurrency: Concurrency,
    ) -> None:
        self.open_work = open_work
        self.context: WorkContext | None = None
        self._budget = budget
        self._concurrency = concurrency

    async def run(self, units: Sequence[Unit]) -> AsyncGenerator[tuple[Unit, UnitResult | UnitFailure]]:
        """Work on units, each in a task of its own."""
        async with self.open_work() as context:
            self.context = context
            ended: asyncio.Queue[tuple[Unit, UnitResult | UnitFailure] | None] = asyncio.Queue()
            # A task of its own: where one unit stops the run, those that ended before are still yielded.
            begun = asyncio.create_task(self._begin_all(units, context, ended))
            begun.add_done_callback(lambda _: ended.put_nowait(None))
            try:
                while (end := await ended.get()) is not None:
                    yield end
                await begun
            finally:
                begun.cancel()
                with contextlib.suppress(asyncio.CancelledError, Exception):
                    await begun

    async def _begin_all(
        self,
        units: Sequence[Unit],
        context: WorkContext,
        ended: asyncio.Queue[tuple[Unit, UnitResult | UnitFailure] | None],
    ) -> None:
        room = context.room if self._concurrency == "auto" else None
        places = asyncio.Semaphore(len(units) if self._concurrency == "auto" else self._concurrency)
        async with asyncio.TaskGroup() as group:
            for unit in units:
                await places.acquire()
                if room:
                    await room()
                if self._budget.reason is not None:
                    break
                task = group.create_task(_work_on(unit, context, ended))
                task.add_done_callback(lambda _: places.release())
                await asyncio.sleep(0)  # it asks for its first answer before the next one begins


async def _work_on(
    unit: Unit, context: WorkContext, ended: asyncio.Queue[tuple[Unit, UnitResult | UnitFailure] | None]
) -> None:
    try:
        ended.put_nowait((unit, await context.work(unit)))
    except StoppedError:
        return
    except (RequestFailedError, UnitFailedError) as failure:
        ended.put_nowait((unit, failure))


def make_executor(
    workload: Workload,
    budget: Budget,
    concurrency: Concurrency,
    waiting: WaitProgress,
    execution: Execution = HERE,
) -> Executor:
    """Return the executor of a build.

    Args:
        workload: the build's work.
        budget: stops the run when it is spent.
        concurrency: units in flight at most, on Ray of each replica.
        waiting: told when the start of a server takes its time.
        execution: where.

    Raises:
        UsageError: Ray is wanted and not installed.
    """
    work = workload.at(execution.endpoints) if execution.endpoints else workload
    if execution.executor == "ray":
        from stairdata.runs.ray_executor import RayExecutor

        return RayExecutor(work, budget, concurrency, execution.address)
    return LocalExecutor(lambda: work.open(budget, waiting), budget, concurrency)
