"""Several servers as one: who has room gets the work, what a dead one can't answer moves, and it is looked at again."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import Any

import pytest

from stairdata.llm.budget import Budget
from stairdata.llm.client import Generation, Sample, Tally
from stairdata.llm.endpoint_pool import RETRY_SECONDS, EndpointPool, EndpointUse, sum_uses, table_of_endpoints
from stairdata.llm.outcomes import Outcome, RequestFailedError
from stairdata.llm.window import Window
from stairdata.runs.executors.local import LocalExecutor
from stairdata.runs.units import Unit, UnitResult, WorkContext
from stairdata_schemas.errors import ServerError

ANSWER = Generation([Sample("text", "stop")], 3, 1)


class Server:
    """A client of a server that takes some turns of the event loop for each request."""

    model = "actor"

    def __init__(self, name: str, turns: int = 1, most: int = 4) -> None:
        self.base_url = f"http://{name}/v1"
        self.window = Window(most, most)
        self.tally = Tally()
        self.turns = turns
        self.dies_after: int | None = None
        self.is_gone = False
        self.looks = 0
        self.asked: list[Any] = []

    async def chat(self, messages: Any, **_: object) -> Generation:
        async with self.window.slot():
            self.tally.requests += 1
            self.asked.append(messages)
            for _turn in range(self.turns):
                await asyncio.sleep(0)
            if self.dies_after is not None and self.tally.requests > self.dies_after:
                self.is_gone = True
            if self.is_gone:
                raise ServerError(f"the LLM server at {self.base_url} no longer answers")
            self.tally.prompt_tokens += ANSWER.prompt_tokens
            self.tally.completion_tokens += ANSWER.completion_tokens
            return ANSWER

    async def check_model(self) -> str | None:
        self.looks += 1
        if self.is_gone:
            raise ServerError(f"the LLM server at {self.base_url} can't be used")
        return None


class HandClock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def pool_of(*servers: Server, clock: HandClock | None = None, is_spread: bool = True) -> EndpointPool:
    return EndpointPool(servers, clock=clock or HandClock(), is_spread=is_spread)  # type: ignore[arg-type]


def shares(pool: EndpointPool) -> list[int]:
    return [use.units for use in pool.uses().values()]


def work_through(
    pool: EndpointPool,
    count: int,
    *,
    each: Callable[[Unit], Awaitable[None]] | None = None,
    concurrency: Any = "auto",
) -> list[str]:
    """Let the local executor work on units of one request each, or of what `each` asks for; return who ended."""

    async def work(unit: Unit) -> UnitResult:
        await (each(unit) if each else pool.chat([unit.number]))
        return UnitResult({}, {}, {})

    @asynccontextmanager
    async def opened() -> Any:
        yield WorkContext(pool.keeping(work), pool.room, pool.clients, pools=[pool])

    async def run() -> list[str]:
        units = [Unit(f"unit-{number}", number, "", {}) for number in range(count)]
        async with aclosing(LocalExecutor(opened, Budget(), concurrency).run(units)) as ended:
            return [unit.key async for unit, _ in ended]

    return asyncio.run(run())


@pytest.mark.parametrize("concurrency", ["auto", 8])
def test_a_server_that_is_four_times_as_fast_gets_four_times_the_work(concurrency: Any) -> None:
    pool = pool_of(Server("slow", turns=80), Server("fast", turns=20))
    assert len(set(work_through(pool, 200, concurrency=concurrency))) == 200
    slow, fast = shares(pool)
    assert slow + fast == 200
    assert 3 <= fast / slow <= 5


def test_all_requests_of_a_unit_go_to_one_server() -> None:
    servers = [Server("a"), Server("b"), Server("c")]
    pool = pool_of(*servers)

    async def each(unit: Unit) -> None:
        await asyncio.gather(*(pool.chat([unit.number]) for _ in range(3)))
        await pool.chat([unit.number])

    work_through(pool, 30, each=each, concurrency=6)
    where = [{number for (number,) in server.asked} for server in servers]
    assert sum(map(len, where)) == 30, "no unit was at two of them"
    assert min(map(len, where)) > 1
    assert sum(len(server.asked) for server in servers) == 120


@pytest.mark.parametrize("after", [0, 1, 7])
def test_work_of_a_dead_server_moves(after: int, caplog: pytest.LogCaptureFixture) -> None:
    dying, sound = Server("dying", turns=5), Server("sound", turns=5)
    dying.dies_after = after
    pool = pool_of(dying, sound)
    assert len(set(work_through(pool, 40, concurrency=8))) == 40
    assert dying.tally.requests <= after + 4, "what was in flight, and nothing after that"
    assert len(caplog.messages) == 1
    assert "http://dying/v1 no longer answers; what it was working on continues elsewhere" in caplog.text
    assert shares(pool)[1] >= 40 - after


def test_a_unit_half_way_goes_on_elsewhere() -> None:
    first, second = Server("first"), Server("second")
    pool = pool_of(first, second)

    async def each(unit: Unit) -> None:
        await pool.chat(["beginning"])
        first.is_gone = True
        await asyncio.gather(*(pool.chat([number]) for number in range(3)))
        await pool.chat(["end"])

    work_through(pool, 1, each=each)
    assert second.asked == [[0], [1], [2], ["end"]]
    assert shares(pool) == [0, 1], "it ended there"


def test_the_last_server_ends_the_build_with_its_error() -> None:
    servers = [Server("a"), Server("b")]
    for server in servers:
        server.is_gone = True
    pool = pool_of(*servers)
    with pytest.raises(ServerError, match="http://b/v1 no longer answers"):
        asyncio.run(pool.chat([]))
    assert [server.tally.requests for server in servers] == [1, 1], "each was asked, and no one twice"


def test_one_server_alone_fails_as_it_is(caplog: pytest.LogCaptureFixture) -> None:
    server = Server("alone")
    server.is_gone = True
    with pytest.raises(ServerError, match="no longer answers"):
        asyncio.run(pool_of(server).chat([]))
    assert (server.looks, caplog.messages) == (0, [])


def test_a_refused_request_does_not_move() -> None:
    servers = [Server("a"), Server("b")]
    pool = pool_of(*servers)

    async def refuse(*_: Any, **__: Any) -> Generation:
        raise RequestFailedError([Outcome.INVALID_REQUEST], "no")

    servers[0].chat = refuse  # type: ignore[method-assign]
    with pytest.raises(RequestFailedError):
        asyncio.run(pool.chat([]))
    assert servers[1].asked == []


def test_a_server_that_comes_back_is_found_after_a_while(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    clock, back, other = HandClock(), Server("back"), Server("other")
    pool = pool_of(back, other, clock=clock)

    async def ask(times: int = 4) -> list[int]:
        before = [back.tally.requests, other.tally.requests]
        await asyncio.gather(*(pool.chat([]) for _ in range(times)))
        await asyncio.sleep(0)
        return [back.tally.requests - before[0], other.tally.requests - before[1]]

    async def run() -> None:
        back.is_gone = True
        assert await ask() == [2, 4]
        assert await ask() == [0, 4]
        clock.now += RETRY_SECONDS - 1
        assert await ask() == [0, 4]
        assert back.looks == 0, "not yet"
        clock.now += 1
        assert await ask() == [0, 4]
        assert back.looks == 1
        clock.now += 1
        assert await ask() == [0, 4]
        assert back.looks == 1, "it has another while"
        clock.now += RETRY_SECONDS
        back.is_gone = False
        await ask()
        assert await ask() == [2, 2]

    asyncio.run(run())
    assert "the LLM server at http://back/v1 answers again" in caplog.text


def test_a_server_that_was_lost_before_is_looked_at_when_the_last_one_goes() -> None:
    first, second = Server("first"), Server("second")
    pool = pool_of(first, second)

    async def run() -> None:
        first.is_gone = True
        await pool.chat([])
        first.is_gone, second.is_gone = False, True
        await pool.chat(["again"])

    asyncio.run(run())
    assert first.asked[-1] == ["again"]


def test_a_server_that_refuses_all_and_answers_looks_is_not_asked_for_ever() -> None:
    """An account that is out of credit, say."""
    servers = [Server("a"), Server("b")]

    async def answers() -> str | None:
        return None

    for server in servers:
        server.is_gone = True
        server.check_model = answers  # type: ignore[method-assign]
    with pytest.raises(ServerError):
        asyncio.run(pool_of(*servers).chat([]))
    assert sum(server.tally.requests for server in servers) == 2


def test_whoever_is_at_home_asks_others_only_once_home_is_gone() -> None:
    home, spare = Server("home"), Server("spare")
    pool = pool_of(home, spare, is_spread=False)
    home.dies_after = 10
    work_through(pool, 30, concurrency=8)
    assert home.tally.requests <= 14
    assert shares(pool) == [10, 20]


@pytest.mark.parametrize("gone", [[], [0], [1, 2], [0, 1, 2]])
def test_those_that_do_not_answer_at_first_count_as_gone(gone: Sequence[int]) -> None:
    servers = [Server(name) for name in "abc"]
    for number in gone:
        servers[number].is_gone = True
    pool = pool_of(*servers)

    async def run() -> None:
        await pool.look()
        await asyncio.gather(*(pool.chat([]) for _ in range(9)))

    if len(gone) == len(servers):
        with pytest.raises(ServerError, match="http://a/v1 can't be used"):
            asyncio.run(run())
        return
    asyncio.run(run())
    assert [bool(server.asked) for server in servers] == [number not in gone for number in range(3)]


def test_what_each_did_is_a_table() -> None:
    ours = {"http://a/v1": EndpointUse(3, 12, 1000, 234), "http://b:8000/v1": EndpointUse()}
    total = sum_uses([ours, {"http://a/v1": EndpointUse(1, 1, 1, 1)}])
    assert total["http://a/v1"] == EndpointUse(4, 13, 1001, 235)
    assert table_of_endpoints(total).splitlines() == [
        "what each endpoint did:",
        "  http://a/v1             4 units         13 requests         1,236 tokens",
        "  http://b:8000/v1        0 units          0 requests             0 tokens",
    ]
    assert table_of_endpoints({"http://a/v1": EndpointUse(1)}) == ""
