"""The seconds of stages by what servers did, told by a clock that stands still."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from stairdata.llm.client import Client
from stairdata.llm.server_times import ServerTimes, ServerWatch, request_in_flight, server_start
from stairdata.recipe import Endpoint

if TYPE_CHECKING:
    from tests.conftest import StubServer


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_each_second_of_a_stage_is_counted_once() -> None:
    clock = Clock()
    watch = ServerWatch(clock)
    clock.now = 100
    with watch.watching():
        clock.now += 1  # reads its input
        with server_start():
            clock.now += 20
        clock.now += 2
        with request_in_flight():
            clock.now += 4
            with request_in_flight(), server_start():  # of a judge, say, while the actor answers
                clock.now += 8
            clock.now += 4
        clock.now += 3  # a reward model in this process, say
        with server_start():
            clock.now += 30
        with request_in_flight():
            clock.now += 5
        clock.now += 7  # writes its rows
        asking = watch.end_stage()
        clock.now += 9
        training = watch.end_stage()
        with request_in_flight():
            clock.now += 6
        again = watch.end_stage()
    with request_in_flight(), server_start():
        clock.now += 1000
    assert asking == ServerTimes(busy=21, starting=50, before=3, between=3, after=7)
    assert training == ServerTimes(unused=9)
    assert again == ServerTimes(busy=6)
    assert asking.plus(training) == ServerTimes(21, 50, 3, 3, 7, 9)


def test_a_request_is_in_flight_from_when_it_is_sent_until_it_is_answered(
    stub_llm: StubServer, waits: list[float]
) -> None:
    stub_llm.control(script=[{"fault": "error"}])
    clock = Clock()
    seen: list[int] = []

    class Watch(ServerWatch):
        def __enter__(self) -> None:
            super().__enter__()
            clock.now += 1
            seen.append(self._in_flight)

    async def ask(endpoint: Endpoint) -> None:
        client = Client(endpoint, stub_llm.base_url, "actor", "none")
        try:
            await client.complete("one", n=1, max_tokens=8, seed=1)
        finally:
            await client.close()

    watch = Watch(clock)
    with watch.watching():
        asyncio.run(ask(Endpoint(base_url=stub_llm.base_url, model="actor")))
    assert len(waits) == 1
    assert seen == [1, 1], "the attempt that failed, and the next one"
    assert watch.end_stage() == ServerTimes(busy=2)
