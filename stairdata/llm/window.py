"""How many requests one server is sent at a time: as many as make it faster, fewer while it is overloaded.

The window grows while more requests in flight bring more work a second, and then stays at the smallest size that
brought (almost) as much. Signs of overload (429, 503, time-outs) shrink it as soon as they are more than a few: any
server loses a request now and then, and would be starved if each one counted. Of one burst of signs those that belong
to requests sent before the last shrinking say nothing new.
"""

from __future__ import annotations

import asyncio
import math
import sys
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

START = 64
MOST = 512
GROWTH = 1.5
SHRINKING = 0.8
OVERLOADED = 0.2  # share of the requests of a block; more signs than that shrink the window
BLOCK = 20  # requests, or as many as the window holds
GAIN = 0.04  # a larger window has to bring that much more work a second
PATIENCE = 2  # epochs without a gain until growing ends
PROBE_AFTER = 40  # epochs after which a window at rest tries to grow again
EPOCH_SECONDS = 2.0
EPOCH_ROUNDS = 2  # requests of an epoch, as a multiple of the window
FULL = 0.8  # share of the window in use from which on its speed says something about its size


class Slot:
    """One request in flight."""

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
        self.limit = min(start, most)
        self.in_flight = 0
        self._most = most
        self._clock = clock
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._watchers: list[asyncio.Future[None]] = []
        self._paused_until = 0.0
        self._shrunk_at = -math.inf
        self._signs = 0
        self._ended = 0
        self._pace = Pace(clock())

    @property
    def has_room(self) -> bool:
        """Whether one more request would be sent at once."""
        return self.in_flight < self.limit and not self._waiting and self._clock() >= self._paused_until

    async def room(self) -> None:
        """Wait until one more request would be sent at once."""
        while not self.has_room:
            watcher: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._watchers.append(watcher)
            await watcher

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[Slot]:
        """Hold a place for one request; first come, first served."""
        await self._enter()
        slot = Slot(self._clock())
        try:
            yield slot
        finally:
            self.in_flight -= 1
            self._measure(slot.work)
            self._admit()

    def overloaded(self, sent_at: float) -> None:
        """Note that a request sent then met a server with too much to do; shrink if there are many such."""
        self._signs += sent_at > self._shrunk_at
        if self._signs <= OVERLOADED * max(BLOCK, self.limit):
            return
        self._signs = self._ended = 0
        self._shrunk_at = self._clock()
        self.limit = max(1, int(self.limit * SHRINKING))
        self._pace.restart(self._shrunk_at)

    def pause(self, seconds: float) -> None:
        """Send nothing for a while, because the server said so."""
        self._paused_until = max(self._paused_until, self._clock() + seconds)
        asyncio.get_running_loop().call_later(seconds, self._resume)

    def open(self) -> None:
        """Keep nobody waiting any more, since nothing is to be sent."""
        self.limit, self._paused_until = sys.maxsize, 0.0
        self._admit()

    def _resume(self) -> None:
        left = self._paused_until - self._clock()
        if left > 0:  # paused for longer meanwhile, or the timer was early by a hair
            asyncio.get_running_loop().call_later(left, self._resume)
        else:
            self._admit()

    async def _enter(self) -> None:
        if not self.has_room:
            turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append(turn)
            try:
                await turn
            except asyncio.CancelledError:
                if turn.done() and not turn.cancelled():  # its place was given to it and nobody will use it
                    self.in_flight -= 1
                    self._admit()
                raise
            return
        self.in_flight += 1

    def _admit(self) -> None:
        if self._clock() < self._paused_until:
            return
        while self._waiting and self.in_flight < self.limit:
            turn = self._waiting.popleft()
            if not turn.done():
                self.in_flight += 1
                turn.set_result(None)
        if self.has_room:
            watchers, self._watchers = self._watchers, []
            for watcher in watchers:
                if not watcher.done():
                    watcher.set_result(None)

    def _measure(self, work: float) -> None:
        self._ended += 1
        if self._ended >= max(BLOCK, self.limit):
            self._signs = self._ended = 0
        was_full = bool(self._waiting) or self.in_flight + 1 >= FULL * self.limit
        self._pace.add(work, was_full=was_full)
        wanted = self._pace.verdict(self.limit, self._clock())
        if wanted is not None:
            self.limit = max(1, min(self._most, wanted))


class Pace:
    """Decides from the work done in each epoch whether a larger window is worth it."""

    def __init__(self, now: float) -> None:
        self._best: tuple[float, int] | None = None
        self._misses = 0
        self._resting = 0
        self._begin(now)

    def restart(self, now: float) -> None:
        """Forget what was measured: the server isn't what it was."""
        self._best, self._misses, self._resting = None, 0, 0
        self._begin(now)

    def add(self, work: float, *, was_full: bool) -> None:
        """Count a request that has ended; `was_full` if the window held as many as it may."""
        self._work += work
        self._ended += 1
        self._full += was_full

    def verdict(self, limit: int, now: float) -> int | None:
        """Return the window to go on with, if an epoch is over."""
        if self._ended < EPOCH_ROUNDS * limit or now - self._began < EPOCH_SECONDS:
            return None
        speed, is_telling = self._work / (now - self._began), self._full >= 0.9 * self._ended
        self._begin(now)
        return self._decide(speed, limit) if is_telling else None

    def _decide(self, speed: float, limit: int) -> int:
        if self._resting:
            self._resting -= 1
            if not self._resting:
                self._best = None
            return limit
        if self._best is None or speed > self._best[0] * (1 + GAIN):
            self._best, self._misses = (speed, limit), 0
            return math.ceil(limit * GROWTH)
        self._misses += 1
        if self._misses < PATIENCE:
            return limit
        self._misses, self._resting = 0, PROBE_AFTER
        return self._best[1]

    def _begin(self, now: float) -> None:
        self._began, self._work, self._ended, self._full = now, 0.0, 0, 0
