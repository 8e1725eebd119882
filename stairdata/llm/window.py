"""The requests in flight at one server: each holds a place, the others wait in line, first come, first served.

The invariant: `in_flight` is the number of places that are held, by a request that is under way or by one that was
given its place and has not run since. Whoever is cancelled in between passes the place on; no place is lost, and none
is given twice. How many places there are is decided by `ConcurrencyPolicy`.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from stairdata.llm.concurrency import MOST, START, ConcurrencyPolicy


class Slot:
    """The place of one request in flight."""

    def __init__(self, sent_at: float) -> None:
        self.sent_at = sent_at
        self.work = 0.0
        """What the answer was worth; tokens, say."""


class Window:
    """A bounded number of requests in flight.

    Args:
        most: never more than that.
        start: how many at first.
        clock: seconds, for tests.
    """

    def __init__(self, most: int = MOST, start: int = START, clock: Callable[[], float] = time.monotonic) -> None:
        self.in_flight = 0
        self._policy = ConcurrencyPolicy(most, start, clock())
        self._clock = clock
        self._is_open = False
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._watchers: list[asyncio.Future[None]] = []
        self._paused_until = 0.0

    @property
    def limit(self) -> int:
        """How many requests may be in flight."""
        return sys.maxsize if self._is_open else self._policy.size

    @property
    def has_room(self) -> bool:
        """Whether one more request would be sent without waiting; it would not pass those in line."""
        return self.in_flight < self.limit and not self._waiting and self._clock() >= self._paused_until

    async def room(self) -> None:
        """Wait until one more request would be sent without waiting.

        Those who begin a unit of work only then never begin more than the server can take. No place is held: another
        request may take it first.
        """
        while not self.has_room:  # which may be over before this coroutine runs
            watcher: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._watchers.append(watcher)
            await watcher

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[Slot]:
        """Hold a place for one request."""
        await self._enter()
        slot = Slot(self._clock())
        try:
            yield slot
        finally:
            self._policy.ended(
                slot.work, in_flight=self.in_flight, are_others_waiting=bool(self._waiting), now=self._clock()
            )
            self.in_flight -= 1
            self._admit()

    def overloaded(self, sent_at: float) -> None:
        """Note that a request sent then met a server with too much to do; many such make the window smaller."""
        self._policy.overloaded(sent_at, self._clock())

    def pause(self, seconds: float) -> None:
        """Send nothing for a while, because the server said so."""
        self._paused_until = max(self._paused_until, self._clock() + seconds)
        asyncio.get_running_loop().call_later(seconds, self._resume)

    def open(self) -> None:
        """Keep nobody waiting any more: the build is stopped, and whoever gets a place learns it and sends nothing."""
        self._is_open, self._paused_until = True, 0.0
        self._admit()

    def _resume(self) -> None:
        left = self._paused_until - self._clock()
        if left > 0:  # paused for longer meanwhile, or the timer was early by a hair
            asyncio.get_running_loop().call_later(left, self._resume)
        else:
            self._admit()

    async def _enter(self) -> None:
        if self.has_room:
            self.in_flight += 1
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():  # it was given its place already, which nobody else would free
                self.in_flight -= 1
                self._admit()
            raise

    def _admit(self) -> None:
        if self._clock() < self._paused_until:
            return
        while self._waiting and self.in_flight < self.limit:
            turn = self._waiting.popleft()
            if not turn.done():  # else it was cancelled while it was in line
                self.in_flight += 1  # here and not where it wakes up: until then a new one could take the place
                turn.set_result(None)
        if self.has_room:
            watchers, self._watchers = self._watchers, []
            for watcher in watchers:
                if not watcher.done():
                    watcher.set_result(None)
