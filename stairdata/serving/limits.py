"""How much the server takes: sizes and times of a request, and how many are in work."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from stairdata.serving.refusals import RefusedRequestError

FIRST_GUESS = 5.0
"""Seconds that a search is taken to last before one has ended."""
NEWEST = 0.2
"""Weight of the search that ended last, in the mean."""
LONGEST_ASKED = 60
"""Seconds; the openai package does not wait for longer."""


@dataclass(frozen=True, slots=True)
class ServingLimits:
    """Of a server that searches."""

    in_flight: int = 16
    """Searches at a time; a request beyond these is answered 429 at once."""
    seconds: float = 600.0
    """Of a search."""
    body_bytes: int = 1_000_000
    body_seconds: float = 30.0
    """Until the body of a request has arrived."""
    messages: int = 100
    """Of a conversation."""
    characters: int = 200_000
    """Of all its messages."""
    keep_alive: float = 10.0
    """Seconds between the comments of a stream, while the search runs."""


@dataclass(slots=True)
class Admission:
    """Counts searches in work, and says to those in excess when to come again.

    Args:
        most: searches at a time.
        clock: seconds.
    """

    most: int
    clock: Callable[[], float] = time.monotonic
    in_work: int = 0
    _mean: float = field(default=FIRST_GUESS)

    def enter(self) -> Callable[[], None]:
        """Take a place, and return what gives it back; call that once.

        Raises:
            RefusedRequestError: 429, with Retry-After.
        """
        if self.in_work >= self.most:
            seconds = min(LONGEST_ASKED, max(1, math.ceil(self._mean / self.most)))
            raise RefusedRequestError(
                f"{self.in_work} searches are in work, and this server takes no more; try again in {seconds} s",
                429,
                code="too_many_requests",
                headers={"Retry-After": str(seconds)},
            )
        self.in_work += 1
        began = self.clock()

        def leave() -> None:
            self.in_work -= 1
            self._mean += NEWEST * (self.clock() - began - self._mean)

        return leave
