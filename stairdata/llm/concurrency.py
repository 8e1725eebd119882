"""How many requests a server is sent at a time: a pure state machine. Events go in, a size comes out.

It grows while more requests in flight bring more work a second, then rests at the smallest size that brought (almost)
as much, and shrinks when the server is overloaded. It holds no requests and reads no clock: `window` does, and tells it
when a request has ended, or met a server with too much to do.

The invariant: the size is at least 1 and at most what was allowed, and it changes only at the end of an epoch or by a
burst of signs of overload, and by one burst only once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

START = 64
"""Half of what a server that is started here runs at a time (`ServerOptions.max_num_seqs`), so that it is not
overloaded, and two growths below more than it can use. Slow servers hardly get further: on the CPU of
docs/performance.md, with some 2.5 requests a second, one epoch takes almost a minute."""
MOST = 512
"""Beyond that requests would mostly wait inside the server, and a build that is stopped waits for all of them."""
GROWTH = 1.5
"""From START to MOST in six epochs, and never more than half too large when the server has had enough."""
GAIN = 0.04
"""A larger window has to bring that much more work a second. Half as many requests again that bring less only wait
longer, each 1.44 times as long; and runs of one benchmark differ by some per cent (docs/performance.md), so that less
can't be told from noise."""
PATIENCE = 2
"""Epochs without a gain until growing ends: a size that brings nothing is measured once more, since one epoch may be
slow for reasons of its own, such as longer prompts."""
PROBE_AFTER = 40
"""Epochs of rest until the window tries to grow again, because prompts and the server's other users change. A try that
is in vain takes PATIENCE epochs at a size too large: two in forty."""
EPOCH_ROUNDS = 2
"""Requests of an epoch, as a multiple of the window. When the size has just changed, one window of requests is still in
flight that was sent at the old size; half of the epoch's are of the new one."""
EPOCH_SECONDS = 1.0
"""A server that answers in milliseconds ends its rounds in less, where a pause of this program's own would decide."""
FULL = 0.8
"""Share of the window in use from which its speed says something about its size. There are always requests that have
ended and whose work has not sent the next one yet, so that all of it is hardly ever in use."""
TELLING = 0.9
"""Share of an epoch's requests that have to end with a full window; otherwise too little work was there, and the epoch
says nothing about the size."""
OVERLOAD_SHARE = 0.2
"""Share of a block's requests; more signs of overload (429, 503, a time-out) than that shrink the window. Any server
loses a request now and then, which is retried; a window that shrank for each would starve it."""
BLOCK = 20
"""Requests of a block at least, otherwise as many as the window holds: it takes five signs to shrink the smallest."""
SHRINKING = 0.8
"""A fifth less, and again if the next block is overloaded too. A larger step would take several epochs to grow back
from; after a smaller one the server goes on refusing."""


@dataclass(slots=True)
class _Epoch:
    """What was measured since some moment."""

    began: float
    work: float = 0.0
    ended: int = 0
    full: int = 0
    """Requests that ended while the window was full."""


class ConcurrencyPolicy:
    """Decides the size of a window from what happens to the requests in it; all times are of one clock, in seconds.

    Args:
        most: the size is never larger.
        start: the size at first.
        now: the time.
    """

    def __init__(self, most: int, start: int, now: float) -> None:
        self.size = min(start, most)
        self._most = most
        self._signs = 0
        self._in_block = 0
        self._shrunk_at = -math.inf
        self._best: tuple[float, int] | None = None
        """The speed that a larger window has to surpass, and the size that brought it."""
        self._misses = 0
        self._resting = 0
        """Epochs of rest that are left."""
        self._epoch = _Epoch(now)

    def ended(self, work: float, *, in_flight: int, are_others_waiting: bool, now: float) -> None:
        """Note that a request has ended, however it did.

        Args:
            work: what its answer was worth, tokens say; 0 for none.
            in_flight: requests until then, this one included.
            are_others_waiting: there was a request without a place.
            now: the time.
        """
        self._in_block += 1
        if self._in_block >= max(BLOCK, self.size):
            self._signs = self._in_block = 0
        epoch = self._epoch
        epoch.work += work
        epoch.ended += 1
        epoch.full += are_others_waiting or in_flight >= FULL * self.size
        if epoch.ended < EPOCH_ROUNDS * self.size or now - epoch.began < EPOCH_SECONDS:
            return
        self._epoch = _Epoch(now)
        if epoch.full >= TELLING * epoch.ended:
            self._decide(epoch.work / (now - epoch.began))

    def overloaded(self, sent_at: float, now: float) -> None:
        """Note that a request sent then met a server with too much to do.

        Args:
            sent_at: of one burst, the signs of requests that were sent before the window shrank say nothing new.
            now: the time.
        """
        self._signs += sent_at > self._shrunk_at
        if self._signs > OVERLOAD_SHARE * max(BLOCK, self.size):
            self._shrink(now)

    def _decide(self, speed: float) -> None:
        """Grow, stay or rest, with the speed of an epoch at the size of now."""
        if self._resting:
            self._resting -= 1
            if not self._resting:
                self._best = None  # an old speed is no measure for the next try
        elif self._best is None or speed > self._best[0] * (1 + GAIN):
            self._grow(speed)
        else:
            self._misses += 1
            if self._misses >= PATIENCE:
                self._rest(self._best[1])

    def _grow(self, speed: float) -> None:
        self._best, self._misses = (speed, self.size), 0
        self.size = min(self._most, math.ceil(self.size * GROWTH))

    def _rest(self, size: int) -> None:
        self._misses, self._resting = 0, PROBE_AFTER
        self.size = size

    def _shrink(self, now: float) -> None:
        self._signs = self._in_block = 0
        self._shrunk_at = now
        self.size = max(1, int(self.size * SHRINKING))
        # what was measured is no measure any more: the server isn't what it was
        self._best, self._misses, self._resting = None, 0, 0
        self._epoch = _Epoch(now)
