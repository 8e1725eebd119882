"""Units in this process, many at a time on one event loop."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING

from stairdata.llm.budget import Budget, StoppedError
from stairdata.llm.endpoint_pool import EndpointUse, sum_uses
from stairdata.llm.outcomes import RequestFailedError
from stairdata.recipe.section import Concurrency
from stairdata.runs.units import Unit, UnitFailedError, UnitResult, WorkContext

if TYPE_CHECKING:
    from stairdata.runs.units import UnitFailure


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

    @property
    def uses(self) -> dict[str, EndpointUse]:
        """What each server did so far, by URL."""
        return sum_uses(pool.uses() for pool in (self.context.pools if self.context else ()))

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
        under_way, most = 0, 0

        def end(_: asyncio.Task[None]) -> None:
            nonlocal under_way
            under_way -= 1
            places.release()

        async with asyncio.TaskGroup() as group:
            for unit in units:
                await places.acquire()
                # Units that take the places of others are begun together: when many answers arrive, one turn of the
                # event loop takes long. A further one asks for its first answer before the next one begins.
                if under_way >= most:
                    await asyncio.sleep(0)
                if room:
                    await room()
                if self._budget.reason is not None:
                    break
                group.create_task(_work_on(unit, context, ended)).add_done_callback(end)
                under_way += 1
                most = max(most, under_way)


async def _work_on(
    unit: Unit, context: WorkContext, ended: asyncio.Queue[tuple[Unit, UnitResult | UnitFailure] | None]
) -> None:
    try:
        ended.put_nowait((unit, await context.work(unit)))
    except StoppedError:
        return
    except (RequestFailedError, UnitFailedError) as failure:
        ended.put_nowait((unit, failure))
