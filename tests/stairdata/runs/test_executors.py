"""Executors yield each unit once and how it ended, and stop as the budget and the servers say."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import Any, NoReturn

import hypothesis.strategies as st
import pytest
from hypothesis import given

from stairdata.llm.budget import Budget, StoppedError
from stairdata.llm.outcomes import Outcome, RequestFailedError
from stairdata.recipe.section import Concurrency
from stairdata.runs.executors.local import LocalExecutor
from stairdata.runs.executors.ray_cluster import (
    HeadGoneError,
    _check_reachable,
    _from_thread,
    read_result,
    watch_head,
)
from stairdata.runs.units import Unit, UnitFailedError, UnitResult, WorkContext
from stairdata_schemas.errors import BudgetError, ServerError

Work = Callable[[Unit], Awaitable[UnitResult]]


def units(count: int) -> list[Unit]:
    return [Unit(f"unit-{number}", number, "text", {}) for number in range(count)]


def done(unit: Unit) -> UnitResult:
    return UnitResult({"key": unit.key}, {}, {})


def first(errors: BaseException) -> BaseException:
    while isinstance(errors, BaseExceptionGroup):
        errors = errors.exceptions[0]
    return errors


class Opened:
    """Opens the work of a test, and knows whether it was closed again."""

    def __init__(self, work: Work, room: Callable[[], Awaitable[None]] | None = None) -> None:
        async def always() -> None:
            return

        self._context = WorkContext(work, room or always, [])
        self.times = 0
        self.is_closed = False

    @asynccontextmanager
    async def __call__(self) -> AsyncIterator[WorkContext]:
        self.times += 1
        try:
            yield self._context
        finally:
            self.is_closed = True


def collect(
    executor: LocalExecutor, todo: Sequence[Unit], most: int | None = None
) -> tuple[list[tuple[Unit, Any]], BaseException | None]:
    """Return what was yielded, and the error that ended it."""
    found: list[tuple[Unit, Any]] = []

    async def run() -> None:
        async with aclosing(executor.run(todo)) as ended:
            async for end in ended:
                found.append(end)
                if most is not None and len(found) == most:
                    break

    try:
        asyncio.run(run())
    except BaseException as error:  # noqa: BLE001 - it is what is tested
        return found, first(error)
    return found, None


@given(st.lists(st.integers(0, 5), max_size=20), st.sampled_from(["auto", 1, 3]))
def test_each_unit_is_yielded_once_whatever_the_order_of_answers(turns: list[int], concurrency: Concurrency) -> None:
    async def work(unit: Unit) -> UnitResult:
        for _ in range(turns[unit.number]):
            await asyncio.sleep(0)
        if turns[unit.number] == 5:
            raise UnitFailedError("rule", "raw")
        return done(unit)

    opened = Opened(work)
    found, error = collect(LocalExecutor(opened, Budget(), concurrency), units(len(turns)))
    assert error is None
    assert sorted(unit.number for unit, _ in found) == list(range(len(turns)))
    assert all(isinstance(end, UnitFailedError) == (turns[unit.number] == 5) for unit, end in found)
    assert opened.is_closed


@given(st.integers(1, 6), st.integers(1, 12))
def test_no_more_units_are_in_flight_than_concurrency_allows(concurrency: int, count: int) -> None:
    in_flight: list[int] = [0]
    most: list[int] = [0]

    async def work(unit: Unit) -> UnitResult:
        in_flight[0] += 1
        most[0] = max(most[0], in_flight[0])
        for _ in range(5):
            await asyncio.sleep(0)
        in_flight[0] -= 1
        return done(unit)

    collect(LocalExecutor(Opened(work), Budget(), concurrency), units(count))
    assert most[0] <= concurrency
    assert most[0] > 1 or min(concurrency, count) == 1, "several at a time"


def test_a_failed_request_is_a_result_and_the_others_go_on() -> None:
    async def work(unit: Unit) -> UnitResult:
        if unit.number == 1:
            raise RequestFailedError([Outcome.TIMEOUT], "late")
        return done(unit)

    found, error = collect(LocalExecutor(Opened(work), Budget(), 1), units(3))
    assert error is None
    assert [type(end).__name__ for _, end in found] == ["UnitResult", "RequestFailedError", "UnitResult"]


def test_what_ended_before_the_servers_were_gone_is_yielded() -> None:
    gone = asyncio.Event()

    async def work(unit: Unit) -> UnitResult:
        if unit.number == 2:
            raise ServerError("gone")
        if unit.number > 2:
            await gone.wait()  # in flight when the server goes
        return done(unit)

    opened = Opened(work)
    found, error = collect(LocalExecutor(opened, Budget(), "auto"), units(5))
    assert isinstance(error, ServerError)
    assert [unit.number for unit, _ in found] == [0, 1]
    assert opened.is_closed


def test_no_unit_is_begun_once_the_budget_is_stopped() -> None:
    budget = Budget()
    begun: list[int] = []

    async def work(unit: Unit) -> UnitResult:
        begun.append(unit.number)
        if unit.number == 1:
            budget.stop(BudgetError("spent"))
            raise StoppedError
        return done(unit)

    found, error = collect(LocalExecutor(Opened(work), budget, 1), units(5))
    assert error is None
    assert begun == [0, 1]
    assert [unit.number for unit, _ in found] == [0], "a unit that the budget stopped has not ended"


def test_whoever_stops_iterating_ends_what_is_in_flight() -> None:
    cancelled: list[int] = []

    async def work(unit: Unit) -> UnitResult:
        if unit.number == 0:
            return done(unit)
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(unit.number)
            raise
        return done(unit)

    opened = Opened(work)
    found, error = collect(LocalExecutor(opened, Budget(), "auto"), units(3), most=1)
    assert error is None
    assert len(found) == 1
    assert set(cancelled) <= {1, 2}
    assert opened.is_closed


def test_an_error_of_whoever_iterates_is_the_one_that_comes_out() -> None:
    """A disk that is full while a row is written down, say."""

    async def work(unit: Unit) -> UnitResult:
        return done(unit)

    opened = Opened(work)

    async def run() -> None:
        async with aclosing(LocalExecutor(opened, Budget(), "auto").run(units(4))) as ended:
            async for _ in ended:
                raise OSError("No space left on device")

    with pytest.raises(OSError, match="No space left"):
        asyncio.run(run())
    assert opened.is_closed


def test_room_is_asked_for_with_auto_alone() -> None:
    asked: list[int] = []

    async def room() -> None:
        asked.append(1)

    async def work(unit: Unit) -> UnitResult:
        return done(unit)

    collect(LocalExecutor(Opened(work, room), Budget(), 2), units(3))
    assert asked == []
    collect(LocalExecutor(Opened(work, room), Budget(), "auto"), units(3))
    assert len(asked) == 3


def test_units_that_take_the_places_of_others_are_begun_in_one_turn_of_the_loop() -> None:
    """When many answers come in together, a turn takes long; the server would wait for a turn for each unit."""
    begun: list[int] = []
    turn, answers = 0, asyncio.Event()

    async def count_turns() -> None:
        nonlocal turn
        while True:
            await asyncio.sleep(0)
            turn += 1

    async def work(unit: Unit) -> UnitResult:
        begun.append(turn)
        if unit.number == 3:
            answers.set()
        await answers.wait()
        return done(unit)

    async def run() -> None:
        ticking = asyncio.create_task(count_turns())
        async with aclosing(LocalExecutor(Opened(work), Budget(), 4).run(units(8))) as ended:
            assert len([end async for end in ended]) == 8
        ticking.cancel()

    asyncio.run(run())
    assert len(set(begun[:4])) == 4, "each asks for its first answer before the next one begins"
    assert len(set(begun[4:])) < 4


# -- what comes back from replicas -----------------------------------------------------------------------------


def test_results_of_replicas_are_read_as_they_were() -> None:
    assert read_result({"done": [{"a": 1}, {"n": 2}, {"ok": 3}, None, None]}) == UnitResult(
        {"a": 1}, {"n": 2}, {"ok": 3}
    )
    kept = read_result({"done": [{"a": 1}, {}, {}, "/journal", {"requests": 2}]})
    assert isinstance(kept, UnitResult)
    assert str(kept.leftover) == "/journal"
    assert kept.usage == {"requests": 2}
    unfit = read_result({"unfit": ["too_short", "raw"]})
    assert isinstance(unfit, UnitFailedError)
    assert (unfit.rule, unfit.raw) == ("too_short", "raw")
    for is_judge, rule in ((False, "timeout"), (True, "judge_failure")):
        failed = read_result({"failed": [["server_error", "timeout"], "late", is_judge, {"ok": 4}]})
        assert isinstance(failed, RequestFailedError)
        assert (failed.rule, failed.detail, failed.before) == (rule, "late", {"ok": 4})


async def never() -> NoReturn:
    await asyncio.Event().wait()
    raise AssertionError


def read_all(make: Callable[[], Any], watch: Coroutine[Any, Any, NoReturn], found: list[int]) -> None:
    async def run() -> None:
        async for number in _from_thread(make, watch):
            found.append(number)  # noqa: PERF401 - what came before the error counts

    asyncio.run(run())


def test_a_thread_hands_over_all_and_then_its_error() -> None:
    def three() -> Any:
        yield from (1, 2, 3)
        raise ServerError("the servers are gone")

    found: list[int] = []
    with pytest.raises(ServerError, match="the servers are gone"):
        read_all(three, never(), found)
    assert found == [1, 2, 3]


def test_a_head_that_is_gone_ends_the_wait_for_results() -> None:
    """What had come in is handed over first; the thread that waits for the rest is left behind."""
    head = socket.create_server(("127.0.0.1", 0))
    address = "{}:{}".format(*head.getsockname())
    is_over = threading.Event()

    def two() -> Any:
        yield from (1, 2)
        while head.accept()[0].recv(1) != b"":  # until the watch has seen it
            pass
        head.close()
        is_over.wait()

    found: list[int] = []
    try:
        with pytest.raises(HeadGoneError, match=f"'{address}' is gone; finished work is kept: start .* again"):
            read_all(two, watch_head(address, 0.02), found)
    finally:
        is_over.set()
    assert found == [1, 2]


def test_a_head_that_never_was_in_reach_is_not_taken_for_gone() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = "{}:{}".format(*free.getsockname())

    async def run() -> None:
        await asyncio.wait_for(watch_head(address, 0.001), 0.2)

    with pytest.raises(TimeoutError):
        asyncio.run(run())


def test_an_address_that_nobody_listens_at_is_refused_before_ray_tries_it() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = "{}:{}".format(*free.getsockname())
        _check_reachable(address)
    with pytest.raises(ServerError, match=f"no Ray cluster answers at '{address}': start it"):
        _check_reachable(address)
    for other in ("auto", "local", "ray://head:10001", ""):
        _check_reachable(other)


@pytest.mark.parametrize("hangs", [True, False])
def test_a_shutdown_that_waits_for_a_silent_head_does_not_keep_the_process(hangs: bool) -> None:
    program = (
        "import atexit, sys, threading\n"
        "from stairdata.runs.executors.ray_cluster import leave_without_head\n"
        "atexit.register(print, 'the interpreter came to its own end')\n"
        f"leave_without_head({'threading.Event().wait' if hangs else 'int'}, 0.2)\n"
        "print('left')\n"
        "sys.exit(1)\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 1
    assert ended.stdout.splitlines() == ["left"] + ["the interpreter came to its own end"] * (not hangs)
