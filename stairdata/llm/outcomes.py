"""How a request can end, and the retries that follow from it."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from enum import StrEnum
from typing import TypeVar

import openai
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, stop_after_attempt

T = TypeVar("T")

FIRST_WAIT = 0.5
LONGEST_WAIT = 30.0


class Outcome(StrEnum):
    """The end of a request."""

    OK = "ok"
    LENGTH = "length"
    REFUSAL = "refusal"
    CONTENT_FILTER = "content_filter"
    INVALID_REQUEST = "invalid_request"
    RATE_LIMITED = "rate_limited"
    TIMEOUT = "timeout"
    CONNECTION = "connection"
    SERVER_ERROR = "server_error"
    MALFORMED = "malformed"


RETRIED = {Outcome.RATE_LIMITED, Outcome.TIMEOUT, Outcome.CONNECTION, Outcome.SERVER_ERROR, Outcome.MALFORMED}
UNREACHABLE = {Outcome.TIMEOUT, Outcome.CONNECTION}


class RequestFailedError(Exception):
    """A request that ended without an answer, after its retries.

    Attributes:
        outcomes: how each attempt ended, in order.
        detail: the server's words on the last one.
    """

    def __init__(self, outcomes: list[Outcome], detail: str) -> None:
        self.outcomes = outcomes
        self.detail = detail
        super().__init__(outcomes, detail)

    def __str__(self) -> str:
        return f"{' '.join(self.outcomes)}: {self.detail}"


class _AttemptFailedError(Exception):
    def __init__(self, outcome: Outcome, detail: str, retry_after: float | None = None) -> None:
        self.outcome = outcome
        self.detail = detail
        self.retry_after = retry_after
        super().__init__(detail)


class MalformedAnswerError(Exception):
    """A 200 whose body is not what was asked for."""


async def with_retries(attempt: Callable[[], Awaitable[T]], retries: int) -> T:
    """Call until it succeeds, ends for good, or has been retried `retries` times.

    Raises:
        RequestFailedError: with the outcome of each attempt.
    """
    outcomes: list[Outcome] = []

    async def classified() -> T:
        try:
            return await attempt()
        except (openai.OpenAIError, MalformedAnswerError, ValueError) as error:
            failure = _classify(error)
            outcomes.append(failure.outcome)
            raise failure from error

    retrying = AsyncRetrying(
        retry=retry_if_exception(lambda error: isinstance(error, _AttemptFailedError) and error.outcome in RETRIED),
        stop=stop_after_attempt(retries + 1),
        wait=_wait,
        reraise=True,
    )
    try:
        return await retrying(classified)
    except _AttemptFailedError as failure:
        raise RequestFailedError(outcomes, failure.detail) from failure


def _wait(state: RetryCallState) -> float:
    """Back off exponentially with full jitter, on top of what the server asked for (at most 30 s of that)."""
    error = state.outcome.exception() if state.outcome else None
    asked = error.retry_after if isinstance(error, _AttemptFailedError) else None
    ceiling = min(LONGEST_WAIT, FIRST_WAIT * 2 ** (state.attempt_number - 1))
    return (asked or 0.0) + random.uniform(0, ceiling)  # noqa: S311


def _classify(error: Exception) -> _AttemptFailedError:
    # most special first: a time-out is a connection error to the openai package
    if isinstance(error, openai.APITimeoutError):
        return _AttemptFailedError(Outcome.TIMEOUT, "the server did not answer in time")
    if isinstance(error, openai.APIConnectionError):
        return _AttemptFailedError(Outcome.CONNECTION, str(error.__cause__ or error))
    if isinstance(error, openai.APIStatusError):
        return _from_status(error)
    return _AttemptFailedError(Outcome.MALFORMED, str(error))


def _from_status(error: openai.APIStatusError) -> _AttemptFailedError:
    status, detail = error.status_code, error.message
    retry_after = _seconds(error.response.headers.get("retry-after"))
    if status == 429:
        return _AttemptFailedError(Outcome.RATE_LIMITED, detail, retry_after)
    if status == 408:
        return _AttemptFailedError(Outcome.TIMEOUT, detail, retry_after)
    if status >= 500:
        return _AttemptFailedError(Outcome.SERVER_ERROR, detail, retry_after)
    if getattr(error, "code", None) == "content_filter":
        return _AttemptFailedError(Outcome.CONTENT_FILTER, detail)
    return _AttemptFailedError(Outcome.INVALID_REQUEST, detail)


def _seconds(header: str | None) -> float | None:
    try:
        seconds = float(header or "nan")
    except ValueError:
        return None  # the HTTP date form; back-off alone has to do
    return min(seconds, LONGEST_WAIT) if seconds > 0 else None
