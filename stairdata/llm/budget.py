"""What a build may spend, and the one place that stops it.

The invariant: a request is sent only if what is spent and the most that it and all others in flight can cost are within
the limits. It is admitted first, and the most that it can cost is set aside until its answer says what it did cost;
close to a limit, requests wait for the answers of others. A build that is stopped, by its budget or by
Ctrl-C, sends nothing new and waits for the answers to what is in flight, since they have to be paid for.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from stairdata.recipe import Price
from stairdata_schemas.errors import BudgetError, RecipeError

MILLION = 1_000_000


@dataclass(frozen=True, slots=True)
class BudgetLimits:
    """The most that a build may use up; None is no limit."""

    total_tokens: int | None = None
    """Prompt and completion tokens of all models, earlier runs of the build included."""
    cost: float | None = None
    """In the currency of the recipe's prices, earlier runs of the build included."""
    seconds: float | None = None
    """Of this run."""


class Expense(NamedTuple):
    """Tokens and what they cost."""

    tokens: int = 0
    cost: float = 0.0

    def plus(self, other: Expense) -> Expense:
        return Expense(self.tokens + other.tokens, self.cost + other.cost)


class StoppedError(Exception):
    """The build sends no more requests."""


@dataclass(slots=True)
class Budget:
    """Admits requests until a limit is reached or somebody stops it.

    Args:
        limits: what may be spent.
        prices: by model name.
    """

    limits: BudgetLimits = field(default_factory=BudgetLimits)
    prices: Mapping[str, Price] = field(default_factory=dict)
    spent: Expense = field(default_factory=Expense)
    elsewhere: Expense = field(default_factory=Expense)
    """What counts against the limits and is written down by somebody else: batches, spent or under way."""
    reason: BaseException | None = None
    """Why it was stopped."""
    on_stop: list[Callable[[], None]] = field(default_factory=list)
    """Called when it is stopped."""
    on_charge: Callable[[], None] = lambda: None
    """Called when something was spent."""
    _set_aside: dict[int, Expense] = field(default_factory=dict)
    _waiting: list[asyncio.Future[None]] = field(default_factory=list)
    _sleeping: list[asyncio.Future[None]] = field(default_factory=list)
    _tickets: int = 0
    _began: float = field(default_factory=time.monotonic)

    def check_prices(self, models: list[str]) -> None:
        """Refuse a limit on cost where a price is unknown.

        Raises:
            RecipeError: with the missing model's name.
        """
        unknown = [name for name in models if name not in self.prices]
        if self.limits.cost is not None and unknown:
            raise RecipeError(
                f"--max-cost needs the price of {unknown[0]!r}; add it to the recipe, in any currency per million "
                f"tokens: prices: {{{unknown[0]}: {{input: 0.5, output: 1.5}}}}; or leave --max-cost out"
            )

    @property
    def counts_tokens(self) -> bool:
        """Whether a limit depends on what answers take."""
        return self.limits.total_tokens is not None or self.limits.cost is not None

    def price(self, model: str, prompt_tokens: int, completion_tokens: int) -> Expense:
        """Say what some tokens cost; nothing where the price is unknown."""
        price = self.prices.get(model)
        cost = (prompt_tokens * price.input + completion_tokens * price.output) / MILLION if price else 0.0
        return Expense(prompt_tokens + completion_tokens, cost)

    async def admit(self, model: str, prompt_tokens: int, completion_tokens: int) -> int:
        """Let a request through, or wait until the others' answers make room for it.

        Args:
            model: its price.
            prompt_tokens: at most so many.
            completion_tokens: at most so many.

        Returns:
            A ticket for `settle`.

        Raises:
            StoppedError: nothing more is to be sent.
        """
        most = self.price(model, prompt_tokens, completion_tokens)
        while True:
            self.check_running()
            broken = self.broken_by(most)
            if broken is None:
                self._tickets += 1
                self._set_aside[self._tickets] = most
                return self._tickets
            if not self._set_aside:  # nobody whose answer could cost less than was set aside for it
                self.stop(
                    BudgetError(f"{broken}; finished work is kept: raise the limit and run the same command again")
                )
                raise StoppedError
            turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append(turn)
            await turn

    def settle(self, ticket: int, model: str, prompt_tokens: int, completion_tokens: int) -> None:
        """Replace what was set aside by what was used up; nothing, for a request that failed."""
        del self._set_aside[ticket]
        self.charge(self.price(model, prompt_tokens, completion_tokens))
        self._wake()

    def charge(self, spent: Expense) -> None:
        """Count what was spent, in an earlier run say, or on another machine."""
        self.spent = self.spent.plus(spent)
        self.on_charge()

    def stop(self, reason: BaseException) -> None:
        """Send nothing more; the first reason counts. Whoever waits or sleeps goes on, and is told to stop."""
        self.reason = self.reason or reason
        self._wake()
        for turn in self._sleeping:
            if not turn.done():
                turn.set_result(None)
        for act in self.on_stop:
            act()

    async def sleep(self, seconds: float) -> None:
        """Wait, but not longer than the build runs: a stopped one need not sit out a retry."""
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._sleeping.append(turn)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(turn, seconds)
        self._sleeping.remove(turn)

    def check_spent(self) -> None:
        """Stop where a limit is passed already, for those who count what they spend afterwards.

        Raises:
            StoppedError: it is, or the build was stopped before.
        """
        self.check_running()
        broken = self.broken_by(Expense())
        if broken is not None:
            self.stop(BudgetError(f"{broken}; finished work is kept: raise the limit and run the same command again"))
            raise StoppedError

    def check_running(self) -> None:
        """Refuse to go on once the build is stopped.

        Raises:
            StoppedError: it is.
        """
        seconds = self.limits.seconds
        if self.reason is None and seconds is not None and time.monotonic() - self._began >= seconds:
            over = f"--max-seconds {seconds:g} has passed; finished work is kept: run the same command again"
            self.stop(BudgetError(over))
        if self.reason is not None:
            raise StoppedError

    def broken_by(self, most: Expense, what: str = "the next request") -> str | None:
        """Name the limit that a request (or several) could break together with those in flight; None if it is safe."""
        if self.limits.total_tokens is None and self.limits.cost is None:
            return None
        so_far = self.spent.plus(self.elsewhere)
        parts = [so_far, most, *self._set_aside.values()]
        tokens, cost = sum(part.tokens for part in parts), sum(part.cost for part in parts)
        if self.limits.total_tokens is not None and tokens > self.limits.total_tokens:
            more = f" and {what} may use {most.tokens}" if most.tokens else ""
            return f"{so_far.tokens} tokens are spent{more}: more than --max-total-tokens {self.limits.total_tokens}"
        if self.limits.cost is not None and cost > self.limits.cost:
            more = f" and {what} may cost {most.cost:.4f}" if most.cost else ""
            return f"{so_far.cost:.4f} is spent{more}: more than --max-cost {self.limits.cost:g}"
        return None

    def _wake(self) -> None:
        waiting, self._waiting = self._waiting, []
        for turn in waiting:
            if not turn.done():
                turn.set_result(None)


def unpriced(model: str) -> str:
    """Say why a forecast has no cost."""
    return f"cost unknown: the recipe's prices have no {model!r}" if model else "cost unknown: no model is named"
