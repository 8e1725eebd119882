"""Requests in flight: everybody gets a place in turn, no place is ever lost, and the policy hears of what happens."""

from __future__ import annotations

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from stairdata.llm.concurrency import BLOCK, EPOCH_ROUNDS, EPOCH_SECONDS, SHRINKING
from stairdata.llm.window import Window


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_requests_that_end_make_it_larger_and_refused_ones_smaller() -> None:
    """A server that does as much more work as it is sent, and is then overloaded."""

    async def run() -> tuple[int, int, int]:
        clock = Clock()
        window = Window(100, 10, clock)

        async def one() -> None:
            async with window.slot() as slot:
                clock.now += EPOCH_SECONDS / (EPOCH_ROUNDS * 10)
                slot.work = 1.0
                await asyncio.sleep(0)

        await asyncio.gather(*(one() for _ in range(EPOCH_ROUNDS * 10 + 10)))
        grown = window.limit
        for _ in range(BLOCK):
            async with window.slot() as slot:
                window.overloaded(slot.sent_at + 1.0)
        return grown, window.limit, window.in_flight

    grown, shrunk, in_flight = asyncio.run(run())
    assert grown == 15
    assert shrunk < int(grown * SHRINKING) + 1
    assert in_flight == 0


def test_a_pause_holds_everybody_until_it_is_over() -> None:
    async def run() -> list[str]:
        seen: list[str] = []
        clock = Clock()
        window = Window(4, 4, clock)
        window.pause(0.01)

        async def one(name: str) -> None:
            async with window.slot():
                seen.append(name)

        tasks = [asyncio.ensure_future(one(name)) for name in "ab"]
        await asyncio.sleep(0)
        assert not window.has_room
        seen.append("nobody")
        clock.now = 0.02  # the timer looks at the clock
        await asyncio.gather(*tasks)
        return seen

    assert asyncio.run(run()) == ["nobody", "a", "b"]


def test_once_open_nobody_waits() -> None:
    async def run() -> int:
        window = Window(1, 1)
        through = 0

        async def one() -> None:
            nonlocal through
            async with window.slot():
                through += 1
                await asyncio.sleep(0.001)

        window.pause(900)
        tasks = [asyncio.ensure_future(one()) for _ in range(5)]
        await asyncio.sleep(0)
        window.open()
        await asyncio.gather(*tasks)
        await window.room()
        return through

    assert asyncio.run(run()) == 5


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 5)), max_size=40), st.integers(1, 4))
def test_no_place_is_lost_or_given_twice(acts: list[tuple[bool, int]], size: int) -> None:
    """Requests come, are cancelled while they wait or run, and end, in any order."""

    async def run() -> None:
        window = Window(size, size)
        most = 0

        async def one(turns: int) -> None:
            nonlocal most
            async with window.slot():
                most = max(most, window.in_flight)
                for _ in range(turns):
                    await asyncio.sleep(0)

        tasks: list[asyncio.Task[None]] = []
        for is_cancel, turns in acts:
            if is_cancel and tasks:
                tasks[turns % len(tasks)].cancel()
            else:
                tasks.append(asyncio.ensure_future(one(turns)))
            if turns % 2:
                await asyncio.sleep(0)
        await asyncio.gather(*tasks, return_exceptions=True)
        assert most <= size
        assert window.in_flight == 0
        assert window.has_room

    asyncio.run(run())
