"""Retries: which ends are retried, how often, and how long is waited in between."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from stairdata.llm.budget import Budget
from stairdata.llm.outcomes import (
    FIRST_WAIT,
    LONGEST_WAIT,
    RETRIED,
    MalformedAnswerError,
    Outcome,
    RequestFailedError,
    RetryLimits,
    with_retries,
)


class Attempts:
    """Fails with each error in turn, then answers."""

    def __init__(self, *errors: Exception) -> None:
        self._errors = list(errors)
        self.made = 0

    async def __call__(self) -> str:
        self.made += 1
        if self._errors:
            raise self._errors.pop(0)
        return "fine"


def run(attempt: Callable[[], Awaitable[str]], retries: int) -> str:
    answer, _ = asyncio.run(with_retries(attempt, RetryLimits(retries, 900), lambda _: None, Budget().sleep))
    return answer


def test_an_answer_at_once_waits_for_nothing(waits: list[float]) -> None:
    assert run(Attempts(), 3) == "fine"
    assert waits == []


@pytest.mark.parametrize("error", [MalformedAnswerError("2 samples instead of 4"), ValueError("no JSON")])
def test_a_malformed_answer_is_asked_for_again(error: Exception, waits: list[float]) -> None:
    attempts = Attempts(error, error)
    assert run(attempts, 3) == "fine"
    assert (attempts.made, len(waits)) == (3, 2)


@pytest.mark.parametrize("retries", [0, 1, 5])
def test_retries_are_bounded_and_each_end_is_told(retries: int, waits: list[float]) -> None:
    attempts = Attempts(*[MalformedAnswerError(str(number)) for number in range(99)])
    with pytest.raises(RequestFailedError) as caught:
        run(attempts, retries)
    assert attempts.made == retries + 1
    assert caught.value.outcomes == [Outcome.MALFORMED] * (retries + 1)
    assert caught.value.detail == str(retries), "the last words count"


def test_waits_grow_and_have_a_ceiling(waits: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stairdata.llm.outcomes.random.uniform", lambda _, high: high)
    with pytest.raises(RequestFailedError):
        run(Attempts(*[MalformedAnswerError("") for _ in range(99)]), 9)
    assert waits == [0.5, 1, 2, 4, 8, 16, 30, 30, 30]
    assert (FIRST_WAIT, LONGEST_WAIT) == (0.5, 30)


def test_waits_have_full_jitter(waits: list[float]) -> None:
    with pytest.raises(RequestFailedError):
        run(Attempts(*[MalformedAnswerError("") for _ in range(99)]), 30)
    assert all(0 <= wait <= LONGEST_WAIT for wait in waits)
    assert len(set(waits)) == len(waits)


def test_what_is_no_failure_of_the_server_is_not_swallowed(waits: list[float]) -> None:
    with pytest.raises(ZeroDivisionError):
        run(Attempts(ZeroDivisionError()), 3)
    ended = RequestFailedError([Outcome.REFUSAL], "no")
    attempts = Attempts(ended)
    with pytest.raises(RequestFailedError) as caught:
        run(attempts, 3)
    assert caught.value is ended
    assert (attempts.made, waits) == (1, [])


def test_a_cancelled_request_is_not_retried(waits: list[float]) -> None:
    async def hang() -> str:
        await asyncio.Event().wait()
        return ""

    async def cancel() -> None:
        task = asyncio.ensure_future(with_retries(hang, RetryLimits(3, 900), lambda _: None, Budget().sleep))
        await asyncio.sleep(0)
        task.cancel()
        await task

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(cancel())
    assert waits == []


def test_ends_for_good_are_not_retried() -> None:
    answered = {Outcome.OK, Outcome.LENGTH, Outcome.ONLY_REASONING, Outcome.UNBELIEVABLE_USAGE}
    final = answered | {Outcome.REFUSAL, Outcome.CONTENT_FILTER, Outcome.INVALID_REQUEST}
    assert set(Outcome) - RETRIED == final
