"""What a running build tells: how far it is, how fast, what it has cost, and how long it will take."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:  # it takes half a second to import, and builds without a model need it for nothing
    from stairdata.llm.budget import Budget
    from stairdata.llm.client import Client
    from stairdata.runs.units import WorkContext


class Progress(Protocol):
    """Called with what is being done, how much is done, how much there is (0: unknown), and details."""

    def __call__(self, what: str, done: int, total: int, detail: str = "") -> None: ...


def report_waiting(progress: Progress) -> Callable[[str, float], None]:
    """Return what reports that something takes its time, such as the start of a server: what, and seconds so far."""
    return lambda what, seconds: progress(f"{what} ({seconds:.0f} s)", 0, 0)


def quiet(what: str, done: int, total: int, detail: str = "") -> None:
    """Report to nobody."""


class Meter:
    """Speeds since the start of a run.

    Args:
        done: units that were finished before.
        total: units in all.
        budget: of the build; charged with what its earlier runs spent.
    """

    def __init__(self, done: int, total: int, budget: Budget) -> None:
        self.done = done
        self.total = total
        self.iterations = 0
        self._done_before = done
        self._context: WorkContext | None = None
        self._clients: Sequence[Client] = ()
        self._budget = budget
        self._cost_before = budget.spent.cost
        self._began = time.monotonic()

    def watch(self, context: WorkContext | None) -> None:
        """Measure speeds by what works, from when it is open."""
        if context is None or context is self._context:
            return
        self._context, self._clients = context, context.clients
        self._began = time.monotonic()

    def count(self, iterations: int) -> None:
        """Count a unit that has ended, and the iterations that it took."""
        self.done += 1
        self.iterations += iterations

    def describe(self) -> str:
        """Say it in one line; what is not known yet is left out."""
        seconds = max(time.monotonic() - self._began, 1e-9)
        live = self._context.iterations if self._context else None  # those of unfinished trees included
        iterations = live() if live else self.iterations
        tokens = sum(client.tally.completion_tokens for client in self._clients)
        in_flight = sum(client.window.in_flight for client in self._clients)
        window = sum(client.window.limit for client in self._clients)
        parts = [
            f"{iterations / seconds:.1f} iterations/s" if iterations else "",
            f"{tokens / seconds:.0f} tokens/s",
            f"{in_flight} of {window} requests in flight"
            if window < sys.maxsize
            else f"waiting for {in_flight} requests",
            self._describe_cost(),
            self._describe_rest(seconds),
        ]
        return ", ".join(part for part in parts if part)

    def _describe_cost(self) -> str:
        if not self._budget.prices:
            return ""
        cost, finished = self._budget.spent.cost, self.done - self._done_before
        if not finished:
            return f"cost {cost:.2f}"
        expected = self._cost_before + (cost - self._cost_before) * (self.total - self._done_before) / finished
        return f"cost {cost:.2f} of about {expected:.2f}"

    def _describe_rest(self, seconds: float) -> str:
        finished = self.done - self._done_before
        if not finished or self.done == self.total:
            return ""
        return f"about {_duration(seconds * (self.total - self.done) / finished)} left"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
