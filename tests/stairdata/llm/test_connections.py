"""Connections to a server are used again, closed when idle for long, and go through the environment's proxies."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import httpx2
import pytest

from stairdata.llm.wire import connections
from stairdata.llm.wire.bounded_http import BoundedHttpClient

ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"


class Server:
    """Answers each request, all at once when as many as `together` are there."""

    def __init__(self, together: int = 1, answer: bytes = ANSWER, *, closes: bool = False) -> None:
        self.opened = 0
        self.open = 0
        self.all_closed = asyncio.Event()
        self.heads: list[bytes] = []
        self._answer = answer
        self._closes = closes
        self._all_there = asyncio.Barrier(together)

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.opened += 1
        self.open += 1
        self.all_closed.clear()
        try:
            while True:
                self.heads.append(await reader.readuntil(b"\r\n\r\n"))
                await self._all_there.wait()
                writer.write(self._answer)
                await writer.drain()
                if self._closes:
                    break
        except asyncio.IncompleteReadError:
            pass
        finally:
            self.open -= 1
            if not self.open:
                self.all_closed.set()
            writer.close()


def serve(server: Callable[[], Server], work: Callable[[str, Server], Awaitable[Any]]) -> Server:
    """Let something be done with a server on this machine."""

    async def run() -> Server:
        answering = server()
        listening = await asyncio.start_server(answering, "127.0.0.1", 0)
        async with listening:
            await work(f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}/", answering)
        return answering

    return asyncio.run(run())


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "ALL_PROXY", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)


def test_a_connection_is_used_again() -> None:
    async def work(url: str, server: Server) -> None:
        async with BoundedHttpClient() as client:
            while len(server.heads) < 5:
                assert (await client.get(url)).text == "ok"

    server = serve(Server, work)
    assert (server.opened, len(server.heads)) == (1, 5)


def test_as_many_are_open_as_requests_are_in_flight() -> None:
    async def work(url: str, server: Server) -> None:
        async with BoundedHttpClient() as client:
            for _ in range(3):
                await asyncio.gather(*(client.get(url) for _ in range(20)))
            assert server.open == 20
        await asyncio.wait_for(server.all_closed.wait(), 30)

    assert serve(lambda: Server(together=20), work).opened == 20


def test_a_connection_that_is_idle_for_long_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "IDLE_SECONDS", -1.0)

    async def work(url: str, server: Server) -> None:
        async with BoundedHttpClient() as client:
            await asyncio.gather(*(client.get(url) for _ in range(20)))
            await asyncio.wait_for(server.all_closed.wait(), 30)

    serve(lambda: Server(together=20), work)


def test_a_connection_that_the_server_closed_is_replaced() -> None:
    async def work(url: str, server: Server) -> None:
        async with BoundedHttpClient() as client:
            for _ in range(3):
                assert (await client.get(url)).text == "ok"
                await asyncio.wait_for(server.all_closed.wait(), 30)

    assert serve(lambda: Server(closes=True), work).opened == 3


def test_one_that_is_in_use_when_its_client_closes_is_closed_with_its_answer() -> None:
    async def work(url: str, server: Server) -> None:
        stack = connections.ConnectionStack()
        answer = await stack.handle_async_request(httpx2.Request("GET", url))
        await stack.aclose()
        assert server.open == 1
        await answer.aread()
        await asyncio.wait_for(server.all_closed.wait(), 30)

    serve(Server, work)


def test_an_answer_that_is_cut_off_frees_its_connection() -> None:
    async def work(url: str, server: Server) -> None:
        async with BoundedHttpClient() as client:
            for _ in range(2):
                with pytest.raises(httpx2.RemoteProtocolError):
                    await client.get(url)
            await asyncio.wait_for(server.all_closed.wait(), 30)

    assert serve(lambda: Server(answer=ANSWER[:-1], closes=True), work).opened == 2


def test_a_proxy_of_the_environment_is_used_where_that_is_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    async def work(url: str, _: Server) -> None:
        monkeypatch.setenv("HTTP_PROXY", url)
        for is_wanted in (True, False):
            async with BoundedHttpClient(trust_env=is_wanted) as client:
                await client.get(url if not is_wanted else "http://elsewhere.invalid/")

    server = serve(Server, work)
    assert [head.split(b"\r\n")[0] for head in server.heads] == [
        b"GET http://elsewhere.invalid/ HTTP/1.1",
        b"GET / HTTP/1.1",
    ]
