"""Batches of many callers: each gets its own results, whatever becomes of the others."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stairdata.scorers.joining import BatchJoiner


class Work:
    """Doubles numbers when it is told to; 13 is an error of its own, and 99 one of the whole batch."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.most = self.busy = 0
        self.go = asyncio.Event()
        self.begun = asyncio.Event()

    async def __call__(self, entries: list[int]) -> list[int | Exception]:
        self.batches.append(entries)
        self.busy += 1
        self.most = max(self.most, self.busy)
        self.begun.set()
        try:
            await self.go.wait()
        finally:
            self.busy -= 1
        if 99 in entries:
            raise OSError("all")
        return [KeyError(13) if entry == 13 else 2 * entry for entry in entries]


def run(coroutine: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(coroutine, 60))


@given(st.lists(st.lists(st.integers(0, 99), max_size=9), max_size=9), st.integers(1, 5), st.integers(1, 3))
def test_each_caller_gets_its_own(callers: list[list[int]], size: int, at_once: int) -> None:
    async def check() -> None:
        work = Work()
        work.go.set()
        joiner = BatchJoiner(work, size=size, at_once=at_once)
        ends = await asyncio.gather(*map(joiner.results, callers), return_exceptions=True)
        for asked, end in zip(callers, ends, strict=True):
            if not isinstance(end, BaseException):
                assert end == [2 * entry for entry in asked]
                assert 13 not in asked
            else:
                assert isinstance(end, OSError) or 13 in asked
        if not any(99 in asked for asked in callers):
            assert all(isinstance(end, KeyError) == (13 in asked) for asked, end in zip(callers, ends, strict=True))
        assert [entry for batch in work.batches for entry in batch] == [entry for asked in callers for entry in asked]
        assert all(len(batch) <= size for batch in work.batches)
        assert work.most <= at_once
        await joiner.close()

    run(check())


def test_what_comes_meanwhile_goes_together() -> None:
    async def check() -> None:
        work = Work()
        joiner = BatchJoiner(work, size=10, at_once=1)
        first = asyncio.ensure_future(joiner.results([1]))
        await work.begun.wait()
        others = [asyncio.ensure_future(joiner.results([number])) for number in range(2, 6)]
        await asyncio.sleep(0)
        work.go.set()
        assert await asyncio.gather(first, *others) == [[2], [4], [6], [8], [10]]
        assert work.batches == [[1], [2, 3, 4, 5]]

    run(check())


def test_who_asks_again_as_soon_as_it_is_answered_is_answered_again() -> None:
    async def check() -> None:
        work = Work()
        work.go.set()
        joiner = BatchJoiner(work, size=2, at_once=1)
        async with asyncio.timeout(5):
            assert [await joiner.results([number]) for number in range(3)] == [[0], [2], [4]]

    run(check())


def test_a_cancelled_caller_costs_the_others_nothing() -> None:
    async def check() -> None:
        work = Work()
        joiner = BatchJoiner(work, size=2, at_once=1)
        both = [asyncio.ensure_future(joiner.results([number, number + 1])) for number in (1, 3)]
        other = asyncio.ensure_future(joiner.results([5]))
        await work.begun.wait()
        for caller in both:
            caller.cancel()
        await asyncio.wait(both)
        work.go.set()
        assert await other == [10]
        assert work.batches == [[1, 2], [5]], "what nobody waits for is not worked on"

    run(check())


def test_a_batch_that_hangs_holds_nobody_while_there_is_a_place() -> None:
    async def check() -> None:
        begun, never = asyncio.Event(), asyncio.Event()

        async def work(entries: list[int]) -> list[int]:
            if 1 in entries:
                begun.set()
                await never.wait()
            return entries

        joiner = BatchJoiner(work, size=8, at_once=2)
        hanging = asyncio.ensure_future(joiner.results([1]))
        await begun.wait()
        assert await joiner.results([2]) == [2]
        assert not hanging.done()
        await joiner.close()

    run(check())


def test_whoever_waits_is_cancelled_at_the_end() -> None:
    async def check() -> None:
        work = Work()
        joiner = BatchJoiner(work, size=1, at_once=1)
        callers = [asyncio.ensure_future(joiner.results([number])) for number in range(3)]
        await work.begun.wait()
        await joiner.close()
        for caller in callers:
            with pytest.raises(asyncio.CancelledError):
                await caller
        assert work.busy == 0

    run(check())
