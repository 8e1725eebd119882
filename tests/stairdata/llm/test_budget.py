"""What a build may spend: never more than it was told, and it stops in one place."""

from __future__ import annotations

import asyncio
import contextlib
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stairdata.llm.budget import Budget, BudgetLimits, Expense, StoppedError
from stairdata.recipe import Price
from stairdata_schemas.errors import BudgetError, RecipeError

PRICES = {"actor": Price(input=1.0, output=4.0), "judge": Price(input=0.5, output=2.0)}


def test_what_tokens_cost() -> None:
    budget = Budget(prices=PRICES)
    assert budget.price("actor", 1_000_000, 500_000) == Expense(1_500_000, 3.0)
    assert budget.price("unknown", 10, 20) == Expense(30, 0.0)


def test_a_limit_on_cost_needs_every_price() -> None:
    Budget(BudgetLimits(cost=1.0), PRICES).check_prices(["actor", "judge"])
    Budget(BudgetLimits(total_tokens=1)).check_prices(["unknown"])
    with pytest.raises(RecipeError, match=r"--max-cost needs the price of 'unknown'.*prices: \{unknown: \{input"):
        Budget(BudgetLimits(cost=1.0), PRICES).check_prices(["actor", "unknown"])


@given(
    st.lists(st.tuples(st.sampled_from(["actor", "judge"]), st.integers(0, 50), st.integers(1, 400)), max_size=40),
    st.integers(1, 3000),
    st.integers(0, 99),
)
def test_a_limit_is_never_exceeded_and_stops_only_where_nothing_fits(
    requests: list[tuple[str, int, int]], limit: int, seed: int
) -> None:
    """Whatever the answers turn out to take of what they could have taken, in whatever order they come."""
    rng = random.Random(seed)  # noqa: S311

    async def run() -> Budget:
        budget = Budget(BudgetLimits(total_tokens=limit), PRICES)

        async def ask(model: str, read: int, most: int) -> None:
            with contextlib.suppress(StoppedError):
                ticket = await budget.admit(model, read, most)
                for _ in range(rng.randrange(5)):
                    await asyncio.sleep(0)
                budget.settle(ticket, model, read, rng.randint(0, most))

        await asyncio.gather(*(ask(*request) for request in requests))
        return budget

    budget = asyncio.run(run())
    assert budget.spent.tokens <= limit
    if isinstance(budget.reason, BudgetError):
        assert any(budget.spent.tokens + read + most > limit for _, read, most in requests)
    else:
        assert budget.reason is None


def test_the_message_names_the_limit_and_what_is_spent() -> None:
    async def run(limits: BudgetLimits) -> str:
        budget = Budget(limits, PRICES)
        budget.charge(Expense(100, 0.5))
        with pytest.raises(StoppedError):
            await budget.admit("actor", 50, 50)
        return str(budget.reason)

    tokens = asyncio.run(run(BudgetLimits(total_tokens=150)))
    assert tokens.startswith("100 tokens are spent and the next request may use 100: more than --max-total-tokens 150")
    assert "run the same command again" in tokens
    assert "--max-cost 0.5" in asyncio.run(run(BudgetLimits(cost=0.5)))
    assert "--max-seconds 0" in asyncio.run(run(BudgetLimits(seconds=0)))


def test_stopping_wakes_those_who_wait_and_those_who_sleep() -> None:
    async def run() -> list[str]:
        budget, seen = Budget(BudgetLimits(total_tokens=100)), []
        budget.on_stop.append(lambda: seen.append("told"))
        await budget.admit("actor", 0, 60)

        async def wait() -> None:
            try:
                await budget.admit("actor", 0, 60)
            except StoppedError:
                seen.append("refused")

        async def sleep() -> None:
            await budget.sleep(900)
            seen.append("awake")

        tasks = [asyncio.ensure_future(wait()), asyncio.ensure_future(sleep())]
        await asyncio.sleep(0)
        budget.stop(KeyboardInterrupt())
        budget.stop(BudgetError("later"))
        await asyncio.gather(*tasks)
        assert isinstance(budget.reason, KeyboardInterrupt), "the first reason counts"
        return sorted(set(seen))

    assert asyncio.run(run()) == ["awake", "refused", "told"]


def test_an_answer_that_took_less_makes_room_for_the_next() -> None:
    async def run() -> None:
        budget = Budget(BudgetLimits(total_tokens=100))
        first = await budget.admit("actor", 0, 90)
        second = asyncio.ensure_future(budget.admit("actor", 0, 50))
        await asyncio.sleep(0)
        assert not second.done()
        budget.settle(first, "actor", 0, 10)
        assert await second
        assert budget.spent == Expense(10, 0.0)

    asyncio.run(run())


def test_what_is_counted_afterwards_stops_the_build_too() -> None:
    budget = Budget(BudgetLimits(total_tokens=10))
    budget.charge(Expense(10))
    budget.check_spent()
    budget.charge(Expense(1))
    with pytest.raises(StoppedError):
        budget.check_spent()
    assert isinstance(budget.reason, BudgetError)
