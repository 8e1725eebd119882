"""Connections to a model server, kept open between requests, at a cost that does not grow with their number."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from typing import Any

import httpx2

IDLE_SECONDS = 5.0
"""A connection that was not used for so long is closed, as uvicorn, which serves vLLM, does on its side."""
ONE = httpx2.Limits(max_connections=1, max_keepalive_connections=1, keepalive_expiry=IDLE_SECONDS)


class ConnectionStack(httpx2.AsyncBaseTransport):
    """Opens a connection for each request in flight; of those that are idle, the one used last is used next.

    Each is a pool of one. A pool of many (httpcore2 2.16) looks at every connection whenever a request begins or ends,
    and asks the system about each idle one, so that a request takes twice the processor time with 324 in flight that it
    takes with 64 (docs/performance.md). How many there are is up to whoever sends; the client's window bounds it.

    Args:
        verify: as `httpx2.AsyncHTTPTransport` takes it, as is all the rest; limits on connections are not used.
    """

    def __init__(
        self,
        *,
        verify: Any = True,
        cert: Any = None,
        trust_env: bool = True,
        limits: httpx2.Limits | None = None,  # noqa: ARG002 - httpx2 passes its client's
        **options: Any,
    ) -> None:
        context = httpx2.create_ssl_context(verify, cert, trust_env)  # reading certificates takes tens of milliseconds
        self._options = options | {"verify": context, "trust_env": trust_env, "limits": ONE}
        self._idle: deque[tuple[float, httpx2.AsyncHTTPTransport]] = deque()
        """With when each was used last; the oldest first."""
        self._is_closed = False

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send a request over a connection that nobody uses, opening one where there is none."""
        connection = self._idle.pop()[1] if self._idle else httpx2.AsyncHTTPTransport(**self._options)
        try:
            response = await connection.handle_async_request(request)
        except BaseException:
            await self._give_back(connection)
            raise
        assert isinstance(response.stream, httpx2.AsyncByteStream)
        response.stream = _Borrowed(response.stream, connection, self)
        return response

    async def aclose(self) -> None:
        """Close the connections that are idle; one in use closes with its response."""
        self._is_closed = True
        while self._idle:
            await self._idle.pop()[1].aclose()

    async def _give_back(self, connection: httpx2.AsyncHTTPTransport) -> None:
        if self._is_closed:
            await connection.aclose()
            return
        now = asyncio.get_running_loop().time()
        self._idle.append((now, connection))
        while self._idle and self._idle[0][0] < now - IDLE_SECONDS:  # others may take all while one is closed
            await self._idle.popleft()[1].aclose()


class _Borrowed(httpx2.AsyncByteStream):
    """The body of a response; whoever closes it gives the connection back."""

    def __init__(
        self, stream: httpx2.AsyncByteStream, connection: httpx2.AsyncHTTPTransport, stack: ConnectionStack
    ) -> None:
        self._stream = stream
        self._connection: httpx2.AsyncHTTPTransport | None = connection
        self._stack = stack

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self._stream.__aiter__()

    async def aclose(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            try:
                await self._stream.aclose()
            finally:
                await self._stack._give_back(connection)
