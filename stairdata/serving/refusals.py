"""Errors in OpenAI's form: what a request is told that gets no answer."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import Any

from starlette.responses import JSONResponse

from stairdata.llm.outcomes import Outcome, RequestFailedError
from stairdata.runs.units import UnitFailedError
from stairdata_schemas.errors import ServerError, quote

FINAL = {"x-should-retry": "false"}
"""The openai package sends a request again after each error of the server's, unless it is told not to."""
MESSAGE_SHOWN = 500
_log = logging.getLogger("stairdata")


class RefusedRequestError(Exception):
    """A request that is answered with an error.

    Args:
        message: what is wrong, and what to do.
        status: of HTTP.
        param: the part of the body that it is about.
        code: a word for programs.
        headers: of the answer.
    """

    def __init__(
        self,
        message: str,
        status: int = 400,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.message, self.status, self.param, self.code = message, status, param, code
        self.headers = dict(headers or {})

    @property
    def body(self) -> dict[str, Any]:
        """What OpenAI's servers send."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        if self.status == 429:
            kind = "rate_limit_exceeded"
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> JSONResponse:
        return JSONResponse(self.body, self.status, self.headers)


def refusal_of(error: BaseException) -> RefusedRequestError:
    """Say of a search that failed what its client may know."""
    if isinstance(error, RefusedRequestError):
        return error
    if isinstance(error, RequestFailedError):
        return _failed(error)
    if isinstance(error, UnitFailedError):
        return RefusedRequestError(f"the search found no answer ({error.rule})", 502, code=error.rule, headers=FINAL)
    for kind, status, code, message in _ENDS:
        if isinstance(error, kind):
            return RefusedRequestError(message, status, code=code, headers=FINAL)
    _log.error("error: a search failed: %s: %s", type(error).__name__, quote(error, MESSAGE_SHOWN))
    return RefusedRequestError("an error inside the server; its log says more", 500, code="internal", headers=FINAL)


_ENDS: tuple[tuple[type[BaseException], int, str, str], ...] = (
    (TimeoutError, 504, "timeout", "the search took longer than this server allows; ask for fewer max_tokens"),
    (asyncio.CancelledError, 503, "ended", "the server ends"),
    (ServerError, 503, "model_gone", "a model of this server is gone, and the server ends"),
)


def _failed(error: RequestFailedError) -> RefusedRequestError:
    if error.outcomes[-1] is Outcome.INVALID_REQUEST:
        return RefusedRequestError(_shown(error.detail), code=error.rule)
    message = f"the search found no answer ({error.rule}): {_shown(error.detail)}"
    return RefusedRequestError(message, 502, code=error.rule, headers=FINAL)


def _shown(words: str) -> str:
    return quote(words, MESSAGE_SHOWN)[1:-1]
