"""How many requests are sent at a time: as many as help, fewer under overload; all of it without an event loop."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stairdata.llm.concurrency import (
    BLOCK,
    EPOCH_ROUNDS,
    EPOCH_SECONDS,
    GAIN,
    OVERLOAD_SHARE,
    PATIENCE,
    PROBE_AFTER,
    SHRINKING,
    ConcurrencyPolicy,
)


def serve(
    speed: Callable[[int], float], *, most: int = 512, start: int = 32, requests: int = 20_000, refused: float = 0.0
) -> list[int]:
    """Serve requests of which there are always more; returns the size after each.

    Args:
        speed: the server's work a second with so many requests in flight.
        most: the policy's bound.
        start: the policy's size at first.
        requests: how many.
        refused: share of requests that meet a server with too much to do.
    """
    rng = random.Random(1)  # noqa: S311
    policy, now, sizes = ConcurrencyPolicy(most, start, 0.0), 0.0, []
    flight: list[tuple[float, int, float]] = []
    for number in range(requests):
        while len(flight) < policy.size:
            length = (len(flight) + 1) / speed(len(flight) + 1)
            heapq.heappush(flight, (now + length, number, now))
        in_flight = len(flight)
        now, _, sent_at = heapq.heappop(flight)
        policy.ended(1.0, in_flight=in_flight, are_others_waiting=True, now=now)
        if rng.random() < refused:
            policy.overloaded(sent_at, now)
        sizes.append(policy.size)
    return sizes


def epoch(policy: ConcurrencyPolicy, now: float, speed: float, *, in_flight: int | None = None) -> float:
    """Let one epoch pass in which the server did so much work a second; returns the time of its end."""
    size = policy.size
    for number in range(EPOCH_ROUNDS * size):
        is_last = number == EPOCH_ROUNDS * size - 1
        work, at = (speed * EPOCH_SECONDS, now + EPOCH_SECONDS) if is_last else (0.0, now)
        used = size if in_flight is None else in_flight
        policy.ended(work, in_flight=used, are_others_waiting=False, now=at)
    return now + EPOCH_SECONDS


@pytest.mark.parametrize("capacity", [40, 100, 300])
def test_it_grows_until_more_requests_bring_no_more_work(capacity: int) -> None:
    """A server whose throughput grows with its load up to some number of requests, and not beyond."""
    settled = serve(lambda flight: float(min(flight, capacity)))[-2000:]
    assert capacity / 1.6 <= min(settled)
    assert sum(settled) / len(settled) <= 2 * capacity


def test_it_stays_small_where_the_server_is_no_faster_with_more() -> None:
    assert sum(serve(lambda _: 20.0, start=8, requests=3000)[-500:]) / 500 <= 20


def test_it_never_passes_its_bound() -> None:
    assert max(serve(float, most=50, start=50, requests=2000)) == 50


@pytest.mark.parametrize(("share", "smallest", "largest"), [(0.05, 20, 512), (0.6, 1, 8)])
def test_few_refusals_leave_it_open_and_many_nearly_close_it(share: float, smallest: int, largest: int) -> None:
    """A server that refuses a share of its requests, whatever their number."""
    assert smallest <= serve(lambda _: 20.0, requests=3000, refused=share)[-1] <= largest


def test_growth_rest_and_the_next_try() -> None:
    policy, now, sizes = ConcurrencyPolicy(100, 10, 0.0), 0.0, [10]
    speeds = [10.0, 15.0] + [15.0 * (1 + GAIN / 2)] * (PATIENCE + PROBE_AFTER + 1)
    for speed in speeds:
        now = epoch(policy, now, speed)
        sizes.append(policy.size)
    misses, rest = [23] * (PATIENCE - 1), [15] * (PROBE_AFTER + 1)
    assert sizes == [10, 15, 23, *misses, *rest, 23]


def test_a_speed_with_the_window_half_empty_says_nothing() -> None:
    policy = ConcurrencyPolicy(100, 10, 0.0)
    for number in range(5):
        epoch(policy, number * EPOCH_SECONDS, 1000.0 * number, in_flight=5)
    assert policy.size == 10
    epoch(policy, 5 * EPOCH_SECONDS, 1.0, in_flight=8)
    assert policy.size == 15


def test_an_epoch_takes_its_time_however_fast_the_server_is() -> None:
    policy = ConcurrencyPolicy(100, 10, 0.0)
    for number in range(1000):
        policy.ended(1.0, in_flight=10, are_others_waiting=True, now=EPOCH_SECONDS * number / 1000)
    assert policy.size == 10
    policy.ended(1.0, in_flight=10, are_others_waiting=True, now=EPOCH_SECONDS)
    assert policy.size == 15


def test_one_burst_of_overload_shrinks_it_once() -> None:
    policy = ConcurrencyPolicy(100, 100, 0.0)
    for _ in range(int(OVERLOAD_SHARE * 100)):
        policy.overloaded(sent_at=0.5, now=1.0)
    assert policy.size == 100, "some requests are lost everywhere"
    for _ in range(70):
        policy.overloaded(sent_at=0.5, now=1.0)
    assert policy.size == int(100 * SHRINKING), "the others were sent before it shrank"
    for number in range(400):
        policy.overloaded(sent_at=2.0 + number, now=2.1 + number)
    assert policy.size == 1, "it never closes"


def test_signs_of_overload_are_forgotten_with_their_block() -> None:
    policy = ConcurrencyPolicy(10, 10, 0.0)
    for number in range(100):
        for _ in range(int(OVERLOAD_SHARE * BLOCK)):
            policy.overloaded(sent_at=number, now=number)
        for _ in range(BLOCK):
            policy.ended(1.0, in_flight=1, are_others_waiting=False, now=number)
    assert policy.size == 10


def test_what_was_measured_before_an_overload_counts_no_more() -> None:
    """The server is slower than it was; its speed of before would let it rest at a size that it can't serve."""
    policy = ConcurrencyPolicy(1000, 100, 0.0)
    now = epoch(policy, 0.0, 1000.0)
    for _ in range(50):
        policy.overloaded(sent_at=now, now=now)
    assert policy.size == 120
    epoch(policy, now, 1.0)
    assert policy.size == 180


EVENTS = st.tuples(st.booleans(), st.floats(0, 50), st.integers(1, 40), st.booleans(), st.floats(0, 3))


@given(st.lists(EVENTS, max_size=300), st.integers(1, 30), st.integers(1, 40))
def test_it_is_never_below_one_nor_above_its_bound_and_overload_never_makes_it_larger(
    events: list[tuple[bool, float, int, bool, float]], most: int, start: int
) -> None:
    policy, now = ConcurrencyPolicy(most, start, 0.0), 0.0
    for is_sign, work, in_flight, are_others_waiting, seconds in events:
        now += seconds
        before = policy.size
        if is_sign:
            policy.overloaded(now - work, now)
            assert policy.size <= before
        else:
            policy.ended(work, in_flight=in_flight, are_others_waiting=are_others_waiting, now=now)
        assert 1 <= policy.size <= most
