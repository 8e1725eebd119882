"""An error in the body of an HTTP 200, as routers and gateways send it: what it says, and which status it stands for.

OpenRouter (https://openrouter.ai/docs/api-reference/errors), once it has begun an answer, and several Chinese providers
report errors in this way.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from pydantic import BaseModel

from stairdata_schemas.errors import quote

WORDS = ("message", "msg", "error_msg", "detail", "error")
"""Keys under which servers put what went wrong, in an error object or at the top of a body."""
_NO_CREDIT = re.compile(r"insufficient[ _](?:credit|quota|balance|fund)|exceeded your current quota", re.IGNORECASE)
_BAD_KEY = re.compile(r"(?:invalid|incorrect|missing|no)[ _](?:api[ _]key|auth|token|credential)", re.IGNORECASE)
_ERROR_STATUS = re.compile(r"[45][0-9]{2}")
_TOO_MANY = re.compile(r"rate[ _-]?limit|too many requests", re.IGNORECASE)


class ErrorBody(NamedTuple):
    """What an error body says."""

    status: int | None
    """The HTTP status that it should have come with; None where that can't be told."""
    code: str | None
    message: str


def error_in(answer: Any) -> ErrorBody | None:
    """Return the error that a 200 carries instead of what was asked for; None where it carries none.

    Args:
        answer: what the openai package made of a body, or the body itself.
    """
    body = _mapping(answer)
    choices = body.get("choices")
    if isinstance(choices, list) and choices:
        first = _mapping(choices[0])
        return _read(first["error"]) if first.get("error") else None
    errors = body.get("errors")
    error = body.get("error") or (errors[0] if isinstance(errors, list) and errors else None)
    if error:
        return _read(error)
    is_error = body.get("object") == "error" or body.get("success") is False or "error_msg" in body
    return _read(body) if is_error or ("message" in body and "code" in body) or "detail" in body else None


def _mapping(answer: Any) -> Mapping[str, Any]:
    if isinstance(answer, BaseModel):
        return {**dict(answer), **(answer.model_extra or {})}
    if isinstance(answer, str):  # sent without the content type of JSON
        try:
            answer = json.loads(answer)
        except (ValueError, RecursionError):
            return {}
    return answer if isinstance(answer, Mapping) else {}


def _read(error: Any) -> ErrorBody:
    parts = _mapping(error) if not isinstance(error, str) else {"message": error}
    words = next((parts[name] for name in WORDS if parts.get(name)), error)
    message = words if isinstance(words, str) else quote(words)
    code = parts.get("code", parts.get("error_code"))
    kind = parts.get("type")
    named = next((name for name in (code, kind) if isinstance(name, str) and not name.isdigit()), None)
    return ErrorBody(_status(parts.get("status"), code, named, message), named, message)


def _status(status: Any, code: Any, named: str | None, message: str) -> int | None:
    for number in (code, status):
        # as a text first: int() refuses thousands of digits, and digits of some scripts
        if isinstance(number, int | str) and _ERROR_STATUS.fullmatch(str(number)):
            return int(number)
    said = f"{named or ''} {message}"
    for pattern, meaning in ((_NO_CREDIT, 402), (_BAD_KEY, 401), (_TOO_MANY, 429)):
        if pattern.search(said):
            return meaning
    return None
