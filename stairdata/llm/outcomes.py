"""How a request can end, and the retries that follow from it."""

from __future__ import annotations

import random
import time
from collections.abc import Awaitable, Callable, Collection, Sequence
from email.utils import parsedate_to_datetime
from enum import StrEnum
from typing import Any, NamedTuple, TypeVar

import httpx2
import openai

from stairdata.llm.wire.bounded_http import AnswerLimitError, RedirectError
from stairdata.llm.wire.error_bodies import ErrorBody, error_in
from stairdata_schemas.errors import ServerError, quote

T = TypeVar("T")

LONGEST_SAID = 10_000_000
"""Seconds. A server may ask for a wait of 309 digits."""
FIRST_WAIT = 0.5
LONGEST_WAIT = 30.0
"""Seconds. A retry waits for a random time of up to FIRST_WAIT, and the bound doubles with each up to LONGEST_WAIT."""


class Outcome(StrEnum):
    """The end of a request."""

    OK = "ok"
    LENGTH = "length"
    ONLY_REASONING = "only_reasoning"
    """Cut as well, before the answer began: all its tokens went into thoughts."""
    UNBELIEVABLE_USAGE = "unbelievable_usage"
    """Like those above, with numbers of tokens that an answer can't have taken: the most it can take is charged."""
    REFUSAL = "refusal"
    CONTENT_FILTER = "content_filter"
    INVALID_REQUEST = "invalid_request"
    RATE_LIMITED = "rate_limited"
    TIMEOUT = "timeout"
    CONNECTION = "connection"
    SERVER_ERROR = "server_error"
    MALFORMED = "malformed"


RETRIED = {Outcome.RATE_LIMITED, Outcome.TIMEOUT, Outcome.CONNECTION, Outcome.SERVER_ERROR, Outcome.MALFORMED}
"""The same request may go better next time."""
UNREACHABLE = {Outcome.TIMEOUT, Outcome.CONNECTION}
"""Perhaps there is no server any more."""
OVERLOADED = {408, 429, 503, 529}
"""Statuses of a server with too much to do; 529 is Anthropic's."""
FINAL_FOR_ALL = {401, 402}
"""Statuses of a key that is refused, and of an account without credit."""
FINAL_CODES = {"insufficient_quota", "billing_hard_limit_reached", "insufficient_credits", "invalid_api_key"}
"""Codes of the same, whatever the status."""
FORBIDDEN = 403
"""A key without rights, or one prompt that a provider does not take."""
THINKS_TOO_LONG = (
    "the model thought until max_tokens and did not begin its answer; raise max_tokens, or lower reasoning_effort"
)
WITHOUT_FORMAT = ("response_format", "json_schema", "structured output", "guided")
"""What servers without structured outputs call them when they refuse a request for them."""


class RequestFailedError(Exception):
    """A request that ended without an answer, after its retries.

    Attributes:
        outcomes: how each attempt ended, in order.
        detail: the server's words on the last one.
        before: how the requests of the same unit before it ended.
    """

    def __init__(self, outcomes: list[Outcome], detail: str) -> None:
        self.outcomes = outcomes
        self.detail = detail
        self.before: dict[str, int] = {}
        super().__init__(outcomes, detail)

    @property
    def rule(self) -> str:
        """What quarantine counts the unit under."""
        return str(self.outcomes[-1])

    def __str__(self) -> str:
        return f"{' '.join(self.outcomes)}: {self.detail}"


class JudgeFailedError(RequestFailedError):
    """A judge that answered, and never with a rating that can be read."""

    @property
    def rule(self) -> str:
        return "judge_failure"


def unreadable(what: str, asks: int, ended: Collection[str]) -> JudgeFailedError:
    """Return the failure of a judge whose words could not be read in any of its asks.

    Args:
        what: could not be read, and in which words.
        asks: how often the judge was asked.
        ended: how the requests ended; those of nothing but thoughts keep their outcome, with what to do about them.
    """
    thought = sum(1 for outcome in ended if outcome == Outcome.ONLY_REASONING)
    outcomes = [Outcome.MALFORMED] * (asks - thought) + [Outcome.ONLY_REASONING] * thought
    return JudgeFailedError(outcomes, f"{what}: {THINKS_TOO_LONG}" if thought else what)


class ControlTokensError(RequestFailedError):
    """A text with control tokens, to a model whose section of the recipe refuses such; nothing was sent.

    Args:
        tokens: those that it holds.
    """

    def __init__(self, tokens: Sequence[str]) -> None:
        super().__init__(
            [Outcome.INVALID_REQUEST],
            f"the text holds the control token {quote(tokens[0])}, and control_tokens of the model is refuse",
        )

    @property
    def rule(self) -> str:
        return "control_tokens"


class AttemptFailedError(Exception):
    """One attempt that failed.

    Attributes:
        outcome: how.
        detail: the server's words.
        retry_after: seconds that the server asks to wait.
        is_overload: the server has more to do than it can.
        is_final_for_all: no other request will fare better (a key that is refused, an account without credit).
        is_forbidden: the same, unless another request has fared better already.
        remedy: what to do about one that is final for all.
    """

    def __init__(
        self,
        outcome: Outcome,
        detail: str,
        retry_after: float | None = None,
        *,
        is_overload: bool = False,
        is_final_for_all: bool = False,
        is_forbidden: bool = False,
        remedy: str = "fix the key or the account",
    ) -> None:
        self.outcome = outcome
        self.detail = detail
        self.retry_after = retry_after
        self.is_overload = is_overload
        self.is_final_for_all = is_final_for_all
        self.is_forbidden = is_forbidden
        self.remedy = remedy
        super().__init__(detail)


class MalformedAnswerError(Exception):
    """A 200 whose body is not what was asked for."""


class ErrorAnswerError(MalformedAnswerError):
    """A 200 whose body is an error."""

    def __init__(self, error: ErrorBody) -> None:
        self.error = error
        super().__init__(error.message)


def check_answer(answer: Any) -> None:
    """Refuse an answer that is an error.

    Raises:
        ErrorAnswerError: it is one.
    """
    error = error_in(answer)
    if error is not None:
        raise ErrorAnswerError(error)


class RetryLimits(NamedTuple):
    """How long a request is tried."""

    retries: int
    """Attempts after the first."""
    seconds: float
    """No attempt begins later than that after the first failure."""


async def with_retries(
    attempt: Callable[[], Awaitable[T]],
    limits: RetryLimits,
    on_failure: Callable[[AttemptFailedError], None],
    sleep: Callable[[float], Awaitable[None]],
) -> tuple[T, list[Outcome]]:
    """Call until it succeeds, ends for good, or has been tried as long as it may.

    Returns:
        The answer, and how the attempts before it ended.

    Raises:
        RequestFailedError: with the outcome of each attempt.
        ServerError: the server asks for a longer wait than `limits` allow, or refuses everything.
    """
    outcomes: list[Outcome] = []
    first_failure = None
    while True:
        try:
            return await attempt(), outcomes
        except (openai.OpenAIError, MalformedAnswerError, ValueError, RecursionError) as error:
            failure = classify(error)
            failure.__cause__ = error
        outcomes.append(failure.outcome)
        now = time.monotonic()
        first_failure = now if first_failure is None else first_failure
        on_failure(failure)
        wait = _wait(failure, len(outcomes))
        is_over = len(outcomes) > limits.retries or now - first_failure + wait >= limits.seconds
        if is_over or failure.outcome not in RETRIED:
            _check_wait(failure, limits)
            raise RequestFailedError(outcomes, failure.detail) from failure
        await sleep(wait)


def _check_wait(failure: AttemptFailedError, limits: RetryLimits) -> None:
    if failure.retry_after is not None and failure.retry_after >= limits.seconds:
        raise ServerError(
            f"the LLM server asks to wait {_wait_in_words(failure.retry_after)}, longer than retry_seconds "
            f"({limits.seconds:g}), and says {quote(failure.detail)}; finished work is kept: try again after that"
        )


def _wait_in_words(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < LONGEST_SAID else f"more than {LONGEST_SAID} s"


def _wait(failure: AttemptFailedError, attempts: int) -> float:
    """Back off exponentially with full jitter, on top of what the server asked for."""
    ceiling = min(LONGEST_WAIT, FIRST_WAIT * 2 ** (attempts - 1))
    return (failure.retry_after or 0.0) + random.uniform(0, ceiling)  # noqa: S311


def classify(error: Exception) -> AttemptFailedError:
    """Say how an attempt ended, from what the openai package raised."""
    # most special first: a time-out is a connection error to the openai package
    if isinstance(error, openai.APITimeoutError):
        return AttemptFailedError(Outcome.TIMEOUT, "the server did not answer in time", is_overload=True)
    if isinstance(error, openai.APIConnectionError):
        return _from_connection(error.__cause__ or error)
    if isinstance(error, openai.APIStatusError):
        retry_after = _seconds(error.response.headers.get("retry-after"))
        return _from_status(error.status_code, getattr(error, "code", None), error.message, retry_after)
    if isinstance(error, ErrorAnswerError) and error.error.status is not None:
        return _from_status(error.error.status, error.error.code, error.error.message)
    return AttemptFailedError(Outcome.MALFORMED, str(error))


def _from_connection(cause: BaseException) -> AttemptFailedError:
    if isinstance(cause, RedirectError):
        remedy = "if the address is right, write it as base_url"
        return AttemptFailedError(Outcome.INVALID_REQUEST, str(cause), is_final_for_all=True, remedy=remedy)
    is_body = isinstance(cause, AnswerLimitError | httpx2.DecodingError)
    return AttemptFailedError(Outcome.MALFORMED if is_body else Outcome.CONNECTION, str(cause))


def _from_status(status: int, code: str | None, detail: str, retry_after: float | None = None) -> AttemptFailedError:
    outcome = outcome_of_status(status, code)
    return AttemptFailedError(
        outcome,
        detail,
        retry_after if outcome in RETRIED else None,
        is_overload=status in OVERLOADED,
        is_final_for_all=is_final_for_all(status, code),
        is_forbidden=status == FORBIDDEN and outcome is not Outcome.CONTENT_FILTER,
    )


def is_final_for_all(status: int | None, code: str | None) -> bool:
    """Return whether no other request of this key and account will fare better."""
    return status in FINAL_FOR_ALL or code in FINAL_CODES


def has_no_format(detail: str) -> bool:
    """Return whether a server's words on a refused request mean that it has no structured outputs."""
    return any(word in detail for word in WITHOUT_FORMAT)


def outcome_of_status(status: int, code: str | None) -> Outcome:
    """Say how a request ended, from the HTTP status and the error's code."""
    if status == 429:
        return Outcome.INVALID_REQUEST if code in FINAL_CODES else Outcome.RATE_LIMITED
    if status == 408:
        return Outcome.TIMEOUT
    if status >= 500:
        return Outcome.SERVER_ERROR
    return Outcome.CONTENT_FILTER if code == "content_filter" else Outcome.INVALID_REQUEST


def _seconds(header: str | None) -> float | None:
    """Read Retry-After: seconds, or a date."""
    try:
        seconds = float(header or "nan")
    except ValueError:
        try:
            seconds = parsedate_to_datetime(header or "").timestamp() - time.time()
        except (ValueError, OverflowError):
            return None
    return seconds if 0 < seconds < float("inf") else None
