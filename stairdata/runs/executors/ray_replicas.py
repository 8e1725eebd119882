"""Replicas of the work on a Ray cluster: each takes a unit whenever it has room for one.

A unit is with one replica at a time, and with it those that share something that is asked for once, such as an answer.
Where a replica is lost, with its process or its node, its units are given to whichever one has room first, and Ray
makes it again as soon as the cluster has a place for it. So the work goes on as long as one replica is left, and what
was in flight is all that is done again: journals of what is under way are in the build's work folder where a replica
sees it (one machine, a shared disk), else in a temporary folder of its own.
"""

from __future__ import annotations

import asyncio
import json
import logging
import tempfile
from collections import Counter, deque
from collections.abc import AsyncGenerator, Coroutine, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from stairdata.llm.budget import Budget, Expense
from stairdata.llm.endpoint_pool import EndpointUse, sum_uses
from stairdata.llm.outcomes import JudgeFailedError, RequestFailedError
from stairdata.runs.units import Unit, UnitFailedError, WorkContext, Workload
from stairdata_schemas.errors import ServerError, StairDataError, quote

if TYPE_CHECKING:
    from collections.abc import Callable

logger = logging.getLogger(__name__)

CLOSE_SECONDS = 10.0  # for replicas to end their servers, where they have some
LOST = (
    "a replica on the Ray cluster is lost: what it had under way is given to the others, and Ray makes it again where "
    "the cluster has room"
)
LOSSES = 10
"""Of one replica in a row, while no unit ended anywhere: so often, the work is what ends it. Where a node is taken away
and comes back again and again, units end in between."""
LOST_FOR_GOOD = (
    f"a replica on the Ray cluster was lost {LOSSES} times in a row while no work came to an end; its node may have "
    "too little memory for what is under way, of which Ray's logs say more. With a smaller concurrency in the recipe, "
    "run the same command again: what is finished is kept"
)


class ReplicaWorker:
    """An actor: works on many units at a time, on its event loop.

    Args:
        workload: to be opened.
        number: of the replica; it asks the server of that ordinal, and the others once that one is gone.
    """

    def __init__(self, workload: Workload, number: int) -> None:
        folder = workload.folder if workload.folder.is_dir() else Path(tempfile.mkdtemp(prefix="stairdata-"))
        self._workload = replace(workload, folder=folder)
        if workload.urls:
            home = number % len(workload.urls)
            self._workload = self._workload.at(workload.urls[home:] + workload.urls[:home], is_spread=False)
        self._budget = Budget(prices=workload.recipe.prices)
        self._reported = Expense()
        self._reported_uses: dict[str, EndpointUse] = {}
        self._stack = AsyncExitStack()
        self._opening: asyncio.Task[WorkContext] | None = None

    async def open(self) -> str | None:
        """Connect to the servers, once.

        Returns:
            Why that failed, if it did.
        """
        try:
            await self._open()
        except StairDataError as error:
            return str(error)
        return None

    async def work(self, unit: Unit) -> str:
        """Work on one unit.

        Returns:
            JSON: the row, or why there is none, and what was spent, and done by each server, since the last result.
        """
        result: dict[str, Any]
        try:
            context = await self._open()  # a replica that was made again right away has not been told to
            done = await context.work(unit)
            result = {"done": [*done._replace(leftover=str(done.leftover) if done.leftover else None)]}  # type: ignore[arg-type]
        except RequestFailedError as error:
            result = {"failed": [error.outcomes, error.detail, isinstance(error, JudgeFailedError), error.before]}
        except UnitFailedError as error:
            result = {"unfit": [error.rule, error.raw]}
        except ServerError as error:
            return json.dumps({"gone": str(error)})
        spent = self._budget.spent
        tokens, cost = spent.tokens - self._reported.tokens, spent.cost - self._reported.cost
        self._reported = spent
        uses = sum_uses(pool.uses() for pool in context.pools)
        new = {url: use.minus(self._reported_uses.get(url, EndpointUse())) for url, use in uses.items()}
        self._reported_uses = uses
        return json.dumps(result | {"spent": [tokens, cost], "uses": new})

    async def close(self) -> None:
        """Leave the servers, and end those that it started."""
        await self._stack.aclose()

    async def _open(self) -> WorkContext:
        if self._opening is None:
            opened = self._workload.open(self._budget, lambda _what, _seconds: None)
            self._opening = asyncio.ensure_future(self._stack.enter_async_context(opened))
        return await asyncio.shield(self._opening)


class ReplicaPool:
    """Replicas, and the units that they are to work on.

    Args:
        make: makes the actor of the replica with that number.
        count: of replicas.
        in_flight: units of each at a time.
    """

    def __init__(self, make: Callable[[int], Any], count: int, in_flight: int) -> None:
        self._make = make
        self._count = count
        self._in_flight = in_flight
        self._replicas: list[Any] = []
        self._open: set[int] = set()
        self._losses: Counter[int] = Counter()
        """Of each replica since a unit ended."""
        self._gone: list[str] = []
        self._waiting: asyncio.PriorityQueue[tuple[int, deque[Unit]]] = asyncio.PriorityQueue()
        self._ended: asyncio.Queue[tuple[Unit, dict[str, Any]] | BaseException] = asyncio.Queue()

    async def run(
        self, units: Sequence[Unit], watch: Coroutine[Any, Any, NoReturn]
    ) -> AsyncGenerator[tuple[Unit, dict[str, Any]]]:
        """Yield each unit with its result, as they end.

        Args:
            units: begun in that order.
            watch: ends the work by its error, after what had come in before it.

        Raises:
            ServerError: no replica is left that can work.
        """
        groups = _grouped(units)
        for place in enumerate(groups):
            self._waiting.put_nowait(place)
        self._replicas = [self._make(number) for number in range(min(self._count, len(groups)))]
        tasks: list[asyncio.Task[None]] = [asyncio.create_task(watch)]
        tasks += [asyncio.create_task(self._serve(number)) for number in range(len(self._replicas))]
        for task in tasks:
            task.add_done_callback(self._fail)
        try:
            for _ in units:
                end = await self._ended.get()
                if isinstance(end, BaseException):
                    raise end
                yield end
        finally:
            is_watched = not tasks[0].done()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            if is_watched:  # else the cluster is gone, and its actors end by themselves
                await self._close()

    async def _close(self) -> None:
        """End all replicas, when they have left their servers."""
        import ray

        if closing := [asyncio.ensure_future(self._replicas[number].close.remote()) for number in self._open]:
            await asyncio.wait(closing, timeout=CLOSE_SECONDS)
        for replica in self._replicas:
            ray.kill(replica)

    def _fail(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._ended.put_nowait(error)

    async def _serve(self, number: int) -> None:
        """Hand units to a replica for as long as it can work."""
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(self._in_flight):
                    group.create_task(self._hand_out(number))
        except* ServerError as errors:
            self._open.discard(number)
            self._gone.append(str(errors.exceptions[0]))
        if len(self._gone) == len(self._replicas):
            raise ServerError(self._gone[0])
        logger.warning("a replica on the Ray cluster can't work, the others go on: %s", self._gone[-1])

    async def _hand_out(self, number: int) -> None:
        """Hand one unit after the other to a replica; those of a group are together in its hands.

        Raises:
            ServerError: the replica can't work, or is lost again and again.
        """
        from ray.exceptions import NodeDiedError, ObjectLostError, OutOfMemoryError, RayActorError

        await self._opened(number)
        while True:
            place, group = await self._waiting.get()
            try:
                while group:
                    result = json.loads(await self._replicas[number].work.remote(group[0]))
                    if "gone" in result:
                        raise ServerError(result["gone"])
                    self._losses.clear()
                    self._ended.put_nowait((group.popleft(), result))
            except (RayActorError, ObjectLostError, NodeDiedError, OutOfMemoryError):
                self._waiting.put_nowait((place, group))
                if number in self._open:
                    self._open.remove(number)
                    self._losses[number] += 1
                    if self._losses[number] >= LOSSES:
                        raise ServerError(LOST_FOR_GOOD) from None
                    logger.warning(LOST)
                await self._opened(number)
            except BaseException:
                self._waiting.put_nowait((place, group))
                raise

    async def _opened(self, number: int) -> None:
        """Wait until a replica is there, for however long the cluster has no place for it.

        Raises:
            ServerError: it can't be made, or its servers are not there.
        """
        from ray.exceptions import RayActorError

        try:
            reason = await self._replicas[number].open.options(max_task_retries=-1).remote()
        except RayActorError as error:  # for good: it would be made again, had it only died
            reason = f"a replica can't be made on the Ray cluster: {quote(str(error))}"
        if reason is not None:
            raise ServerError(reason)
        self._open.add(number)


def _grouped(units: Sequence[Unit]) -> list[deque[Unit]]:
    """Return the units that share something, and each of the others alone, in the order in which they come up."""
    groups: dict[int | str, deque[Unit]] = {}
    for unit in units:
        groups.setdefault(unit.key if unit.group is None else unit.group, deque()).append(unit)
    return list(groups.values())
