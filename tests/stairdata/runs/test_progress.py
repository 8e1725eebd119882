"""What a running build tells."""

from __future__ import annotations

from typing import Any, cast

import pytest

from stairdata.llm.budget import Budget, Expense
from stairdata.llm.client import Client
from stairdata.recipe import Endpoint, Price
from stairdata.runs import progress
from stairdata.runs.progress import Meter
from stairdata.runs.units import WorkContext


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr("stairdata.runs.progress.time.monotonic", lambda: now[0])
    return now


def a_client(budget: Budget) -> Client:
    client = Client(Endpoint(concurrency=8), "http://127.0.0.1:1/v1", "actor", "none", budget=budget)
    client.tally.completion_tokens = 500
    client.window.in_flight = 3
    return client


def watching(meter: Meter, budget: Budget) -> Meter:
    async def unused(*_: Any) -> Any:
        raise AssertionError

    meter.watch(WorkContext(unused, cast("Any", unused), [a_client(budget)]))
    return meter


def test_speeds_cost_and_the_time_left(clock: list[float]) -> None:
    budget = Budget(prices={"actor": Price(input=1, output=1)}, spent=Expense(10, 1.0))
    meter = watching(Meter(2, 10, budget), budget)
    clock[0] += 10
    meter.iterations = 40
    assert meter.describe() == "4.0 iterations/s, 50 tokens/s, 3 of 8 requests in flight, cost 1.00"
    meter.done = 4
    budget.spent = Expense(20, 3.0)
    assert meter.describe() == (
        "4.0 iterations/s, 50 tokens/s, 3 of 8 requests in flight, cost 3.00 of about 9.00, about 30 s left"
    ), "what earlier runs did is neither in the speed nor in the expectation"


def test_what_is_not_known_is_left_out(clock: list[float]) -> None:
    budget = Budget()
    meter = watching(Meter(0, 10, budget), budget)
    clock[0] += 1
    assert meter.describe() == "500 tokens/s, 3 of 8 requests in flight"
    meter.done = 10
    assert meter.describe() == "500 tokens/s, 3 of 8 requests in flight"


def test_a_run_that_is_stopped_waits_for_its_requests(clock: list[float]) -> None:
    budget = Budget()
    meter = Meter(0, 10, budget)
    client = a_client(budget)
    meter.watch(WorkContext(cast("Any", None), cast("Any", None), [client]))
    client.window.open()
    clock[0] += 1
    assert meter.describe() == "500 tokens/s, waiting for 3 requests"


@pytest.mark.parametrize(("seconds", "words"), [(89, "89 s"), (90, "2 min"), (5399, "90 min"), (7200, "2.0 h")])
def test_durations(seconds: float, words: str) -> None:
    assert progress._duration(seconds) == words


def test_quiet_is_quiet(capsys: Any) -> None:
    progress.quiet("trees", 1, 2, "detail")
    assert capsys.readouterr() == ("", "")
