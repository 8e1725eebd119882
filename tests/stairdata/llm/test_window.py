"""How many requests are in flight: as many as help, fewer under overload, and no place is ever lost."""

from __future__ import annotations

import asyncio
import heapq
import math
import random
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stairdata.llm.window import SHRINKING, Pace, Window


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def simulate(
    speed: Callable[[int], float], *, most: int = 512, start: int = 32, requests: int = 20_000
) -> tuple[Window, list[int]]:
    """Serve requests that always wait in line; `speed` is the server's work a second with so many in flight.

    Returns:
        The window, and its size after each request.
    """
    clock = Clock()
    sizes: list[int] = []

    async def run() -> Window:
        window = Window(most, start, clock)
        flight: list[tuple[float, int, asyncio.Event]] = []
        tickets = iter(range(10**9))

        async def one() -> None:
            async with window.slot() as slot:
                done = asyncio.Event()
                length = window.in_flight / speed(window.in_flight)
                heapq.heappush(flight, (clock.now + length, next(tickets), done))
                await done.wait()
                slot.work = 1.0

        waiting = {asyncio.ensure_future(one()) for _ in range(2 * most)}
        for _ in range(requests):
            await asyncio.sleep(0)
            clock.now, _, done = heapq.heappop(flight)
            done.set()
            waiting.add(asyncio.ensure_future(one()))
            await asyncio.sleep(0)
            sizes.append(window.limit)
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        return window

    return asyncio.run(run()), sizes


@pytest.mark.parametrize("capacity", [40, 100, 300])
def test_it_grows_until_more_requests_bring_no_more_work(capacity: int) -> None:
    """A server whose throughput grows with its load up to some number of requests, and not beyond."""
    _, sizes = simulate(lambda flight: float(min(flight, capacity)))
    settled = sizes[-2000:]
    assert capacity / 1.6 <= min(settled)
    assert sum(settled) / len(settled) <= 2 * capacity


def test_it_stays_small_where_the_server_is_no_faster_with_more() -> None:
    _, sizes = simulate(lambda _: 20.0, start=8, requests=3000)
    assert sum(sizes[-500:]) / 500 <= 20


def test_it_never_passes_its_bound() -> None:
    _, sizes = simulate(float, most=50, start=50, requests=2000)
    assert max(sizes) == 50


def test_overload_shrinks_it_once_a_burst() -> None:
    clock = Clock()
    window = Window(100, 100, clock)
    clock.now = 1.0
    for _ in range(20):
        window.overloaded(sent_at=0.5)
    assert window.limit == 100, "some requests are lost everywhere"
    for _ in range(70):
        window.overloaded(sent_at=0.5)
    assert window.limit == int(100 * SHRINKING), "the others were sent before it shrank"
    for _ in range(400):
        clock.now += 1.0
        window.overloaded(sent_at=clock.now - 0.1)
    assert window.limit == 1, "it never closes"


@pytest.mark.parametrize(("share", "smallest", "largest"), [(0.05, 20, 512), (0.6, 1, 8)])
def test_few_failures_leave_it_open_and_many_nearly_close_it(share: float, smallest: int, largest: int) -> None:
    """A server that refuses a share of its requests, whatever their number."""
    rng = random.Random(1)  # noqa: S311

    async def run() -> int:
        window = Window(512, 32, Clock())
        for _ in range(3000):
            async with window.slot() as slot:
                slot.work = 1.0
            if rng.random() < share:
                window.overloaded(sent_at=math.inf)
        return window.limit

    assert smallest <= asyncio.run(run()) <= largest


def test_a_speed_with_the_window_half_empty_says_nothing() -> None:
    pace = Pace(0.0)
    for _ in range(100):
        pace.add(1.0, was_full=False)
    assert pace.verdict(10, 10.0) is None


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
