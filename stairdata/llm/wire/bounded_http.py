"""HTTP to a model server that may be anybody's: bounded in time and memory, and no prompt goes anywhere else.

The invariant: a request is over, with its last byte, when its time is; no more is read than what was asked for can take
up; and the body that the openai package then reads is plain, in memory and within that limit.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Iterator
from contextlib import aclosing, contextmanager
from contextvars import ContextVar
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Any, TypeVar

import httpx2
import openai

from stairdata.llm.wire.connections import ConnectionStack
from stairdata_schemas.errors import quote
from stairdata_schemas.network.body_limits import BodyLimit, BodyLimitError, BodyMeter

T = TypeVar("T")

SLOWEST = 65_536
"""Bytes per second. Uploads and downloads of files have that much longer than `timeout`."""
MEBIBYTE = 2**20
LARGE = MEBIBYTE
"""Bytes. As many answers are read at a time as requests are in flight; of those above that size, one."""
MOST_BYTES = 128 * MEBIBYTE
"""Of one answer, whatever was asked for."""
LISTING = BodyLimit(16 * MEBIBYTE, 200_000)
"""Of what is no answer of a model: models (OpenRouter's 500 take up one MiB), files, batches."""
ENVELOPE = BodyLimit(MEBIBYTE, 10_000)
"""Of all but the texts: usage, timings, citations, whatever else servers add; or of an error."""
SAMPLE_VALUES = 200
TOKEN_BYTES = 256
"""The longest tokens of today's vocabularies are 128 characters, and JSON may escape each."""
LOGPROB_BYTES = 1024
"""Of a token and its log-probability, its text, and its bytes as a list of numbers."""
LOGPROB_VALUES = 32
REWRITTEN = {b"content-encoding", b"content-length", b"transfer-encoding", b"content-type"}

_limit: ContextVar[BodyLimit] = ContextVar("limit", default=LISTING)


class AnswerLimitError(httpx2.TransportError):
    """An answer holds more than what was asked for can take up; it was not read to its end."""


class RedirectError(httpx2.TransportError):
    """A server sends a request elsewhere."""


@contextmanager
def body_limit(limit: BodyLimit) -> Iterator[None]:
    """Limit the answers to the requests of this block; without one, `LISTING` does."""
    token = _limit.set(limit)
    try:
        yield
    finally:
        _limit.reset(token)


def limit_for(*, samples: int, max_tokens: int, logprobs: int | None = None) -> BodyLimit:
    """Return what the answer of a model may hold, generously.

    Args:
        samples: that were asked for.
        max_tokens: length of each.
        logprobs: how many tokens were asked for in the place of each, beside its own; None is no log-probability.
    """
    tokens = samples * max_tokens
    entries = 0 if logprobs is None else tokens * (1 + logprobs)
    size = ENVELOPE.bytes + tokens * TOKEN_BYTES + entries * LOGPROB_BYTES
    values = (ENVELOPE.values or 0) + samples * SAMPLE_VALUES + entries * LOGPROB_VALUES
    return BodyLimit(min(size, MOST_BYTES), values)


class BoundedHttpClient(openai.DefaultAsyncHttpxClient):
    """What the openai package sends with, in place of its own client.

    The `timeout` of a request is the time that all of it may take, from connecting to the last byte. Redirects are
    refused, and cookies are not kept. Options are those of `httpx2.AsyncClient`.
    """

    def __init__(self, **options: Any) -> None:
        no_cookies = CookieJar(DefaultCookiePolicy(allowed_domains=[]))  # they would pile up, and go with each request
        super().__init__(cookies=no_cookies, **options)
        self._large = asyncio.Lock()

    async def send(self, request: httpx2.Request, *, stream: bool = False, **options: Any) -> httpx2.Response:
        """Send a request.

        Raises:
            httpx2.TimeoutException: it took too long.
            AnswerLimitError: the answer holds more than its limit; of a stream, where it is read.
            RedirectError: the answer is a redirect.
        """
        clock = _Clock(request)
        options["follow_redirects"] = False
        if not stream:
            return await clock.run(self._send_whole(request, options))
        response = await clock.run(super().send(request, stream=True, **options))
        try:
            _refuse_redirect(response, request)
        except BaseException:
            await response.aclose()
            raise
        return _plain(response, request, stream=_Body(response, request, clock))

    async def _send_whole(self, request: httpx2.Request, options: dict[str, Any]) -> httpx2.Response:
        response = await super().send(request, stream=True, **options)
        async with aclosing(response):
            _refuse_redirect(response, request)
            whole = await self._whole(_Body(response, request))
        return _plain(response, request, content=whole)

    # httpx2 offers no other way to replace its pools and still take the environment's proxies
    def _init_transport(self, *_: Any, **options: Any) -> httpx2.AsyncBaseTransport:
        given: httpx2.AsyncBaseTransport | None = options.pop("transport", None)
        return given or ConnectionStack(**options)

    def _init_proxy_transport(self, *proxy: Any, **options: Any) -> httpx2.AsyncBaseTransport:
        return ConnectionStack(proxy=proxy[0], **options)

    async def _whole(self, body: _Body) -> bytes:
        whole, pieces = bytearray(), aiter(body)
        async for piece in pieces:
            whole += piece
            if len(whole) > LARGE:
                async with self._large:
                    async for rest in pieces:
                        whole += rest
        return bytes(whole)


def _refuse_redirect(response: httpx2.Response, request: httpx2.Request) -> None:
    if 300 <= response.status_code < 400:
        where = quote(response.headers.get("location", ""))
        message = f"the server redirects to {where}, and a prompt goes nowhere but to base_url"
        raise RedirectError(message, request=request)


class _Clock:
    """The time that a request may take, from now on."""

    def __init__(self, request: httpx2.Request) -> None:
        self._request = request
        limits = [limit for limit in request.extensions.get("timeout", {}).values() if limit is not None]
        self._seconds = max(limits, default=None)
        self._end = None
        if self._seconds is not None:
            uploaded = int(request.headers.get("content-length", 0))
            self._end = asyncio.get_running_loop().time() + self._seconds + uploaded / SLOWEST

    def extend(self, received: int) -> None:
        """Allow for some bytes of a file that came."""
        if self._end is not None:
            self._end += received / SLOWEST

    async def run(self, step: Awaitable[T]) -> T:
        """Wait for a step of the request.

        Raises:
            httpx2.ReadTimeout: its time is over.
        """
        try:
            async with asyncio.timeout_at(self._end):
                return await step
        except TimeoutError as error:
            message = f"the answer was not complete after {self._seconds:g} s"
            raise httpx2.ReadTimeout(message, request=self._request) from error


class _Body(httpx2.AsyncByteStream):
    """A body as it arrives, decompressed in pieces and counted; timed, too, where a clock is given.

    What is read to its end under one time limit needs no clock; a file, which others read, does.
    """

    def __init__(self, response: httpx2.Response, request: httpx2.Request, clock: _Clock | None = None) -> None:
        self._response = response
        self._request = request
        self._clock = clock
        self._meter = BodyMeter(_with_echo(_limit.get(), request))

    async def __aiter__(self) -> AsyncGenerator[bytes]:
        async for piece in self._timed(self._response.aiter_bytes()):
            try:
                self._meter.count(piece)
            except BodyLimitError as error:
                raise AnswerLimitError(str(error), request=self._request) from error
            yield piece

    async def _timed(self, pieces: AsyncIterator[bytes]) -> AsyncGenerator[bytes]:
        if self._clock is None:
            async for piece in pieces:
                yield piece
            return
        # each piece by itself: a generator must not hold a time limit while others run
        while (following := await self._clock.run(anext(pieces, None))) is not None:
            self._clock.extend(len(following))
            yield following

    async def aclose(self) -> None:
        await self._response.aclose()


def _with_echo(limit: BodyLimit, request: httpx2.Request) -> BodyLimit:
    """Allow for a server that repeats what it was asked, as errors do."""
    if limit.values is None or not request.headers.get("content-type", "").startswith("application/json"):
        return limit
    asked = int(request.headers.get("content-length", 0))
    return BodyLimit(limit.bytes + 2 * asked, limit.values + asked // 2)


def _plain(response: httpx2.Response, request: httpx2.Request, **body: Any) -> httpx2.Response:
    """Return a response with a body that is not encoded any more."""
    headers = [(name, value) for name, value in response.headers.raw if name.lower() not in REWRITTEN]
    # without its parameters: Python takes "zlib" and "punycode" for charsets, too, and fails on one, or takes minutes
    kind = response.headers.get("content-type", "").partition(";")[0]
    headers += [(b"content-type", kind.encode("ascii", "replace"))] if kind else []
    return httpx2.Response(
        response.status_code, headers=headers, request=request, extensions=response.extensions, **body
    )
