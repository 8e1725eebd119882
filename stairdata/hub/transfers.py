"""Bounds on what the Hub sends: bytes and time of each answer, whatever it announces.

The client of huggingface_hub waits for each piece of an answer by itself, so that a server that sends a byte a second
never ends, and it keeps whatever comes. The transport here counts and watches the clock.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from threading import Event
from typing import Any

import httpx2

from stairdata_schemas.formats.limits import HUB_ANSWER_BYTES, scaled, size

FIRST_SECONDS = 60.0
"""That an answer may take, however small."""
SLOWEST = 16 * 1024
"""Bytes a second that an answer has to bring over the whole of its time, after that."""
_LIMIT: ContextVar[int | None] = ContextVar("limit", default=None)
_STOP: ContextVar[Event | None] = ContextVar("stop", default=None)
_CLOCK: ContextVar[_AnswerClock | None] = ContextVar("clock", default=None)


class _AnswerClock:
    """How long an answer takes: an upload counts before it, however long it takes."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """Begin again, since a piece of the request went out."""
        self._began = time.monotonic()

    def check(self, count: int) -> None:
        """End an answer of which too little has come."""
        seconds = time.monotonic() - self._began
        if seconds > FIRST_SECONDS + count / SLOWEST:
            raise TransferError(f"is too slow: {size(count)} in {seconds:.0f} seconds")


class TransferError(Exception):
    """An answer that is over a limit; the message says which."""


@contextmanager
def transfer_limit(limit: int) -> Iterator[None]:
    """Allow the answers to requests of this thread so many bytes."""
    token = _LIMIT.set(limit)
    try:
        yield
    finally:
        _LIMIT.reset(token)


@contextmanager
def stopped_by(event: Event) -> Iterator[None]:
    """End the answers to requests of this thread once an event is set."""
    token = _STOP.set(event)
    try:
        yield
    finally:
        _STOP.reset(token)


def end_xet_transfers() -> None:
    """End what this process sends and fetches by Xet; what follows goes over a new session."""
    from huggingface_hub.utils._xet import abort_xet_session

    abort_xet_session()  # type: ignore[no-untyped-call]


def bound_transfers() -> None:
    """Have the Hub's client go through the transport of this module, from now on."""
    from huggingface_hub import set_client_factory
    from huggingface_hub.utils import _http

    original = _http._GLOBAL_CLIENT_FACTORY
    if getattr(original, "is_bounded", False):
        return

    def bounded() -> httpx2.Client:
        client = original()
        client._transport = _Transport(client._transport)
        client._mounts = {pattern: inner and _Transport(inner) for pattern, inner in client._mounts.items()}
        return client

    bounded.is_bounded = True  # type: ignore[attr-defined]
    set_client_factory(bounded)


class _Transport(httpx2.BaseTransport):
    """Counts what comes, and ends what takes too long."""

    def __init__(self, inner: httpx2.BaseTransport) -> None:
        self._inner = inner
        pool: Any = getattr(inner, "_pool", None)
        if pool is not None:
            pool._network_backend = _Backend(pool._network_backend)

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        request.headers["accept-encoding"] = "identity"  # what is counted is what is kept
        is_file = "/resolve/" in request.url.path or "range" in request.headers
        limit = _LIMIT.get() or (None if is_file else scaled(HUB_ANSWER_BYTES))
        clock = _AnswerClock()
        token = _CLOCK.set(clock)
        try:
            response = self._inner.handle_request(request)
        finally:
            _CLOCK.reset(token)
        if response.headers.get("content-encoding", "identity") != "identity":
            response.close()
            raise TransferError("came compressed although that was not asked for")
        if request.method != "HEAD" and response.is_success:
            _check_announced(response, limit)
        response.stream = _Stream(response.stream, limit, clock)
        return response

    def close(self) -> None:
        self._inner.close()


class _Stream(httpx2.SyncByteStream):
    """The body of an answer."""

    def __init__(self, stream: Any, limit: int | None, clock: _AnswerClock) -> None:
        self._stream, self._limit, self._clock = stream, limit, clock
        self._stop = _STOP.get()

    def __iter__(self) -> Iterator[bytes]:
        count = 0
        for piece in self._stream:
            if self._stop is not None and self._stop.is_set():
                raise TransferError("was ended")
            count += len(piece)
            if self._limit is not None and count > self._limit:
                raise TransferError(f"is over the limit of {size(self._limit)}")
            self._clock.check(count)
            yield piece

    def close(self) -> None:
        self._stream.close()


class _Backend:
    """Opens connections that watch the clock until the head of an answer is there: it may come byte by byte, too."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def connect_tcp(self, *arguments: Any, **options: Any) -> Any:
        return _Connection(self._inner.connect_tcp(*arguments, **options))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


class _Connection:
    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def read(self, *arguments: Any, **options: Any) -> Any:
        clock = _CLOCK.get()
        if clock is not None:
            clock.check(0)
        return self._inner.read(*arguments, **options)

    def write(self, *arguments: Any, **options: Any) -> None:
        self._inner.write(*arguments, **options)
        clock = _CLOCK.get()
        if clock is not None:
            clock.restart()

    def start_tls(self, *arguments: Any, **options: Any) -> Any:
        return _Connection(self._inner.start_tls(*arguments, **options))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


def _check_announced(response: httpx2.Response, limit: int | None) -> None:
    announced = response.headers.get("content-length", "")
    if limit is not None and announced.isdecimal() and int(announced) > limit:
        response.close()
        raise TransferError(f"has {size(int(announced))}, over the limit of {size(limit)}")
