"""Work of many callers in batches: what waits goes together, and each caller gets back its own.

The invariant: an entry is in one batch, and its caller learns how it ended. What a caller that was cancelled still has
in line is not worked on.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Generic, TypeVar

from stairdata.llm.wire.gathering import gather_all

EntryT = TypeVar("EntryT")
ResultT = TypeVar("ResultT")


class BatchJoiner(Generic[EntryT, ResultT]):
    """Joins entries of all callers into batches, in the order in which they came.

    The first entry is not kept waiting for others: batches grow by what comes while earlier ones are worked on.

    Args:
        work: on a batch; returns the result of each entry, or the error that its caller gets. An error that it raises
            goes to all of them.
        size: entries of a batch at most.
        at_once: batches that are worked on at the same time, at most.
    """

    def __init__(
        self, work: Callable[[list[EntryT]], Awaitable[Sequence[ResultT | Exception]]], *, size: int, at_once: int
    ) -> None:
        self._work = work
        self._size = size
        self._at_once = at_once
        self._waiting: deque[tuple[EntryT, asyncio.Future[ResultT]]] = deque()
        self._workers: set[asyncio.Task[None]] = set()
        self._starting = 0
        """Workers that have not taken a batch yet."""

    async def results(self, entries: Iterable[EntryT]) -> list[ResultT]:
        """Return the results of some entries, in their order.

        Raises:
            Exception: the first that one of them ended with, once all have ended.
        """
        loop = asyncio.get_running_loop()
        mine: list[asyncio.Future[ResultT]] = []
        for entry in entries:
            mine.append(loop.create_future())
            self._waiting.append((entry, mine[-1]))
        self._start_workers()
        return await gather_all(mine)

    async def close(self) -> None:
        """Give up what is under way; whoever waits is cancelled."""
        workers = [*self._workers]
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)
        for _, future in self._waiting:
            future.cancel()

    def _start_workers(self) -> None:
        batches = -(-len(self._waiting) // self._size)
        while self._starting < batches and len(self._workers) < self._at_once:
            self._workers.add(asyncio.create_task(self._go_on()))
            self._starting += 1

    async def _go_on(self) -> None:
        this = asyncio.current_task()
        assert this is not None
        await asyncio.sleep(0)  # callers that are about to ask are in the first batch
        self._starting -= 1
        try:
            while batch := self._next_batch():
                await self._work_on(batch)
        finally:
            # not by a callback, which a caller may overtake that has just been answered and asks again
            self._workers.discard(this)

    async def _work_on(self, batch: Sequence[tuple[EntryT, asyncio.Future[ResultT]]]) -> None:
        entries, futures = [entry for entry, _ in batch], [future for _, future in batch]
        try:
            _settle(futures, await self._work(entries))
        except Exception as error:  # noqa: BLE001 - each caller raises it
            _settle(futures, [error] * len(futures))
        except asyncio.CancelledError:
            for future in futures:
                future.cancel()
            raise

    def _next_batch(self) -> list[tuple[EntryT, asyncio.Future[ResultT]]]:
        batch: list[tuple[EntryT, asyncio.Future[ResultT]]] = []
        while self._waiting and len(batch) < self._size:
            entry, future = self._waiting.popleft()
            if not future.done():  # else its caller was cancelled
                batch.append((entry, future))
        return batch


def _settle(futures: Sequence[asyncio.Future[ResultT]], ends: Sequence[ResultT | Exception]) -> None:
    for future, end in zip(futures, ends, strict=True):
        if future.done():
            continue
        if isinstance(end, Exception):
            future.set_exception(end)
        else:
            future.set_result(end)
