"""When model servers are at work during the stages of a run, and what keeps them idle."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from types import TracebackType
from typing import NamedTuple


class ServerTimes(NamedTuple):
    """The seconds of a stage, by what the servers did; they add up to the stage's."""

    busy: float = 0.0
    """At least one request was in flight."""
    starting: float = 0.0
    """A server was started, and none had a request."""
    before: float = 0.0
    """Before the first request, but for starts."""
    between: float = 0.0
    """After the first request and before the last, and none was in flight."""
    after: float = 0.0
    """After the last answer."""
    unused: float = 0.0
    """Of a stage that asked no server anything, but for starts."""

    def plus(self, other: ServerTimes) -> ServerTimes:
        return ServerTimes(*map(sum, zip(self, other, strict=True)))


class ServerWatch(AbstractContextManager[None]):
    """Measures what servers do, stage after stage; a request is in flight inside `with watch:`.

    Args:
        clock: seconds, for tests.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._in_flight = 0
        self._starting = 0
        self._since = clock()
        """Of the present state."""
        self._was_asked = False
        self._idle = 0.0
        """Since the last answer, or the stage's begin."""
        self._restart()

    def __enter__(self) -> None:
        if not self._in_flight:
            self._pass_time()
            if self._was_asked:
                self._between += self._idle
            else:
                self._before = self._idle
            self._idle, self._was_asked = 0.0, True
        self._in_flight += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._in_flight == 1:
            self._pass_time()
        self._in_flight -= 1

    @contextmanager
    def start(self) -> Iterator[None]:
        """Count what is inside as the start of a server, while no request is in flight."""
        self._pass_time()
        self._starting += 1
        try:
            yield
        finally:
            self._pass_time()
            self._starting -= 1

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch the servers that are asked and started inside; the first stage begins now."""
        self._since = self._clock()
        token = _WATCH.set(self)
        try:
            yield
        finally:
            _WATCH.reset(token)

    def end_stage(self) -> ServerTimes:
        """Return the times of the stage that ends now, and begin the next one."""
        self._pass_time()
        idle = self._idle
        ends = (self._before, self._between, idle, 0.0) if self._was_asked else (0.0, 0.0, 0.0, idle)
        times = ServerTimes(self._busy, self._start, *ends)
        self._restart()
        return times

    def _restart(self) -> None:
        self._busy = self._start = self._before = self._between = 0.0
        self._idle, self._was_asked = 0.0, False

    def _pass_time(self) -> None:
        """Count the time since the last change for the state that ends now."""
        now = self._clock()
        passed, self._since = now - self._since, now
        if self._in_flight:
            self._busy += passed
        elif self._starting:
            self._start += passed
        else:
            self._idle += passed


_WATCH: ContextVar[ServerWatch | None] = ContextVar("server_watch", default=None)


def request_in_flight() -> AbstractContextManager[None]:
    """Return what is entered for each request; it may be entered again while it is."""
    return _WATCH.get() or nullcontext()


def server_start() -> AbstractContextManager[None]:
    """Return what is entered while a server is waited for."""
    watch = _WATCH.get()
    return nullcontext() if watch is None else watch.start()
