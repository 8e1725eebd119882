"""Executors yield each unit once and how it ended, and stop as the budget and the servers say."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import hypothesis.strategies as st
import pytest
from hypothesis import given

from stairdata.llm.budget import Budget, BudgetLimits, StoppedError
from stairdata.llm.outcomes import JudgeFailedError, Outcome, RequestFailedError
from stairdata.recipe import Endpoint, Recipe
from stairdata.recipe.section import Concurrency
from stairdata.runs.executors import ray_cluster
from stairdata.runs.executors.executor import Executor
from stairdata.runs.executors.local import LocalExecutor
from stairdata.runs.executors.ray_cluster import (
    HeadGoneError,
    RayExecutor,
    _check_reachable,
    read_result,
    watch_head,
)
from stairdata.runs.executors.ray_replicas import ReplicaPool, ReplicaWorker
from stairdata.runs.units import Unit, UnitFailedError, UnitResult, WorkContext, Workload
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
    executor: Executor, todo: Sequence[Unit], most: int | None = None
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


class Replica:
    """What Ray's handle of an actor looks like; `work` and `open` are methods that are asked by `remote`."""

    def __init__(self, work: Callable[[Unit], Awaitable[str]], reasons: Sequence[str | None] = ()) -> None:
        self._reasons = list(reasons)
        self.is_closed = False
        self.work = SimpleNamespace(remote=work)
        self.open = SimpleNamespace(options=lambda **_: SimpleNamespace(remote=self._open))
        self.close = SimpleNamespace(remote=self._close)

    async def _open(self) -> str | None:
        return self._reasons.pop(0) if self._reasons else None

    async def _close(self) -> None:
        self.is_closed = True


async def never() -> NoReturn:
    await asyncio.Event().wait()
    raise AssertionError


def result_of(unit: Unit) -> str:
    return json.dumps({"done": [{"key": unit.key}, {}, {}, None, None], "spent": [7, 0.0], "uses": {}})


def run_on(
    replicas: Sequence[Replica],
    todo: Sequence[Unit],
    in_flight: int = 2,
    watch: Callable[[], Coroutine[Any, Any, NoReturn]] = never,
    budget: Budget | None = None,
) -> tuple[list[str], BaseException | None]:
    """Return the keys that came back from replicas, and the error that ended it."""
    recipe = Recipe.model_validate({"actor": {"base_url": "http://127.0.0.1:1/v1"}})
    executor = RayExecutor(OwnWork(recipe, Path()), budget or Budget(), in_flight, None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ray_cluster, "_cluster", lambda _: nullcontext())
        patch.setattr(ray_cluster, "_head_address", str)
        patch.setattr(ray_cluster, "watch_head", lambda _: watch())
        patch.setattr(pytest.importorskip("ray"), "kill", lambda _: None)
        patch.setattr(executor, "_check_sendable", lambda: None)
        pool = ReplicaPool(lambda number: replicas[number], len(replicas), in_flight)
        patch.setattr(executor, "_replicas", lambda: pool)
        found, error = collect(executor, todo)
    return [unit.key for unit, _ in found], error


@dataclass(frozen=True)
class OwnWork(Workload):
    """The work of a test."""

    opened: Opened | None = None

    @property
    def asked(self) -> Endpoint:
        return self.recipe.actor

    def open(self, *_: Any) -> AbstractAsyncContextManager[WorkContext]:
        assert self.opened is not None
        return self.opened()


@pytest.mark.slow
@given(st.lists(st.sets(st.integers(0, 11)), min_size=1, max_size=3), st.integers(1, 4))
def test_each_unit_comes_back_once_whichever_replicas_die_of_which(deaths: list[set[int]], in_flight: int) -> None:
    """A replica dies of each unit of its set, once, and whatever else it has in flight is given to others, too."""
    from ray.exceptions import ActorDiedError, ActorUnavailableError, ObjectLostError

    errors = (ActorDiedError(), ActorUnavailableError("gone", None), ObjectLostError("", None, ""))
    under_way: list[int] = []

    def replica(dies_of: set[int]) -> Replica:
        async def work(unit: Unit) -> str:
            assert unit.number not in under_way, "one replica at a time works on a unit"
            under_way.append(unit.number)
            await asyncio.sleep(0)
            under_way.remove(unit.number)
            if unit.number in dies_of:
                dies_of.remove(unit.number)
                raise errors[unit.number % 3]
            return result_of(unit)

        return Replica(work)

    keys, error = run_on([replica(set(dies_of)) for dies_of in deaths], units(12), in_flight)
    assert error is None
    assert sorted(keys) == sorted(unit.key for unit in units(12))


@pytest.mark.parametrize("in_flight", [1, 3])
def test_a_unit_that_ends_each_replica_that_takes_it_ends_the_work_when_all_others_are_done(in_flight: int) -> None:
    from ray.exceptions import ActorDiedError

    taken = Counter[int]()

    def replica() -> Replica:
        async def work(unit: Unit) -> str:
            taken[unit.number] += 1
            await asyncio.sleep(0)
            if unit.number == 2:
                raise ActorDiedError
            return result_of(unit)

        return Replica(work)

    keys, error = run_on([replica(), replica()], units(40), in_flight)
    assert sorted(keys) == sorted(unit.key for unit in units(40) if unit.number != 2)
    assert isinstance(error, ServerError)
    assert "lost 10 times in a row" in str(error)
    assert taken[2] < 100


def test_units_of_a_group_are_with_one_replica_at_a_time() -> None:
    by: dict[int | None, list[int]] = {}

    def replica(number: int) -> Replica:
        async def work(unit: Unit) -> str:
            by.setdefault(unit.group, []).append(number)
            await asyncio.sleep(0)
            return result_of(unit)

        return Replica(work)

    todo = [unit._replace(group=unit.number % 3) for unit in units(12)]
    keys, error = run_on([replica(number) for number in range(3)], todo)
    assert error is None
    assert sorted(keys) == sorted(unit.key for unit in todo)
    assert [len(set(replicas)) for replicas in by.values()] == [1, 1, 1]


def test_work_goes_on_while_a_replica_has_no_place_or_no_server_and_ends_when_none_is_left(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def hang(unit: Unit) -> str:
        return await never()

    async def work(unit: Unit) -> str:
        return result_of(unit)

    async def lose(unit: Unit) -> str:
        return json.dumps({"gone": "the LLM server no longer answers"})

    placeless, works = Replica(hang), Replica(work)
    placeless.open = SimpleNamespace(options=lambda **_: SimpleNamespace(remote=never))
    lost = [Replica(lose), Replica(work, ["no such model"] * 2)]
    keys, error = run_on([placeless, *lost, works], units(6))
    assert error is None
    assert len(keys) == 6
    assert works.is_closed
    assert not placeless.is_closed, "it would be waited for"
    for reason in ("the LLM server no longer answers", "no such model"):
        assert f"a replica on the Ray cluster can't work, the others go on: {reason}" in caplog.text
    keys, error = run_on([Replica(lose), Replica(work, ["no such model"] * 2)], units(6))
    assert keys == []
    assert isinstance(error, ServerError)


def test_a_limit_stops_what_replicas_do() -> None:
    async def work(unit: Unit) -> str:
        return result_of(unit)

    keys, error = run_on([Replica(work)], units(6), 1, budget=Budget(BudgetLimits(total_tokens=10)))
    assert error is None
    assert keys == ["unit-0", "unit-1"]


def test_a_head_that_is_gone_ends_the_wait_for_results() -> None:
    """What had come in is handed over first; nobody waits for the rest, or for replicas to close."""
    head = socket.create_server(("127.0.0.1", 0))
    address = "{}:{}".format(*head.getsockname())

    async def work(unit: Unit) -> str:
        if unit.number < 2:
            return result_of(unit)
        while (await asyncio.to_thread(head.accept))[0].recv(1) != b"":  # until the watch has seen it
            pass
        head.close()
        return await never()

    replica = Replica(work)
    keys, error = run_on([replica], units(3), 1, lambda: watch_head(address, 0.02))
    assert isinstance(error, HeadGoneError)
    assert f"'{address}' is gone; finished work is kept: start the cluster again" in str(error)
    assert keys == ["unit-0", "unit-1"]
    assert not replica.is_closed


def test_a_replica_says_how_each_unit_ended(tmp_path: Path) -> None:
    endings: list[UnitResult | Exception] = [
        done(units(1)[0])._replace(leftover=tmp_path / "journal"),
        RequestFailedError([Outcome.TIMEOUT], "late"),
        JudgeFailedError([Outcome.TIMEOUT], "late"),
        UnitFailedError("too_short", "raw"),
    ]

    async def work(unit: Unit) -> UnitResult:
        if unit.number == len(endings):
            raise ServerError("gone")
        end = endings[unit.number]
        if isinstance(end, Exception):
            raise end
        return end

    async def run() -> None:
        opened = Opened(work)
        recipe = Recipe.model_validate({"actor": {"base_url": "http://127.0.0.1:1/v1"}})
        replica = ReplicaWorker(OwnWork(recipe, tmp_path, opened), 0)
        for unit, end in zip(units(4), endings, strict=True):
            said = json.loads(await replica.work(unit))
            assert said["spent"] == [0, 0.0]
            came = read_result(said)
            assert (type(came), getattr(came, "rule", None)) == (type(end), getattr(end, "rule", None))
            assert not isinstance(came, UnitResult) or came == end
        assert json.loads(await replica.work(units(5)[4])) == {"gone": "gone"}
        assert await replica.open() is None
        await replica.close()
        assert (opened.times, opened.is_closed) == (1, True)

    asyncio.run(run())


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


@pytest.mark.slow
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
